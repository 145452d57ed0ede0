# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 - the methods are named after the operations, which operations.py describes
"""JAX's own: jax.lax.ragged_dot and its gradients, and SwiGLU as XLA fuses it.

ragged_dot runs with its default lowering: on a Hopper GPU its optional ones were slower or missing (jax 0.11).
"""

from __future__ import annotations

from typing import Any

from benchmarks.operations import ACTIVATIONS
from benchmarks.peers.base import Call, Skip
from benchmarks.peers.jax_common import JaxPeer, require_memory, view
from benchmarks.problem import Problem
from benchmarks.shapes import EVEN


class RaggedDot(JaxPeer):
    """jax.lax.ragged_dot."""

    name = family = "jax.lax.ragged_dot"

    def prepare(self, problem: Problem) -> Call:
        case = problem.case
        if case.op in ACTIVATIONS:
            raise Skip(f"no {case.op}")
        if problem.device.type == "cuda":
            # XLA multiplies every row by every group's weight and masks, so sizes change nothing but the data.
            if case.draw != EVEN:
                raise Skip("costs the same for every draw: timed on even alone")
            wide = max(problem.K, problem.N)
            require_memory(problem, problem.G * problem.T * wide * problem.dtype.itemsize)
        return super().prepare(problem)

    def fwd(self, p: Problem) -> Call:
        import jax

        return self.call(p, jax.lax.ragged_dot, ("x", "wk", "sizes"))

    host = fwd

    def dgrad(self, p: Problem) -> Call:
        import jax.numpy as jnp

        import jax

        def function(w: Any, dy: Any, sizes: Any) -> Any:
            x = jnp.zeros((p.T, p.K), w.dtype)
            return jax.vjp(lambda a: jax.lax.ragged_dot(a, w, sizes), x)[1](dy)[0]

        return self.call(p, function, ("wk", "dy", "sizes"))

    def wgrad(self, p: Problem) -> Call:
        return self.call(p, self._gradient(p), ("x", "dy", "sizes"))

    def wgrad_acc(self, p: Problem) -> Call:
        import jax.numpy as jnp

        gradient = self._gradient(p)

        def function(x: Any, dy: Any, sizes: Any, main: Any) -> tuple:
            return (main + gradient(x, dy, sizes).astype(main.dtype),)

        initial = jnp.copy(jnp.swapaxes(view(p, 0, "initial"), 1, 2))
        call = self.into(p, function, ("x", "dy", "sizes"), [initial])
        call.through = p.dtype
        call.note = "rounded to 16 bits before the sum"
        return call

    def _gradient(self, p: Problem) -> Any:
        import jax.numpy as jnp

        import jax

        def function(x: Any, dy: Any, sizes: Any) -> Any:
            w = jnp.zeros((p.G, p.K, p.N), x.dtype)
            return jax.vjp(lambda b: jax.lax.ragged_dot(x, b, sizes), w)[1](dy)[0]

        return function

    def linear(self, p: Problem) -> Call:
        import jax

        def function(x: Any, w: Any, dy: Any, sizes: Any) -> tuple:
            y, pull = jax.vjp(lambda a, b: jax.lax.ragged_dot(a, b, sizes), x, w)
            return (y, *pull(dy))

        return self.call(p, function, ("x", "wk", "dy", "sizes"))

    host_linear = linear


class XlaActivation(JaxPeer):
    """SwiGLU written in jax.numpy."""

    name = family = "XLA"

    def act(self, p: Problem) -> Call:
        return self.call(p, _swiglu, ("x",))

    def act_grad(self, p: Problem) -> Call:
        import jax

        return self.call(p, lambda h, dy: jax.vjp(_swiglu, h)[1](dy)[0], ("x", "dy"))


def _swiglu(h: Any) -> Any:
    import jax.numpy as jnp

    import jax

    gate, up = jnp.split(h.astype(jnp.float32), 2, axis=1)
    return (jax.nn.silu(gate) * up).astype(h.dtype)
