"""Our decoding against transformers' on every family: same greedy tokens in fp32, log-probs as rescored."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_vlms
import torch
from tiny_vlms import FAMILIES, IMAGE, MAKERS
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from lite_medrl.data.sources import load_samples
from lite_medrl.model import generate as generate_module
from lite_medrl.model import prefill as prefill_module
from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.load import load
from lite_medrl.model.pack_check import why_separate
from lite_medrl.model.packed import base_of, token_types
from lite_medrl.model.prefill import prefill, rows_prefill, tree_prefill, why_not
from lite_medrl.model.score import score

END, PAD = 7, 0
BANNED = [PAD, 10, 11, IMAGE, 61, 62, 63]


def make_processor(end: int = END) -> Any:
    """As much of a processor as is needed: banned ids, a stop token, texts of numbers."""
    tokenizer = SimpleNamespace(
        all_special_ids=[*BANNED, end], eos_token_id=end, pad_token_id=PAD, added_tokens_decoder={},
        batch_decode=lambda rows: [" ".join(map(str, row)) for row in rows],
    )  # fmt: skip
    return SimpleNamespace(tokenizer=tokenizer)


def make_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights with peaks, and a live adapter."""
    torch.manual_seed(3)
    model = MAKERS[family]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.25)
    model.generation_config.eos_token_id = END
    return tiny.with_lora(model.to(dtype)).eval()


def make_inputs(family: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Three prompts: two questions about one image, and one about two images."""
    roots = tiny_vlms.make_roots(family)
    first, second = roots[0].tokens, roots[1].tokens
    prompts = [[*first, 20, 21], [*second], [*first, 22]]
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts])
    images = [tiny_vlms.make_images(family, n) for n in ([0], [1, 2], [0])]
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long(), **tiny_vlms.join_images(images)}
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}


def transformers_greedy(
    model: Any, inputs: dict[str, torch.Tensor], length: int, stops: Sequence[int] = (END,), **options: Any
) -> list[list[int]]:
    types = token_types(base_of(model), inputs["input_ids"])
    with torch.no_grad():
        output = model.generate(
            **inputs, **types, do_sample=False, max_new_tokens=length, suppress_tokens=BANNED,
            eos_token_id=list(stops), pad_token_id=PAD, **options,
        )  # fmt: skip
    rows = output[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((i + 1 for i, token in enumerate(row) if token in stops), length) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers_token_for_token(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "hf_generate", None)  # ours it is
    model, inputs = make_model(family), make_inputs(family)
    ours = generate(
        model, make_processor(), inputs, num_generations=2, sampling=Sampling(24, temperature=0.0)
    )
    theirs = transformers_greedy(model, inputs, 24)
    assert [list(c.token_ids) for group in ours for c in group] == [row for row in theirs for _ in range(2)]
    assert len({tuple(row) for row in theirs}) == 3  # the prompts do not answer alike
    assert max(map(len, theirs)) > 9  # answers outgrow the sliding windows


def test_with_a_repetition_penalty_too_though_rows_leave_at_different_times() -> None:
    """Tokens of the prompt and of the answer so far count, each row's its own."""
    model, inputs, lengths = make_model("llava"), make_inputs("llava"), set[int]()
    model.generation_config.eos_token_id = stops = [END, 13, 19, 26, 31, 45]
    inputs = {
        key: torch.cat([value, value.flip(0)]) for key, value in inputs.items() if key != "pixel_values"
    }
    images = [tiny_vlms.make_images("llava", n) for n in ([0], [1, 2], [0], [0], [1, 2], [0])]
    inputs["pixel_values"] = torch.cat([one["pixel_values"] for one in images]).float()
    for penalty in (1.15, 1.6, 0.8):
        sampling = Sampling(24, temperature=0.0, repetition_penalty=penalty)
        ours = generate(model, make_processor(), inputs, num_generations=1, sampling=sampling)
        theirs = transformers_greedy(model, inputs, 24, stops, repetition_penalty=penalty)
        assert [list(c.token_ids) for (c,) in ours] == theirs
        assert theirs != transformers_greedy(model, inputs, 24, stops)
        lengths |= {len(row) for row in theirs}
    assert len(lengths) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_logps_are_the_rescored_ones(family: str) -> None:
    model, inputs, temperature = make_model(family), make_inputs(family), 1.3
    groups = generate(
        model, make_processor(), inputs, num_generations=4, sampling=Sampling(16, temperature, top_p=0.9)
    )
    flat = [c for group in groups for c in group]
    owners = [p for p in range(3) for _ in range(4)]
    completions = [c.token_ids for c in flat]
    for mode in ("off", "auto"):
        with torch.no_grad():
            scored = score(model, inputs, completions, owners, temperature=temperature, prefix_tree=mode)
        ours = torch.tensor([logp for c in flat for logp in c.logps])
        # Separate rows are rounded in another order: up to 1.2e-5 in one family.
        bound = 1e-5 if mode == "auto" else 2e-5
        torch.testing.assert_close(ours, scored.logp_N, rtol=0, atol=bound)
    assert len({len(c.token_ids) for c in flat}) > 1  # rows left the batch at different times
    sampled = [logp for c in flat for logp in c.sampling_logps]
    assert all(s > own for s, own in zip(sampled, ours.tolist(), strict=True))  # truncated and renormalised


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_to_prefill_leave_the_same_behind(family: str) -> None:
    base, inputs = base_of(make_model(family)), make_inputs(family)
    with torch.no_grad():
        trees, rows = tree_prefill(base, inputs), rows_prefill(base, inputs)
    for name in ("length_P", "position_P"):
        assert torch.equal(getattr(trees, name), getattr(rows, name))
    torch.testing.assert_close(trees.logits_PV, rows.logits_PV, rtol=1e-4, atol=1e-4)
    for tree, row in zip(trees.layers, rows.layers, strict=True):
        for a, b in zip(tree, row, strict=True):
            for p, length in enumerate(trees.length_P.tolist()):
                torch.testing.assert_close(a[p, :, :length], b[p, :, :length], rtol=1e-4, atol=1e-4)


def test_each_image_and_each_shared_token_passes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts about one image: its pixels come once, and so do the tokens that both begin with."""
    seen: list[tuple[int, int]] = []
    real = prefill_module.tree_hidden

    def spy(base: Any, trees: Any, tensors: Any, images: Any, **more: Any) -> Any:
        seen.append((sum(len(t.token_T) for t in trees), sum(len(i["image_grid_thw"]) for i in images)))
        return real(base, trees, tensors, images, **more)

    monkeypatch.setattr(prefill_module, "tree_hidden", spy)
    inputs = make_inputs("qwen3_vl")
    generate(make_model("qwen3_vl"), make_processor(), inputs, num_generations=8, sampling=Sampling(3))
    shared = len(tiny_vlms.make_roots("qwen3_vl")[0].tokens)
    assert seen == [(int(inputs["attention_mask"].sum()) - shared, 3)]


def test_prompts_of_several_passes_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    base, inputs = base_of(make_model("qwen2_5_vl")), make_inputs("qwen2_5_vl")
    with torch.no_grad():
        whole = prefill(base, inputs)
        monkeypatch.setattr(prefill_module, "MAX_TREE_TOKENS", 4)
        apart = prefill(base, inputs)
    assert torch.equal(whole.length_P, apart.length_P)
    torch.testing.assert_close(whole.logits_PV, apart.logits_PV, rtol=1e-5, atol=1e-5)
    length = int(whole.length_P[1])
    torch.testing.assert_close(apart.layers[2][1][1, :, :length], whole.layers[2][1][1, :, :length])


def test_attention_that_another_library_replaced_goes_through_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = base_of(make_model("qwen3_vl"))
    assert prefill_module.replaced(base) is None
    kind = type(base.model.language_model.layers[0].self_attn)
    real = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return real(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", forward)
    assert prefill_module.replaced(base) == f"attention by {__name__}"
    called: list[bool] = []
    monkeypatch.setattr(generate_module, "hf_generate", lambda *a, **k: called.append(True))
    generate(base, make_processor(), make_inputs("qwen3_vl"), num_generations=2, sampling=Sampling(1))
    assert called == [True]


def test_models_with_state_of_another_kind_are_named() -> None:
    config = base_of(make_model("llava")).config
    assert why_not(config) is None
    assert why_not(config, {"pixel_values_videos": torch.zeros(1)}) == "pixel_values_videos among the inputs"
    config.text_config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert why_not(config) == "layers of kind linear_attention"
    config.text_config.layer_types = None
    config.text_config.model_type = "gemma2"
    assert why_not(config) == "gemma2 as its text model"


def test_a_model_that_may_not_be_packed_prefills_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, whose load depends on the batch: M-RoPE positions still hold."""
    text = tiny_vlms.TEXT | {
        "rope_parameters": tiny_vlms.M_ROPE | {"mrope_interleaved": True}, "moe_intermediate_size": 24,
        "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip
    vision = tiny_vlms.QWEN_VISION | {
        "out_hidden_size": tiny_vlms.HIDDEN, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16
    }  # fmt: skip
    tokens = tiny_vlms.QWEN_TOKENS
    torch.manual_seed(3)
    model = Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(vision_config=vision, text_config=text, **tokens, tie_word_embeddings=False)
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.25)
    model.eval().generation_config.eos_token_id = END
    assert why_not(model.config) is None
    assert why_separate(model) is not None
    monkeypatch.setattr(prefill_module, "tree_prefill", None)
    inputs = make_inputs("qwen3_vl")
    ours = generate(
        model, make_processor(), inputs, num_generations=2, sampling=Sampling(12, temperature=0.0)
    )
    theirs = transformers_greedy(model, inputs, 12)
    assert [list(c.token_ids) for group in ours for c in group] == [row for row in theirs for _ in range(2)]
    assert len({tuple(row) for row in theirs}) == 3


def test_on_the_embedded_model_they_differ_by_rounding_alone() -> None:
    """In float64, to 1e-12 (measured: 2.4e-14); what is left in fp32 is the rounding of hidden states."""
    loaded = load("embedded", load_in_4bit=False)
    model = tiny.in_fp64(tiny.with_lora(loaded.model, scale=0.02)).eval()
    inputs = encode_prompts(loaded.processor, load_samples("embedded", "validation")[:6])
    groups = generate(model, loaded.processor, inputs, num_generations=4, sampling=Sampling(24))
    flat = [c for group in groups for c in group]
    owners = [p for p in range(6) for _ in range(4)]
    ours = torch.tensor([logp for c in flat for logp in c.logps], dtype=torch.float64)
    for mode in ("off", "auto"):
        with torch.no_grad():
            found = score(model, inputs, [c.token_ids for c in flat], owners, prefix_tree=mode).logp_N
        torch.testing.assert_close(ours, found, rtol=0, atol=1e-12)
    assert len({len(c.token_ids) for c in flat}) > 1
