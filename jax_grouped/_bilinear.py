# SPDX-License-Identifier: Apache-2.0
"""The grouped product and the weight gradient as JAX primitives: linear in each of their first two operands.

An FFI call has no derivative, and ``custom_vjp`` has no forward mode. But both operations are bilinear, and the
transpose of either in either operand is one of the two again:

    y  = mm(x, W)         dx = mm(dy, W^T)     dW  = wgrad(x, dy)
    dW = wgrad(x, dy)     dx = mm(dy, ddW^T)   ddy = mm(x, ddW)

so two primitives with four rules differentiate to any order in either mode, where ``jax.lax.ragged_dot`` itself
stops at a transpose of its weight gradient. W^T is the same array read in the other layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from grouped_core import other_layout
from jax_grouped import _operations as core
from jax_grouped._calls import Array

_MAX_INT32 = 2**31 - 1


def mm(x: Array, weight: Array, group_sizes: Array, *, weight_layout: int, dtype: Any) -> Array:
    """y[t] = x[t] @ W[g(t)] as dtype; rows of no group are zeros."""
    return _mm_p.bind(x, weight, group_sizes, weight_layout=weight_layout, dtype=jnp.dtype(dtype))


def wgrad(x: Array, dy: Array, group_sizes: Array, *, weight_layout: int, dtype: Any) -> Array:
    """dW[g] = x_g^T dy_g as dtype, in the weight's layout; zeros for a group without rows."""
    return _wgrad_p.bind(x, dy, group_sizes, weight_layout=weight_layout, dtype=jnp.dtype(dtype))


def _mm(x: Array, weight: Array, group_sizes: Array, *, weight_layout: int, dtype: Any) -> Array:
    return core.mm(x, weight, group_sizes, None, None, None, weight_layout, dtype)


def _wgrad(x: Array, dy: Array, group_sizes: Array, *, weight_layout: int, dtype: Any) -> Array:
    return core.wgrad(x, dy, group_sizes, None, False, weight_layout, dtype)


def _transpose_mm(ct: Array, x: Any, weight: Any, group_sizes: Array, *, weight_layout: int, dtype: Any) -> tuple:
    del dtype  # that of ct
    if ad.is_undefined_primal(x):
        ct = ct.astype(weight.dtype)
        dx = mm(ct, weight, group_sizes, weight_layout=other_layout(weight_layout), dtype=x.aval.dtype)
        return dx, None, None
    ct = ct.astype(x.dtype)
    return None, wgrad(x, ct, group_sizes, weight_layout=weight_layout, dtype=weight.aval.dtype), None


def _transpose_wgrad(ct: Array, x: Any, dy: Any, group_sizes: Array, *, weight_layout: int, dtype: Any) -> tuple:
    del dtype  # that of ct
    if ad.is_undefined_primal(x):
        ct = ct.astype(dy.dtype)
        dx = mm(dy, ct, group_sizes, weight_layout=other_layout(weight_layout), dtype=x.aval.dtype)
        return dx, None, None
    ct = ct.astype(x.dtype)
    return None, mm(x, ct, group_sizes, weight_layout=weight_layout, dtype=dy.aval.dtype), None


def _batch_mm(operands: Sequence[Array], dims: Sequence[int | None], *, weight_layout: int, dtype: Any) -> tuple:
    x, weight, group_sizes = operands
    count = x.shape[dims[0]] if dims[0] is not None else 0
    if dims[0] is None or dims[1:] != (None, None) or not _rows_fit(count * x.shape[1 - min(dims[0], 1)]):
        return _one_by_one(partial(mm, weight_layout=weight_layout, dtype=dtype), operands, dims)
    # One set of sizes and weights: every row becomes `count` rows of its group, and one call serves them all. A row
    # of the result depends on that row and its weight only, so these are the bits of separate calls.
    x = jnp.moveaxis(x, dims[0], 1)
    rows = x.reshape(x.shape[0] * count, x.shape[2])
    y = mm(rows, weight, group_sizes * count, weight_layout=weight_layout, dtype=dtype)
    return y.reshape(x.shape[0], count, y.shape[1]), 1


def _rows_fit(rows: Any) -> bool:
    """Whether sizes multiplied for a fold fit the narrowest type they come in."""
    return type(rows) is int and rows <= _MAX_INT32


def _batch_wgrad(operands: Sequence[Array], dims: Sequence[int | None], **parameters: Any) -> tuple:
    return _one_by_one(partial(wgrad, **parameters), operands, dims)


def _one_by_one(operation: Callable, operands: Sequence[Array], dims: Sequence[int | None]) -> tuple[Array, int]:
    """A call for every element of the batch. What is not batched is not copied."""
    batched = [jnp.moveaxis(a, d, 0) for a, d in zip(operands, dims, strict=True) if d is not None]

    def call(slices: Sequence[Array]) -> Array:
        given = iter(slices)
        return operation(*(a if d is None else next(given) for a, d in zip(operands, dims, strict=True)))

    return jax.lax.map(call, batched), 0


def _primitive(name: str, function: Callable, transpose: Callable, batch: Callable) -> Any:
    primitive = jex.Primitive(name)

    def jvp(primals: Sequence[Array], tangents: Sequence[Any], **parameters: Any) -> tuple[Array, Any]:
        left, right, group_sizes = primals
        y = primitive.bind(left, right, group_sizes, **parameters)
        terms = []
        if type(tangents[0]) is not ad.Zero:
            terms.append(primitive.bind(tangents[0], right, group_sizes, **parameters))
        if type(tangents[1]) is not ad.Zero:
            terms.append(primitive.bind(left, tangents[1], group_sizes, **parameters))
        return y, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(y)

    # Taken from the call itself, which knows over which mesh axes its result varies.
    primitive.def_abstract_eval(lambda *types, **p: jax.make_jaxpr(partial(function, **p))(*types).out_avals[0])
    primitive.def_impl(jax.jit(function, static_argnames=("weight_layout", "dtype")))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    return primitive


_mm_p = _primitive("grouped_mm", _mm, _transpose_mm, _batch_mm)
_wgrad_p = _primitive("grouped_wgrad", _wgrad, _transpose_wgrad, _batch_wgrad)
