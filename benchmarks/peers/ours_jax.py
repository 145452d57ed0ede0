# SPDX-License-Identifier: Apache-2.0

"""This project through jax_grouped: jit around the public functions, buffers donated."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.operations import ACT, ACT_GRAD, DGRAD, FWD, HOST, MLP, WGRAD, WGRAD_ACC
from benchmarks.peers.base import OURS, Call
from benchmarks.peers.jax_common import JaxPeer
from benchmarks.peers.ours_torch import missing_cuda
from benchmarks.problem import Problem


class JaxGrouped(JaxPeer):
    """jax_grouped. A single gradient is a vjp of which XLA drops the rest."""

    name = family = "jax_grouped"
    role = OURS
    module = "jax_grouped"
    takes_tail = True

    def missing(self, device: torch.device) -> str | None:
        return super().missing(device) or missing_cuda(device)

    def pool(self, problem: Problem) -> int:
        p = problem
        one = {FWD: "TN", HOST: "TN", DGRAD: "TK", WGRAD: "GNK", ACT: "TF", ACT_GRAD: "TN"}
        if p.case.op in one:
            return p.nbytes(one[p.case.op])
        if p.case.op == WGRAD_ACC:
            return 4 * p.G * p.N * p.K
        results = p.nbytes("TN") + p.nbytes("TK") + p.nbytes("GNK")
        return results if p.case.op != MLP else results + 2 * p.nbytes("TN") + p.nbytes("GFK") + p.nbytes("TK")

    def fwd(self, p: Problem) -> Call:
        return self.into(p, _forward, ("x", "wk", "sizes"), [self.poisoned(p, p.T, p.N)])

    host = fwd

    def dgrad(self, p: Problem) -> Call:
        return self.into(p, _dgrad, ("wk", "dy", "sizes"), [self.poisoned(p, p.T, p.K)])

    def wgrad(self, p: Problem) -> Call:
        return self.into(p, _wgrad, ("x", "dy", "sizes"), [self.poisoned(p, p.G, p.K, p.N)])

    def wgrad_acc(self, p: Problem) -> Call:
        return self.into(p, _wgrad_accumulate, ("x", "dy", "sizes"), [self.initial(p)])

    def linear(self, p: Problem) -> Call:
        buffers = [self.poisoned(p, p.T, p.N), self.poisoned(p, p.T, p.K), self.poisoned(p, p.G, p.K, p.N)]
        return self.into(p, _linear, ("x", "wk", "dy", "sizes"), buffers)

    host_linear = linear

    def mlp(self, p: Problem) -> Call:
        buffers = [self.poisoned(p, p.T, p.K), self.poisoned(p, p.T, p.K)]
        buffers += [self.poisoned(p, p.G, p.K, p.N), self.poisoned(p, p.G, p.N // 2, p.K)]
        return self.into(p, _mlp, ("x", "wk", "wk2", "dy", "sizes"), buffers)

    def act(self, p: Problem) -> Call:
        return self.into(p, _activation, ("x", "sizes"), [self.poisoned(p, p.T, p.N // 2)])

    def act_grad(self, p: Problem) -> Call:
        return self.into(p, _activation_grad, ("x", "dy", "sizes"), [self.poisoned(p, p.T, p.N)])


def _forward(x: Any, w: Any, sizes: Any, out: Any) -> tuple:
    from jax_grouped import grouped_linear

    return (grouped_linear(x, w, sizes, out=out),)


def _dgrad(w: Any, dy: Any, sizes: Any, buffer: Any) -> tuple:
    import jax
    import jax.numpy as jnp

    from jax_grouped import grouped_linear

    x = jnp.zeros((dy.shape[0], w.shape[1]), w.dtype)  # read by the forward product alone, which XLA drops
    return jax.vjp(lambda b: grouped_linear(x, w, sizes, dgrad_out=b), buffer)[1](dy)


def _wgrad(x: Any, dy: Any, sizes: Any, buffer: Any, accumulate: bool = False) -> tuple:
    import jax
    import jax.numpy as jnp

    from jax_grouped import grouped_linear

    w = jnp.zeros(buffer.shape, x.dtype)  # read by the forward product and dx alone, which XLA drops

    def layer(b: Any) -> Any:
        return grouped_linear(x, w, sizes, wgrad_out=b, accumulate_wgrad=accumulate)

    return jax.vjp(layer, buffer)[1](dy)


def _wgrad_accumulate(x: Any, dy: Any, sizes: Any, buffer: Any) -> tuple:
    return _wgrad(x, dy, sizes, buffer, accumulate=True)


def _linear(x: Any, w: Any, dy: Any, sizes: Any, out: Any, dx: Any, dw: Any) -> tuple:
    import jax

    from jax_grouped import grouped_linear

    def layer(dx_buffer: Any, dw_buffer: Any) -> Any:
        return grouped_linear(x, w, sizes, out=out, dgrad_out=dx_buffer, wgrad_out=dw_buffer)

    y, pull = jax.vjp(layer, dx, dw)
    return (y, *pull(dy))


def _mlp(x: Any, w: Any, w2: Any, dy: Any, sizes: Any, out: Any, dx: Any, dw: Any, dw2: Any) -> tuple:
    import jax

    import jax_grouped
    from jax_grouped import grouped_activation, grouped_linear

    whole = getattr(jax_grouped, "grouped_mlp", None)

    def layers(dx_buffer: Any, dw_buffer: Any, dw2_buffer: Any) -> Any:
        if whole is not None:
            targets = {"fc1_wgrad_out": dw_buffer, "fc2_wgrad_out": dw2_buffer}
            return whole(x, w, w2, sizes, out=out, dgrad_out=dx_buffer, **targets)
        h = grouped_linear(x, w, sizes, dgrad_out=dx_buffer, wgrad_out=dw_buffer)
        return grouped_linear(grouped_activation(h, sizes), w2, sizes, out=out, wgrad_out=dw2_buffer)

    y, pull = jax.vjp(layers, dx, dw, dw2)
    return (y, *pull(dy))


def _activation(h: Any, sizes: Any, out: Any) -> tuple:
    from jax_grouped import grouped_activation

    return (grouped_activation(h, sizes, out=out),)


def _activation_grad(h: Any, dy: Any, sizes: Any, buffer: Any) -> tuple:
    import jax

    from jax_grouped import grouped_activation

    return jax.vjp(lambda b: grouped_activation(h, sizes, dgrad_out=b), buffer)[1](dy)
