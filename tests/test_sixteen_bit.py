"""A model in 16 bit, as on every card: pixels come in its own dtype wherever it is asked or trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from lite_medrl.measure.ask import ask
from lite_medrl.model.choices import option_logps
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.load import load
from lite_medrl.model.score import score
from lite_medrl.model.stream import stream
from lite_medrl.train.parity import TOLERANCE
from lite_medrl.train.sft import trained_logps

GREEDY = Sampling(14, temperature=0.0)


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def half(request: pytest.FixtureRequest) -> Any:
    """The schooled model on NF4 that computes in 16 bit, a live adapter, and pixels in fp32 beside it."""
    loaded = load(str(tiny.folder()), dtype=request.param)
    model = tiny.with_lora(loaded.model, scale=0.02).eval()
    inputs = encode_prompts(loaded.processor, tiny.samples("test")[:4], instruction=tiny.INSTRUCTION)
    assert inputs["pixel_values"].dtype == torch.float32
    return SimpleNamespace(
        model=model, processor=loaded.processor, inputs=inputs, dtype=getattr(torch, request.param)
    )


@pytest.mark.parametrize("generator", ["grouped", "hf"])
def test_it_answers_and_its_log_probs_are_the_scorers(half: Any, generator: Any) -> None:
    groups = generate(
        half.model, half.processor, half.inputs, num_generations=4, sampling=Sampling(14), generator=generator
    )
    flat = [c for group in groups for c in group]
    owners = [p for p in range(4) for _ in range(4)]
    for mode in ("off", "auto"):
        with torch.no_grad():
            found = score(half.model, half.inputs, [c.token_ids for c in flat], owners, prefix_tree=mode)
        ours = torch.tensor([logp for c in flat for logp in c.logps])
        assert 0 < float((ours - found.logp_N).abs().mean()) < TOLERANCE[half.dtype]


def test_it_is_measured_watched_and_asked_for_letters(half: Any) -> None:
    samples = tiny.samples("test")[:4]
    options = {"sampling": GREEDY, "instruction": tiny.INSTRUCTION}
    assert all(a.greedy for a in ask(half.model, half.processor, samples, num_samples=1, **options))
    (alone,) = ask(half.model, half.processor, samples[:1], num_samples=0, **options)
    one = encode_prompts(half.processor, samples[:1], instruction=tiny.INSTRUCTION)
    *_, last = stream(half.model, half.processor, one, sampling=GREEDY)
    assert last == alone.greedy
    (found,) = option_logps(half.model, half.processor, one, [["red", "blue"]])
    assert len(set(found)) == 2


def test_it_is_taught(half: Any) -> None:
    told = half.processor.tokenizer(["it is red ."] * 4, return_tensors="pt")
    ids, labels = half.inputs["input_ids"], told["input_ids"]
    rows = half.inputs | {
        "input_ids": torch.cat([ids, labels], 1),
        "attention_mask": torch.cat([half.inputs["attention_mask"], told["attention_mask"]], 1),
        "labels": torch.cat([torch.full_like(ids, -100), labels], 1),
    }
    for mode in ("off", "required"):
        logp_N, _, _ = trained_logps(half.model, rows, prefix_tree=mode)
        assert len(logp_N) == labels.numel()
        assert bool(logp_N.isfinite().all())
