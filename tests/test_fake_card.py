"""Calls as they would be on a CUDA card, on a machine without one: tensors that lie there in name alone.

A fake tensor has a device, a shape and a dtype, but no values; kernels are not run. What is looked at is that
the door lets such calls through, where every argument of a launch lies, and how much memory is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from medrl_kernels import dispatch, grpo_loss, grpo_loss_triton, reference
from medrl_kernels.dispatch import LOSS_TYPES

CUDA = torch.device("cuda:0")
LENGTHS = [5, 0, 3]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """The mode that makes such tensors, and a card of capability 9.0 to ask about."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    dispatch.choose_impl.cache_clear()
    yield FakeTensorMode(allow_non_fake_inputs=True)
    dispatch.choose_impl.cache_clear()


def completions(mode: FakeTensorMode, loss_type: str) -> dict[str, Any]:
    """A call of grpo_loss on the card, its lengths real and on the CPU."""
    with mode:
        names = ("logp_N", "old_logp_N", "ref_logp_N", "entropy_N")
        new = {name: torch.empty(sum(LENGTHS), device=CUDA) for name in names}
        new |= {"advantage_B": torch.empty(len(LENGTHS), device=CUDA)}
    return new | {
        "length_B": torch.tensor(LENGTHS), "num_items_in_batch": 8, "loss_type": loss_type, "beta": 0.1,
        "max_completion_length": 8, "entropy_coef": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_loss_on_a_card_is_launched_there(
    loss_type: str, card: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` takes Triton, the door takes lengths on the CPU, and a kernel sees the card's tensors alone."""
    launched: list[dict[str, Any]] = []
    real_arguments, real_empty = grpo_loss_triton._forward_arguments, grpo_loss_triton._empty

    def arguments(*args: Any) -> dict[str, Any]:
        with card:
            return real_arguments(*args)

    def empty(*args: Any) -> Tensor:
        with card:
            return real_empty(*args)

    monkeypatch.setattr(grpo_loss_triton, "_forward_arguments", arguments)
    monkeypatch.setattr(grpo_loss_triton, "_empty", empty)
    monkeypatch.setattr(grpo_loss_triton, "_counter_of", lambda device: empty(device, 1))
    monkeypatch.setattr(grpo_loss_triton, "_processors", lambda device: 132)
    # Autograd would ask the driver about the card.
    launch = lambda logp, bonus, call: launched.append(call) or call["loss_ptr"]  # noqa: E731
    monkeypatch.setattr(grpo_loss_triton._GRPOLossFunction, "apply", launch)
    given = completions(card, loss_type)
    given["logp_N"].requires_grad_()
    found = grpo_loss(**given)
    (call,) = launched
    assert {name: x.device for name, x in call.items() if isinstance(x, Tensor) and x.device != CUDA} == {}
    assert found.loss.device == CUDA
    assert {x.device for x in found.metrics.values()} == {CUDA}
    assert (call["d_logp_N"].shape, call["bounds_B1"].shape) == ((8,), (4,))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_reference_moves_the_lengths_to_the_card(
    loss_type: str, card: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = completions(card, loss_type)
    monkeypatch.setattr(reference, "check_grpo_loss", lambda call: None)  # it looks at values: see above
    monkeypatch.setattr(reference, "extreme", lambda x_B, pick: pick(x_B))  # and so does this
    with card:
        loss, metrics = reference.grpo_loss(**call)
    assert {x.device for x in (loss, *metrics.values())} == {CUDA}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_lengths_lie_on_the_card_or_the_cpu(device: str, card: FakeTensorMode) -> None:
    call = completions(card, "dapo")
    call["length_B"] = torch.tensor(LENGTHS, device=device)
    call["advantage_B"] = None
    complaints = {"cpu": "give one of advantage_B", "meta": "length_B is on meta, the others are on cuda:0"}
    with pytest.raises(ValueError, match=complaints[device]):
        reference.grpo_loss(**call)
