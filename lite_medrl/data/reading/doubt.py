"""Is an answer denied, doubted or taken back by the words around it? Then it is no statement.

Words are looked for in the sentence, never understood: where they leave doubt, the answer is not read.
"""

from __future__ import annotations

import re

REACH = 300  # characters before a statement that are looked at
_SENTENCE = re.compile(r"[.!?;](?=\s)|(?<!that)\n")
_CLAUSE = re.compile(r"[,:()]|\b(?:so|hence|thus|therefore|but|and|then|because|since)\b", re.IGNORECASE)
_THAT = re.compile(r"\b(?:that|if|whether)\b,?(?: \w+,)?(?: [\w*]+){0,4}\W*$", re.IGNORECASE)
_DOUBT = re.compile(  # anywhere in the sentence
    r"\b(?:incorrect|wrong|untrue|mistaken|doubt\w*|disagree\w*|unsure|if|unless|suppos\w+|assum\w+)\b",
    re.IGNORECASE,
)
_NEGATION = re.compile(  # in the same clause, or before "that"
    r"n't\b|\b(?:not|no|never|neither|nor|none|cannot|hardly|whether|might|may|could|false|unlikely|impossible"
    r"|implausible|improbable|inaccurate|invalid|erroneous|mistake|den(?:y|ies|ied)|reject\w*|refut\w*|uncertain"
    r"|unclear|wonder\w*|worst|bad|poor|opposite|rather than|instead of|other than|except|distractor)\b",
    re.IGNORECASE,
)
_WRONG = r"(?:that|this|it|which)(?:'s| is| was)? (?:wrong|incorrect|false|untrue|a mistake)\b"
_TAKEN_BACK = re.compile(
    r"[\s.,;:!*)(-]*\b(?:(?:but|oh|hmm|and|or),? )?"
    r"(?:no(?=\s*[.,;:!]|\s*$|,? (?:wait|it|that|this|the answer)\b)|wait\b|actually\b|scratch that\b"
    rf"|correction\b|sorry\b|i (?:doubt|was wrong|am wrong|take)\b|i'm wrong|on second thought|{_WRONG}"
    r"|(?:that|this|it|which)(?:'s not| (?:is|was) not| isn't| wasn't)(?: (?:right|correct|true|so)\b|\W*$))",
    re.IGNORECASE,
)
_TURN = re.compile(
    rf"\b(?:actually|wait|scratch that|correction|sorry|i mean|on second thought|{_WRONG}|mistaken)\b"
)
_CONTRARY = {
    "yes": re.compile(r"\b(?:no|not|\w+n't)\b ?(?:[^\w\s'-]|$)"),
    "no": re.compile(r"\byes\b|\b(?:is|are|does|do|has|have|was|can) ?(?:[^\w\s'-]|$)"),
}


def is_doubted(text: str, place: int) -> bool:
    """Whether a statement that begins at `place` is denied or doubted earlier in its sentence."""
    sentence = _SENTENCE.split(text[max(0, place - REACH) : place])[-1]
    if not sentence.strip():
        return False
    clause = sentence if _THAT.search(sentence) else _CLAUSE.split(sentence)[-1]
    return bool(_NEGATION.search(clause) or _DOUBT.search(sentence))


def is_taken_back(rest: str) -> bool:
    """Whether what follows a statement begins by taking it back ("A. No, ...")."""
    return bool(_TAKEN_BACK.match(rest))


def is_contrary(answer: str, rest: str) -> bool:
    """Whether the remark after a "yes" or a "no" says the opposite; both in lower case."""
    return bool(_CONTRARY[answer].search(rest) or _TURN.search(rest))
