"""Several adapters over one base: which of them answers, for the time of a `with` block.

Base, SFT and GRPO policies share the quantised weights in memory; switching is a matter of names. A lock per
model keeps one thread's switch out of another's answers; it belongs to the block, not to a thread, because a
server may resume a streamed answer in another one. So blocks over one model do not nest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from peft import PeftModel

from lite_medrl.types import ModelError

BASE = "base"  # the model with its adapters off
_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@contextmanager
def answering_as(model: Any, name: str = BASE) -> Iterator[Any]:
    """The model with only this adapter on ("base": none); afterwards active and trainable is what was before.

    Raises:
        ModelError: there is no adapter of this name.
    """
    known = list(model.peft_config) if isinstance(model, PeftModel) else []
    if name != BASE and name not in known:
        raise ModelError(f"no adapter {name!r}; this model has {', '.join([BASE, *known])}")
    with _LOCKS.setdefault(model, threading.Lock()):
        if not isinstance(model, PeftModel):
            yield model
            return
        before = model.active_adapters
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            if name != BASE:
                model.set_adapter(name, inference_mode=True)
            with model.disable_adapter() if name == BASE else nullcontext():
                yield model
        finally:
            tuner: Any = model.base_model
            tuner.set_adapter(before)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)
