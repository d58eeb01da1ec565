"""When are two texts the same answer? Keys from strict to loose; texts whose keys are equal are equal.

verbatim (outer white space) -> exact (NFKC, case, white space) -> trimmed (outer punctuation) -> words
(inner punctuation, articles) -> stems (plurals, number words, place of left and right). Never a substring:
every word, sign and number of a text goes into its key.
"""

from __future__ import annotations

import re
import unicodedata

_FOLD = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\u02d7\u2796", "-")
    | dict.fromkeys("\u2018\u2019\u02bc`", "'")
    | dict.fromkeys("\u201c\u201d\u00ab\u00bb", '"')
    | dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe0f\u00ad\u00bf\u00a1")
    | dict.fromkeys("\u2022\u25aa\u25cf\u25e6", "*")
    | {
        "\u2044": "/",
        "\u223c": "~",
        "\u2795": "+",
        "\u3002": ".",
        "\u3001": ",",
        "\u3010": "(",
        "\u3011": ")",
    }
)
# NFKC would run 10², 10₂, 2½ and 2① into one number, and make a "No" of the numero sign.
_RAISED = re.compile(r"(?<=[\d)])[⁺⁻]?[⁰¹²³⁴-⁹ⁿ]+")
_LOWERED = re.compile(r"(?<=[\d)])(?=[₊₋]?[₀-₉])")
_BESIDE = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅟↉①-⒛⓪-⓿])|(?<=[¼-¾⅐-⅟↉①-⒛⓪-⓿⁰¹²³⁴-⁹₀-₉])(?=\d)")
_LEFT_EDGE = " ,;:!?'\"()[]{}*#|_"  # never + - % < >: "A+" and "<5" would lose their meaning
_RIGHT_EDGE = _LEFT_EDGE + "."  # a dot on the left may belong to a number: ".5"
_STARRED = re.compile(r"(?<=\d)\*(?!\w)")
_TOKEN = re.compile(
    r"\d*(?:[.,/:]\d+)+|[^\W_]+"  # numbers such as 1.5, .5 and 20/40; words
    r"|(?<![\w)])-(?=\.?\d)"  # minus five
    r"|-(?! ?(?:[\w(\[\"*]|\.\d))"  # "ER-", "Rh -", "HER2 (-)"; between words a hyphen is punctuation
    r"|(?<!\d )(?<![\w)])- (?=\.?\d)"  # "- 5" may be a bullet, so neither "-5" nor "5"; "5 - 10" is a range
    r"|(?<=\d)_(?=\d)"  # 10₂
    r"|(?<=\d)\ufffd|\ufffd(?= ?\.?\d)"  # beside a number, half a character may have been a sign
    r"|[^\w\s,;:!?'\"()\[\]{}*#|.\\/$·\x00-\x1f\x7f\ufffd-]"  # any other sign: + % ~ ± ≤ ^ ↑ ✗
)
_ARTICLE = re.compile(r"\W*(?:the )*an? (?:the )*[^\W\d_][^\W_]")
_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty"""
_STEM = {word: str(number) for number, word in enumerate(_NUMBERS.split())}
_STEM |= {"metastases": "metastasis", "diagnoses": "diagnosis", "vertebrae": "vertebra", "nuclei": "nucleus"}
_SIDES = frozenset({"left", "right", "bilateral"})


def nfkc(text: str) -> str:
    """The text with one spelling for each character, hyphen, quote and invisible sign."""
    if text.isascii():
        return text
    text = _RAISED.sub(r"^\g<0>", text.replace("\u2116", "#"))
    text = _BESIDE.sub(" ", _LOWERED.sub("_", text))
    return unicodedata.normalize("NFKC", text).translate(_FOLD)


def exact(text: str) -> str:
    """NFKC, without case, single spaces."""
    return " ".join(nfkc(text).casefold().split())


def trimmed(exact_text: str) -> str:
    """An exact key without outer punctuation."""
    return _with_star(exact_text).lstrip(_LEFT_EDGE).rstrip(_RIGHT_EDGE)


def tokens(exact_text: str) -> list[str]:
    """Words, numbers and signs of an exact key, without "the" and a leading article.

    An "a" alone, or before a number or a hyphen, stays: it may be a letter.
    """
    plain = _with_star(exact_text).replace("'", "").replace("&", " and ")
    plain = plain.replace("x-ray", "xray").replace("x ray", "xray")
    found = _TOKEN.findall(plain)
    kept = [token for token in found if token != "the"] or found if "the" in found else found
    return kept[1:] if kept[:1] in (["a"], ["an"]) and _ARTICLE.match(plain) else kept


def _with_star(exact_text: str) -> str:
    """The text with the star of T2* as a sign of its own; any other star is mark-up."""
    return _STARRED.sub("\u2217", exact_text) if exact_text.count("*") == 1 else exact_text


def words(tokens_: list[str]) -> str:
    """The key of a text's tokens."""
    return " ".join(tokens_)


def stems(tokens_: list[str]) -> str:
    """The key in the singular; a single left or right goes first: "kidney-left", "left-sided kidney"."""
    stemmed = [_stem(token) for token in tokens_]
    places = [place for place, token in enumerate(stemmed) if token in _SIDES]
    if len(places) == 1:
        side = stemmed.pop(places[0])
        if stemmed[places[0] : places[0] + 1] in (["side"], ["sided"]):
            stemmed.pop(places[0])
        stemmed.insert(0, side)
    return " ".join(stemmed)


def _stem(token: str) -> str:
    if token in _STEM or len(token) < 4 or not token.endswith("s") or token.endswith(("ss", "us", "is")):
        return _STEM.get(token, token)
    if token.endswith("ies"):
        return token[:-3] + "y"
    return token[:-2] if token.endswith(("sses", "xes", "ches", "shes")) else token[:-1]
