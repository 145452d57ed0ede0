# SPDX-License-Identifier: Apache-2.0

"""cuDNN's grouped product for experts, through cudnn-frontend's operations for torch: forward alone."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from benchmarks.peers.base import SECOND, Call, Peer
from benchmarks.problem import Problem


class CudnnMoe(Peer):
    """cudnn.experimental.ops.moe_grouped_matmul. It allocates its result."""

    name = family = "cuDNN moe_grouped_matmul"
    module = "cudnn"
    devices = ("cuda",)
    sitting = SECOND

    def missing(self, device: torch.device) -> str | None:
        reason = super().missing(device)
        if reason is None:
            try:
                getattr(import_module("cudnn.experimental.ops"), "moe_grouped_matmul")  # noqa: B009
            except Exception as error:  # an older frontend, or no library behind it
                return f"{type(error).__name__}: {error}"
        return reason

    def memory(self, problem: Problem) -> int:
        return 2 * problem.nbytes("TN")

    def fwd(self, p: Problem) -> Call:
        function = import_module("cudnn.experimental.ops").moe_grouped_matmul
        # The first row of each group: ends as well would be newer than the oldest frontend that has this.
        starts = p.starts[:-1].view(-1, 1, 1)

        def run(i: int) -> Tensor:
            s = p.set(i)
            return function(s.x[None], s.w.transpose(1, 2), starts)[0]

        return Call(run)
