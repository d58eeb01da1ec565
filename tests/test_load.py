"""What is quantised, where LoRA goes, which card gets which dtype, and which models are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import httpx
import pytest
import tiny
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.quantizers.quantizers_utils import should_convert_module

from lite_medrl.model.encode import encode_prompts
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.load import (
    UNQUANTISED,
    add_lora,
    fingerprint,
    hold_dequantised,
    limit_image_tokens,
    load,
    lora_targets,
    policy_for_machine,
    text_model,
    text_model_path,
    with_advice,
)
from lite_medrl.model.score import score
from lite_medrl.sections import Model
from lite_medrl.tools.look import processor_of
from lite_medrl.types import ModelError, RecipeError

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "language-linear"}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES = [
    "llava",
    "llava_next",
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
    "idefics3",
    "gemma3",
    "internvl",
    "mistral3",
]


def inputs() -> dict[str, torch.Tensor]:
    return encode_prompts(tiny.make_processor(), tiny.samples()[:3], instruction=tiny.INSTRUCTION)


def saved() -> dict[str, torch.Tensor]:
    """The parameters as transformers alone reads them from the folder."""
    return dict(LlavaForConditionalGeneration.from_pretrained(tiny.folder()).named_parameters())


# --- quantisation -------------------------------------------------------------------------------------------
def test_nf4_is_in_the_text_model_and_nowhere_else() -> None:
    model, weights = tiny.loaded().model, saved()
    packed = {name: m for name, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    layers = "model.language_model.layers"
    assert sorted(packed) == sorted(
        f"{layers}.{i}.{'self_attn' if n[1:] == '_proj' else 'mlp'}.{n}" for i in (0, 1) for n in LINEARS
    )
    for name, module in packed.items():
        state = module.weight.quant_state
        assert (state.quant_type, state.nested) == ("nf4", True)
        real = bnb.functional.dequantize_4bit(module.weight.data, state)
        expected = weights[f"{name}.weight"]
        error = (real - expected).abs().max() / expected.abs().max()
        assert 1e-3 < float(error) < 0.16  # half of NF4's widest step is 0.152 of a block's largest
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in packed:
            assert parameter.dtype == torch.float32
            if "vision_tower" in name or "projector" in name:
                assert torch.equal(parameter, weights[name]), name
    assert type(model.get_output_embeddings()) is nn.Linear


def test_options_reach_bitsandbytes() -> None:
    fp4 = load(str(tiny.folder()), quant_type="fp4", double_quant=False).model
    state = fp4.model.language_model.layers[0].mlp.up_proj.weight.quant_state
    assert (state.quant_type, state.nested) == ("fp4", False)
    plain = tiny.loaded(load_in_4bit=False).model
    assert not any(isinstance(m, bnb.nn.Linear4bit) for m in plain.modules())
    weight = plain.model.language_model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, saved()["model.language_model.layers.0.mlp.up_proj.weight"])
    half = load(str(tiny.folder()), dtype="bfloat16").model
    assert half.model.multi_modal_projector.linear_1.weight.dtype == torch.bfloat16
    eager = load(str(tiny.folder()), attn_implementation="eager").model
    assert eager.config.text_config._attn_implementation == "eager"


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_only_the_decoder_would_be_quantised_and_trained(family: str) -> None:
    config = AutoConfig.for_model(family)
    for part in (config.get_text_config(), getattr(config, "vision_config", None)):
        for name in ("num_hidden_layers", "depth", "n_layers"):
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, 1)
    config.get_text_config().update({"layer_types": ["full_attention"], "pad_token_id": None})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    targets = lora_targets(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(targets) == {name for name in linears if should_convert_module(name, UNQUANTISED)}
    assert {name.rpartition(".")[2] for name in targets} == set(LINEARS)
    assert len(targets) == len(LINEARS)
    assert len(linears) > len(targets) + 2
    assert text_model(model).get_submodule("layers.0.mlp") is not None


def test_no_decoder_is_an_error() -> None:
    with pytest.raises(ModelError, match="no decoder layers found in Linear"):
        text_model_path(nn.Linear(2, 2))


@pytest.mark.parametrize("held", [True, False], ids=["held", "packed"])
def test_a_model_that_was_evaluated_trains_with_the_gradient_of_one_that_was_not(
    monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """bitsandbytes would repack the weights in evaluation (on CPUs with AVX512-BF16), for good."""
    if not held:
        monkeypatch.setattr("lite_medrl.model.load.hold_dequantised", lambda model: False)

    def gradient(evaluate: bool) -> dict[str, torch.Tensor]:
        model = tiny.with_lora(tiny.loaded().model)
        batch = inputs()
        if evaluate:
            generate(model, tiny.make_processor(), batch, num_generations=1, sampling=Sampling(4))
            model.eval()
            with torch.no_grad():
                model(**batch)
        model.train()
        score(model, batch, [[7, 8, 9]] * 3, [0, 1, 2]).logp_N.sum().backward()
        return tiny.lora_grads(model)

    fresh, after = gradient(False), gradient(True)
    assert all(float(g.abs().max()) > 0 for g in fresh.values())
    for name, grad in after.items():
        assert torch.equal(grad, fresh[name]), name
    packed = [m for m in tiny.loaded().model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert packed
    assert not any(m.support_avx512bf16_for_cpu for m in packed)


# --- LoRA ---------------------------------------------------------------------------------------------------
def test_held_weights_compute_what_packed_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    held = tiny.loaded().model
    monkeypatch.setattr("lite_medrl.model.load.hold_dequantised", lambda model: False)
    packed = tiny.loaded().model
    layers = [[m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)] for model in (held, packed)]
    assert all("forward" in vars(layer) for layer in layers[0])
    assert not any("forward" in vars(layer) for layer in layers[1])
    for one, two in zip(*layers, strict=True):
        x = torch.randn(5, one.in_features)
        results = []
        for layer in (one, two):
            leaf = x.clone().requires_grad_()
            out = layer(leaf)
            out.square().sum().backward()
            assert leaf.grad is not None
            results.append((out.detach(), leaf.grad, layer(x)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert fingerprint(held) == fingerprint(packed)


def test_weights_that_are_too_large_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lite_medrl.model.load.hold_dequantised", lambda model: False)
    model = tiny.loaded().model
    cells = sum(
        m.weight.quant_state.shape.numel() for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)
    )
    assert not hold_dequantised(model, max_gib=(4 * cells - 1) / 2**30)
    assert not any("forward" in vars(m) for m in model.modules())
    assert hold_dequantised(model, max_gib=4 * cells / 2**30)
    assert not hold_dequantised(tiny.loaded(load_in_4bit=False).model)


def test_a_fingerprint_tells_one_base_from_another() -> None:
    model = tiny.loaded().model
    first = fingerprint(model)
    assert fingerprint(tiny.loaded().model) == first
    assert fingerprint(tiny.loaded(load_in_4bit=False).model) != first
    with torch.no_grad():
        next(p for p in model.parameters() if p.is_floating_point()).view(-1)[0] += 1
    assert fingerprint(model) != first


def test_lora_is_on_the_decoders_linears_in_fp32_and_changes_nothing_yet() -> None:
    loaded, batch = tiny.loaded(), inputs()
    with torch.no_grad():
        before = loaded.model(**batch).logits
    peft = add_lora(loaded.model, seed=0, **LORA)
    with torch.no_grad():
        assert torch.equal(peft.eval()(**batch).logits, before)
    trained = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * len(LINEARS)
    assert all("language_model.layers" in n and ".lora_" in n and ".default." in n for n in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all(float(p.detach().abs().max()) == 0 for n, p in trained.items() if "lora_B" in n)
    assert text_model_path(peft) == "base_model.model.model.language_model"
    assert text_model(peft) is peft.get_base_model().model.language_model
    layer = peft.get_base_model().model.language_model.layers[0].mlp.up_proj
    assert layer.scaling["default"] == 8 / 4
    assert layer.lora_A["default"].weight.shape == (4, 64)


def test_lora_is_seeded_and_takes_other_targets() -> None:
    def weights(seed: int, **options: Any) -> dict[str, torch.Tensor]:
        peft = add_lora(tiny.loaded(load_in_4bit=False).model, seed=seed, **(LORA | options))
        return {name: p.detach() for name, p in peft.named_parameters() if p.requires_grad}

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    half = weights(1, target_modules=["q_proj"])
    assert len(half) == 8  # peft's names match everywhere: the tower has two of them as well
    assert all("q_proj" in name for name in half)


def test_targets_that_do_not_exist_are_the_recipes_fault() -> None:
    with pytest.raises(RecipeError, match=r"lora\.target_modules.*query_projection"):
        add_lora(tiny.loaded().model, seed=0, **(LORA | {"target_modules": ["query_projection"]}))


# --- policy -------------------------------------------------------------------------------------------------
CARDS = {"T4": ((7, 5), "float16"), "RTX 3060": ((8, 6), "bfloat16"), "H100": ((9, 0), "bfloat16")}


@pytest.mark.parametrize("card", CARDS)
def test_dtype_of_a_card(monkeypatch: pytest.MonkeyPatch, card: str) -> None:
    capability, dtype = CARDS[card]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: card)
    policy = policy_for_machine()
    assert (policy.device, policy.dtype) == ("cuda", getattr(torch, dtype))
    assert str(policy) == f"cuda, {dtype} ({card} has {'no ' if dtype == 'float16' else ''}bf16)"
    assert policy_for_machine("float32").dtype == torch.float32


def test_dtype_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (policy_for_machine().device, policy_for_machine().dtype) == ("cpu", torch.float32)
    assert str(policy_for_machine("bfloat16")) == "cpu, bfloat16 (the recipe asks for it)"


# --- image tokens -------------------------------------------------------------------------------------------
def test_a_limit_on_image_tokens_shrinks_images_and_keeps_their_aspect() -> None:
    processor = SimpleNamespace(image_processor=Qwen2VLImageProcessorPil())

    def grid(width: int, height: int) -> list[int]:
        image = Image.new("RGB", (width, height))
        return processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()

    assert grid(560, 280) == [1, 20, 40]
    limit_image_tokens(processor, 50)
    assert grid(560, 280) == [1, 10, 20]  # 50 tokens of 2 x 2 patches, two to one
    assert grid(56, 28) == [1, 2, 4]  # small ones stay
    limit_image_tokens(processor, 1)
    assert grid(280, 280) == [1, 2, 2]


def test_a_limit_where_the_number_is_fixed_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"model\.max_image_tokens: SiglipImageProcessor"):
        load(str(tiny.folder()), max_image_tokens=9)


# --- refusals -----------------------------------------------------------------------------------------------
def edited(where: Path, edit: Callable[[Path], object]) -> str:
    copy = where / "model"
    shutil.copytree(tiny.folder(), copy)
    edit(copy)
    return str(copy)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "mine.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('this must not run')")


def text_only(folder: Path) -> None:
    config = Qwen3Config(vocab_size=384, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1, head_dim=16)  # fmt: skip
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    Qwen3ForCausalLM(config).save_pretrained(folder)


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 400
    (folder / "config.json").write_text(json.dumps(config))


def incomplete(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("layers.1.input_layernorm.weight"))]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "own code": (own_code, r"auto_map\); this is refused"),
    "pickled": (pickled, r"holds no \.safetensors; pickled weights are refused"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), r"is not JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), r"is not a JSON object"),
    "unknown architecture": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "no_such_model"}'),
        r"cannot load .*no_such_model",
    ),
    "text only": (text_only, r"cannot load"),
    "no processor": (
        lambda folder: [p.unlink() for p in folder.glob("*") if "token" in p.name or "processor" in p.name],
        r"cannot load",
    ),
    "cut short": (cut_short, r"cannot load .*not fully covered"),
    "other shape": (other_shape, r"has another shape for 1 of the weights, such as .*embed_tokens"),
    "incomplete": (incomplete, r"has no 1 of the weights, such as .*layers\.1\.input_layernorm\.weight"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_folders_that_cannot_be_loaded(tmp_path: Path, fault: str) -> None:
    edit, message = BROKEN[fault]
    with pytest.raises(ModelError, match=message) as caught:
        load(edited(tmp_path, edit), load_in_4bit=fault != "other shape")  # in 4 bits the file's shape counts
    text = str(caught.value)
    assert text.startswith("model.model_name_or_path: ")
    assert str(tmp_path) in text
    assert len(text) < 600
    assert "\n" not in text


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "../no-such-folder"])
def test_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match=r"^model\.model_name_or_path: no folder '.*no.such.folder'; give"):
        load(name)


def test_a_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(
        ModelError, match=r"^model\.model_name_or_path: cannot load 'someone/no-.*'"
    ) as caught:
        load("someone/no-such-model")
    assert str(caught.value).endswith("; without a network, give a local folder that holds the model")


def refused(kind: type[HfHubHTTPError]) -> HfHubHTTPError:
    request = httpx.Request("GET", "https://huggingface.co/someone/model")
    return kind("401 Client Error", response=httpx.Response(401, request=request))


LICENCE = "accept the licence on https://huggingface.co/someone/model and log in with `hf auth login`"
HUB_ERRORS = {
    "gated": (refused(GatedRepoError), f"it failed; {LICENCE}"),
    "unknown": (
        refused(RepositoryNotFoundError), "it failed; check its name; a private model needs `hf auth login`",
    ),
    "no network": (
        LocalEntryNotFoundError("no cache"),
        "it failed; without a network, give a local folder that holds the model",
    ),
    "anything else": (
        None, f"it failed; check its name; if it is gated, {LICENCE}; without a network, give a local folder "
        "that holds the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", HUB_ERRORS)
def test_an_error_of_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    cause, told = HUB_ERRORS[fault]

    def fail(*_: object, **__: object) -> None:
        raise OSError("it failed.\nand so on") from cause

    monkeypatch.setattr(AutoProcessor, "from_pretrained", fail)
    with pytest.raises(ModelError) as caught:
        load("someone/model")
    assert str(caught.value) == f"model.model_name_or_path: cannot load 'someone/model': {told}"
    with pytest.raises(ModelError) as caught:
        processor_of(Model(), "someone/model")
    assert str(caught.value) == f"--model: no processor for 'someone/model': {told}"


def test_an_error_of_a_local_folder_does_not_speak_of_the_hub(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", "./none"):
        assert with_advice(OSError("it failed."), str(path)) == "it failed"
