# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 - the methods are named after the operations, which operations.py describes
"""This project through jax_grouped: jit around the public functions, buffers donated."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.peers.base import OURS, Call
from benchmarks.peers.jax_common import JaxPeer, view
from benchmarks.problem import Problem


class JaxGrouped(JaxPeer):
    """jax_grouped. A single gradient is a vjp of which XLA drops the rest."""

    name = family = "jax_grouped"
    role = OURS
    module = "jax_grouped"

    def missing(self, device: torch.device) -> str | None:
        reason = super().missing(device)
        if reason is None and device.type == "cuda":
            import grouped_core

            if not grouped_core.has_cuda():
                return "built without CUDA"
        return reason

    def fwd(self, p: Problem) -> Call:
        from jax_grouped import grouped_linear

        def function(x: Any, w: Any, sizes: Any, out: Any) -> tuple:
            return (grouped_linear(x, w, sizes, out=out),)

        return self.into(p, function, ("x", "wk", "sizes"), [self.poisoned(p, p.T, p.N)])

    host = fwd

    def dgrad(self, p: Problem) -> Call:
        import jax.numpy as jnp

        import jax
        from jax_grouped import grouped_linear

        def function(w: Any, dy: Any, sizes: Any, buffer: Any) -> tuple:
            x = jnp.zeros((p.T, p.K), w.dtype)  # read by the forward product alone, which XLA drops
            _, pull = jax.vjp(lambda b: grouped_linear(x, w, sizes, dgrad_out=b), buffer)
            return pull(dy)

        return self.into(p, function, ("wk", "dy", "sizes"), [self.poisoned(p, p.T, p.K)])

    def wgrad(self, p: Problem) -> Call:
        return self._wgrad(p, self.poisoned(p, p.G, p.K, p.N), False)

    def wgrad_acc(self, p: Problem) -> Call:
        import jax.numpy as jnp

        initial = jnp.copy(jnp.swapaxes(view(p, 0, "initial"), 1, 2))
        return self._wgrad(p, initial, True)

    def _wgrad(self, p: Problem, buffer: Any, accumulate: bool) -> Call:
        import jax.numpy as jnp

        import jax
        from jax_grouped import grouped_linear

        def function(x: Any, dy: Any, sizes: Any, buffer: Any) -> tuple:
            w = jnp.zeros((p.G, p.K, p.N), x.dtype)  # read by the forward product and dx alone, which XLA drops

            def layer(b: Any) -> Any:
                return grouped_linear(x, w, sizes, wgrad_out=b, accumulate_wgrad=accumulate)

            return jax.vjp(layer, buffer)[1](dy)

        return self.into(p, function, ("x", "dy", "sizes"), [buffer])

    def linear(self, p: Problem) -> Call:
        import jax
        from jax_grouped import grouped_linear

        def function(x: Any, w: Any, dy: Any, sizes: Any, out: Any, dx: Any, dw: Any) -> tuple:
            def layer(dx_buffer: Any, dw_buffer: Any) -> Any:
                return grouped_linear(x, w, sizes, out=out, dgrad_out=dx_buffer, wgrad_out=dw_buffer)

            y, pull = jax.vjp(layer, dx, dw)
            return (y, *pull(dy))

        buffers = [self.poisoned(p, p.T, p.N), self.poisoned(p, p.T, p.K), self.poisoned(p, p.G, p.K, p.N)]
        return self.into(p, function, ("x", "wk", "dy", "sizes"), buffers)

    host_linear = linear

    def act(self, p: Problem) -> Call:
        from jax_grouped import grouped_activation

        def function(h: Any, sizes: Any, out: Any) -> tuple:
            return (grouped_activation(h, sizes, out=out),)

        return self.into(p, function, ("x", "sizes"), [self.poisoned(p, p.T, p.N // 2)])

    def act_grad(self, p: Problem) -> Call:
        import jax
        from jax_grouped import grouped_activation

        def function(h: Any, dy: Any, sizes: Any, buffer: Any) -> tuple:
            return jax.vjp(lambda b: grouped_activation(h, sizes, dgrad_out=b), buffer)[1](dy)

        return self.into(p, function, ("x", "dy", "sizes"), [self.poisoned(p, p.T, p.N)])
