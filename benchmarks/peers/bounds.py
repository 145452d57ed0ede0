# SPDX-License-Identifier: Apache-2.0

"""What no grouped kernel is asked to beat: one dense product of the same arithmetic. It computes something else."""

from __future__ import annotations

import torch

from benchmarks.peers.base import BOUND, Call, Peer
from benchmarks.problem import InputSet, Problem


class Dense(Peer):
    """One torch.mm (cuBLAS) with the rows of all groups against one weight."""

    name = family = "dense"
    role = BOUND

    def fwd(self, p: Problem) -> Call:
        out = p.y()
        return self._call(p, lambda s: torch.mm(s.x, s.w[0].t(), out=out))

    def dgrad(self, p: Problem) -> Call:
        out = p.dx()
        return self._call(p, lambda s: torch.mm(s.dy, s.w[0], out=out))

    def wgrad(self, p: Problem) -> Call:
        out = p.output("dense dw", p.N, p.K)
        return self._call(p, lambda s: torch.mm(s.dy.t(), s.x, out=out))

    wgrad_acc = wgrad

    def linear(self, p: Problem) -> Call:
        y, dx, dw = p.y(), p.dx(), p.output("dense dw", p.N, p.K)

        def three(s: InputSet) -> None:
            torch.mm(s.x, s.w[0].t(), out=y)
            torch.mm(s.dy, s.w[0], out=dx)
            torch.mm(s.dy.t(), s.x, out=dw)

        return self._call(p, three)

    def mlp(self, p: Problem) -> Call:
        h, a = p.y(), p.output("a", p.T, p.N // 2)
        y, dx = p.output("mlp y", p.T, p.K), p.dx()
        dw1, dw2 = p.output("dense dw", p.N, p.K), p.output("dense dw2", p.K, p.N // 2)

        def six(s: InputSet) -> None:
            torch.mm(s.x, s.w[0].t(), out=h)
            torch.mm(a, s.w2[0].t(), out=y)
            torch.mm(s.dy, s.w2[0], out=a)
            torch.mm(s.dy.t(), a, out=dw2)
            torch.mm(h, s.w[0], out=dx)
            torch.mm(h.t(), s.x, out=dw1)

        return self._call(p, six, "the products alone")

    def _call(self, p: Problem, product, note: str = "") -> Call:
        return Call(lambda i: product(p.set(i)), checked=False, note=note)
