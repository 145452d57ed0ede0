# SPDX-License-Identifier: Apache-2.0
"""ragged_dot: jax.lax.ragged_dot on the core."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from grouped_core import Op, Options, weight_layout_code
from jax_grouped._calls import Array, check_arguments, dtype_of, result_type
from jax_grouped._ragged_dot_general import evaluate, refuse_group_offset
from jax_grouped._ragged_form import SERVED_DTYPES
from jax_grouped._refs import Buffer

__all__ = ["ragged_dot"]

_GKN = weight_layout_code("gkn")
_LAYOUT_HINT = re.compile(r" The layout assumed is weight_layout=.*?\]\.")
_WAY_OUT = " A weight stored [G, N, K] is for jax_grouped.ragged_dot_general."
_NUMBERS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (1,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=(0,)
)


def ragged_dot(
    lhs: Array,
    rhs: Array,
    group_sizes: Array,
    precision: Any = None,
    preferred_element_type: Any = None,
    group_offset: Array | None = None,
    *,
    out: Buffer | None = None,
) -> Array:
    """``jax.lax.ragged_dot`` on the grouped core: row t of the result is ``lhs[t] @ rhs[g(t)]``.

    Without ``out`` every transformation works, to any order: jvp, vjp, vmap over any operands, hessian. With ``out``
    reverse mode, once.

    Args:
      lhs: ``[T, K]`` float16, bfloat16, float32 or float64.
      rhs: ``[G, K, N]``. Where its dtype differs from that of lhs both are cast to that of the result, as JAX does.
      group_sizes: ``[G]`` integers; int32 and int64 go as they are, uint64 is cast to
        int64, others to int32.
      precision: as JAX takes it. The core computes float32 in full float32 and float64 in float64, so only an
        explicit algorithm changes anything: JAX computes that itself.
      preferred_element_type: dtype of the result: that of lhs (default), float32 beside 16-bit lhs. Others cost a
        cast of the operands (to float64) or of the result.
      group_offset: must be None, as in JAX.
      out: ``[T, N]`` of that dtype: a buffer to donate, or a ``jax.Ref``; the result is written there.

    Other dtypes (integers, complex, 8-bit floats) are computed by ``jax.lax.ragged_dot``; ``GROUPED_LOG=1`` says so.

    Returns:
      ``[T, N]``.

    Raises:
      ValueError: at trace time, a shape that the rules forbid, or a precision that JAX does not know.
      TypeError: at trace time, a dtype that the rules forbid.
      NotImplementedError: a group_offset.
      jax.errors.JaxRuntimeError or ValueError: at run time, sizes that do not fit, on CPU always and on CUDA under
        ``GROUPED_CHECK=1``. Which of the two, JAX decides: a call that has run before is made by its native code.

    Tail: rows ``S..T`` are zeros, also in the gradient of lhs; with ``out`` they are neither read nor written.
    Empty groups: legal anywhere; their gradient is zero.
    Aliasing: as `grouped_linear`.
    Rematerialisation: ``jax.checkpoint`` policies know the result as "ragged_dot".
    Determinism: bitwise repeatable, the same with and without ``out`` and under ``vmap``. Reverse mode casts the
    incoming gradient to dtype of lhs where ``preferred_element_type`` differs from it.
    Source: jax.lax.ragged_dot.
    """
    refuse_group_offset(group_offset)
    _check(lhs, rhs, group_sizes, out)
    options = {
        "ragged_dot_dimension_numbers": _NUMBERS,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
    }
    return evaluate(lhs, rhs, group_sizes, options, out, "ragged_dot")


def _check(lhs: Any, rhs: Any, group_sizes: Any, out: Any) -> None:
    """The core's rules in its words, as far as JAX has the same; what is left JAX itself refuses."""
    if not all(hasattr(a, "dtype") for a in (lhs, rhs, group_sizes)):
        return
    result = out
    if out is None:
        if not (lhs.dtype in SERVED_DTYPES and rhs.dtype in SERVED_DTYPES):
            return
        # Dtypes may differ here, so the rules see that of lhs alone.
        dtype = dtype_of(lhs)
        rhs = result_type(rhs.shape, dtype)
        result = result_type((lhs.shape[0], rhs.shape[2]) if lhs.ndim == 2 and rhs.ndim == 3 else (0, 0), dtype)
    if jnp.issubdtype(group_sizes.dtype, jnp.integer):
        group_sizes = result_type(group_sizes.shape, jnp.int32)
    arguments = {"lhs": lhs, "rhs": rhs, "group_sizes": group_sizes, "bias": None, "row_scale": None, "out": result}
    try:
        check_arguments(Op.MM, arguments, Options(weight_layout=_GKN))
    except (ValueError, TypeError) as error:
        # The core's way out is an argument that this function does not have.
        raise type(error)(_LAYOUT_HINT.sub(_WAY_OUT, str(error))) from None
