"""What only a CUDA card can show: the kernels as they are launched there, block masks, recorded decode steps.

On a card: `TRITON_INTERPRET=0 pytest tests/test_cuda.py` (the other tests run kernels in the interpreter).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import test_grouped_logp_triton as heads
import tiny
import tiny_qwen
import torch
from loss_options import heard
from test_grpo import trainer_of
from test_grpo_loss_triton import packed

from lite_medrl.model import decode, tree_mask
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.load import load
from lite_medrl.model.score import score
from lite_medrl.train.parity import TOLERANCE
from medrl_kernels import grouped_logp, grpo_loss, reference
from medrl_kernels.configs import FILTER_MASS
from medrl_kernels.dispatch import LOSS_TYPES

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs a CUDA card and TRITON_INTERPRET=0",
)
CUDA = torch.device("cuda")
# Of logp absolute, of gradients relative to their norm: what rounding in the operands' dtype explains.
ERROR = {torch.float32: (1e-4, 1e-4), torch.float16: (2e-3, 4e-3), torch.bfloat16: (4e-3, 2e-2)}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap and scale": {"softcap": 20.0, "logit_scale": 0.5, "temperature": 1.3},
    "bias": {"bias": True},
    "head": {"head": True, "bias": True},
    "entropy": {"entropy": True},
}


def on_card(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(CUDA) if isinstance(v, torch.Tensor) else v for k, v in values.items()}


@pytest.mark.parametrize("option", HEADS)
@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_grouped_logp_is_float64s(dtype: torch.dtype, option: str) -> None:
    asked = {"head": False, "bias": False, "entropy": False} | HEADS[option]
    p = on_card(heads.problem(300, 700, 5003, 256, dtype))
    want, got = heads.naive64(p, **asked), heads.kernel(p, **asked)
    near, far = ERROR[dtype]
    assert float((got[0] - want[0]).abs().max()) < near
    for mine, theirs in zip(got[2:], want[2:], strict=True):
        assert float((mine.double() - theirs).norm() / theirs.norm()) < far


@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("eps", [1e-5, 1e-4, 1e-3])
def test_the_filter_keeps_its_bound(dtype: torch.dtype, eps: float) -> None:
    """Row by row, beside the exact gradient in the same dtype; and it does leave something out."""
    asked = {"head": False, "bias": False, "entropy": False}
    p = on_card(heads.peaked(256, 8192, 256))
    p |= {name: p[name].to(dtype) for name in ("hidden", "weight")}
    exact, got = heads.kernel(p, **asked), heads.kernel(p, **asked, filter_eps=eps)
    assert torch.equal(got[0], exact[0])
    error_S = (got[2].double() - exact[2].double()).norm(dim=1)
    bound_S = FILTER_MASS * eps * p["up"][0].double().abs() * p["weight"].double().norm(dim=1).max()
    assert bool((error_S <= bound_S + ERROR[dtype][1] * exact[2].double().norm(dim=1) + 1e-6).all())
    assert bool((error_S > 0).any())


@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_a_state_has_the_same_bits_in_a_call_of_any_size(dtype: torch.dtype) -> None:
    asked = {"head": False, "bias": False, "entropy": False}
    p = on_card(heads.problem(2500, None, 5003, 256, dtype))
    whole = heads.kernel(p, **asked)
    order = torch.randperm(2500, generator=torch.Generator().manual_seed(1)).to(CUDA)
    for size in (1, 300, 1024, 2500):
        rows = order[:size]
        for part, want in zip(heads.kernel(heads.of_rows(p, rows), **asked), whole, strict=True):
            assert torch.equal(part, want[rows])


@pytest.mark.parametrize("states", [4096, 16384])
def test_memory_beyond_the_gradients(states: int) -> None:
    """At most 300 MiB beyond u (S, D) in fp32 and the gradient that comes out; the second call, warm."""
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    hidden = torch.randn(states, 2560, device=CUDA, dtype=dtype, requires_grad=True)
    weight = torch.randn(50000, 2560, device=CUDA, dtype=dtype)
    target = torch.randint(50000, (states,), device=CUDA)
    for _ in range(2):
        hidden.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        grouped_logp(hidden, weight, target, impl="triton").logp_N.sum().backward()
    known = states * 2560 * 6
    assert torch.cuda.max_memory_allocated() - before < known + 300 * 2**20


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_grpo_loss_is_the_references(loss_type: str, level: str) -> None:
    call = on_card(packed([700, 1, 0, 333, 2048, 64] * 20))
    options: dict[str, Any] = {
        "loss_type": loss_type, "importance_sampling_level": level, "beta": 0.05, "entropy_coef": 0.01,
        "top_entropy_quantile": 0.7, "off_policy_mask_threshold": 0.1, "max_completion_length": 2048,
    }  # fmt: skip
    found = []
    for op in (lambda **k: grpo_loss(**k, impl="triton"), reference.grpo_loss):
        leaf = call["logp_N"].clone().requires_grad_()
        out = op(**heard(call | options) | {"logp_N": leaf})
        out.loss.backward()
        found.append((out.loss.detach(), leaf.grad, {k: float(v) for k, v in out.metrics.items()}))
    (loss, grad, metrics), (want, want_grad, want_metrics) = found
    torch.testing.assert_close(loss, want, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(grad, want_grad, rtol=1e-3, atol=1e-5 * float(want_grad.abs().max()))
    assert metrics == pytest.approx(want_metrics, rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.fixture(scope="module")
def qwen() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A tiny Qwen3-VL in fp32, its processor, and two questions about images of two sizes."""
    from PIL import Image

    processor = tiny_qwen.make_processor()
    model = tiny.with_lora(tiny_qwen.make_model(processor)).to(CUDA).eval()
    images = [[Image.new("RGB", (40, 30), "red")], [Image.new("RGB", (64, 64), "blue")]]
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]}]
    text = [processor.apply_chat_template(turn, add_generation_prompt=True) for _ in images]
    inputs = processor(text=text, images=images, padding=True, return_tensors="pt")
    return model, processor, on_card(dict(inputs))


def test_block_masks_give_the_log_probs_and_gradients_of_separate_rows(qwen: Any) -> None:
    model, _, inputs = qwen
    assert tree_mask.choose_attention(CUDA) == "flex"
    completions, owner = [[65, 66, 67], [65, 70], [71, 72, 73, 74], [80, 81]], [0, 0, 1, 1]
    found = []
    for mode in ("required", "off"):
        model.zero_grad(set_to_none=True)
        result = score(model, inputs, completions, owner, prefix_tree=mode, with_entropy=True)
        result.logp_N.sum().backward()
        found.append((result.logp_N.detach(), tiny.lora_grads(model)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)
    for name, grad in found[0][1].items():
        error = (grad - found[1][1][name]).norm() / found[1][1][name].norm()
        assert float(error) < 1e-2, name


def test_recorded_steps_draw_what_transformers_draws(qwen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor, inputs = qwen
    made: list[Any] = []
    real = decode.replayed
    monkeypatch.setattr(decode, "replayed", lambda *a: made.append(real(*a)) or made[-1])
    greedy = Sampling(100, temperature=0.0)
    ours = generate(model, processor, inputs, num_generations=2, sampling=greedy)
    assert made
    assert all(one.works and one.graph is not None for one in made)
    theirs = generate(model, processor, inputs, num_generations=1, sampling=greedy, generator="hf")
    for group, (other,) in zip(ours, theirs, strict=True):
        assert [c.token_ids for c in group] == [other.token_ids] * 2


def test_memory_does_not_grow_over_200_calls(qwen: Any) -> None:
    model, processor, inputs = qwen
    levels = []
    for call in range(200):
        generate(model, processor, inputs, num_generations=4, sampling=Sampling(4), seed=call)
        if call % 50 == 49:
            torch.cuda.synchronize()
            levels.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert levels[0] == levels[-1]


def test_the_embedded_model_samples_what_it_scores() -> None:
    """NF4 in the card's 16-bit type: the gap that the parity guard allows."""
    loaded = load("embedded")
    model = tiny.with_lora(loaded.model)
    inputs = encode_prompts(loaded.processor, embedded(4), instruction="think , then answer .", device=CUDA)
    groups = generate(model, loaded.processor, inputs, num_generations=8, sampling=Sampling(24))
    flat = [c for group in groups for c in group]
    owner = [p for p in range(4) for _ in range(8)]
    with torch.no_grad():
        scored = score(model, inputs, [list(c.token_ids) for c in flat], owner)
    sampled = torch.tensor([logp for c in flat for logp in c.logps], device=CUDA)
    assert float((scored.logp_N - sampled).abs().mean()) < TOLERANCE[loaded.policy.dtype]


def embedded(count: int) -> list[Any]:
    from lite_medrl.data.sources import load_samples

    return load_samples("embedded", "train")[:count]


def test_both_trainers_take_steps(tmp_path: Path) -> None:
    """GRPO on the tiny LLaVA in NF4, in the card's own precision."""
    half = torch.cuda.is_bf16_supported()
    trainer = trainer_of(
        tmp_path, max_steps=3, use_cpu=False, bf16=half, fp16=not half, learning_rate=1e-3,
        gradient_checkpointing=True,
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer._parity.passed
    after = dict(trainer.model.named_parameters())
    assert all(bool(after[n].isfinite().all()) for n in before)
    assert any(not torch.equal(after[n], p) for n, p in before.items())
