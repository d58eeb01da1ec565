"""A model in 16 bit, as on every card: pixels come in its own dtype wherever it is asked or trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from lite_medrl.data.sources import load_samples
from lite_medrl.measure.ask import ask
from lite_medrl.model import head as head_module
from lite_medrl.model.choices import option_logps
from lite_medrl.model.decode import Batch
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.head import head_logits
from lite_medrl.model.load import load
from lite_medrl.model.score import score
from lite_medrl.model.stream import stream
from lite_medrl.train.parity import TOLERANCE, check
from lite_medrl.train.sft import trained_logps
from lite_medrl.types import ModelError
from medrl_kernels import grouped_logp

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("how", ["stored", "autocast", "mixed"])
def test_logits_are_fp32s_as_the_scorers_are(
    dtype: torch.dtype, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of 16-bit numbers summed in fp32: what the scorer computes, to fp32's rounding."""
    monkeypatch.setattr(head_module, "CHUNK_CELLS", 40 * 64)  # several parts
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(64, 301)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
    hidden = torch.randn(5, 64, generator=generator).to(torch.float32 if how == "autocast" else dtype)
    head = head.to(dtype) if how == "stored" else head
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    base = SimpleNamespace(get_output_embeddings=lambda: head, config=config)
    target = torch.arange(301).repeat(5)
    source = torch.arange(5).repeat_interleave(301)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=how == "autocast"):
        logits = head_logits(base, hidden)
        scored = grouped_logp(hidden, head.weight, target, source, bias_V=head.bias).logp_N
    assert logits.dtype == torch.float32
    wanted = torch.nn.functional.linear(hidden.double(), head.weight.double(), head.bias.double())
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(logits.log_softmax(-1).flatten(), scored, rtol=1e-6, atol=2e-5)


def test_the_guard_tells_an_unseen_token_from_rounding_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedded model: answers that do not see their prompt's last token are off by 0.05 to 0.1."""
    loaded, real = load("embedded", dtype="bfloat16"), Batch.__init__
    model = tiny.with_lora(loaded.model, scale=0.02).eval()
    inputs = encode_prompts(loaded.processor, load_samples("embedded", "validation")[:8])

    def gap() -> float:
        groups = generate(model, loaded.processor, inputs, num_generations=4, sampling=Sampling(24))
        flat = [c for group in groups for c in group]
        owners = [p for p in range(8) for _ in range(4)]
        with torch.no_grad():
            found = score(model, inputs, [c.token_ids for c in flat], owners).logp_N
        return check(torch.tensor([logp for c in flat for logp in c.logps]), found, torch.bfloat16)

    def blind(self: Any, *args: Any) -> None:
        real(self, *args)
        self.depth_R = self.depth_R - 1

    assert gap() < TOLERANCE[torch.bfloat16] / 3
    monkeypatch.setattr(Batch, "__init__", blind)
    with pytest.raises(ModelError, match="more than bfloat16 explains"):
        gap()
    with pytest.raises(ModelError, match="more than bfloat16 explains"):
        check(torch.full([1], 0.055), torch.zeros(1), torch.bfloat16)  # the least that was measured


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
