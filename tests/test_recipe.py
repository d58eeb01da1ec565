"""Recipes: where values come from, what a wrong one says, and that the resolved one reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_medrl.recipe import Recipe, keys, load_recipe, to_yaml
from lite_medrl.types import RecipeError


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return str(caught.value)


def test_values_and_their_origins(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 4\ngrpo:\n  learning_rate: 2e-4\n  max_steps: 7\nreport:\n")
    resolved = load_recipe(path, ["grpo.max_steps=10", "data.kinds=[plane, organ]"])
    assert resolved.recipe.seed == 4
    assert resolved.recipe.grpo.learning_rate == 2e-4
    assert resolved.recipe.grpo.max_steps == 10
    assert resolved.recipe.data.kinds == ["plane", "organ"]
    assert resolved.origins["seed"] == "mine.yaml:1"
    assert resolved.origins["grpo.learning_rate"] == "mine.yaml:3"
    assert resolved.origins["grpo.max_steps"] == resolved.origins["data.kinds"] == "command line"
    assert resolved.origins["grpo.beta"] == resolved.origins["report.title"] == "default"
    assert tuple(resolved.origins) == keys()


def test_a_section_set_on_the_command_line_replaces_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, "grpo: {beta: 0.1, max_steps: 7}")
    resolved = load_recipe(path, ["grpo={max_steps: 9}", "grpo.epsilon=0.3"])
    assert (resolved.recipe.grpo.beta, resolved.recipe.grpo.max_steps) == (0.0, 9)
    assert resolved.origins["grpo.beta"] == "default"
    assert resolved.origins["grpo.max_steps"] == resolved.origins["grpo.epsilon"] == "command line"


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "# nothing yet\n")).recipe == Recipe()


def test_an_override_does_not_leak_through_a_yaml_alias(tmp_path: Path) -> None:
    path = write(tmp_path, "sft: &shared {max_steps: 3}\ngrpo: *shared\n")
    recipe = load_recipe(path, ["sft.max_steps=5"]).recipe
    assert (recipe.sft.max_steps, recipe.grpo.max_steps) == (5, 3)


@pytest.mark.parametrize(
    ("text", "place", "key", "hint"),
    [
        (
            "grpo:\n  num_generation: 4\n",
            "mine.yaml:2",
            "grpo.num_generation",
            "did you mean grpo.num_generations?",
        ),
        ("diagnos: {threshold: 0.4}\n", "mine.yaml:1", "diagnos", "did you mean diagnose?"),
        ("lora_r: 8\n", "mine.yaml:1", "lora_r", "did you mean lora.r?"),
        ("learning_rate: 1e-4\n", "mine.yaml:1", "learning_rate", "sft.learning_rate or grpo.learning_rate?"),
        (
            "lora: {num_generations: 8}\n",
            "mine.yaml:1",
            "lora.num_generations",
            "did you mean grpo.num_generations?",
        ),
        (
            "grpo:\n  max_prompt_length: 512\n",
            "mine.yaml:2",
            "grpo.max_prompt_length",
            "model.max_image_tokens",
        ),
        (
            "grpo: {rewards: [{name: format, wieght: 1}]}",
            "mine.yaml:1",
            "rewards.0.wieght",
            "rewards.0.weight?",
        ),
        ("xyzzy: 1\n", "mine.yaml:1", "xyzzy", "--dry-run"),
    ],
)
def test_unknown_key_names_its_place_and_the_nearest(
    tmp_path: Path, text: str, place: str, key: str, hint: str
) -> None:
    message = complaint(tmp_path, text)
    assert message.startswith(f"{place}: unknown key ")
    assert key in message
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "grpo: {num_generations: 1}",
            ["grpo.num_generations = 1", "greater than or equal to 2", "Completions in a group"],
        ),
        ("grpo: {num_generations: 6}", ["num_generations = 6", "does not divide", "(8)", "6 or 12"]),
        (
            "grpo: {scale_rewards: batch, resample_rounds: 2}",
            ["grpo.resample_rounds = 2", "scale_rewards = batch", "group or none"],
        ),
        (
            "grpo:\n  per_device_train_batch_size: 12",
            ["mine.yaml:1", "num_generations = 8 (the default)", "(12)", "8 or 16"],
        ),
        ("grpo: {rewards: [{name: accuracy, weight: 0}]}", ["grpo.rewards", "no weight above 0"]),
        ("grpo: {rewards: [{name: format}, {name: format}]}", ["grpo.rewards", "twice"]),
        ("grpo: {rewards: [{name: bleu}]}", ["grpo.rewards", "'bleu'", "'accuracy' or 'format'"]),
        ("grpo: {rewards: []}", ["grpo.rewards", "at least 1"]),
        ("diagnose: {num_samples: 8}", ["diagnose.k", "num_samples (8)"]),
        ("diagnose: {k: [1, 4, 4]}", ["diagnose.k = [1, 4, 4]", "ascend"]),
        ("diagnose: {k: [0, 4]}", ["diagnose.k", "ascend from 1"]),
        ("diagnose: {threshold: 1}", ["diagnose.threshold = 1", "less than 1"]),
        ("diagnose: {threshold: half}", ["diagnose.threshold = 'half'", "valid number"]),
        ("sft: {learning_rate: .inf}", ["sft.learning_rate = inf", "finite"]),
        ("sft: {learning_rate: .nan}", ["sft.learning_rate = nan"]),
        ("model: {dtype: int8}", ["model.dtype = 'int8'", "'bfloat16'"]),
        ("model: some/id", ["mine.yaml:1: model = 'some/id'", "a section"]),
        ("lora: {target_modules: 3}", ["lora.target_modules = 3", "language-linear"]),
        ("seed: -1", ["seed = -1", "greater than or equal to 0"]),
        ("- a\n- b\n", ["mine.yaml", "`key: value` lines"]),
        ("seed: [1\n", ["mine.yaml:2", "not YAML"]),
        ("seed: 1\nseed: 2\n", ["mine.yaml:2: seed is set twice (first at mine.yaml:1)"]),
        (
            "sft:\n  max_steps: 1\n  max_steps: 2\n",
            ["mine.yaml:3: sft.max_steps is set twice (first at mine.yaml:2)"],
        ),
        ("seed: !!python/object/apply:os.getcwd []", ["mine.yaml:1", "not YAML"]),
        ("report: {title: 2026-13-45}", ["mine.yaml", "not YAML"]),
    ],
)
def test_bad_value_says_what_came_and_what_may(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = complaint(tmp_path, text)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    lines = complaint(tmp_path, "seeds: 1\nsft:\n  max_steps: 0\n", "grpo.beta=-1").splitlines()
    assert len(lines) == 3
    assert {line.split(": ")[0] for line in lines} == {"mine.yaml:1", "mine.yaml:3", "command line"}


def test_vllm_does_not_go_with_4_bits(tmp_path: Path) -> None:
    text = "rollout:\n  generator: vllm\n"
    assert "mine.yaml:2: rollout.generator = 'vllm' cannot be used with model.load_in_4bit" in complaint(
        tmp_path, text
    )
    for override in ("model.load_in_4bit=false", "grpo.enabled=false"):
        assert load_recipe(write(tmp_path, text), [override]).recipe.rollout.generator == "vllm"
    assert "rollout.max_cache_gib = 0" in complaint(tmp_path, "rollout: {max_cache_gib: 0}")
    assert "rollout.generator = 'sglang'" in complaint(tmp_path, "rollout: {generator: sglang}")


def test_vllm_options_and_stops_are_read_or_refused(tmp_path: Path) -> None:
    text = "rollout:\n  generator: vllm\n  stop: [</answer>]\n  vllm: {vllm_mode: server}\n"
    resolved = load_recipe(
        write(tmp_path, text), ["model.load_in_4bit=false", "rollout.vllm.vllm_server_port=8001"]
    )
    assert resolved.recipe.rollout.vllm == {"vllm_mode": "server", "vllm_server_port": 8001}
    assert resolved.recipe.rollout.stop == ["</answer>"]
    again = write(tmp_path, to_yaml(resolved))
    assert load_recipe(again).recipe == resolved.recipe
    unread = complaint(tmp_path, "rollout:\n  vllm: {vllm_mode: server}\n")
    assert "mine.yaml:2: rollout.vllm has options, but rollout.generator = 'grouped'" in unread
    assert "rollout.stop" in complaint(tmp_path, "rollout: {stop: ['']}")
    masked = "rollout: {stop: [x]}\ngrpo: {mask_truncated_completions: true}\n"
    assert "rollout.stop cannot be used with grpo.mask_truncated_completions" in complaint(tmp_path, masked)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("grpo.max_step=3", "unknown key grpo.max_step; did you mean grpo.max_steps?"),
        ("grpo.max_steps=many", "grpo.max_steps = 'many' should be a valid integer"),
        ("seed", "'seed' is not key=value"),
        ("=3", "is not key=value"),
        ("seed=[1", "is not a YAML value"),
        ("seed.x=1", "'seed' has no keys below it"),
    ],
)
def test_bad_override(tmp_path: Path, override: str, part: str) -> None:
    message = complaint(tmp_path, "seed: 1\n", override)
    assert message.startswith("command line: ")
    assert part in message


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: cannot read the recipe: No such file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"report: {title: caf\xe9}")
    with pytest.raises(RecipeError, match=r"latin\.yaml: not YAML"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_recipe_is_frozen_and_checks_python_callers_too() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="num_generation"):
        Recipe.model_validate({"grpo": {"num_generation": 4}})


def test_every_field_has_a_description() -> None:
    from lite_medrl import sections

    models = [
        thing
        for thing in vars(sections).values()
        if isinstance(thing, type) and issubclass(thing, sections.Section)
    ]
    undescribed = [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description and not isinstance(field.default, sections.Section)
    ]
    assert len(models) > 8
    assert undescribed == []


def test_yaml_names_every_key_and_origin(tmp_path: Path) -> None:
    text = to_yaml(load_recipe(write(tmp_path, "report:\n  title: a # b\n"), ["seed=9"]))
    lines = {
        line.split(":")[0].strip(): line.split("  # ")[1] for line in text.splitlines()[1:] if "  # " in line
    }
    assert lines["seed"] == "command line"
    assert lines["title"] == "mine.yaml:2"
    assert lines["beta"] == "default"
    assert text.count("  # ") == len(keys())
    assert [line for line in text.splitlines() if line.startswith("  rewards")] == [
        "  rewards: [{name: accuracy, weight: 1.0}, {name: format, weight: 0.2}]  # default"
    ]


@settings(max_examples=40)
@given(
    title=st.none() | st.text(st.characters(codec="utf-8"), max_size=40),
    kinds=st.none() | st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=3),
    learning_rate=st.floats(1e-300, 1e300),
    seed=st.integers(0, 2**32 - 1),
)
def test_resolved_yaml_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    title: str | None,
    kinds: list[str] | None,
    learning_rate: float,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("recipe")
    given_values = {
        "seed": seed,
        "sft": {"learning_rate": learning_rate},
        "report": {"title": title},
        "data": {"kinds": kinds},
    }
    resolved = load_recipe(write(folder, yaml.safe_dump(given_values)))
    assert resolved.recipe == Recipe.model_validate(given_values)
    text = to_yaml(resolved)
    assert load_recipe(write(folder, text)).recipe == resolved.recipe
    assert len(text.splitlines()) == len(keys()) + 1 + 2 * 9


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].glob("examples/*.yaml")), ids=lambda path: path.name
)
def test_shipped_recipes_load(path: Path) -> None:
    resolved = load_recipe(path)
    assert any(origin.startswith(path.name) for origin in resolved.origins.values())
