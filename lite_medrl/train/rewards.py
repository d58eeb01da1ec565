"""What a completion earns: TRL reward functions on top of the one parser, and how a recipe names them.

Nothing is caught here: a reward function that crashes stops the run, because a crash that turns into a reward
of 0 teaches the wrong thing. A bad answer is no crash; it earns 0.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, cast

from lite_medrl.data.answers import has_format, parse
from lite_medrl.types import RecipeError

RewardFunction = Callable[..., list[float]]
"""Called as f(prompts=, completions=, completion_ids=, **dataset columns); one float a completion."""


def accuracy_reward(
    completions: Sequence[Any],
    answer: Sequence[str],
    options: Sequence[Sequence[str]],
    **kwargs: Any,
) -> list[float]:
    """1.0 for each completion whose tolerant reading is the gold option, else 0.0 (arXiv 2505.13973).

    Shapes: one `answer` (the gold option's text) and one list of `options` a completion.
    Raises ValueError where lengths differ or a gold answer is not among its options.
    """
    return [_accuracy(*row) for row in zip(completions, answer, options, strict=True)]


def format_reward(completions: Sequence[Any], **kwargs: Any) -> list[float]:
    """1.0 for each completion that is <think>...</think><answer>...</answer> and nothing else, else 0.0."""
    return [float(has_format(text_of(completion))) for completion in completions]


REWARDS: dict[str, RewardFunction] = {"accuracy": accuracy_reward, "format": format_reward}


def resolve(names: Sequence[str]) -> list[RewardFunction]:
    """The reward functions for names of REWARDS or dotted paths ("my_package.rewards.length_reward").

    Raises RecipeError for a name that is neither, with the nearest one.
    """
    return [REWARDS[name] if name in REWARDS else _imported(name) for name in names]


def text_of(completion: Any) -> str:
    """The text of a completion in TRL's shapes: a string, or chat messages, of which the last one counts.

    A message's content is a string or a list of parts; parts of type "text" are joined.
    Raises ValueError for anything else.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion and isinstance(completion[-1], dict):
        content = completion[-1].get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence) and all(isinstance(part, dict) for part in content):
            return "".join(part["text"] for part in content if part.get("type") == "text")
    raise ValueError(f"a completion must be a string or a list of chat messages, got {completion!r:.200}")


def _accuracy(completion: Any, gold: str, options: Sequence[str]) -> float:
    if gold not in options:
        raise ValueError(f"gold answer {gold!r} is not among the options {list(options)}; fix the data set")
    return float(parse(text_of(completion), options=options).value == gold)


def _imported(path: str) -> RewardFunction:
    module_name, _, function_name = path.rpartition(".")
    if not module_name or "" in path.split("."):
        raise RecipeError(_unknown(path))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise RecipeError(f"reward {path!r}: there is no module {error.name!r}") from error
        raise  # the module is there, but something it imports is not
    function = getattr(module, function_name, None)
    if callable(function):
        return cast(RewardFunction, function)
    raise RecipeError(f"reward {path!r}: module {module_name!r} has no function {function_name!r}")


def _unknown(name: str) -> str:
    near = get_close_matches(name, REWARDS, n=1, cutoff=0.0)[0]
    return (
        f"unknown reward {name!r}: did you mean {near!r}? Known: {', '.join(REWARDS)}, "
        'or the dotted path of your own function ("my_package.rewards.length_reward")'
    )
