"""The guard between sampler and trainer: what it measures, when it stops a run, and that GRPO passes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny
import torch
from test_grpo import G, Watch, rows, trainer_of

from lite_medrl.model import decode as decode_module
from lite_medrl.sections import Recipe
from lite_medrl.tools.closing import unseen_rows
from lite_medrl.tools.pipeline import Job
from lite_medrl.train import grpo as grpo_module
from lite_medrl.train.config import GRPOConfig
from lite_medrl.train.parity import TOLERANCE, Guard, check, compute_dtype, logp_gap
from lite_medrl.train.stages import generator_config
from lite_medrl.types import ModelError, RecipeError


@pytest.fixture(autouse=True)
def our_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_grpo.GRPOConfig", GRPOConfig)


def test_the_gap_is_the_mean_difference() -> None:
    sampled, rescored = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -2.75])
    assert logp_gap(sampled, rescored) == pytest.approx(0.25)
    assert logp_gap(sampled.bfloat16(), sampled) == 0.0


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_the_first_batch_has_to_pass_and_later_ones_are_measured(dtype: torch.dtype) -> None:
    zero, guard = torch.zeros(4, dtype=torch.float64), Guard()
    inside, outside = zero + 0.99 * TOLERANCE[dtype], zero + 1.01 * TOLERANCE[dtype]
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=f"more than {name} explains"):
        guard(outside, zero, dtype)
    assert not guard.passed
    assert guard(inside, zero, dtype) == pytest.approx(0.99 * TOLERANCE[dtype])
    assert guard(outside, zero, dtype) == pytest.approx(1.01 * TOLERANCE[dtype])


def test_nan_does_not_pass() -> None:
    with pytest.raises(ModelError, match="by nan a token"):
        check(torch.tensor([torch.nan]), torch.zeros(1), torch.bfloat16)


def test_the_dtype_is_what_the_forward_pass_computes_in() -> None:
    model = tiny.make_model(tiny.make_processor())
    assert compute_dtype(model, None) == compute_dtype(model, "no") == torch.float32
    assert compute_dtype(model, "bf16") == torch.bfloat16
    assert compute_dtype(model.half(), "no") == torch.float16


@pytest.mark.parametrize(
    "options",
    [{}, {"generator": "hf"}, {"top_p": 0.8, "repetition_penalty": 1.2, "min_p": 0.05},
     {"loss_type": "vespo"}, {"max_cache_gib": 1e-4}],
    ids=str,
)  # fmt: skip
def test_grpo_passes_and_logs_the_gap(tmp_path: Path, options: dict[str, Any]) -> None:
    watch = Watch()
    trainer = trainer_of(tmp_path, tiny.with_lora(tiny.loaded().model, scale=0.02), **options)
    trainer.add_callback(watch)
    trainer.train()
    gaps = [row["sampling/logp_gap"] for row in trainer.state.log_history if "sampling/logp_gap" in row]
    assert gaps
    assert max(gaps) < 1e-5
    logged = [row for row in trainer.state.log_history if "sampling/importance_sampling_ratio/mean" in row]
    assert bool(logged) == (options.get("loss_type") != "vespo")
    assert all(row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3) for row in logged)


def test_a_sampler_that_is_off_by_one_position_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = decode_module.Batch.__init__

    def init(self: Any, *args: Any) -> None:
        real(self, *args)
        self.position_R = self.position_R + 1

    monkeypatch.setattr(decode_module.Batch, "__init__", init)
    trainer = trainer_of(tmp_path, tiny.with_lora(tiny.loaded().model, scale=0.02))
    with pytest.raises(ModelError, match="answers are not drawn from the policy that is trained"):
        trainer.train()


def test_the_gate_is_trls(tmp_path: Path) -> None:
    """Off with TRL's option; the loss then does not depend on the sampler's log-probs."""
    model = tiny.with_lora(tiny.loaded().model, scale=0.02)
    losses = {}
    for correction in (True, False):
        trainer = trainer_of(tmp_path, model, vllm_importance_sampling_correction=correction)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer._scored(rows(trainer, 4), G)
        batch["advantages"] = torch.randn(4 * G, generator=torch.Generator().manual_seed(0))
        trainer._parity.passed = True
        shifted = batch | {"sampling_per_token_logps": batch["sampling_per_token_logps"] - 0.05}
        losses[correction] = [float(trainer.compute_loss(model, b)) for b in (batch, shifted)]
    assert losses[False][0] == losses[False][1]
    assert losses[True][0] != losses[True][1]
    assert losses[True][0] == pytest.approx(losses[False][0], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "sglang"}, "generator='sglang': must be one of grouped, hf"),
        ({"generator": "hf", "use_vllm": True}, "generator='hf' and use_vllm=True"),
        ({"max_cache_gib": 0.0}, "max_cache_gib=0.0: must be above 0"),
        ({"num_generations": 1}, "at least 2 generations"),
        ({"stop": ["x"], "use_vllm": True}, "stop and use_vllm=True"),
        ({"stop": ["x"], "mask_truncated_completions": True}, "stop and mask_truncated_completions=True"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_the_generator_gets_what_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    real = grpo_module.generate
    monkeypatch.setattr(grpo_module, "generate", lambda *a, **k: seen.append(k) or real(*a, **k))
    options = {
        "generator": "hf",
        "max_cache_gib": 0.5,
        "repetition_penalty": 1.3,
        "min_p": 0.1,
        "stop": ["is"],
    }
    trainer = trainer_of(tmp_path, tiny.with_lora(tiny.loaded().model), **options)
    trainer.model.train()
    trainer._scored(rows(trainer, 2), G)
    assert (seen[0]["generator"], seen[0]["max_cache_gib"]) == ("hf", 0.5)
    sampling = seen[0]["sampling"]
    assert (sampling.repetition_penalty, sampling.min_p, sampling.stop) == (1.3, 0.1, ("is",))
    assert trainer_of(tmp_path, tiny.with_lora(tiny.loaded().model)).args.stop is None


def rollout_of(**rollout: Any) -> Recipe:
    return Recipe.model_validate({"rollout": rollout, "model": {"load_in_4bit": False}})


def test_the_recipe_says_who_draws_and_where_answers_stop(tmp_path: Path) -> None:
    """Every option of TRL's vLLM is reached by its own name; one that TRL lacks is named."""
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    ours = GRPOConfig(**common, **generator_config(rollout_of(stop=["</answer>"], max_cache_gib=0.5)))
    assert (ours.generator, ours.max_cache_gib, ours.stop) == ("grouped", 0.5, ["</answer>"])
    plain = GRPOConfig(**common, **generator_config(rollout_of(generator="vllm")))
    assert (plain.use_vllm, plain.vllm_mode, plain.generation_kwargs) == (True, "colocate", None)
    asked = {"vllm_mode": "server", "vllm_server_port": 8001, "vllm_gpu_memory_utilization": 0.4}
    theirs = GRPOConfig(
        **common, **generator_config(rollout_of(generator="vllm", vllm=asked, stop=["</answer>"]))
    )
    assert {name: getattr(theirs, name) for name in asked} == asked
    assert theirs.generation_kwargs == {"stop": ["</answer>"], "include_stop_str_in_output": True}
    for name in ("vllm_gpu_memory", "beta"):
        with pytest.raises(RecipeError, match=f"rollout.vllm.{name}: TRL has no such option; did you mean"):
            generator_config(rollout_of(generator="vllm", vllm={name: 1}))


def test_measuring_stops_where_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def asked(*args: Any, sampling: Any, **kwargs: Any) -> Any:
        seen.append(sampling.stop)
        raise InterruptedError

    monkeypatch.setattr("lite_medrl.measure.ask.ask", asked)
    monkeypatch.setattr("lite_medrl.measure.evaluate.generate", asked)
    sets = dict.fromkeys(("test", "validation"), tiny.samples("test"))
    recipe, loaded = rollout_of(stop=["</answer>", "x"]), tiny.loaded()
    job = SimpleNamespace(model=loaded.model, processor=loaded.processor, recipe=recipe, sets=sets)
    for measured in (lambda: unseen_rows(job), lambda: Job.measure(cast(Any, job), "base", 0, "test")):
        with pytest.raises(InterruptedError):
            measured()
    assert seen == [("</answer>", "x")] * 2
