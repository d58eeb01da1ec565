"""The rules of MedEvalKit (alibaba-damo-academy/MedEvalKit, commit 9b12e3b) as they are without a judge
model.

What counts is the inside of the last \\boxed{} or of all <answer> tags together, then what follows the last
of "answer is", "answer:", "final answer" and the like.

* choice (PMC-VQA, MedXpertQA, OmniMedVQA, MMMU's neighbours): text up to the first full stop and after the
  last colon, equal to a letter or an option; anything else gets the most similar option by difflib: it
  always guesses. Known defects: "(B)" and "B) MRI" are guessed; a space after the colon of "Option: B" is
  too much.
* yes_no (VQA-RAD, PathVQA): yes or no anywhere, inside words too, but not both, and the gold among them.
  Known defects: "normal heart size" is a no; "yes, there is no doubt" is wrong.
* closed (SLAKE): equal to the gold once line breaks and full stops are gone; only a gold spelt "yes" or
  "no" in lower case goes the way of yes_no, so SLAKE's own "Yes" and "No" do not.
* open: exact match is the score. Known defect: the three figures come back in the order F1, precision,
  recall and are stored as precision, recall, F1, so that the published "recall" is precision and the "f1"
  is recall.

Without effect here, as they belong to the judge: closed hits counted twice on SLAKE. An empty text stops
their program; here it scores 0. Not restated: BLEU, ROUGE.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from lite_medrl.data.reading.verdict import YES_NO, AnswerType, Verdict, label_of

_BOXED = r"\boxed{"
_LEADS = (
    "**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:", "final answer",
    "final answer is",
)  # fmt: skip


def nojudge(text: str, gold: str, options: Sequence[str] | None, answer_type: AnswerType) -> Verdict:
    """The score of one answer, by the rule for its type."""
    if answer_type == "choice" and options:
        return _choice(text, gold, options)
    said = _tagged(text)
    if answer_type == "closed":
        return (_yes_no if gold in YES_NO else _closed)(said, gold.lower())
    said, wanted = said.lower().strip(), gold.lower().strip()
    return _yes_no(said, wanted) if answer_type == "yes_no" else _open(said, wanted)


def _choice(text: str, gold: str, options: Sequence[str]) -> Verdict:
    letters = [chr(ord("a") + place) for place in range(len(options))]
    names = [option.lower() for option in options]
    answer = (label_of(gold, options) or gold).strip().lower()
    plain = _stated(_lone_letter(text.lower(), letters)).strip().lower().replace("\n", "")
    said = plain.split(".")[0].split(":")[-1]
    if said == answer:
        return Verdict(1.0, said)
    if said in letters:
        return Verdict(float(names[letters.index(said)] == answer), said)
    if said in names:
        return Verdict(float(answer in letters and said == names[letters.index(answer)]), said)
    place = _most_similar(names, plain)
    return Verdict(float(answer in (letters[place], names[place])), names[place])


def _lone_letter(text: str, letters: Sequence[str]) -> str:
    """The first or last paragraph where it is a letter (the last one up to its full stop), or the text."""
    paragraphs = text.split("\n\n")
    ends = (paragraphs[0], paragraphs[-1].split(".")[0])
    return next((end for end in ends if end in letters), text)


def _most_similar(names: Sequence[str], said: str) -> int:
    shares = [SequenceMatcher(None, name, said).ratio() for name in names]
    return shares.index(max(shares))


def _yes_no(said: str, wanted: str) -> Verdict:
    plain = _stated(said).replace("\n", "").replace(".", "")
    one_of_two = ("yes" in plain) != ("no" in plain)
    return Verdict(float(one_of_two and wanted in plain), plain)


def _closed(said: str, wanted: str) -> Verdict:
    plain = _stated(said).replace("\n", "").replace(".", "")
    return Verdict(float(plain == wanted), plain)


def _open(said: str, wanted: str) -> Verdict:
    plain = _stated(said)
    ours, theirs = set(plain.lower().split()), set(wanted.split())
    common = len(ours & theirs)
    precision, recall = (common / len(side) if common else 0.0 for side in (ours, theirs))
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    swapped = {"precision": f1, "recall": precision, "f1": recall}
    return Verdict(float(plain == wanted), plain, parts={"em": float(plain == wanted)} | swapped)


def _tagged(text: str) -> str:
    boxed = _boxed(text)
    if boxed is not None and boxed != "None":
        return boxed
    return _inside(text)


def _stated(text: str) -> str:
    plain = text.lower()
    if "boxed" in plain:
        boxed = _boxed(plain)
        plain = "None" if boxed is None else boxed
    else:
        plain = _inside(plain)
    for lead in _LEADS:
        plain = plain.split(lead)[-1]
    return plain


def _inside(text: str) -> str:
    """All complete <answer> contents, each followed by a space; the text itself where there are none."""
    pieces = []
    start = text.find("<answer>")
    while start != -1:
        end = text.find("</answer>", start)
        if end == -1:
            break
        pieces.append(text[start + len("<answer>") : end])
        start = text.find("<answer>", end)
    return " ".join(pieces).strip() or text


def _boxed(text: str) -> str | None:
    """Inside of the last \\boxed{} with its own braces balanced; None where it is missing or unclosed."""
    start, depth = text.rfind(_BOXED), 1
    if start == -1:
        return None
    content = text[start + len(_BOXED) :]
    for place, sign in enumerate(content):
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return content[:place].strip()
    return None
