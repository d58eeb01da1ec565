"""What a run should do: a YAML recipe, checked, each value with the place it came from.

`load_recipe` reads a file and lays `key=value` overrides over it. An unknown key is never ignored: it fails,
with the nearest name. The sections themselves are in sections.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from lite_medrl.sections import Recipe, Reward, Section
from lite_medrl.types import RecipeError

__all__ = ["Recipe", "Resolved", "keys", "load_recipe", "to_yaml"]

HEADER = "# A lite-medrl recipe, resolved: every value, and where it came from."
GONE = {
    "max_prompt_length": "TRL dropped it, and a cut prompt loses image tokens; set model.max_image_tokens",
}


@dataclass(frozen=True)
class Resolved:
    """A checked recipe, and for every dotted key "default", "FILE:LINE" or "command line"."""

    recipe: Recipe
    origins: Mapping[str, str]


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Resolved:
    """Read a YAML recipe (None: all defaults) and lay `section.key=value` overrides over it.

    Raises RecipeError, one line a fault, each with its place, its key and what to do.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    file = "the defaults"
    if path is not None:
        file = Path(path).name
        values, origins = _read(Path(path))
    for override in overrides:
        key, value = _split(override)
        _put(values, key, value)
        origins = {old: at for old, at in origins.items() if not old.startswith(f"{key}.")}
        inner = [f"{key}.{name}" for name in value] if isinstance(value, dict) else []
        origins |= dict.fromkeys([key, *inner], "command line")
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(error, origins, file))) from None
    refuse_together(recipe, origins, file)
    return Resolved(recipe, MappingProxyType({key: origins.get(key, "default") for key in keys()}))


def refuse_together(recipe: Recipe, origins: Mapping[str, str], file: str) -> None:
    """RecipeError for values that are right by themselves but not with others."""
    if recipe.rollout.generator == "vllm" and recipe.grpo.enabled and recipe.model.load_in_4bit:
        raise RecipeError(
            f"{origins.get('rollout.generator', file)}: rollout.generator = 'vllm' cannot be used with "
            "model.load_in_4bit = true: TRL merges the adapter into the weights for vLLM, and 4 bits lose "
            "it; set model.load_in_4bit: false, or generator: grouped"
        )
    if recipe.rollout.vllm and recipe.rollout.generator != "vllm":
        raise RecipeError(
            f"{origins.get('rollout.vllm', file)}: rollout.vllm has options, but rollout.generator = "
            f"{recipe.rollout.generator!r} does not read them; set generator: vllm, or leave them out"
        )
    if recipe.rollout.stop and recipe.grpo.enabled and recipe.grpo.mask_truncated_completions:
        raise RecipeError(
            f"{origins.get('rollout.stop', file)}: rollout.stop cannot be used with "
            "grpo.mask_truncated_completions = true: TRL takes a completion without an end token for one "
            "that was cut off; leave one of them out"
        )


def to_yaml(resolved: Resolved) -> str:
    """The recipe as YAML that `load_recipe` reads back, with each value's origin at the line's end."""
    lines, section = [HEADER], ""
    for key, value in _values(resolved.recipe):
        head, _, name = key.rpartition(".")
        if head != section:
            lines += ["", f"{head}:"]
            section = head
        line = f"{'  ' if head else ''}{name}: {_flow(value)}"
        lines.append(f"{line:<56}  # {resolved.origins[key]}")
    return "\n".join(lines) + "\n"


@cache
def keys() -> tuple[str, ...]:
    """Every dotted key of a recipe, in order."""
    return tuple(key for key, _ in _values(Recipe()))


def _values(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    plain = section.model_dump(mode="json")
    for name in type(section).model_fields:
        inner = getattr(section, name)
        if isinstance(inner, Section):
            yield from _values(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", plain[name]


def _flow(value: object) -> str:
    """One value on one line; a text with line breaks is quoted, so that they are escaped."""
    text = _dump(value, None)
    return text if len(text.splitlines()) == 1 else _dump(value, '"')


def _dump(value: object, style: str | None) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, sort_keys=False, allow_unicode=True, width=10**9
    )
    return text.removesuffix("...\n").strip()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of a recipe file, and "FILE:LINE" of each dotted key in it."""
    node, values = _parse(path)
    if not isinstance(values, dict):
        raise RecipeError(f"{path.name}: a recipe is `key: value` lines, but this file holds {values!r:.60}")
    origins: dict[str, str] = {}
    _note_lines(node, "", path.name, origins)
    empty = {key: {} for key, value in values.items() if value is None and key in _sections()}
    return values | empty, origins


def _parse(path: Path) -> tuple[yaml.Node | None, Any]:
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        return node, loader.construct_document(node) if node else {}
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}; give a YAML file") from None
    except yaml.MarkedYAMLError as error:
        at = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path.name}{at}: not YAML: {error.problem}; see examples/ for recipes") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path.name}: not YAML: {error}; see examples/ for recipes") from None


def _note_lines(node: yaml.Node | None, prefix: str, file: str, origins: dict[str, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        dotted, at = f"{prefix}{key.value}", f"{file}:{key.start_mark.line + 1}"
        if dotted in origins:
            raise RecipeError(f"{at}: {dotted} is set twice (first at {origins[dotted]}); keep one")
        origins[dotted] = at
        if not prefix:
            _note_lines(value, f"{dotted}.", file, origins)


def _split(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip().lstrip("-").replace("-", "_")
    if not equals or not key:
        raise RecipeError(f"command line: {override!r} is not key=value; write for example grpo.max_steps=10")
    try:
        return key, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise RecipeError(f"command line: {key}: {text!r} is not a YAML value; quote it") from None


def _put(values: dict[str, Any], key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = values.get(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"command line: {key}: {section!r} has no keys below it; set it whole")
        values[section] = dict(inner)
        values = values[section]
    values[name] = value


def _explain(error: ValidationError, origins: Mapping[str, str], file: str) -> list[str]:
    """One line a fault: its place, its key, what is wrong, what the key means."""
    lines: dict[tuple[str, str], str] = {}
    for fault in error.errors():
        parts, came = [str(part) for part in fault["loc"]], f"{fault['input']!r:.80}"
        key = ".".join(parts)
        leaf = next((name for name in keys() if key == name or key.startswith(f"{name}.")), None)
        at = origins.get(leaf or key) or _nearest_origin(key, origins) or file
        if fault["type"] == "extra_forbidden":
            line = f"{at}: unknown key {key}; {_advice(parts)}"
        elif leaf is None:
            line = f"{at}: {key} = {came} should be a section; write its keys below it"
        else:
            note = "" if leaf in origins else " (the default)"
            what = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
            line = f"{at}: {leaf} = {came}{note} {what}. {_description(leaf)}"
        lines.setdefault((leaf or key, came), line)
    return list(lines.values())


def _nearest_origin(key: str, origins: Mapping[str, str]) -> str | None:
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key)


def _advice(parts: Sequence[str]) -> str:
    """The nearest name for an unknown key: the same name in another section, a sibling's, or one of all."""
    name, key = parts[-1], ".".join(parts)
    if name in GONE:
        return GONE[name]
    inner = Reward.model_fields if parts[:2] == ["grpo", "rewards"] else ()
    known = [*keys(), *_sections(), *(".".join([*parts[:-1], field]) for field in inner)]
    names = [other.rpartition(".")[2] for other in known]
    spelt = [name] if name in names else difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    spelt = spelt or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    close = [other for other, last in zip(known, names, strict=True) if other in spelt or last in spelt]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return "`lite-medrl run RECIPE --dry-run` without it prints every key there is"


@cache
def _sections() -> tuple[str, ...]:
    return tuple(dict.fromkeys(key.partition(".")[0] for key in keys() if "." in key))


def _description(key: str) -> str:
    section, _, name = key.rpartition(".")
    owner = Recipe.model_fields[section].annotation if section else Recipe
    assert isinstance(owner, type)
    assert issubclass(owner, Section)
    return owner.model_fields[name].description or ""
