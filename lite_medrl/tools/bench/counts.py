"""What passes through a model during a call, counted where it enters: trunk tokens and image patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lite_medrl.model.load import text_model
from lite_medrl.model.packed import base_of
from lite_medrl.tools.bench.rollouts import PAD


@contextmanager
def counted(model: Any) -> Iterator[Counter[str]]:
    """Counts while it lasts.

    trunk_tokens: rows x places that enter the first decoder layer, padding among them; real_tokens: embedded
    ids other than padding; image_patches: patches that enter the vision tower.
    """
    found: Counter[str] = Counter()
    base = base_of(model)

    def trunk(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden_RTD: Tensor = args[0] if args else options["hidden_states"]
        found["trunk_tokens"] += hidden_RTD.shape[0] * hidden_RTD.shape[1]

    def embedded(module: Any, args: tuple[Any, ...]) -> None:
        found["real_tokens"] += int((args[0] != PAD).sum())

    def tower(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        found["image_patches"] += len(args[0] if args else options["hidden_states"])

    layers: Any = text_model(base).layers
    hooks = [
        layers[0].register_forward_pre_hook(trunk, with_kwargs=True),
        base.get_input_embeddings().register_forward_pre_hook(embedded),
        base.model.visual.register_forward_pre_hook(tower, with_kwargs=True),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
