"""Loads a vision-language model in NF4 with a LoRA, and says once which device and dtype it will run in.

The vision tower, the projector and the head stay unquantised; LoRA goes on the language model's linear layers
only. The same call serves the embedded model on a CPU and a hub id on a GPU. Only safetensors, never remote
code.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn

from lite_medrl.sections import Model as ModelSection
from lite_medrl.types import ModelError, RecipeError

EMBEDDED = Path(__file__).parent / "embedded"
# Modules that stay in 16 bit, over the families that transformers ships: towers, projectors, mergers, heads.
# It matches these patterns from the start of a full name ("model.vision_tower.layers.0.fc1").
UNQUANTISED = [
    rf"(.*\.)?{name}(\.|$)"
    for name in (
        "vision_tower",
        "vision_model",
        "visual",
        "multi_modal_projector",
        "connector",
        "embed_vision",
        "lm_head",
    )
]
TEXT_PATHS = ("model.language_model", "model.text_model", "language_model", "model")


@dataclass(frozen=True, slots=True)
class Policy:
    """Where the model runs and in which dtype it computes, with the reason."""

    device: str
    dtype: torch.dtype
    why: str

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')} ({self.why})"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its processor (left padding) and the policy it was loaded under."""

    model: Any
    processor: Any
    policy: Policy


def load_for(section: ModelSection) -> Loaded:
    """`load` with the settings of a recipe's model section."""
    return load(
        section.model_name_or_path,
        revision=section.revision,
        load_in_4bit=section.load_in_4bit,
        quant_type=section.bnb_4bit_quant_type,
        double_quant=section.bnb_4bit_use_double_quant,
        dtype=section.dtype,
        attn_implementation=section.attn_implementation,
        max_image_tokens=section.max_image_tokens,
    )


def fingerprint(model: Any) -> str:
    """16 hex digits that tell one base from another: names, shapes and first values of all its weights.

    The same for the same weights loaded the same way (precision, quantisation), on any device.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().flatten()[:64].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def policy_for_machine(dtype: str = "auto") -> Policy:
    """fp32 on a CPU, fp16 on cards before Ampere (T4), bf16 from Ampere on; another `dtype` wins."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    if dtype != "auto":
        return Policy(device, getattr(torch, dtype), "the recipe asks for it")
    if not cuda:
        return Policy(device, torch.float32, "16-bit is slower than fp32 on this CPU path")
    if torch.cuda.get_device_capability()[0] < 8:
        return Policy(device, torch.float16, f"{torch.cuda.get_device_name()} has no bf16")
    return Policy(device, torch.bfloat16, f"{torch.cuda.get_device_name()} has bf16")


def load(
    model_name_or_path: str = "embedded",
    *,
    revision: str | None = None,
    load_in_4bit: bool = True,
    quant_type: str = "nf4",
    double_quant: bool = True,
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    max_image_tokens: int | None = None,
) -> Loaded:
    """The quantised base without an adapter.

    Raises:
        ModelError: the id or folder is missing, has no safetensors, wants remote code or cannot be read.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

    policy = policy_for_machine(dtype)
    path = str(EMBEDDED) if model_name_or_path == "embedded" else model_name_or_path
    refuse_unsafe(path)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=policy.dtype,
        llm_int8_skip_modules=UNQUANTISED,
    )
    try:
        processor = AutoProcessor.from_pretrained(
            path, revision=revision, trust_remote_code=False, padding_side="left"
        )
        found: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            revision=revision,
            dtype=policy.dtype,
            device_map={"": policy.device},
            quantization_config=quantization if load_in_4bit else None,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refuse_incomplete reports them
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"model.model_name_or_path: cannot load {model_name_or_path!r}: {with_advice(error, path)}"
        ) from error
    model, info = found
    refuse_incomplete(model_name_or_path, info)
    processor.tokenizer.padding_side = "left"
    if max_image_tokens is not None:
        limit_image_tokens(processor, max_image_tokens)
    keep_canonical_nf4(model)
    if policy.device == "cpu":
        hold_dequantised(model)
    return Loaded(model, processor, policy)


def limit_image_tokens(processor: Any, max_image_tokens: int) -> None:
    """Makes a Qwen-style processor shrink images (aspect kept) until each costs at most this many tokens."""
    image_processor = processor.image_processor
    patch, merge = getattr(image_processor, "patch_size", None), getattr(image_processor, "merge_size", None)
    if not (isinstance(patch, int) and isinstance(merge, int)):
        raise ModelError(
            f"model.max_image_tokens: {type(image_processor).__name__} has a fixed number of image tokens; "
            "leave it out for this model"
        )
    pixels = (patch * merge) ** 2
    image_processor.size = {"shortest_edge": pixels, "longest_edge": max_image_tokens * pixels}


def refuse_unsafe(path: str) -> None:
    """ModelError for a local folder that is empty, asks for its own code, or has pickled weights only."""
    folder = Path(path)
    if not folder.is_dir():
        if not is_hub_id(path):
            raise ModelError(
                f"model.model_name_or_path: no folder {path!r}; give a folder, a hub id, or 'embedded'"
            )
        return
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.model_name_or_path: {folder} has no config.json; is it a saved model?")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"model.model_name_or_path: {folder / 'config.json'} is not JSON: {first_line(error)}"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"model.model_name_or_path: {folder / 'config.json'} is not a JSON object")
    if "auto_map" in config:
        raise ModelError(
            f"model.model_name_or_path: {folder} wants to run its own code (auto_map); this is refused"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model.model_name_or_path: {folder} holds no .safetensors; pickled weights are refused"
        )


def is_hub_id(path: str) -> bool:
    """Whether a name that is no folder here can only be meant for the model hub."""
    return not (Path(path).is_absolute() or path.startswith("."))


def refuse_incomplete(name: str, info: dict[str, Any]) -> None:
    """ModelError where weights are missing or of another shape: they would be random, with a warning only."""
    for what, keys in (("has no", info["missing_keys"]), ("has another shape for", info["mismatched_keys"])):
        if keys:
            raise ModelError(
                f"model.model_name_or_path: cannot load {name!r}: the file {what} {len(keys)} of the "
                f"weights, such as {min(map(str, keys))}"
            )


def first_line(error: BaseException) -> str:
    """First line of an error's text, cut to a readable length."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def with_advice(error: BaseException, path: str) -> str:
    """First line of an error, and for a model that is no local folder what to do about it."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    told = first_line(error).rstrip(".")
    if Path(path).is_dir() or not is_hub_id(path):
        return told
    gated = f"accept the licence on https://huggingface.co/{path} and log in with `hf auth login`"
    unknown = "check its name; a private model needs `hf auth login`"
    offline = "without a network, give a local folder that holds the model"
    for kind, advice in (
        (GatedRepoError, gated),
        (RepositoryNotFoundError, unknown),
        (LocalEntryNotFoundError, offline),
    ):
        if any(isinstance(cause, kind) for cause in causes(error)):
            return f"{told}; {advice}"
    return f"{told}; check its name; if it is gated, {gated}; {offline}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def keep_canonical_nf4(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on AVX512-BF16 CPUs.

    The repacked form computes in bf16 and its backward pass is not defined, yet it stays in place when
    training starts after an evaluation: the gradient would be silently wrong, and numbers would differ from
    one CPU to the next.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (a plain assignment is for tensors)


def hold_dequantised(model: nn.Module, max_gib: float = 1.0) -> bool:
    """On a CPU: keeps the values of small 4-bit weights at hand, instead of unpacking them in every product.

    The numbers are those of NF4 still, forward and backward; what is given up is memory, so a model whose
    unpacked weights exceed `max_gib` is left alone. Returns whether they are held.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, Linear4bit)]
    states = [layer.weight.quant_state for layer in layers]
    cells = sum(state.shape.numel() for state in states)
    if not layers or cells * 4 > max_gib * 2**30:
        return False
    for layer, state in zip(layers, states, strict=True):
        weight = dequantize_4bit(layer.weight.data, state).to(layer.compute_dtype or torch.float32)
        layer.forward = functools.partial(_held_forward, weight, layer.bias)
    return True


def _held_forward(weight: torch.Tensor, bias: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
    """`Linear4bit.forward` on unpacked weights."""
    bias = None if bias is None else bias.to(weight.dtype)
    return nn.functional.linear(hidden.to(weight.dtype), weight, bias).to(hidden.dtype)


def held_weight(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Weight [out, in] and bias of a linear layer, unpacked if `hold_dequantised` holds them; else None."""
    forward = layer.__dict__.get("forward")
    if isinstance(forward, functools.partial) and forward.func is _held_forward:
        weight, bias = forward.args
        return weight, None if bias is None else bias.to(weight.dtype)
    return (layer.weight, layer.bias) if type(layer) is nn.Linear else None


def text_model(model: nn.Module) -> nn.Module:
    """The decoder stack of a VLM (or of a PeftModel around one), without the head."""
    return model.get_submodule(text_model_path(model))


def text_model_path(model: nn.Module) -> str:
    """Dotted name of the decoder stack, as `named_modules` spells it."""
    prefix = "base_model.model." if isinstance(model, PeftModel) else ""
    names = {name for name, _ in model.named_modules()}
    for path in TEXT_PATHS:
        if f"{prefix}{path}.layers" in names:
            return prefix + path
    raise ModelError(f"no decoder layers found in {type(model).__name__}; looked at {', '.join(TEXT_PATHS)}")


def lora_targets(model: nn.Module, target_modules: str | list[str] = "language-linear") -> str | list[str]:
    """Full names of the language model's linear layers, or the caller's own list."""
    if target_modules != "language-linear":
        return target_modules
    path = text_model_path(model) + "."
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(path) and isinstance(module, nn.Linear)
    ]


def add_lora(
    model: nn.Module,
    *,
    r: int,
    lora_alpha: int,
    lora_dropout: float,
    target_modules: str | list[str],
    seed: int,
) -> PeftModel:
    """A fresh LoRA named "default" in fp32 (B = 0, so the model answers as before); seeded."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=lora_targets(model, target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        return fp32_adapter(get_peft_model(model, config))
    except ValueError as error:
        raise RecipeError(f"lora.target_modules: {first_line(error)}") from error


def fp32_adapter(model: Any) -> Any:
    """Casts trainable parameters to fp32: TRL makes them bf16, which T4 and CPUs cannot train in."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
