# SPDX-License-Identifier: Apache-2.0

"""JAX's own: jax.lax.ragged_dot and its gradients, and SwiGLU as XLA fuses it.

ragged_dot runs with its default lowering: on a Hopper GPU its optional ones were slower or missing (jax 0.11).
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.operations import ACT, ACT_GRAD, LINEAR, WGRAD_ACC
from benchmarks.peers.base import NATIVE, Call
from benchmarks.peers.jax_common import JaxPeer, too_many_compilations
from benchmarks.problem import Case, Problem


class RaggedDot(JaxPeer):
    """jax.lax.ragged_dot."""

    name = family = "jax.lax.ragged_dot"
    sitting = NATIVE

    def declines(self, case: Case, device: torch.device) -> str | None:
        reason = super().declines(case, device)
        if reason is not None or device.type != "cuda":
            return reason
        if case.op in (LINEAR, WGRAD_ACC):
            return "as fast as its parts, which are timed alone"
        # XLA multiplies every row by every group's weight and masks: sizes would change nothing but the data.
        return too_many_compilations(case)

    def pool(self, problem: Problem) -> int:
        p = problem
        # A copy of one operand for each group.
        return max(p.nbytes("GTK"), p.nbytes("GTN")) if p.device.type == "cuda" else 0

    def fwd(self, p: Problem) -> Call:
        return self.call(p, _forward, ("x", "wk", "sizes"))

    host = fwd

    def dgrad(self, p: Problem) -> Call:
        return self.call(p, _dgrad, ("wk", "dy", "sizes"))

    def wgrad(self, p: Problem) -> Call:
        return self.call(p, _wgrad, ("x", "dy", "sizes"))

    def wgrad_acc(self, p: Problem) -> Call:
        call = self.into(p, _wgrad_accumulate, ("x", "dy", "sizes"), [self.initial(p)])
        call.through = p.dtype
        call.note = "rounded to 16 bits before the sum"
        return call

    def linear(self, p: Problem) -> Call:
        return self.call(p, _linear, ("x", "wk", "dy", "sizes"))

    host_linear = linear


def _forward(x: Any, w: Any, sizes: Any) -> Any:
    import jax

    return jax.lax.ragged_dot(x, w, sizes)


def _dgrad(w: Any, dy: Any, sizes: Any) -> Any:
    import jax
    import jax.numpy as jnp

    x = jnp.zeros((dy.shape[0], w.shape[1]), w.dtype)
    return jax.vjp(lambda a: jax.lax.ragged_dot(a, w, sizes), x)[1](dy)[0]


def _wgrad(x: Any, dy: Any, sizes: Any) -> Any:
    import jax
    import jax.numpy as jnp

    w = jnp.zeros((sizes.shape[0], x.shape[1], dy.shape[1]), x.dtype)
    return jax.vjp(lambda b: jax.lax.ragged_dot(x, b, sizes), w)[1](dy)[0]


def _wgrad_accumulate(x: Any, dy: Any, sizes: Any, main: Any) -> tuple:
    return (main + _wgrad(x, dy, sizes).astype(main.dtype),)


def _linear(x: Any, w: Any, dy: Any, sizes: Any) -> tuple:
    import jax

    y, pull = jax.vjp(lambda a, b: jax.lax.ragged_dot(a, b, sizes), x, w)
    return (y, *pull(dy))


class XlaActivation(JaxPeer):
    """SwiGLU written in jax.numpy."""

    name = family = "XLA"

    def pool(self, problem: Problem) -> int:
        return 3 * problem.nbytes("TN") if problem.case.op in (ACT, ACT_GRAD) else 0

    def act(self, p: Problem) -> Call:
        return self.call(p, _swiglu, ("x",))

    def act_grad(self, p: Problem) -> Call:
        return self.call(p, _swiglu_grad, ("x", "dy"))


def _swiglu(h: Any) -> Any:
    import jax
    import jax.numpy as jnp

    gate, up = jnp.split(h.astype(jnp.float32), 2, axis=1)
    return (jax.nn.silu(gate) * up).astype(h.dtype)


def _swiglu_grad(h: Any, dy: Any) -> Any:
    import jax

    return jax.vjp(_swiglu, h)[1](dy)[0]
