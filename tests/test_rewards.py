"""Rewards in TRL's shapes, their names, and that nothing is swallowed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lite_medrl.train.rewards import REWARDS, accuracy_reward, format_reward, resolve, text_of
from lite_medrl.types import RecipeError

OPTIONS = ["left lung", "lung", "heart"]
GOOD = "<think> dark </think><answer> left lung </answer>"


def chat(text: str) -> list[dict[str, object]]:
    return [{"role": "assistant", "content": text}]


def parts(*texts: str) -> list[dict[str, object]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text} for text in texts]}]


def test_accuracy_reads_each_completion_against_its_own_options() -> None:
    completions = [
        GOOD,
        "<answer>B</answer>",
        "<answer>A</answer>",
        "<answer>lung</answer>",
        "left lung?",
        "dark",
    ]
    options = [OPTIONS, OPTIONS, ["heart", "left lung"], OPTIONS, OPTIONS, OPTIONS]
    gold = ["left lung", "lung", "left lung", "left lung", "left lung", "left lung"]
    assert accuracy_reward(completions, gold, options) == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]


def test_format_is_the_whole_text() -> None:
    completions = [GOOD, f"{GOOD}\n", f"{GOOD} and more", "<answer> left lung </answer>", GOOD + GOOD, ""]
    assert format_reward(completions) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_called_as_trl_calls_it() -> None:
    shared = {
        "prompts": ["q"] * 3,
        "completions": [chat(GOOD), parts(*GOOD.partition("<answer>")), chat("<answer>heart</answer>")],
        "completion_ids": [[1]] * 3,
        "answer": ["left lung"] * 3,
        "options": [OPTIONS] * 3,
        "kind": ["organ"] * 3,
        "trainer_state": None,
    }
    assert accuracy_reward(**shared) == [1.0, 1.0, 0.0]
    assert format_reward(**shared) == [1.0, 1.0, 0.0]


def test_text_of() -> None:
    assert text_of("a") == "a"
    assert text_of([{"role": "tool", "content": "x"}, *chat("b")]) == "b"
    assert (
        text_of([{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "c"}]}]) == "c"
    )
    for wrong in (None, 3, [], ["a"], [{"role": "assistant", "content": None}]):
        with pytest.raises(ValueError, match="string or a list of chat messages"):
            text_of(wrong)


def test_bad_columns_stop_the_run() -> None:
    with pytest.raises(ValueError, match="gold answer 'liver' is not among the options"):
        accuracy_reward([GOOD], ["liver"], [OPTIONS])
    with pytest.raises(ValueError, match="shorter"):
        accuracy_reward([GOOD, GOOD], ["lung"], [OPTIONS])


def test_names_and_dotted_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text("LIMIT = 3\ndef short(completions, **_):\n    return [1 / 0]\n")
    (tmp_path / "torn_rewards.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    accuracy, own, keeps_format = resolve(["accuracy", "own_rewards.short", "format"])
    assert (accuracy, keeps_format) == (accuracy_reward, format_reward)
    with pytest.raises(ZeroDivisionError):
        own(completions=["a"])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        resolve(["torn_rewards.short"])
    for path, message in (
        ("own_rewards.long", "has no function 'long'"),
        ("own_rewards.LIMIT", "has no function 'LIMIT'"),
        ("no_rewards_here.short", "no module 'no_rewards_here'"),
        ("own_rewards.inner.short", "no module 'own_rewards.inner'"),
        (".short", "unknown reward"),
    ):
        with pytest.raises(RecipeError, match=message):
            resolve([path])
    sys.modules.pop("own_rewards", None)


@pytest.mark.parametrize(
    ("name", "near"), [("acuracy", "accuracy"), ("formatting", "format"), ("Format", "format")]
)
def test_an_unknown_name_comes_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RecipeError, match=f"unknown reward {name!r}: did you mean '{near}'"):
        resolve(["format", name])
    assert list(REWARDS) == ["accuracy", "format"]
