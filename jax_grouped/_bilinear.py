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
from jax_grouped._batching import MOST_ROWS, times
from jax_grouped._calls import Array, accumulator

_PARAMETERS = ("weight_layout", "dtype", "batched")
_NONE = (False, False, False)


def mm(x: Array, weight: Array, group_sizes: Array, *, weight_layout: int, dtype: Any, batched: tuple = _NONE) -> Array:
    """y[t] = x[t] @ W[g(t)] as dtype; rows of no group are zeros. batched: which operands have a batch in front."""
    return _mm_p.bind(x, weight, group_sizes, weight_layout=weight_layout, dtype=jnp.dtype(dtype), batched=batched)


def wgrad(x: Array, dy: Array, group_sizes: Array, *, weight_layout: int, dtype: Any, batched: tuple = _NONE) -> Array:
    """dW[g] = x_g^T dy_g as dtype, in the weight's layout; zeros for a group without rows. batched: as for mm."""
    return _wgrad_p.bind(x, dy, group_sizes, weight_layout=weight_layout, dtype=jnp.dtype(dtype), batched=batched)


def _mm(x: Array, weight: Array, group_sizes: Array, *, weight_layout: int, dtype: Any, batched: tuple) -> Array:
    def one(x: Array, weight: Array, group_sizes: Array) -> Array:
        return core.mm(x, weight, group_sizes, None, None, None, weight_layout, dtype)

    return _mapped(one, batched)(x, weight, group_sizes)


def _wgrad(x: Array, dy: Array, group_sizes: Array, *, weight_layout: int, dtype: Any, batched: tuple) -> Array:
    def one(x: Array, dy: Array, group_sizes: Array) -> Array:
        return core.wgrad(x, dy, group_sizes, None, False, weight_layout, dtype)

    return _mapped(one, batched)(x, dy, group_sizes)


def _mapped(operation: Callable, batched: tuple) -> Callable:
    """The call itself knows how to serve a batch at once; that has no derivative, so the primitive keeps the batch."""
    return jax.vmap(operation, [0 if b else None for b in batched]) if any(batched) else operation


def _gradient(operation: Callable, batched: tuple, own: int, aval: Any, *operands: Array, weight_layout: int) -> Array:
    """The gradient of operand `own`, by `operation` on operands batched so; summed over a batch that shares it."""
    if batched[own] or not any(batched):
        return operation(*operands, weight_layout=weight_layout, dtype=aval.dtype)
    each = operation(*operands, weight_layout=weight_layout, dtype=accumulator(aval.dtype))
    return each.sum(0).astype(aval.dtype)


def _transpose_mm(
    ct: Array, x: Any, weight: Any, group_sizes: Array, *, weight_layout: int, dtype: Any, batched: tuple
) -> tuple:
    del dtype  # that of ct
    if ad.is_undefined_primal(x):
        product = partial(mm, batched=(any(batched), *batched[1:]))
        operands = ct.astype(weight.dtype), weight, group_sizes
        return _gradient(product, batched, 0, x.aval, *operands, weight_layout=other_layout(weight_layout)), None, None
    product = partial(wgrad, batched=(batched[0], any(batched), batched[2]))
    operands = x, ct.astype(x.dtype), group_sizes
    return None, _gradient(product, batched, 1, weight.aval, *operands, weight_layout=weight_layout), None


def _transpose_wgrad(
    ct: Array, x: Any, dy: Any, group_sizes: Array, *, weight_layout: int, dtype: Any, batched: tuple
) -> tuple:
    del dtype  # that of ct
    if ad.is_undefined_primal(x):
        product = partial(mm, batched=(batched[1], any(batched), batched[2]))
        operands = dy, ct.astype(dy.dtype), group_sizes
        return _gradient(product, batched, 0, x.aval, *operands, weight_layout=other_layout(weight_layout)), None, None
    product = partial(mm, batched=(batched[0], any(batched), batched[2]))
    operands = x, ct.astype(x.dtype), group_sizes
    return None, _gradient(product, batched, 1, dy.aval, *operands, weight_layout=weight_layout), None


def _batch_mm(operands: Sequence[Array], dims: Sequence[int | None], **parameters: Any) -> tuple[Array, int]:
    x, weight, group_sizes = operands
    if any(parameters["batched"]) or dims[1] is not None:
        return _at_once(mm, operands, dims, **parameters)
    if dims[0] is None or dims[2] is not None:
        return _one_by_one(partial(mm, **parameters), operands, dims)
    # One set of sizes and weights: every row becomes `count` rows of its group, and one call serves them all. A row
    # of the result depends on that row and its weight only, so these are the bits of separate calls.
    x = jnp.moveaxis(x, dims[0], 1)
    T, count, K = x.shape
    if type(T) is not int or (T + 1) * count > MOST_ROWS:  # the sizes might not fit their type
        return _one_by_one(partial(mm, **parameters), operands, dims)
    y = mm(x.reshape(T * count, K), weight, times(group_sizes, count, T), **parameters)
    return y.reshape(T, count, y.shape[1]), 1


def _batch_wgrad(operands: Sequence[Array], dims: Sequence[int | None], **parameters: Any) -> tuple[Array, int]:
    return _at_once(wgrad, operands, dims, **parameters)


def _at_once(
    operation: Callable, operands: Sequence[Array], dims: Sequence[int | None], *, batched: tuple, **parameters: Any
) -> tuple[Array, int]:
    """The primitive with a batch in front of the operands that have one. Batches of the same operands become one."""
    mapped = tuple(d is not None for d in dims)
    if any(batched) and batched != mapped:
        return _one_by_one(partial(operation, batched=batched, **parameters), operands, dims)
    front = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(operands, dims, strict=True)]
    if not any(batched):
        return operation(*front, batched=mapped, **parameters), 0
    lead = next(a.shape[:2] for a, m in zip(front, mapped, strict=True) if m)
    flat = [a.reshape(lead[0] * lead[1], *a.shape[2:]) if m else a for a, m in zip(front, mapped, strict=True)]
    result = operation(*flat, batched=batched, **parameters)
    return result.reshape(*lead, *result.shape[1:]), 0


def _one_by_one(operation: Callable, operands: Sequence[Array], dims: Sequence[int | None]) -> tuple[Array, int]:
    """A call for every element of the batch. What is not batched is not copied, nor its gradient made so often."""
    mapped = [jnp.moveaxis(a, d, 0) for a, d in zip(operands, dims, strict=True) if d is not None]

    def call(slices: Sequence[Array]) -> Array:
        given = iter(slices)
        return operation(*(a if d is None else next(given) for a, d in zip(operands, dims, strict=True)))

    return jax.lax.map(call, mapped), 0


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

    def transposed(ct: Any, *operands: Any, **parameters: Any) -> tuple:
        return (None, None, None) if type(ct) is ad.Zero else transpose(ct, *operands, **parameters)

    compiled = jax.jit(function, static_argnames=_PARAMETERS)

    def run_eagerly(*arrays: Array, **parameters: Any) -> Array:
        # Only the arrays themselves tell that every device has all of them; a program for several devices is refused.
        several = any(len(a.sharding.device_set) > 1 for a in arrays)
        return (function if several else compiled)(*arrays, **parameters)

    # Taken from the call itself, which knows over which mesh axes its result varies.
    primitive.def_abstract_eval(lambda *types, **p: jax.make_jaxpr(partial(function, **p))(*types).out_avals[0])
    primitive.def_impl(run_eagerly)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batch
    return primitive


_mm_p = _primitive("grouped_mm", _mm, _transpose_mm, _batch_mm)
_wgrad_p = _primitive("grouped_wgrad", _wgrad, _transpose_wgrad, _batch_wgrad)
