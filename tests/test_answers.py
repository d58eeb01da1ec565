"""The parser's golden table, its profiles, and what must hold for any text."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lite_medrl.data.answers import FAILURES, Answer, has_format, is_correct, parse
from lite_medrl.types import Sample

LUNG = ("left lung", "lung", "heart", "right lung")
SCAN = ("CT", "MRI", "X-ray", "ultrasound")
STATE = ("normal", "abnormal")
YN = ("yes", "no")
NY = ("No", "Yes")
COUNT = ("one", "two", "three", "four")
SIDE = ("Left side", "Right side")
KIDNEY = ("kidney-left", "kidney-right", "liver")
BLOOD = ("B", "A", "AB", "O")
RECEPTOR = ("ER+", "ER-", "HER2+", "HER2-")
SIZE = ("<5 cm", ">5 cm", "5 cm")
GERM = ("S. aureus", "C. difficile", "E. coli", "A. fumigatus")
HEPATITIS = ("hepatitis", "hepatitis B", "hepatitis A", "steatosis")
BREAST = ("malignant", "normal, benign")


def tagged(answer: str) -> str:
    return f"<think> it looks so </think><answer>{answer}</answer>"


INSIDE = [  # what stands in <answer>, the options, the value read, how (or the failure)
    # option text: white space, case, NFKC, punctuation
    (" lung ", LUNG, "lung", "option_text"),
    ("left lung", LUNG, "left lung", "option_text"),
    ("LEFT  LUNG", LUNG, "left lung", "option_text"),
    ("\nlung\n", LUNG, "lung", "option_text"),
    ("left\nlung", LUNG, "left lung", "option_text"),
    ("lung.", LUNG, "lung", "option_text"),
    ('"Heart"!', LUNG, "heart", "option_text"),
    ("**right lung**", LUNG, "right lung", "option_text"),
    ("\uff4c\uff55\uff4e\uff47", LUNG, "lung", "option_text"),
    ("lung\u00a0", LUNG, "lung", "option_text"),
    ("lu\u00adng", LUNG, "lung", "option_text"),
    ("CT", SCAN, "CT", "option_text"),
    ("CT ", SCAN, "CT", "option_text"),
    ("x ray", SCAN, "X-ray", "option_text"),
    ("Xray", SCAN, "X-ray", "option_text"),
    ("X\u2011Ray", SCAN, "X-ray", "option_text"),
    ("ultra-sound", SCAN, None, "unknown_option"),
    # never a substring
    ("abnormal", STATE, "abnormal", "option_text"),
    ("normal", STATE, "normal", "option_text"),
    ("not normal", STATE, None, "unknown_option"),
    ("no heart", LUNG, None, "unknown_option"),
    ("upper left lung", LUNG, None, "unknown_option"),
    ("lungfish", LUNG, None, "unknown_option"),
    ("kidney", LUNG, None, "unknown_option"),
    ("benign", BREAST, None, "unknown_option"),
    ("normal, benign", BREAST, "normal, benign", "option_text"),
    # articles, plurals, number words, sides
    ("the heart", LUNG, "heart", "option_text"),
    ("A heart.", LUNG, "heart", "option_text"),
    ("an MRI", SCAN, "MRI", "option_text"),
    ("hearts", LUNG, "heart", "option_text"),
    ("the left lungs", LUNG, "left lung", "option_text"),
    ("biopsies", ("biopsy", "scan"), "biopsy", "option_text"),
    ("masses", ("mass", "cyst"), "mass", "option_text"),
    ("metastasis", ("metastases", "cysts"), "metastases", "option_text"),
    ("Crohn disease", ("Crohn's disease", "colitis"), "Crohn's disease", "option_text"),
    ("2", COUNT, "two", "option_text"),
    ("Three", ("1", "2", "3"), "3", "option_text"),
    ("12", COUNT, None, "unknown_option"),
    ("left", SIDE, "Left side", "option_text"),
    ("right-sided", SIDE, "Right side", "option_text"),
    ("left kidney", KIDNEY, "kidney-left", "option_text"),
    ("right kidney", KIDNEY, "kidney-right", "option_text"),
    ("kidney", KIDNEY, None, "unknown_option"),
    ("lungs", ("lung", "Lungs."), "Lungs.", "option_text"),
    ("lung", ("the lung", "a lung", "heart"), None, "ambiguous_option"),
    # signs that carry the meaning
    ("ER-", RECEPTOR, "ER-", "option_text"),
    ("er +", RECEPTOR, "ER+", "option_text"),
    ("ER", RECEPTOR, None, "unknown_option"),
    ("> 5 cm", SIZE, ">5 cm", "option_text"),
    ("5 cm.", SIZE, "5 cm", "option_text"),
    (".5", ("5", "50"), None, "unknown_option"),
    ("15", ("1.5", "1-5"), None, "unknown_option"),
    ("1,5", ("15", "1.5"), None, "unknown_option"),
    ("-5", ("5", "7"), None, "unknown_option"),
    ("50 %", ("50%", "50"), "50%", "option_text"),
    ("CO", ("Co", "CO"), "CO", "option_text"),
    ("co", ("Co", "CO"), None, "ambiguous_option"),
    # letters
    ("B", SCAN, "MRI", "letter"),
    ("b", SCAN, "MRI", "letter"),
    ("a", SCAN, "CT", "letter"),
    ("\nA\n", SCAN, "CT", "letter"),
    ("(A)", SCAN, "CT", "letter"),
    ("A.", SCAN, "CT", "letter"),
    ("[c]", SCAN, "X-ray", "letter"),
    ("**D**", SCAN, "ultrasound", "letter"),
    (r"\boxed{C}", SCAN, "X-ray", "letter"),
    ("\uff22", SCAN, "MRI", "letter"),
    ("Answer: C", SCAN, "X-ray", "letter"),
    ("The correct answer is option (B).", SCAN, "MRI", "letter"),
    ("Option D", SCAN, "ultrasound", "letter"),
    ("E", SCAN, None, "unknown_option"),
    ("A+", SCAN, None, "unknown_option"),
    # letter and text
    ("A) CT", SCAN, "CT", "letter_text"),
    ("A. ct", SCAN, "CT", "letter_text"),
    ("(B) MRI", SCAN, "MRI", "letter_text"),
    ("C: X-ray", SCAN, "X-ray", "letter_text"),
    ("D - Ultrasound.", SCAN, "ultrasound", "letter_text"),
    ("B MRI", SCAN, "MRI", "letter_text"),
    ("MRI (B)", SCAN, "MRI", "letter_text"),
    ("Answer: B. an MRI", SCAN, "MRI", "letter_text"),
    ("C. heart", LUNG, "heart", "letter_text"),
    ("A. MRI", SCAN, None, "letter_text_conflict"),
    ("MRI (A)", SCAN, None, "letter_text_conflict"),
    ("F. MRI", SCAN, None, "letter_text_conflict"),
    ("A. PET", SCAN, None, "unknown_option"),
    ("B. the dark one", SCAN, None, "unknown_option"),
    # options that look like letters, or begin with one
    ("A", BLOOD, "A", "option_text"),
    ("b", BLOOD, "B", "option_text"),
    ("AB", BLOOD, "AB", "option_text"),
    ("C", BLOOD, "AB", "letter"),
    ("A. B", BLOOD, "B", "letter_text"),
    ("A B", ("A", "B", "AB", "O"), None, "unknown_option"),
    ("E. coli", GERM, "E. coli", "option_text"),
    ("e coli", GERM, "E. coli", "option_text"),
    ("C. E. coli", GERM, "E. coli", "letter_text"),
    ("C. C. difficile", GERM, None, "letter_text_conflict"),
    ("hepatitis b", HEPATITIS, "hepatitis B", "option_text"),
    ("hepatitis (B)", HEPATITIS, None, "letter_text_conflict"),
    ("hepatitis", HEPATITIS, "hepatitis", "option_text"),
    # yes and no as whole tokens
    ("Yes.", YN, "yes", "option_text"),
    ("NO", NY, "No", "option_text"),
    ("yes, there is no doubt", YN, "yes", "yes_no"),
    ("No, the heart is normal.", NY, "No", "yes_no"),
    ("normal heart size", YN, None, "unknown_option"),
    ("there is no mass", YN, None, "unknown_option"),
    ("No abnormality", YN, None, "unknown_option"),
    ("not sure", YN, None, "unknown_option"),
    ("known", YN, None, "unknown_option"),
    ("Yes. No.", YN, None, "two_answers"),
    ("no, I mean yes", YN, None, "two_answers"),
    ("yes/no", YN, None, "two_answers"),
    ("B. No", YN, "no", "letter_text"),
    ("B", NY, "Yes", "letter"),
    # lists and lines
    ("A and B", SCAN, None, "two_answers"),
    ("A, B", SCAN, None, "two_answers"),
    ("CT or MRI", SCAN, None, "two_answers"),
    ("B, MRI", SCAN, "MRI", "letter_text"),
    ("lung, heart", LUNG, None, "two_answers"),
    ("B\nBecause it is bright.", SCAN, "MRI", "letter"),
    ("MRI\nIt is bright.", SCAN, "MRI", "option_text"),
    ("B\nD", SCAN, None, "two_answers"),
    ("It is bright.\nB", SCAN, None, "unknown_option"),
    ("", SCAN, None, "empty_answer"),
    (" \n ", SCAN, None, "empty_answer"),
    ("\u00ad", SCAN, None, "empty_answer"),
    ("...", SCAN, None, "unknown_option"),
]
WHOLE = [  # the whole text, the options, the value read, how (or the failure)
    ("<answer>B", SCAN, "MRI", "letter"),
    ("<answer> MRI </ans", SCAN, "MRI", "option_text"),
    ("<answer>\nMRI\nbecause it is bright", SCAN, "MRI", "option_text"),
    ("<answer> a", SCAN, None, "unknown_option"),
    ("<think> x </think> <ANSWER> ct </ANSWER>", SCAN, "CT", "option_text"),
    ("<think> x </think>\n<answer>CT</answer>\n", SCAN, "CT", "option_text"),
    ("< answer > CT < / answer >", SCAN, "CT", "option_text"),
    ("\uff1canswer\uff1eCT\uff1c/answer\uff1e", SCAN, "CT", "option_text"),
    ("<answer>CT</answer> <answer>A</answer>", SCAN, "CT", "letter"),
    ("<answer>CT</answer> <answer>MRI</answer>", SCAN, None, "two_answers"),
    ("<answer>a lamp</answer> <answer>MRI</answer>", SCAN, None, "two_answers"),
    ("<answer></answer> <answer>MRI</answer>", SCAN, "MRI", "option_text"),
    ("<answer>MRI</answer> <answer> MR", SCAN, "MRI", "option_text"),
    ("<answer>MRI</answer> <answer> CT", SCAN, None, "two_answers"),
    ("<answer> <answer> CT </answer>", SCAN, "CT", "option_text"),
    ("<think> maybe <answer>CT</answer> </think><answer>MRI</answer>", SCAN, "MRI", "option_text"),
    ("<think> in <answer> tags </think><answer>MRI</answer>", SCAN, "MRI", "option_text"),
    ("so, in <answer> tags </think><answer>MRI</answer>", SCAN, "MRI", "option_text"),
    ("<think> x <answer>MRI</answer></think>", SCAN, "MRI", "option_text"),
    ("<think> x <answer>MRI</answer>", SCAN, "MRI", "option_text"),
    ("<answer>MRI</answer><think> CT </think>", SCAN, "MRI", "option_text"),
    ("<think>a</think><answer>CT</answer><think>b</think><answer>MRI</answer>", SCAN, None, "two_answers"),
    # without tags: only an explicit statement or the option and nothing else
    ("MRI", SCAN, "MRI", "option_text"),
    ("(b)", SCAN, "MRI", "letter"),
    ("<think> x </think> B. MRI", SCAN, "MRI", "letter_text"),
    ("MRI </answer>", SCAN, "MRI", "option_text"),
    ("It is bright. The answer is B.", SCAN, "MRI", "letter"),
    ("The answer is B. The skull is bright.", SCAN, "MRI", "letter"),
    ("The answer is B because it is bright", SCAN, "MRI", "letter"),
    ("**Answer:** B", SCAN, "MRI", "letter"),
    ("Answer: B. MRI\nIt is bright.", SCAN, "MRI", "letter_text"),
    ("Final answer: the MRI", SCAN, "MRI", "option_text"),
    ("The answer is:\n\nMRI", SCAN, "MRI", "option_text"),
    ("The answer is yes, as it seems.", YN, "yes", "option_text"),
    ("The answer is yes, there is one.", YN, "yes", "yes_no"),
    ("The answer is A. MRI", SCAN, None, "letter_text_conflict"),
    ("The answer is E. coli infection", (*GERM, "none"), None, "unknown_option"),
    ("The answer is a", SCAN, None, "unknown_option"),
    ("The answer is A", SCAN, "CT", "letter"),
    ("answer: a", SCAN, "CT", "letter"),
    ("The answer is not B", SCAN, None, "unknown_option"),
    ("The answer is A or B", SCAN, None, "unknown_option"),
    ("The answer is A. No, the answer is B.", SCAN, None, "two_answers"),
    ("I check if the answer is A.", SCAN, None, "no_answer"),
    ("A chest radiograph shows a mass, so option (C) fits", SCAN, None, "no_answer"),
    ("This is an MRI of the head", SCAN, None, "no_answer"),
    ("<think> so the answer is B </think>", SCAN, None, "no_answer"),
    ("<think> so the answer is B", SCAN, None, "no_answer"),
    ("<think> so the answer is B </think> I am not sure", SCAN, None, "no_answer"),
    ("", SCAN, None, "no_answer"),
    ("I do not know", SCAN, None, "no_answer"),
]
FREE = [  # without options
    ("<answer> a  small mass. </answer>", "a small mass", "free_text"),
    ("<answer>B</answer>", "B", "letter"),
    ("(b)", "B", "letter"),
    ("The answer is pneumonia. It is white.", "pneumonia", "free_text"),
    ("<answer>Mass</answer><answer>mass.</answer>", "mass", "free_text"),
    ("<answer>mass</answer><answer>cyst</answer>", None, "two_answers"),
    ("a mass", None, "no_answer"),
    ("<answer></answer>", None, "empty_answer"),
]
STRICT = [  # the whole text, the value read, how (or the failure); options are SCAN
    ("<think>x</think><answer>mri</answer>", "MRI", "option_text"),
    ("<think>x</think>\n<answer>\nMRI\n</answer>\n", "MRI", "option_text"),
    ("<think>x</think><answer>b</answer>", "MRI", "letter"),
    ("<think>x</think><answer>B. MRI</answer>", "MRI", "letter_text"),
    ("<think>x</think><answer>B. CT</answer>", None, "unknown_option"),
    ("<think>x</think><answer>(B)</answer>", None, "unknown_option"),
    ("<think>x</think><answer>B.</answer>", None, "unknown_option"),
    ("<think>x</think><answer>B) MRI</answer>", None, "unknown_option"),
    ("<think>x</think><answer>the MRI</answer>", None, "unknown_option"),
    ("<think>x</think><answer> </answer>", None, "empty_answer"),
    ("<answer>MRI</answer>", None, "bad_format"),
    ("MRI", None, "bad_format"),
]


def check(answer: Answer, value: str | None, how_or_failure: str) -> None:
    expected = (value, how_or_failure, None) if value is not None else (None, None, how_or_failure)
    assert (answer.value, answer.how, answer.failure) == expected


@pytest.mark.parametrize(("text", "options", "value", "how"), INSIDE)
def test_inside_the_tags(text: str, options: tuple[str, ...], value: str | None, how: str) -> None:
    answer = parse(tagged(text), options=options)
    check(answer, value, how)
    assert answer.has_format
    assert answer.label == (None if value is None else "ABCDE"[options.index(value)])


@pytest.mark.parametrize(("text", "options", "value", "how"), WHOLE)
def test_whole_text(text: str, options: tuple[str, ...], value: str | None, how: str) -> None:
    check(parse(text, options=options), value, how)


@pytest.mark.parametrize(("text", "value", "how"), FREE)
def test_without_options(text: str, value: str | None, how: str) -> None:
    check(parse(text), value, how)


@pytest.mark.parametrize(("text", "value", "how"), STRICT)
def test_strict(text: str, value: str | None, how: str) -> None:
    check(parse(text, options=SCAN, profile="strict"), value, how)


def test_strict_takes_the_text_of_an_option_before_its_letter() -> None:
    check(parse(tagged("a"), options=BLOOD, profile="strict"), "A", "option_text")
    check(parse(tagged("co"), options=("CO", "Co"), profile="strict"), None, "ambiguous_option")
    check(parse(tagged(" a mass. "), profile="strict"), "a mass.", "free_text")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>a</think><answer>b</answer>", True),
        (" <think>\na\n</think>\n\n<answer>\nb\n</answer>\n", True),
        ("<think></think><answer></answer>", True),
        ("<think>a</think><answer>b</answer>.", False),
        ("so <think>a</think><answer>b</answer>", False),
        ("<think>a</think> hence <answer>b</answer>", False),
        ("<think>a</think><answer>b</answer><answer>b</answer>", False),
        ("<think>a<think></think><answer>b</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think><answer>b", False),
        ("<think>a<answer>b</answer></think>", False),
        ("", False),
    ],
)
def test_format(text: str, kept: bool) -> None:
    assert has_format(text) is kept
    assert parse(text, options=YN).has_format is kept


def test_options_beyond_the_letters_are_read_by_text() -> None:
    options = [f"organ {n}" for n in range(1, 13)]
    assert parse(tagged("Organ 12"), options=options) == Answer("organ 12", None, "option_text", None, True)
    assert parse(tagged("J"), options=options).value == "organ 10"


def test_unknown_profile_names_them_all() -> None:
    with pytest.raises(ValueError, match=r"'lite-v2': use one of lite-v1, strict, medvlthinker"):
        parse("B", options=SCAN, profile="lite-v2")


def test_is_correct() -> None:
    sample = Sample("1", (), "Which scan?", SCAN, "MRI", "modality", "head", "here", "CC0-1.0")
    assert is_correct(tagged("B"), sample)
    assert not is_correct(tagged("A"), sample)
    assert not is_correct("no idea", sample)


WORDS = """<think> </think> <answer> </answer> < / > A B C (A) B. D) yes no not answer: is the The a an or
and , . - + CT MRI X-ray x ray ultrasound lung lungs left right heart normal abnormal 2 two 1.5 ** \\boxed{ }
\uff22 \u00e9 \u00ad \u00df \u0130"""
PIECES = st.sampled_from([*WORDS.split(), "\n"])
TEXTS = st.one_of(
    st.text(max_size=80), st.lists(PIECES, max_size=14).map(" ".join), st.lists(PIECES).map("".join)
)
OPTIONS = st.one_of(
    st.sampled_from([LUNG, SCAN, STATE, YN, NY, COUNT, BLOOD, RECEPTOR, SIZE, GERM, KIDNEY]),
    st.lists(st.text(max_size=12), max_size=12).map(tuple),
)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(text=TEXTS, options=OPTIONS, profile=st.sampled_from(["lite-v1", "strict"]))
@example(text="<answer> İ. </answer>", options=("i̇",), profile="lite-v1")
def test_any_text_is_an_option_or_a_named_failure(text: str, options: tuple[str, ...], profile: str) -> None:
    answer = parse(text, options=options, profile=profile)
    if answer.value is None:
        assert answer.failure in FAILURES
        assert answer.how is answer.label is None
    else:
        assert answer.failure is None
        if options:
            place = options.index(answer.value) if answer.label is None else "ABCDEFGHIJ".index(answer.label)
            assert options[place] == answer.value
            assert answer.label is not None or place >= 10


OPTION = st.text(min_size=1, max_size=12).filter(lambda text: bool(text.strip()) and "<" not in text)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    options=st.lists(OPTION, min_size=1, max_size=8, unique_by=lambda text: text.strip().casefold()),
    profile=st.sampled_from(["lite-v1", "strict"]),
)
def test_an_option_in_its_own_words_is_always_read(options: list[str], profile: str) -> None:
    for gold in options:
        assert parse(tagged(gold), options=options, profile=profile).value == gold


@pytest.mark.parametrize("options", [LUNG, SCAN, STATE, COUNT, RECEPTOR, SIZE, KIDNEY, HEPATITIS])
def test_the_order_of_the_options_does_not_change_a_reading_of_text(options: tuple[str, ...]) -> None:
    texts = [text for text, *_, how in INSIDE if how in ("option_text", "yes_no", "ambiguous_option")]
    for text in (text for text in texts if len(text.strip()) > 1):
        readings = {parse(tagged(text), options=order).value for order in itertools.permutations(options)}
        assert len(readings) == 1, text


def test_long_nonsense_takes_no_quadratic_time() -> None:
    start = time.perf_counter()
    for piece in (*WORDS.split(), "<answer>a", "answer is ", " ", "(", "a. ", "yes, ", "\n", "a\n", "1", "."):
        parse(piece * 5_000, options=SCAN)
        parse(f"<answer>{piece * 5_000}</answer>", options=YN)
    assert time.perf_counter() - start < 10
