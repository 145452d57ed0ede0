# SPDX-License-Identifier: Apache-2.0
"""vmap of a call: one call over all batches where their rows may lie one after another, else one for each.

B batches of T rows and G groups are B x T rows and B x G groups, in the memory in which they are. Between them lie the
tails. Where a result has rows, each batch's tail joins its last group, and what comes out of it is replaced by zeros.
Where a result has groups, each tail is a group of its own, whose result is left out: a sum over more rows could be
taken in another order.

Batches that share both weight and sizes are one batch whose rows are B times as many: row t of every batch, then row
t + 1, so that a group's rows lie together. That moves rows, unless they came with the batches in second place.

One call for each batch remains where batches share a weight but not the sizes, and where a result goes into a buffer,
whose tails must stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from grouped_core import Op, Options, argument_dims

__all__ = ["MOST_ROWS", "Folded", "batchable", "fold", "times"]

MOST_ROWS = 2**31 - 1  # of the narrowest type that sizes have
Folded = tuple[list[Any], dict[int, tuple[int, ...]], int]


def batchable(run: Callable, folded: Callable | None) -> Callable:
    """`run`, under vmap as `folded(size, batched, *arrays)`: the results, all batched, or None where it cannot."""
    call = custom_vmap(run)

    @call.def_vmap
    def rule(size: int, batched: Sequence[bool], *arrays: Any) -> tuple:
        results = None if folded is None else folded(size, batched, *arrays)
        if results is None:
            results = jax.vmap(run, in_axes=[0 if b else None for b in batched])(*arrays)
        return results, (True,) * len(results)

    return call


def fold(
    op: Op, size: int, inputs: Sequence[Any], batched: dict[int, bool], shapes: dict[int, tuple], options: Options
) -> tuple[Folded, Callable[[list], tuple]] | None:
    """One call over all batches.

    Args:
      op: the operation.
      size: the number of batches.
      inputs: by table index; None where absent.
      batched: which of them have the leading axis of batches.
      shapes: of the results of one batch, by table index.
      options: of the call.

    Returns:
      The inputs, the results' shapes and the number of groups of the one call, and what makes each batch's results of
      its results; None where it must be one call for each.
    """
    rules = argument_dims(op, options.weight_layout)
    sizes_at = [name for name, _ in rules].index("group_sizes")
    by_group = any(rules[i][1][0] == "G" for i in shapes)
    rows = {a.shape[1 if batched[i] else 0] for i, a in enumerate(inputs) if a is not None and rules[i][1][0] == "T"}
    (T,) = rows
    groups = inputs[sizes_at].shape[-1]
    weight_is_shared = any(name == "weight" and not batched[i] for i, (name, _) in enumerate(rules) if i in batched)
    if weight_is_shared:
        groups_are_shared = not any(batched[i] for i in batched if rules[i][1][0] == "G")
        fits = type(T) is int and (T + 1) * size <= MOST_ROWS
        by_row = [dims[0] == "T" for _, dims in rules]
        return _interleave(size, T, inputs, batched, shapes, sizes_at, by_row) if groups_are_shared and fits else None
    if groups == 0:
        return None

    given = inputs[sizes_at]
    sizes = jnp.broadcast_to(given, (size, groups))
    used = jnp.maximum(sizes, 0).sum(axis=1, dtype=sizes.dtype)
    tail = jnp.maximum(T - used, 0)
    if by_group:
        sizes = jnp.concatenate([sizes, tail[:, None]], axis=1)
    else:  # a size that is negative stays so, for the core to refuse
        sizes = sizes.at[:, -1].add(jnp.where(sizes[:, -1] < 0, 0, tail))

    def flat(i: int, array: Any) -> Any:
        if array is None:
            return None
        if i == sizes_at:
            return sizes.reshape(-1)
        whole = array if batched[i] else jnp.broadcast_to(array, (size, *array.shape))
        return whole.reshape(size * whole.shape[1], *whole.shape[2:])

    def unfold(results: list) -> tuple:
        is_row = jnp.arange(T, dtype=used.dtype)[None] < used[:, None]
        found = []
        for result, shape in zip(results, shapes.values(), strict=True):
            if by_group:
                found.append(result.reshape(size, groups + 1, *shape[1:])[:, :groups])
            else:
                each = result.reshape(size, *shape)
                keep = is_row.reshape(size, T, *(1,) * (len(shape) - 1))
                found.append(jnp.where(keep, each, jnp.zeros((), each.dtype)))
        return tuple(found)

    count = sizes.size
    folded = {i: (count if by_group else size * T, *shape[1:]) for i, shape in shapes.items()}
    return ([flat(i, a) for i, a in enumerate(inputs)], folded, count), unfold


def times(group_sizes: Any, count: int, T: int) -> Any:
    """Sizes where each of T rows has become `count` rows. (T + 1) * count must fit their type.

    Cut down to what is too large or negative all the same, so that no product wraps around into a fit.
    """
    return jnp.clip(group_sizes, -1, T + 1) * count


def _interleave(
    size: int,
    T: int,
    inputs: Sequence[Any],
    batched: dict[int, bool],
    shapes: dict[int, tuple],
    sizes_at: int,
    by_row: Sequence[bool],
) -> tuple[Folded, Callable[[list], tuple]]:
    """Rows of all batches side by side, for inputs of which those by group are shared."""

    def flat(i: int, array: Any) -> Any:
        if i == sizes_at:
            return times(array, size, T)
        if array is None or not by_row[i]:
            return array
        whole = jnp.moveaxis(array, 0, 1) if batched[i] else jnp.repeat(array[:, None], size, axis=1)
        return whole.reshape(T * size, *whole.shape[2:])

    def unfold(results: list) -> tuple:
        each = zip(results, shapes.values(), strict=True)
        return tuple(jnp.moveaxis(result.reshape(T, size, *shape[1:]), 1, 0) for result, shape in each)

    folded = {i: (T * size, *shape[1:]) for i, shape in shapes.items()}
    return ([flat(i, a) for i, a in enumerate(inputs)], folded, inputs[sizes_at].shape[0]), unfold
