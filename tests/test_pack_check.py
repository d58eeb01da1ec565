"""Which models may be packed: the table with its reasons, and the check on the first rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_vlms import FAMILIES, SIGLIP, TEXT, make_case
from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig

from lite_medrl.model import packed
from lite_medrl.model.pack_check import TOLERANCE, can_pack, packable_plan, self_check
from lite_medrl.model.packed import Plan
from lite_medrl.types import ModelError


def test_self_check_measures_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case("llava")
    case.model.train()
    for module in case.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5  # would be seen, if it were on
    case.model.get_base_model().model.vision_tower.eval()
    modes = [module.training for module in case.model.modules()]
    trees = case.trees()
    assert self_check(case.model, trees, case.images) < 1e-12
    causal = {"full_attention": lambda row, head, query, key: (row >= 0) & (key <= query)}
    monkeypatch.setattr(packed, "mask_rules", lambda config, tensors: causal)
    assert self_check(case.model, trees, case.images) > 0.01  # every branch reads the ones before it
    assert [module.training for module in case.model.modules()] == modes
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_refusals_say_why() -> None:
    def text(**more: Any) -> Any:
        return LlavaConfig(
            text_config=LlamaConfig(**TEXT, **more), vision_config=SiglipVisionConfig(**SIGLIP)
        )

    assert can_pack(text()) is None
    for config, reason in (
        (transformers.Lfm2VlConfig(), "lfm2_vl: short convolutions mix neighbouring tokens of a row"),
        (
            transformers.Qwen3_5Config(),
            "qwen3_5: linear attention carries a state from token to token of a row",
        ),
        (transformers.Qwen3VLMoeConfig(), "qwen3_vl_moe: the load of its experts depends on which tokens"),
        (
            LlavaConfig(vision_config=transformers.PixtralVisionConfig()),
            "llava: packing is not tested with Pixtral's images",
        ),
        (transformers.PaliGemmaConfig(), "paligemma: not among the families"),
        (
            text(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "llava: dynamic rotary",
        ),
        (LlavaConfig(text_config=transformers.GPT2Config()), "llava: packing is not tested with gpt2 as its"),
    ):
        assert (can_pack(config) or "").startswith(reason)
    flash = text()
    flash.text_config._attn_implementation = "flash_attention_2"
    assert (
        can_pack(flash)
        == "attn_implementation=flash_attention_2 takes no mask of ours; load the model with 'sdpa'"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_tests_is_allowed(family: str) -> None:
    assert can_pack(make_case(family).model.config) is None


@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_self_check_in_bf16(cast: str) -> None:
    """Half precision rounds far less than its tolerance, under autocast too."""
    case = make_case("llava")
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        case.model.to(torch.bfloat16 if cast == "weights" else torch.float32)
        images = [{"pixel_values": one["pixel_values"].float()} for one in case.images]
        if cast == "weights":
            images = [{"pixel_values": one["pixel_values"].bfloat16()} for one in images]
        assert 0 < self_check(case.model, case.trees(), images) < 0.3 * TOLERANCE[torch.bfloat16]


def test_the_plan_is_kept_from_a_model_that_cannot_use_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, broken, refused = make_case("llava"), make_case("llava"), make_case("llava")

    def ask(case: Any, **options: Any) -> Plan | None:
        return packable_plan(case.model, lambda: Plan(case.trees(), case.images), **options)

    with caplog.at_level("INFO"):
        made = ask(good)
        assert made is not None
        assert made.trees == good.trees()
        with monkeypatch.context() as patch:
            causal = {"full_attention": lambda row, head, query, key: (row >= 0) & (key <= query)}
            patch.setattr(packed, "mask_rules", lambda config, tensors: causal)
            assert ask(broken) is None
        assert ask(broken) is None  # remembered: asked once a model
        refused.model.config.text_config.num_experts = 4
        assert ask(refused) is None
        assert ask(good) == made
    with pytest.raises(ModelError, match="packing was asked for, but is not possible: llava: the load"):
        ask(refused, required=True)
    lines = [r.getMessage() for r in caplog.records if r.name == "lite_medrl.model.pack_check"]
    assert [line.split(" by ")[0] for line in lines] == [
        "prefix trees: answers to one image share a row",
        "separate rows: llava: packed log-probs differ from separate ones",
        "separate rows: llava: the load of its experts depends on which tokens share a batch",
    ]
