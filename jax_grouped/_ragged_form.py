# SPDX-License-Identifier: Apache-2.0
"""Any ragged_dot_general brought to the two operations of the core: a grouped product or a weight gradient.

Letters: B batch dimensions, X the dimensions outer to the ragged one (group_sizes may have both), A those inner to
it, which fold into the rows because every ragged row carries all of them. A dimension of B or X is a ``vmap``.

Both ``jax_grouped.ragged_dot_general`` and the lowering that `install` gives to JAX's own primitive come here, so
one form decides what is served and how, and both give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grouped_core import weight_layout_code
from jax_grouped import _bilinear
from jax_grouped import _operations as core
from jax_grouped._batching import MOST_ROWS, times
from jax_grouped._calls import Array, accumulator

SERVED_DTYPES = tuple(jnp.dtype(d) for d in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64))
_GNK, _GKN = weight_layout_code("gnk"), weight_layout_code("gkn")


class Mode(Enum):
    """What the ragged dimension of lhs is."""

    NONCONTRACTING = "non-contracting"
    CONTRACTING = "contracting"
    BATCH = "batch"


class Form(NamedTuple):
    """Dimension numbers, sorted. lhs and rhs hold, in order: B, X, ragged (lhs; contracting: both), A, and the rest.

    contract: of the non-contracting mode, in the order of lhs. group: of rhs there.
    """

    mode: Mode
    batch: tuple[list[int], list[int]]
    outer: tuple[list[int], list[int]]
    ragged: tuple[int, int]
    inner: tuple[list[int], list[int]]
    contract: tuple[list[int], list[int]]
    group: int
    free: tuple[list[int], list[int]]


def _rest(rank: int, *taken: Sequence[int]) -> list[int]:
    return [d for d in range(rank) if all(d not in t for t in taken)]


def form_of(lhs_rank: int, rhs_rank: int, numbers: Any) -> Form:
    """Dimension numbers that JAX has accepted for operands of these ranks."""
    (lc, rc), (lb, rb) = (tuple(map(list, pair)) for pair in numbers.dot_dimension_numbers)
    (ragged,) = numbers.lhs_ragged_dimensions
    group = list(numbers.rhs_group_dimensions)
    lhs_free, rhs_free = _rest(lhs_rank, lc, lb), _rest(rhs_rank, rc, rb, group)
    if ragged in lb:
        none: tuple[list[int], list[int]] = ([], [])
        return Form(Mode.BATCH, (lb, rb), none, (ragged, -1), none, (lc, rc), -1, (lhs_free, rhs_free))
    if ragged in lc:
        i = lc.index(ragged)
        outer, inner = (lc[:i], rc[:i]), (lc[i + 1 :], rc[i + 1 :])
        return Form(Mode.CONTRACTING, (lb, rb), outer, (ragged, rc[i]), inner, ([], []), -1, (lhs_free, rhs_free))
    i = lhs_free.index(ragged)
    order = sorted(range(len(lc)), key=lambda n: lc[n])  # lhs needs no transpose for a contraction over several
    contract = [lc[n] for n in order], [rc[n] for n in order]
    outer, inner = (lhs_free[:i], []), (lhs_free[i + 1 :], [])
    return Form(Mode.NONCONTRACTING, (lb, rb), outer, (ragged, -1), inner, contract, group[0], ([], rhs_free))


def why_not(lhs: Any, rhs: Any, dtype: Any, numbers: Any, precision: Any) -> str | None:
    """Why the core does not compute this, or None if it does. lhs, rhs: arrays or types; dtype: of the result."""
    for name, given in (("lhs", lhs.dtype), ("rhs", rhs.dtype), ("the result", dtype)):
        if given not in SERVED_DTYPES:
            return f"{name} is {given}"
    form = form_of(lhs.ndim, rhs.ndim, numbers)
    if form.mode is Mode.BATCH:
        return "the ragged dimension is a batch dimension, which makes it a dense product"
    if isinstance(precision, jax.lax.DotAlgorithm | jax.lax.DotAlgorithmPreset):
        return f"precision asks for the algorithm {precision}"
    rows = [lhs.shape[d] for d in (form.ragged[0], *form.inner[0])]
    if len(rows) > 1 and not all(type(r) is int for r in rows):
        return "a dimension inner to the ragged one is symbolic"
    if len(rows) > 1 and (rows[0] + 1) * math.prod(rows[1:]) > MOST_ROWS:
        return f"{rows} rows, folded into one dimension, do not fit int32"
    return None


def compute(lhs: Array, rhs: Array, group_sizes: Array, numbers: Any, dtype: Any, out: Array | None = None) -> Array:
    """What `why_not` has nothing against. Differentiable in lhs and rhs if out is None; else out is overwritten."""
    form = form_of(lhs.ndim, rhs.ndim, numbers)
    lhs, rhs, kernel_dtype = _operands(lhs, rhs, jnp.dtype(dtype))
    if group_sizes.dtype not in (jnp.int32, jnp.int64):
        group_sizes = group_sizes.astype(jnp.int64 if group_sizes.dtype == jnp.uint64 else jnp.int32)
    if form.inner[0]:
        group_sizes = times(group_sizes, math.prod(lhs.shape[d] for d in form.inner[0]), lhs.shape[form.ragged[0]])
    contracting = form.mode is Mode.CONTRACTING
    result = (_weight_gradient if contracting else _product)(form, lhs, rhs, group_sizes, kernel_dtype, out)
    return result.astype(dtype)


def _operands(lhs: Array, rhs: Array, dtype: Any) -> tuple[Array, Array, Any]:
    """The operands in one dtype, and that of the result as the kernel stores it."""
    if lhs.dtype != rhs.dtype or (dtype == jnp.float64 and lhs.dtype != dtype):
        # As JAX does: operands that differ both become what the result is. A result of fp64 means sums of fp64.
        lhs, rhs = lhs.astype(dtype), rhs.astype(dtype)
    direct = dtype in (lhs.dtype, accumulator(lhs.dtype))
    return lhs, rhs, dtype if direct else accumulator(lhs.dtype)


def _in_order(parts: Sequence[Sequence[int]]) -> bool:
    order = [d for part in parts for d in part]
    return order == sorted(order)


def _flat(a: Array, *parts: Sequence[int]) -> Array:
    """A dimension for each part, which holds the dimensions that the part lists, in that order."""
    shape = [math.prod(a.shape[d] for d in part) for part in parts]
    if not _in_order(parts):
        a = a.transpose([d for part in parts for d in part])
    return a if list(a.shape) == shape else a.reshape(shape)


def _levels(*parts: Sequence[int]) -> list[Sequence[int]]:
    return [part for part in parts if part]


def _flat_sizes(group_sizes: Array, form: Form, lhs: Array) -> Array:
    """[g], or a dimension for B and one for X before it, where they are there."""
    if group_sizes.ndim == 1:
        return group_sizes
    lead = [math.prod(lhs.shape[d] for d in part) for part in _levels(form.batch[0], form.outer[0])]
    return group_sizes.reshape(*lead, group_sizes.shape[-1])


def _over(function: Callable, rhs_too: bool, group_sizes: Array, out_axis: int = 0) -> Callable:
    """vmap over the next dimension: of lhs, of out, of group_sizes if it has one, of rhs if it has it."""
    sizes_axis = None if group_sizes.ndim == 1 else 0
    return jax.vmap(function, in_axes=(0, 0 if rhs_too else None, sizes_axis, out_axis), out_axes=out_axis)


def _product(form: Form, lhs: Array, rhs: Array, group_sizes: Array, dtype: Any, out: Array | None) -> Array:
    x = _flat(lhs, *_levels(form.batch[0], form.outer[0]), [form.ragged[0], *form.inner[0]], form.contract[0])
    lead, K, N = _levels(form.batch[1]), form.contract[1], form.free[1]
    # The weight is read as it lies if that is either layout; any other order of dimensions costs a transpose.
    orders = {_GKN: (*lead, [form.group], K, N), _GNK: (*lead, [form.group], N, K)}
    as_it_lies = (layout for layout, parts in orders.items() if _in_order(parts))
    layout = next(as_it_lies, _GKN)
    weight = _flat(rhs, *orders[layout])
    sizes = _flat_sizes(group_sizes, form, lhs)
    rows = [lhs.shape[d] for d in (*form.batch[0], *form.outer[0], form.ragged[0], *form.inner[0])]
    shape = (*rows, *(rhs.shape[d] for d in N))

    def call(x: Array, weight: Array, sizes: Array, out: Array | None) -> Array:
        if out is None:
            return _bilinear.mm(x, weight, sizes, weight_layout=layout, dtype=dtype)
        return core.mm(x, weight, sizes, None, None, out, layout, dtype)

    if form.outer[0]:
        call = _over(call, False, group_sizes)
    if form.batch[0]:
        call = _over(call, True, group_sizes)
    target = None if out is None else out.reshape(*x.shape[:-1], math.prod(shape[len(rows) :]))
    return call(x, weight, sizes, target).reshape(shape)


def _weight_gradient(form: Form, lhs: Array, rhs: Array, group_sizes: Array, dtype: Any, out: Array | None) -> Array:
    x, dy = (
        _flat(a, *_levels(batch, outer), [ragged, *inner], free)
        for a, batch, outer, ragged, inner, free in zip(
            (lhs, rhs), form.batch, form.outer, form.ragged, form.inner, form.free, strict=True
        )
    )
    sizes = _flat_sizes(group_sizes, form, lhs)
    free = [lhs.shape[d] for d in form.free[0]], [rhs.shape[d] for d in form.free[1]]
    shape = (group_sizes.shape[-1], *(lhs.shape[d] for d in form.batch[0]), *free[0], *free[1])

    stored = accumulator(dtype) if form.outer[0] else dtype

    def one(x: Array, dy: Array, sizes: Array, out: Array | None) -> Array:
        if out is None:
            return _bilinear.wgrad(x, dy, sizes, weight_layout=_GKN, dtype=stored)
        return core.wgrad(x, dy, sizes, out, False, _GKN)

    every = _over(one, True, group_sizes)

    def added_up(x: Array, dy: Array, sizes: Array, out: Array | None) -> Array:
        """A product for each element of X; their sum is rounded once, by the caller."""
        return every(x, dy, sizes, out).sum(0)

    call = added_up if form.outer[0] else one
    if form.batch[0]:
        call = _over(call, True, group_sizes, out_axis=1)
    lead = [math.prod(shape[1 : 1 + len(form.batch[0])])] if form.batch[0] else []
    target = None if out is None else out.reshape(shape[0], *lead, math.prod(free[0]), math.prod(free[1]))
    return call(x, dy, sizes, target).reshape(shape)
