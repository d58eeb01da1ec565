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
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medrl_kernels import dispatch, grouped_logp_triton, grpo_loss, grpo_loss_triton, reference
from medrl_kernels.configs import logp_config
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


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        found = func(*args, **kwargs or {})
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:
                storage = x.untyped_storage()
                self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.held = {key: (ref, size) for key, (ref, size) in self.held.items() if not ref.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self.held.values()))
        return found


class Context:
    """What autograd hands a function: a place for what the backward needs, and who wants a gradient."""

    needs_input_grad = (True, False, False)
    saved_tensors: tuple[Any, ...] = ()

    def set_materialize_grads(self, value: bool) -> None: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors


HALF, FULL = torch.bfloat16, torch.float32
CASES = [
    (4096, 4096, HALF, HALF, False),
    (2**20, 2**20, HALF, HALF, False),
    (2**18, 2**18 - 999, HALF, HALF, False),
    (2**18, 2**18, HALF, HALF, True),
    (2**18, 2**18 - 999, FULL, HALF, True),
]


@pytest.mark.parametrize(("states", "used", "hidden_dtype", "head_dtype", "entropy"), CASES)
def test_at_most_300_mib_beyond_the_gradients_of_the_states(
    states: int, used: int, hidden_dtype: torch.dtype, head_dtype: torch.dtype, entropy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Beyond u (S, D) in fp32 and the gradient that comes out, forward and backward, with a head of 4096: by
    what is allocated, which is the same for tensors without a device."""
    launch = type("Launch", (), {"__getitem__": lambda self, grid: lambda *args, **kwargs: None})()
    for name in vars(grouped_logp_triton):
        if name.endswith("_kernel"):
            monkeypatch.setattr(grouped_logp_triton, name, launch)
    for name in ("product", "accumulate"):
        monkeypatch.setattr(grouped_logp_triton, name, lambda *args: None)
    hidden_SD = torch.empty(states, 4096, dtype=hidden_dtype, device="meta")
    weight_VD = torch.empty(16384, 4096, dtype=head_dtype, device="meta")
    target_N = torch.empty(states, dtype=torch.int64, device="meta")
    up_N = torch.empty(states, device="meta")
    monkeypatch.setattr(grouped_logp_triton, "sort_targets", lambda *args: some_targets(used))
    context, shape = Context(), grouped_logp_triton.Shape(1.0, 1.0, 1.0, False)
    function = grouped_logp_triton._GroupedLogp
    with Memory() as memory:
        out = function.forward(
            context, hidden_SD, weight_VD, None, target_N, None, shape, entropy, 0.0, logp_config(90)
        )
        grads = function.backward(context, up_N, up_N if entropy else None)
    assert grads[0].shape == (states, 4096)
    assert out[0].shape == (states,)
    known = states * 4096 * (4 + hidden_SD.element_size())
    assert 0.99 * known < memory.peak_bytes < known + 300 * 2**20


def some_targets(used: int) -> grouped_logp_triton.Targets:
    """Targets of so many states, one each; the numbers that sorting them leaves behind."""
    state_U, start_U1, order_K, target_K = (
        torch.empty(n, dtype=torch.int64, device="meta") for n in (used, used + 1, used, used)
    )
    return grouped_logp_triton.Targets(state_U, start_U1, order_K, target_K)


def test_sorting_targets_takes_little_beside_a_state() -> None:
    """On a CPU, where sizes are the same: at most 100 bytes a target, of 16 KiB for a gradient of 4096."""
    for source in (None, torch.arange(5000).flip(0)):
        with Memory() as memory:
            grouped_logp_triton.sort_targets(torch.zeros(5000, dtype=torch.int64), source)
        assert memory.peak_bytes < 100 * 5000
