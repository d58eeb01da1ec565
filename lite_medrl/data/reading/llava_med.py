"""Two rules of LLaVA-Med (microsoft/LLaVA-Med): run_eval.py as released, and after its repair of December
2023.

The whole text is normalised as in the VQA challenge (case, punctuation, articles, number words,
contractions) and matched against the gold; tags and options mean nothing. Closed questions: right where the
gold occurs in a text that has "yes" or "no" anywhere, inside words too. Open questions: the published
figure is token recall ("recall"); exact match, F1 and precision stand in `parts`, and "open accuracy" where
candidates are given.

Known defects: "normal" and "known" hold a "no"; a text with both yes and no is right whatever the gold; a
closed question whose gold is neither is right only if yes or no occurs as well. Before the repair
(`released`, the numbers of arXiv 2306.00890) a wrong answer that holds yes or no is not counted at all:
half right prints 100 %. "Exact match" is the share of the text's tokens that the gold has. Recall counts a
repeated right word again and again. "Open accuracy" always picks some candidate. Full stops
past the 32nd stay (past the 64th in open questions, normalised twice). Not restated: BLEU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from lite_medrl.data.reading.verdict import AnswerType, Verdict

_PUNCTUATION = r';/[]"{}()=+\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOPS_REMOVED = 32  # a flag stands where re.sub takes its count
_NUMBERS = "zero one two three four five six seven eight nine ten"
_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
# The challenge's contractions; each is also known with any one apostrophe left out.
_CONTRACTIONS = """\
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""


def _without_one(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, sign in enumerate(word) if sign == "'"]


_CONTRACTED = {short: word for word in _CONTRACTIONS.split() for short in _without_one(word)} | {
    "somebody'd": "somebodyd"
}


def released(text: str, gold: str, options: Sequence[str] | None, answer_type: AnswerType) -> Verdict:
    """The score before the repair: a wrong closed answer that holds yes or no is not counted."""
    verdict = repaired(text, gold, options, answer_type)
    dropped = answer_type != "open" and not verdict.score and _says_yes_or_no(verdict.reading or "")
    return Verdict(0.0, verdict.reading, counted=False) if dropped else verdict


def repaired(text: str, gold: str, options: Sequence[str] | None, answer_type: AnswerType) -> Verdict:
    """The score after the repair; for open questions the options serve as candidates."""
    said, wanted = _normal(text.lower()), _normal(gold.lower())
    if answer_type != "open":
        return Verdict(float(_says_yes_or_no(said) and wanted in said), said)
    ours, theirs = (Counter(_normal(side).lower().split()) for side in (said, wanted))
    precision, recall, f1 = _overlap(ours, theirs)
    parts = {"exact_match": _exact_match(ours, theirs), "f1": f1, "precision": precision, "recall": recall}
    if options:
        parts["open_accuracy"] = float(_nearest(ours, options) == _normal(wanted))
    return Verdict(recall, said, parts=parts)


def _says_yes_or_no(said: str) -> bool:
    return "yes" in said or "no" in said


def _overlap(ours: Counter[str], theirs: Counter[str]) -> tuple[float, float, float]:
    hits = sum(count for word, count in ours.items() if word in theirs)
    missed = sum(count for word, count in theirs.items() if word not in ours)
    if not hits:
        return 0.0, 0.0, 0.0
    precision, recall = hits / ours.total(), hits / (hits + missed)
    return precision, recall, 2 * precision * recall / (precision + recall)


def _exact_match(ours: Counter[str], theirs: Counter[str]) -> float:
    return len(ours.keys() & theirs.keys()) / ours.total() if ours else 0.0


def _nearest(ours: Counter[str], candidates: Sequence[str]) -> str:
    """The candidate of whose distinct words most occur in the text; the first one where several do."""
    names = [_normal(candidate) for candidate in candidates]
    words = [set(name.lower().split()) for name in names]
    shares = [len(have & ours.keys()) / len(have) if have else 0.0 for have in words]
    return names[shares.index(max(shares))]


def _normal(text: str) -> str:
    plain = text
    thousands = _THOUSANDS.search(text) is not None
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if beside_space or thousands else " ")
    plain = _FULL_STOP.sub("", plain, count=_FULL_STOPS_REMOVED)
    words = [_WORDS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTED.get(word, word) for word in words if word not in _ARTICLES).replace(",", "")
