"""On a CUDA card: one decode step recorded as a graph and replayed, so that Python launches nothing.

A graph holds addresses, so it serves as long as its buffers keep their places and sizes: a new one is
recorded when rows leave the batch or attention reads further (every 64 tokens). All of a rollout share one
memory pool, which goes with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def replayed(step: Callable[[], Tensor], device: torch.device) -> Replayed | None:
    """The step as a graph, or None where there are none."""
    return Replayed(step) if device.type == "cuda" else None


class Replayed:
    """Calls `step` through a CUDA graph; `step` must read and write the same buffers for the same key."""

    def __init__(self, step: Callable[[], Tensor]) -> None:
        self.step, self.key, self.works = step, None, True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.pool = torch.cuda.graph_pool_handle()
        self.output: Tensor | None = None

    def __call__(self, key: Hashable) -> Tensor:
        """What `step` returns; it is overwritten by the next call."""
        if self.works and key != self.key:
            self._record(key)
        if self.graph is None or self.output is None:
            return self.step()
        self.graph.replay()
        return self.output

    def _record(self, key: Hashable) -> None:
        """Records the step; a model whose step cannot be recorded runs without, which is logged once."""
        self.graph = self.output = None  # the pool's memory is free for the next
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a cast kept from a recording would be overwritten by others
        try:
            self._warm_up()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                self.output = self.step()
            self.graph, self.key = graph, key
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.graph, self.output, self.works = None, None, False
            log.warning("decode steps are not replayed as CUDA graphs: %s", str(error).splitlines()[0])
        finally:
            torch.set_autocast_cache_enabled(cached)

    def _warm_up(self) -> None:
        """One step on a side stream: libraries allocate their workspaces on the first call."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step()
        torch.cuda.current_stream().wait_stream(stream)
