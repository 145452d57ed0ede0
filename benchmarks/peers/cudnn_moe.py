# SPDX-License-Identifier: Apache-2.0

"""cuDNN's grouped product for experts, through cudnn-frontend's operations for torch: forward alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from benchmarks.peers.base import SECOND, Call, Peer
from benchmarks.problem import Problem


class CudnnMoe(Peer):
    """cudnn.experimental.ops.moe_grouped_matmul. It allocates its result."""

    name = family = "cuDNN moe_grouped_matmul"
    module = "cudnn"
    devices = ("cuda",)
    sitting = SECOND

    def load(self) -> None:
        _function()

    def memory(self, problem: Problem) -> int:
        return 2 * problem.nbytes("TN")

    def fwd(self, p: Problem) -> Call:
        function = _function()
        # The first row of each group: ends as well would be newer than the oldest frontend that has this.
        starts = p.starts[:-1].view(-1, 1, 1)

        def run(i: int) -> Tensor:
            s = p.set(i)
            return function(s.x[None], s.w.transpose(1, 2), starts)[0]

        return Call(run)


def _function() -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
    return import_module("cudnn.experimental.ops").moe_grouped_matmul
