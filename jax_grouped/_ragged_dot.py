# SPDX-License-Identifier: Apache-2.0
"""ragged_dot: jax.lax.ragged_dot on the core."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from grouped_core import Op, Options, other_layout, weight_layout_code
from jax_grouped import _operations as core
from jax_grouped._calls import Array, check_arguments, result_type, vary_together

__all__ = ["ragged_dot"]

_GKN = weight_layout_code("gkn")


def ragged_dot(
    lhs: Array,
    rhs: Array,
    group_sizes: Array,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    out: Array | None = None,
) -> Array:
    """``jax.lax.ragged_dot`` on the grouped core: row t of the result is ``lhs[t] @ rhs[g(t)]``.

    Args:
      lhs: ``[T, K]`` float16, bfloat16, float32 or float64.
      rhs: ``[G, K, N]``, dtype of lhs.
      group_sizes: ``[G]`` integers; int32 and int64 go as they are, others are cast to int32.
      precision: accepted as JAX does; the core always computes float32 in full float32 and float64 in float64.
      preferred_element_type: dtype of the result: that of lhs (default), or float32 beside 16-bit lhs.
      out: ``[T, N]`` of that dtype: a buffer to donate; the result is written there.

    Returns:
      ``[T, N]``.

    Raises:
      ValueError: at trace time, a shape that the rules forbid.
      TypeError: at trace time, a dtype that the rules forbid.

    Tail: rows ``S..T`` are zeros; with ``out`` they are neither read nor written.
    Empty groups: legal anywhere; their gradient is zero.
    Aliasing: as `grouped_linear`.
    Determinism: bitwise repeatable. Reverse mode casts the incoming gradient to dtype of lhs where
    ``preferred_element_type`` differs from it.
    Source: jax.lax.ragged_dot.
    """
    del precision  # nothing to choose: see above
    if jnp.issubdtype(group_sizes.dtype, jnp.integer) and group_sizes.dtype not in (jnp.int32, jnp.int64):
        group_sizes = group_sizes.astype(jnp.int32)
    dtype = jnp.dtype(lhs.dtype if preferred_element_type is None else preferred_element_type)
    given = out
    if given is None:
        given = result_type((lhs.shape[0], rhs.shape[2]) if lhs.ndim == 2 and rhs.ndim == 3 else (0, 0), dtype)
    arguments = {"lhs": lhs, "rhs": rhs, "group_sizes": group_sizes, "bias": None, "row_scale": None}
    name = "preferred_element_type" if out is None else "out"
    check_arguments(Op.MM, {**arguments, name: given}, Options(weight_layout=_GKN))
    if given.dtype != dtype:
        raise TypeError(f"out must have the result's dtype {dtype}; got {given.dtype}.")
    with jax.named_scope("ragged_dot"):
        return _ragged_dot(dtype, *vary_together(lhs, rhs, group_sizes, out))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ragged_dot(dtype: Any, lhs: Array, rhs: Array, group_sizes: Array, out: Array | None) -> Array:
    return core.mm(lhs, rhs, group_sizes, None, None, out, _GKN, dtype)


def _forward(dtype: Any, lhs: Array, rhs: Array, group_sizes: Array, out: Array | None) -> tuple[Array, tuple]:
    return _ragged_dot(dtype, lhs, rhs, group_sizes, out), (lhs, rhs, group_sizes)


def _backward(dtype: Any, residuals: tuple, dy: Array) -> tuple:
    lhs, rhs, group_sizes = residuals
    dy = dy.astype(lhs.dtype)
    dlhs = core.mm(dy, rhs, group_sizes, None, None, None, other_layout(_GKN))
    return dlhs, core.wgrad(lhs, dy, group_sizes, None, False, _GKN), None, None


_ragged_dot.defvjp(_forward, _backward)
