"""Three rules of MedVLThinker (UCSC-VLAA/MedVLThinker, commit a3163b1): evaluation, training reward,
regrade.

All three compare without case and outer white space: the answer must be the gold letter, "letter. text" or
the text. They differ in what they take for the answer.

* `evaluation` (eval/run_offline_inference.py, the published table): inside of the first <answer>, which may
  span lines, else the whole text. Known defects: "(A)", "A.", "A) CT" and a repeated question are wrong; of
  two different answers the first counts; an unclosed <answer> is wrong.
* `reward` (train/my_reward.py): the same, but 0 unless the text is exactly
  <think>..</think><answer>..</answer> (a trailing newline is enough for 0), and the answer may not span
  lines: "<answer>\\nA\\n</answer>" is 0.
* `regrade` (analysis/regrade_eval_results.py, its Maj@N and Pass@N): first line of the last <answer>, else
  what follows the last "answer:", "answer is:", "answer is" or "is:" on its line, else the whole text.
  Known defects: reasoning that ends in "is: ..." is read as the answer; "The answer is A." is wrong for its
  full stop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lite_medrl.data.reading.verdict import AnswerType, Verdict, label_of

_ACROSS_LINES = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ON_ONE_LINE = re.compile(r"<answer>(.*?)</answer>")
_WHOLE = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_LEADS = [
    re.compile(lead + r"\s*(.*)\s*", re.IGNORECASE) for lead in ("answer:", "answer is:", "answer is", "is:")
]
_TAGS = re.compile(r"</?think>|</?answer>")


def evaluation(text: str, gold: str, options: Sequence[str] | None, answer_type: AnswerType) -> Verdict:
    """Right or wrong as in the published table."""
    found = _ACROSS_LINES.search(text)
    return _graded(found[1] if found else text, gold, options)


def reward(text: str, gold: str, options: Sequence[str] | None, answer_type: AnswerType) -> Verdict:
    """Format times accuracy, as in their GRPO."""
    if not _WHOLE.fullmatch(text):
        return Verdict(0.0)
    found = _ON_ONE_LINE.search(text)
    return _graded(found[1] if found else text, gold, options)


def regrade(text: str, gold: str, options: Sequence[str] | None, answer_type: AnswerType) -> Verdict:
    """Right or wrong as in their regraded results."""
    return _graded(_TAGS.sub("", _regraded(text)), gold, options)


def _regraded(text: str) -> str:
    tagged = _ACROSS_LINES.findall(text)
    if tagged:
        inside = tagged[-1].strip()
        return inside.replace("\r", "\n").lstrip().split("\n", 1)[0].strip()
    for lead in _LEADS:
        stated = lead.findall(text)
        if stated:
            return stated[-1].strip()
    return text.strip()


def _graded(answer: str, gold: str, options: Sequence[str] | None) -> Verdict:
    label, reading = label_of(gold, options), answer.strip()
    accepted = [gold] if label is None else [gold, label, f"{label}. {gold}"]
    return Verdict(float(reading.lower() in [text.strip().lower() for text in accepted]), reading)
