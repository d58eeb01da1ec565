"""Two rules of MedBridgeRL (armenjeddi/medbridgerl, commit 1d93246): the kit's Pass@K and the GRPO reward.

* `kit` (inference.py). Options: the first capital standing alone inside <answer> (upper-cased first; an
  unclosed tag gives its first line), if it is an option's letter; else the letter after "answer" or
  "final"; else the first capital standing alone in the whole text. Without options: inside of <answer>,
  else the last line, equal to the gold but for case, outer punctuation and spaces. Known defects: the
  article in "A chest radiograph .. (C)" is read as A, also inside <answer> in lower case; the text of an
  option without its letter is read by any capital in it or not at all; the letter's own text is never
  looked at ("A. MRI" is A).
* `reward` (GRPO-CARE's accuracy): inside of the last <answer>, else the whole text, equal to the gold
  letter but for case, line breaks and a final full stop. Known defects: a bare "B" without any tag is
  right; the option's text is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lite_medrl.data.reading.verdict import AnswerType, Verdict, label_of

_CLOSED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.IGNORECASE | re.DOTALL)
_OPENED = re.compile(r"<answer>\s*(.*)$", re.IGNORECASE | re.DOTALL)
_CAPITAL = re.compile(r"\b([A-Z])\b")
_STATED = re.compile(r"(?:answer|final)\s*[:\-]?\s*([A-Z])\b", re.IGNORECASE)
_LEAD = re.compile(r"^(?:answer|final)\s*[:\-]\s*", re.IGNORECASE)
_EDGES = re.compile(r"^[\s\W_]+|[\s\W_]+$")
_REWARDED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def kit(text: str, gold: str, options: Sequence[str] | None, answer_type: AnswerType) -> Verdict:
    """Right or wrong as in the kit's Pass@K."""
    label = label_of(gold, options)
    if options and label is not None:
        letter = _letter(text, [chr(ord("A") + place) for place in range(len(options))])
        return Verdict(float(letter == label), letter)
    reading, wanted = _normal(_free(text)), _normal(gold)
    return Verdict(float(bool(wanted) and reading == wanted), reading)


def reward(text: str, gold: str, options: Sequence[str] | None, answer_type: AnswerType) -> Verdict:
    """Accuracy as rewarded in training; their gold is the letter where there are options."""
    found = _REWARDED.findall(text)
    reading = _rewarded(found[-1].strip() if found else text.strip())
    return Verdict(float(reading == _rewarded(label_of(gold, options) or gold.strip())), reading)


def _letter(text: str, letters: Sequence[str]) -> str | None:
    tagged = _tagged(text)
    places = ((_CAPITAL, tagged.strip().upper() if tagged else ""), (_STATED, text), (_CAPITAL, text.strip()))
    for pattern, where in places:
        found = pattern.search(where)
        if found and found[1].upper() in letters:
            return found[1].upper()
    return None


def _free(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return _LEAD.sub("", (_tagged(text) or last).strip()).strip()


def _tagged(text: str) -> str | None:
    closed = _CLOSED.search(text)
    if closed:
        return closed[1].strip()
    opened = _OPENED.search(text)
    lines = opened[1].strip().splitlines() if opened else []
    return next((line.strip() for line in lines if line.strip()), None)


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", _EDGES.sub("", text.strip().lower()))


def _rewarded(text: str) -> str:
    found = _REWARDED.findall(text)
    cleaned = found[-1] if found else text
    for sign in "\n\r":
        cleaned = re.sub(rf"(?<!\s){sign}", " ", re.sub(rf"(?<=\s){sign}", "", cleaned))
    return cleaned.strip().rstrip(".").lower()
