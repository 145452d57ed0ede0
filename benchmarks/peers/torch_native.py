# SPDX-License-Identifier: Apache-2.0

"""PyTorch's own: grouped_mm, and a loop of torch.mm over the groups on one stream or four."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operations import DGRAD, FWD, HOST, MLP, WGRAD, WGRAD_ACC
from benchmarks.peers.base import Call, Peer, Skip
from benchmarks.problem import Problem

_grouped_mm: Any = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


class TorchGroupedMm(Peer):
    """torch.nn.functional.grouped_mm. It allocates its results."""

    name = family = "torch grouped_mm"

    def missing(self, device: torch.device) -> str | None:
        if _grouped_mm is None:
            return f"torch {torch.__version__} has no grouped_mm"
        return super().missing(device)

    def memory(self, problem: Problem) -> int:
        # The result before is freed once the next one is there.
        p = problem
        one = {FWD: "TN", HOST: "TN", DGRAD: "TK", WGRAD: "GNK", WGRAD_ACC: "GNK"}
        if p.case.op in one:
            return 2 * p.nbytes(one[p.case.op])
        results = p.nbytes("TN") + p.nbytes("TK") + p.nbytes("GNK")
        return 2 * results if p.case.op != MLP else 3 * results + 4 * p.nbytes("TN")

    def fwd(self, p: Problem) -> Call:
        return Call(lambda i: _grouped_mm(p.set(i).x, p.set(i).w.transpose(-2, -1), offs=p.ends))

    host = fwd

    def dgrad(self, p: Problem) -> Call:
        return Call(lambda i: _grouped_mm(p.set(i).dy, p.set(i).w, offs=p.ends))

    def wgrad(self, p: Problem) -> Call:
        return Call(lambda i: _grouped_mm(p.set(i).dy.t(), p.set(i).x, offs=p.ends))

    def wgrad_acc(self, p: Problem) -> Call:
        main = p.dw(torch.float32)

        def run(i: int) -> Tensor:
            return main.add_(_grouped_mm(p.set(i).dy.t(), p.set(i).x, offs=p.ends))

        return Call(run, buffers=[main], initial=p.initial, through=p.dtype, note="rounded to 16 bits before the sum")

    def linear(self, p: Problem) -> Call:
        leaves = [(s.x.detach().requires_grad_(), s.w.detach().requires_grad_(), s.dy) for s in p.sets]

        def run(i: int) -> list[Tensor]:
            x, w, dy = leaves[i % len(leaves)]
            with torch.enable_grad():
                y = _grouped_mm(x, w.transpose(-2, -1), offs=p.ends)
            return [y.detach(), *torch.autograd.grad(y, [x, w], dy)]

        return Call(run)

    host_linear = linear

    def mlp(self, p: Problem) -> Call:
        leaves = [(*(t.detach().requires_grad_() for t in (s.x, s.w, s.w2)), s.dy) for s in p.sets]

        def run(i: int) -> list[Tensor]:
            x, w, w2, dy = leaves[i % len(leaves)]
            with torch.enable_grad():
                a = _swiglu(_grouped_mm(x, w.transpose(-2, -1), offs=p.ends))
                y = _grouped_mm(a, w2.transpose(-2, -1), offs=p.ends)
            return [y.detach(), *torch.autograd.grad(y, [x, w, w2], dy)]

        return Call(run, note="SwiGLU eager, which rounds silu(gate) too")


class MmLoop(Peer):
    """One torch.mm for each group, its sizes known on the host."""

    family = "torch.mm loop"

    def __init__(self, streams: int) -> None:
        self.streams = streams
        self.name = "torch.mm loop" if streams == 1 else f"torch.mm loop, {streams} streams"
        self.devices = ("cuda", "cpu") if streams == 1 else ("cuda",)

    def fwd(self, p: Problem) -> Call:
        out = p.y()

        def one(i: int, g: int, rows: slice) -> None:
            s = p.set(i)
            torch.mm(s.x[rows], s.w[g].t(), out=out[rows])

        return self._loop(p, one, out)

    host = fwd

    def dgrad(self, p: Problem) -> Call:
        out = p.dx()

        def one(i: int, g: int, rows: slice) -> None:
            s = p.set(i)
            torch.mm(s.dy[rows], s.w[g], out=out[rows])

        return self._loop(p, one, out)

    def wgrad(self, p: Problem) -> Call:
        out = p.dw()

        def one(i: int, g: int, rows: slice) -> None:
            s = p.set(i)
            torch.mm(s.dy[rows].t(), s.x[rows], out=out[g])

        return self._loop(p, one, out, every_group=True)

    def host_linear(self, p: Problem) -> Call:
        if self.streams > 1:
            raise Skip("one stream is the case of interest")
        layers = [torch.nn.Linear(p.K, p.N, bias=False, device=p.device, dtype=p.dtype) for _ in range(p.G)]
        with torch.no_grad():
            for layer, weight in zip(layers, p.set(0).w, strict=True):
                layer.weight.copy_(weight)
        weights = [layer.weight for layer in layers]
        x = p.set(0).x.detach().requires_grad_()

        def run(i: int) -> list[Tensor]:
            with torch.enable_grad():
                parts = zip(layers, x.split(p.sizes_host), strict=True)
                y = torch.cat([layer(part) for layer, part in parts])
            dx, *dw = torch.autograd.grad(y, [x, *weights], p.set(0).dy)
            return [y.detach(), dx, *dw]

        def outputs(found: list[Tensor]) -> list[Tensor]:
            return [found[0], found[1], torch.stack(found[2:])]

        return Call(run, outputs=outputs, note="a list of nn.Linear")

    def _loop(self, p: Problem, one, out: Tensor, every_group: bool = False) -> Call:
        groups = [(g, slice(a, b)) for g, (a, b) in enumerate(p.spans()) if every_group or b > a]
        streams = [torch.cuda.Stream() for _ in range(self.streams)] if self.streams > 1 else []

        def run(i: int) -> Tensor:
            if not streams:
                for g, rows in groups:
                    one(i, g, rows)
                return out
            current = torch.cuda.current_stream()
            for stream in streams:
                stream.wait_stream(current)
            for n, (g, rows) in enumerate(groups):
                with torch.cuda.stream(streams[n % len(streams)]):
                    one(i, g, rows)
            for stream in streams:
                current.wait_stream(stream)
            return out

        return Call(run, buffers=[out], note="sizes on the host")


class TorchActivation(Peer):
    """SwiGLU in PyTorch, eager or through torch.compile."""

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self.name = self.family = "torch.compile" if compiled else "torch eager"
        self.devices = ("cuda",) if compiled else ("cuda", "cpu")

    def memory(self, problem: Problem) -> int:
        return (2 if self.compiled else 5) * problem.nbytes("TN")

    def act(self, p: Problem) -> Call:
        function = self._compile(_swiglu)
        return Call(lambda i: function(p.set(i).x))

    def act_grad(self, p: Problem) -> Call:
        function = self._compile(_swiglu_grad)
        return Call(lambda i: function(p.set(i).x, p.set(i).dy))

    def _compile(self, function):
        if not self.compiled:
            return function
        torch.compiler.reset()  # else the ninth shape would silently run eager
        return torch.compile(function, dynamic=False)


def _swiglu(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=1)
    return F.silu(gate) * up


def _swiglu_grad(h: Tensor, dy: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=1)
    sigmoid = torch.sigmoid(gate)
    return torch.cat([dy * up * sigmoid * (1 + gate * (1 - sigmoid)), dy * gate * sigmoid], dim=1)
