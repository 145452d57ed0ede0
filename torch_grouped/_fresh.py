# SPDX-License-Identifier: Apache-2.0
"""Results in new memory. In plain eager mode one native call makes the tensor and fills it.

`eager` is what `_direct.is_eager()` says, which must hold where a function's name begins with "try". What the native
call does not serve, a broken rule included, goes the way of _ops.py: the same bits and words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grouped_core import Activation, Op
from torch_grouped import _direct, _ops

# Plain ints and looked-up options: each lookup of an enumeration or in a cache is paid in every call.
_MM, _WGRAD, _ACTIVATION = int(Op.MM), int(Op.WGRAD), int(Op.ACTIVATION)
_TAIL_KEPT = (_ops._options(0, False), _ops._options(1, False))
_BY_SIZES = (_ops._options(0, True), _ops._options(1, True))
_READ_OTHER_WAY = _BY_SIZES[::-1]
_BY_ENDS = (_ops._options(0, True, ends=True), _ops._options(1, True, ends=True))
_GNK, _GKN = 0, 1
_AS_IT_IS, _FIRST, _SECOND = -1, 0, 1  # which operand is read turned
_number_of_threads = torch.get_num_threads


def _create(op: int, operands: tuple, options: Any, turned: int = _AS_IT_IS) -> Tensor | None:
    calls = _direct.calls
    return None if calls is None else calls.create(op, operands, options, _number_of_threads(), turned)


def size_or_zero(tensor: Tensor, index: int, rank: int) -> Any:
    """A size, or 0 of a tensor of another rank, which the core refuses."""
    return tensor.shape[index] if tensor.dim() == rank else 0


def try_linear(
    x: Tensor, weight: Tensor, group_sizes: object, bias: Tensor | None, row_scale: Tensor | None, weight_layout: int
) -> Tensor | None:
    """`linear` where it is eager and there are no buffers; None where the native call does not serve."""
    return _create(_MM, (x, weight, group_sizes, bias, row_scale), _BY_SIZES[weight_layout])


def linear(
    x: Tensor,
    weight: Tensor,
    group_sizes: Tensor,
    bias: Tensor | None,
    row_scale: Tensor | None,
    dgrad_out: Tensor | None,
    wgrad_out: Tensor | None,
    weight_layout: int,
    *,
    eager: bool,
) -> Tensor:
    """y with a zeroed tail; the gradient buffers are only checked."""
    if eager and dgrad_out is None and wgrad_out is None:
        y = try_linear(x, weight, group_sizes, bias, row_scale, weight_layout)
        if y is not None:
            return y
    y = x.new_empty(x.shape[0] if x.dim() else 0, size_or_zero(weight, 1 + weight_layout, 3))
    _ops.linear(x, weight, group_sizes, bias, row_scale, y, dgrad_out, wgrad_out, weight_layout, True)
    return y


def dgrad(
    dy: Tensor, weight: Tensor, group_sizes: Tensor, row_scale: Tensor | None, weight_layout: int, *, eager: bool
) -> Tensor:
    """dx with a zeroed tail."""
    if eager:
        dx = _create(_MM, (dy, weight, group_sizes, None, row_scale), _READ_OTHER_WAY[weight_layout])
        if dx is not None:
            return dx
    dx = dy.new_empty(dy.shape[0], size_or_zero(weight, 2 - weight_layout, 3))
    _ops.dgrad(dy, weight, group_sizes, row_scale, dx, None, weight_layout, True)
    return dx


def wgrad(x: Tensor, dy: Tensor, group_sizes: Tensor, weight_layout: int, *, eager: bool) -> Tensor:
    """dW in the weight's storage and the dtype of dy."""
    if eager:
        dweight = _create(_WGRAD, (x, dy, group_sizes), _BY_SIZES[weight_layout])
        if dweight is not None:
            return dweight
    columns = (dy.shape[1], x.shape[1])
    dweight = dy.new_empty(group_sizes.shape[0], *(columns[::-1] if weight_layout == _GKN else columns))
    _ops.wgrad(x, dy, group_sizes, dweight, weight_layout, False)
    return dweight


def try_activation(
    h: Tensor, group_sizes: Tensor, row_scale: Tensor | None, choice: Activation, *, zero_tail: bool
) -> Tensor | None:
    """``activation(h) * row_scale``; None as `try_linear`."""
    return _create(_ACTIVATION, (h, group_sizes, row_scale), _ops._activation_options(*choice, zero_tail))


def try_mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    group_sizes: Tensor,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    row_scale: Tensor | None,
    weight_layout: int,
    choice: Activation,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """y, and fc1's result and the activation with tails as memory was; None as `try_linear`."""
    h = _create(_MM, (x, fc1_weight, group_sizes, fc1_bias, None), _TAIL_KEPT[weight_layout])
    if h is None:
        return None
    a = try_activation(h, group_sizes, row_scale, choice, zero_tail=False)
    if a is None:
        return None
    y = try_linear(a, fc2_weight, group_sizes, fc2_bias, None, weight_layout)
    return None if y is None else (y, h, a)


def try_product(rows: Tensor, matrices: Tensor, offs: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """``rows[t] @ matrices[g(t)]``, matrices ``[G, K, N]`` stored by rows or by columns; None as `try_linear`."""
    return _create(_MM, (rows, matrices, offs, bias, None), _BY_ENDS[_GNK], _SECOND)


def try_contraction(a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor | None:
    """``a[:, g's] @ b[g's]`` for each group g, a stored by columns and b by rows; None as `try_linear`."""
    return _create(_WGRAD, (a, b, offs), _BY_ENDS[_GKN], _FIRST)


def try_contraction_of_rows(a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor | None:
    """``a[g's].mT @ b[g's]`` for each group g, both stored by rows; None as `try_linear`."""
    return _create(_WGRAD, (a, b, offs), _BY_ENDS[_GKN])
