# SPDX-License-Identifier: Apache-2.0

"""This project through torch_grouped, into buffers that are made once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.operations import DGRAD, FWD, MLP, WGRAD, WGRAD_ACC
from benchmarks.peers.base import BOUND, OURS, Call, Peer
from benchmarks.problem import Case, InputSet, Problem
from benchmarks.shapes import TAIL


class TorchGrouped(Peer):
    """torch_grouped: the public functions; for a single gradient, backward with one leaf."""

    name = family = "torch_grouped"
    role = OURS
    module = "torch_grouped"
    takes_tail = True

    def missing(self, device: torch.device) -> str | None:
        return super().missing(device) or missing_cuda(device)

    def memory(self, problem: Problem) -> int:
        p, sets = problem, len(problem.sets)
        return {
            DGRAD: sets * (p.nbytes("TN") + p.nbytes("TK")),
            WGRAD: sets * p.nbytes("TN") + p.nbytes("GNK"),
            WGRAD_ACC: sets * p.nbytes("TN") + p.nbytes("GNK"),
            MLP: 3 * p.nbytes("TN"),
        }.get(p.case.op, 0)

    def fwd(self, p: Problem) -> Call:
        from torch_grouped.functional import grouped_linear

        out = p.y()

        def run(i: int) -> Tensor:
            s = p.set(i)
            return grouped_linear(s.x, s.w, p.sizes, out=out)

        return Call(run, buffers=[out])

    def host(self, p: Problem) -> Call:
        from torch_grouped import functional

        grouped_mm = getattr(functional, "grouped_mm", None)
        if grouped_mm is None:
            return self.fwd(p)
        return Call(lambda i: grouped_mm(p.set(i).x, p.set(i).w.transpose(-2, -1), offs=p.ends))

    def dgrad(self, p: Problem) -> Call:
        from torch_grouped.functional import grouped_linear

        out = p.dx()

        def layer(s: InputSet) -> tuple[Tensor, Tensor]:
            x = torch.zeros_like(out).requires_grad_()  # dx does not depend on it
            return grouped_linear(x, s.w, p.sizes, dgrad_out=out), x

        return Call(_backward(p, layer, out), buffers=[out])

    def wgrad(self, p: Problem) -> Call:
        return self._wgrad(p, p.dw(), None)

    def wgrad_acc(self, p: Problem) -> Call:
        return self._wgrad(p, p.dw(torch.float32), p.initial)

    def _wgrad(self, p: Problem, out: Tensor, initial: Tensor | None) -> Call:
        from torch_grouped.functional import grouped_linear

        weight = torch.zeros_like(out, dtype=p.dtype).requires_grad_()  # dW does not depend on it

        def layer(s: InputSet) -> tuple[Tensor, Tensor]:
            accumulate = initial is not None
            y = grouped_linear(s.x, weight, p.sizes, wgrad_out=out, accumulate_wgrad=accumulate)
            return y, weight

        return Call(_backward(p, layer, out), buffers=[out], initial=initial)

    def linear(self, p: Problem) -> Call:
        from torch_grouped.functional import grouped_linear

        out, dx, dw = p.y(), p.dx(), p.dw()
        leaves = [(s.x.detach().requires_grad_(), s.w.detach().requires_grad_(), s.dy) for s in p.sets]

        def run(i: int) -> list[Tensor]:
            x, w, dy = leaves[i % len(leaves)]
            with torch.enable_grad():
                y = grouped_linear(x, w, p.sizes, out=out, dgrad_out=dx, wgrad_out=dw)
            torch.autograd.grad(y, [x, w], dy, allow_unused=True)  # w's went into its buffer
            return [out, dx, dw]

        return Call(run, buffers=[out, dx, dw])

    def mlp(self, p: Problem) -> Call:
        from torch_grouped import functional
        from torch_grouped.functional import grouped_activation, grouped_linear

        whole = getattr(functional, "grouped_mlp", None)
        h, a, y = p.y(), p.output("a", p.T, p.N // 2), p.output("mlp y", p.T, p.K)
        dh, da, dx = p.output("dh", p.T, p.N), p.output("da", p.T, p.N // 2), p.dx()
        dw1, dw2 = p.dw(), p.output("dw2", p.G, p.K, p.N // 2)
        leaves = [(*(t.detach().requires_grad_() for t in (s.x, s.w, s.w2)), s.dy) for s in p.sets]

        def run(i: int) -> list[Tensor]:
            x, w, w2, dy = leaves[i % len(leaves)]
            with torch.enable_grad():
                if whole is not None:
                    targets = {"fc1_wgrad_out": dw1, "fc2_wgrad_out": dw2}
                    down = whole(x, w, w2, p.sizes, out=y, dgrad_out=dx, **targets)
                else:
                    up = grouped_linear(x, w, p.sizes, out=h, dgrad_out=dx, wgrad_out=dw1)
                    act = grouped_activation(up, p.sizes, out=a, dgrad_out=dh)
                    down = grouped_linear(act, w2, p.sizes, out=y, dgrad_out=da, wgrad_out=dw2)
            torch.autograd.grad(down, [x, w, w2], dy, allow_unused=True)  # w's and w2's went into their buffers
            return [y, dx, dw1, dw2]

        return Call(run, buffers=[h, a, y, dh, da, dx, dw1, dw2], note="grouped_mlp" if whole else "three calls")

    def host_linear(self, p: Problem) -> Call:
        from torch_grouped import GroupedLinear

        module = GroupedLinear(p.G, p.K, p.N, bias=False, params_dtype=p.dtype, device=p.device)
        with torch.no_grad():
            module.weight.copy_(p.set(0).w)
        x = p.set(0).x.detach().requires_grad_()

        def run(i: int) -> list[Tensor]:
            with torch.enable_grad():
                y = module(x, p.sizes)
            return [y.detach(), *torch.autograd.grad(y, [x, module.weight], p.set(0).dy)]

        return Call(run, note="the module")

    def act(self, p: Problem) -> Call:
        from torch_grouped.functional import grouped_activation

        out = p.output("y", p.T, p.N // 2)
        return Call(lambda i: grouped_activation(p.set(i).x, p.sizes, out=out), buffers=[out])

    def act_grad(self, p: Problem) -> Call:
        from torch_grouped.functional import grouped_activation

        out = p.output("dx", p.T, p.N)

        def layer(s: InputSet) -> tuple[Tensor, Tensor]:
            h = s.x.detach().requires_grad_()
            return grouped_activation(h, p.sizes, dgrad_out=out), h

        return Call(_backward(p, layer, out), buffers=[out])


class WithoutTail(TorchGrouped):
    """What a case with a tail would take without it: the rows of the groups alone."""

    name = family = "torch_grouped without the tail"
    role = BOUND

    def declines(self, case: Case, device: torch.device) -> str | None:
        return super().declines(case, device) or (None if case.draw == TAIL else "there is no tail")

    def memory(self, problem: Problem) -> int:
        return super().memory(problem) + problem.nbytes("TN") + problem.nbytes("TK") + problem.nbytes("GNK")

    def prepare(self, problem: Problem) -> Call:
        call = super().prepare(problem.without_tail())
        call.checked = False  # the same call as ours, which is checked
        return call


class OwnMemory(TorchGrouped):
    """Forward without a buffer, where there is a tail: the result is allocated, and its tail filled with zeros."""

    name = family = "torch_grouped without a buffer"
    role = BOUND

    def memory(self, problem: Problem) -> int:
        return 2 * problem.nbytes("TN")

    def declines(self, case: Case, device: torch.device) -> str | None:
        is_served = (case.op, case.draw) == (FWD, TAIL)
        return super().declines(case, device) or (None if is_served else "forward with a tail alone")

    def fwd(self, p: Problem) -> Call:
        from torch_grouped.functional import grouped_linear

        return Call(lambda i: grouped_linear(p.set(i).x, p.set(i).w, p.sizes))


def missing_cuda(device: torch.device) -> str | None:
    """Whether the core was built for the device."""
    import grouped_core

    return None if device.type != "cuda" or grouped_core.has_cuda() else "grouped-ffi was built without CUDA"


def _backward(p: Problem, layer: Callable[[InputSet], tuple[Tensor, Tensor]], out: Tensor) -> Callable[[int], Tensor]:
    """A backward pass alone, again and again over graphs that are made once. `layer` gives a result and its leaf."""
    with torch.enable_grad():
        graphs = [(*layer(s), s.dy) for s in p.sets]

    def run(i: int) -> Tensor:
        y, leaf, dy = graphs[i % len(graphs)]
        torch.autograd.grad(y, leaf, dy, retain_graph=True, allow_unused=True)
        return out

    return run
