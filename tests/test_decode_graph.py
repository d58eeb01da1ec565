"""Recording and replaying a step, with stand-ins for CUDA: what is recorded when, what a failure does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from lite_medrl.model.decode_graph import Replayed, replayed


class Graph:
    """Remembers the step that ran while it was recorded; a replay runs it again."""

    made: list[Graph]

    def __init__(self) -> None:
        self.replays, self.pool = 0, None
        Graph.made.append(self)

    def replay(self) -> None:
        self.replays += 1


class Stream:
    def wait_stream(self, other: Any) -> None:
        pass


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch.cuda's functions that a recording calls."""
    Graph.made = []
    recording: list[bool] = []

    @contextmanager
    def graph(made: Graph, pool: Any) -> Iterator[None]:
        made.pool = pool
        recording.append(torch.is_autocast_cache_enabled())
        yield

    pools = iter(range(100))
    for name, stand_in in {
        "CUDAGraph": Graph, "graph": graph, "Stream": Stream, "current_stream": Stream,
        "stream": lambda stream: nullcontext(), "graph_pool_handle": lambda: next(pools),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return recording


def test_a_step_is_recorded_once_a_key_and_replayed(cuda: list[bool]) -> None:
    ran: list[int] = []
    step = Replayed(lambda: torch.tensor(ran.append(1) or len(ran)))
    for key in ((64, 64), (64, 64), (64, 64), (64, 128), (32, 128), (32, 128)):
        assert torch.is_tensor(step(key))
    assert len(ran) == 2 * 3  # warm-up and recording, for three keys
    assert [g.replays for g in Graph.made] == [3, 1, 2]
    assert {g.pool for g in Graph.made} == {0}
    assert cuda == [False] * 3  # no cast of a weight outlives its recording
    assert torch.is_autocast_cache_enabled()


def test_what_cannot_be_recorded_runs_without_and_says_so_once(
    cuda: list[bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def broken(made: Any, pool: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    ran: list[int] = []
    step = Replayed(lambda: torch.tensor(ran.append(1) or len(ran)))
    with caplog.at_level(logging.WARNING):
        found = [int(step(key)) for key in ("a", "a", "b")]
    assert found == [3, 4, 5]  # after a warm-up and an attempt, each call is a step
    assert [r.message for r in caplog.records] == [
        "decode steps are not replayed as CUDA graphs: operation not permitted when stream is capturing"
    ]
    assert torch.is_autocast_cache_enabled()


def test_out_of_memory_is_not_hidden(cuda: list[bool]) -> None:
    def step() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Replayed(step)("key")
    assert torch.is_autocast_cache_enabled()


def test_there_are_no_graphs_on_a_cpu() -> None:
    assert replayed(lambda: torch.zeros(1), torch.device("cpu")) is None
