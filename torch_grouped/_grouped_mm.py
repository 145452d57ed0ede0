# SPDX-License-Identifier: Apache-2.0
"""torch's ``grouped_mm`` on the core: four products of two operands with two or three dimensions each."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from torch_grouped import _fresh, _ops
from torch_grouped._autograd import apply, needs_graph
from torch_grouped._buffers import apart_from, detached_out
from torch_grouped._describe import current_stream
from torch_grouped._direct import is_eager
from torch_grouped._transforms import in_a_loop, refuse_buffers_under_transforms

_GNK, _GKN = 0, 1  # how the core reads [G, N, K] and [G, K, N]


def grouped_mm(
    a: Tensor,
    b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``torch.nn.functional.grouped_mm``, with a result in the caller's memory and a tail that is defined.

    ==========  ==========  ===========  =====================================================================
    a           b           result       meaning
    ==========  ==========  ===========  =====================================================================
    ``[T,K]``   ``[G,K,N]`` ``[T,N]``    rows of a in groups: ``out[t] = a[t] @ b[g(t)]``
    ``[M,T]``   ``[T,N]``   ``[G,M,N]``  the contraction in groups: ``out[g] = a[:, g's] @ b[g's]``
    ``[G,M,K]`` ``[K,T]``   ``[M,T]``    columns of b in groups: ``out[:, t] = a[g(t)] @ b[:, t]``
    ``[G,M,K]`` ``[G,K,N]`` ``[G,M,N]``  no groups: a product for each g
    ==========  ==========  ===========  =====================================================================

    Args:
      a: f16, bf16, f32 or f64, on CPU or CUDA.
      b: dtype of a.
      offs: ``[G]`` int32 or int64 on a's device: the end of each group along the dimension T. None, and only then,
        where both operands have three dimensions.
      bias: ``[G, N]`` for rows of a in groups alone, dtype of a, or f32 beside 16-bit a.
      out_dtype: dtype of the result: that of a, or f32 beside 16-bit a.
      out: shape and dtype of the result: the kernel writes there and the result aliases it.

    Returns:
      The product, in dtype of a or ``out_dtype``.

    Raises:
      ValueError: shapes that make no product, and what the rules for buffers forbid; ends that decrease or lie past T,
        on CPU always and on CUDA under ``GROUPED_CHECK=1``.
      TypeError: a dtype that the rules forbid.

    Strides: operands are read as they are stored, rows or columns one after another, so that ``w.mT`` costs nothing.
    Copied are: an operand stored in neither way; the operand with groups, unless T is its outermost dimension in
    memory (``[T,K]`` by rows, ``[M,T]`` and ``[K,T]`` by columns). The result is stored by rows, but that of columns in
    groups by columns, and an `out` there must be so too.
    Tail: with ``out`` what lies past the last group is neither read nor written; without, it is zero, where torch's
    own leaves what was in memory. A NaN in the tail of an operand reaches no result.
    Empty groups: legal anywhere; zero in a result ``[G,M,N]``.
    Aliasing: ``out`` must be 16-byte aligned, apart from every operand, and must not require grad.
    Determinism: bitwise repeatable, the same with and without ``out`` and from JAX. 16-bit operands are summed in fp32
    and rounded once. Gradients are products of this kind themselves, so they can be differentiated again; where
    ``out_dtype`` is wider, the incoming gradient is rounded to dtype of a first.
    Source: the semantics of ``torch.nn.functional.grouped_mm``.
    """
    is_new_product = offs is not None and out is None and out_dtype is None and b.dim() == 3
    if is_new_product and is_eager() and not needs_graph(a, b, bias):
        # The rest takes what this does not, mistakes among it.
        y = _fresh.try_product(a, b, offs, bias)
        if y is not None:
            return y
    refuse_buffers_under_transforms(out=out)
    is_plain = a.dim() == 2 and b.dim() == 3 and offs is not None and not torch.compiler.is_compiling()
    if not is_plain:
        _check_kind(a, b, offs, bias)
    try:
        y = apply(GroupedProductFunction, (a, b, bias), offs, detached_out(out, a, b, bias), out_dtype)
    except (ValueError, TypeError):
        # The core refuses these too, but speaks of a weight. Looking only now costs a good call nothing.
        _check_kind(a, b, offs, bias)
        raise
    return apart_from(out, y)


def _check_kind(a: Tensor, b: Tensor, offs: Tensor | None, bias: Tensor | None) -> None:
    """What has to hold before an operand can be given a place in one of the core's operations."""
    rank_a, rank_b = a.dim(), b.dim()
    if not (2 <= rank_a <= 3 and 2 <= rank_b <= 3):
        raise ValueError(
            f"a and b must have two or three dimensions; got {rank_a} and {rank_b}. Flatten leading dimensions."
        )
    if (offs is None) != (rank_a + rank_b == 6):
        given, way_out = ("none", "Pass the end of each group.") if offs is None else ("some", "Pass offs=None.")
        raise ValueError(
            f"offs must be given unless a and b both have three dimensions; got {given} with {rank_a} and {rank_b} "
            f"dimensions. {way_out}"
        )
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"b must have as many rows as a has columns; got {list(a.shape)} @ {list(b.shape)}. "
            "Pass weight.mT for a weight stored [G, N, K]."
        )
    if rank_a + rank_b == 6 and a.shape[0] != b.shape[0]:
        raise ValueError(
            f"b must have as many groups as a; got {b.shape[0]} beside {a.shape[0]}. Pass one matrix for each group."
        )
    if a.dtype != b.dtype:
        raise TypeError(f"b must have the dtype of a; got {a.dtype} @ {b.dtype}. Cast one of them.")
    if bias is not None and (rank_a, rank_b) != (2, 3):
        raise ValueError("bias must be None unless a is [T, K] and b is [G, K, N]; got one. Add it to the result.")


def by_rows(matrix: Tensor) -> Tensor:
    """The same values, stored row after row."""
    return matrix if matrix.is_contiguous() else matrix.contiguous()


def _stored(matrices: Tensor) -> tuple[Tensor, int]:
    """[G, K, N] as the core reads it: its storage and the name of the layout."""
    if matrices.is_contiguous():
        return matrices, _GKN
    turned = matrices.mT
    return (turned, _GNK) if turned.is_contiguous() else (matrices.contiguous(), _GKN)


@functools.lru_cache(maxsize=256)
def _equal_ends(groups: int, rows: int, device: torch.device, stream: int) -> Tensor:
    # A stream has its own: nothing else says that it was written before it is read.
    with torch.inference_mode(False):
        return torch.arange(1, groups + 1, device=device) * rows


def _ends_of_equal_groups(groups: int, rows: int, like: Tensor) -> Tensor:
    is_number = type(groups) is int and type(rows) is int
    # In a graph's own memory a tensor lasts as long as the graph does; under a tracer as long as the trace.
    if not is_number or not is_eager() or type(like) is not Tensor or _is_capturing(like):
        return torch.arange(1, groups + 1, device=like.device) * rows
    return _equal_ends(groups, rows, like.device, current_stream(like.device))


def _is_capturing(like: Tensor) -> bool:
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


def product(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The product without autograd; see `grouped_mm`."""
    dtype = out_dtype or a.dtype
    new = out is None
    if offs is None:
        groups, rows, columns = a.shape[0], a.shape[1], b.shape[2]
        matrices, layout = _stored(b)
        y = a.new_empty(groups, rows, columns, dtype=dtype) if out is None else out
        if y.shape != (groups, rows, columns) or not y.is_contiguous():
            raise ValueError(
                f"out must be [G={groups}, M={rows}, N={columns}], contiguous; got {list(y.shape)} with strides "
                f"{list(y.stride())}. Pass out=None to do without it."
            )
        ends = _ends_of_equal_groups(groups, rows, a)
        flat = by_rows(a).view(groups * rows, a.shape[2])
        _ops.product(flat, matrices, ends, None, y.view(groups * rows, columns), layout, False, new)
        return y
    if out is None and out_dtype is None and a.dim() == 2 and is_eager():
        y = _fresh.try_product(a, b, offs, bias) if b.dim() == 3 else _fresh.try_contraction(a, b, offs)
        if y is not None:
            return y
    if b.dim() == 3:
        matrices, layout = _stored(b)
        y = out
        if y is None:
            shape = (a.shape[0], b.shape[2])
            y = a.new_empty(shape) if out_dtype is None else a.new_empty(shape, dtype=out_dtype)
        _ops.product(by_rows(a), matrices, offs, bias, y, layout, False, new)
        return y
    if a.dim() == 3:
        # Read transposed: rows of b^T in groups, each times a[g]^T.
        matrices, layout = _stored(a.mT)
        # A view made in here could not be written in place by the caller, so the result is no view.
        columns = a.new_empty_strided((a.shape[1], b.shape[1]), (1, a.shape[1]), dtype=dtype) if out is None else out
        y = columns.mT if columns.dim() == 2 else columns
        _ops.product(by_rows(b.mT), matrices, offs, None, y, layout, True, new)
        return columns
    y = a.new_empty(offs.shape[0], a.shape[0], b.shape[1], dtype=dtype) if out is None else out
    if y.dim() == 3 and not y.is_contiguous() and y.mT.is_contiguous():
        _ops.contraction(by_rows(a.mT), by_rows(b), offs, y.mT, _GNK)
    else:
        _ops.contraction(by_rows(a.mT), by_rows(b), offs, y, _GKN)
    return y


def _is_by_columns(matrix: Tensor) -> bool:
    return not matrix.is_contiguous() and matrix.mT.is_contiguous()


class GroupedProductFunction(torch.autograd.Function):
    """`grouped_mm` on operands whose kind has been checked."""

    @staticmethod
    def forward(
        a: Tensor,
        b: Tensor,
        bias: Tensor | None,
        offs: Tensor | None,
        out: Tensor | None,
        out_dtype: torch.dtype | None,
    ) -> Tensor:
        """Writes the product into `out`, or into memory of its own with a zeroed tail."""
        return product(a, b, offs, bias, out, out_dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Saves the operands; `out` is not among them."""
        a, b, bias, offs, out, _ = inputs
        if out is not None:
            ctx.mark_dirty(out)
        of_a, of_b, of_bias = ctx.needs_input_grad[:3]
        ctx.dtype, ctx.bias_dtype = a.dtype, bias.dtype if of_bias else None
        ctx.by_columns = _is_by_columns(a), _is_by_columns(b)
        ctx.save_for_backward(a if of_b else None, b if of_a else None, offs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        """Products again, each in the storage of the operand that it is the gradient of."""
        a, b, offs = ctx.saved_tensors
        da = db = dbias = None
        dy = dy.to(ctx.dtype)
        # What is differentiated again, or seen by a transform, has to be the function itself.
        again = torch.is_grad_enabled() or not is_eager()
        times = _differentiable_product if again else product
        a_by_columns, b_by_columns = ctx.by_columns
        if not again and dy.dim() == 2 and not a_by_columns:
            da, db = _of_rows_in_groups(ctx.needs_input_grad, a, b, offs, dy, b_by_columns)
        if ctx.needs_input_grad[0] and da is None:
            da = times(b, dy.mT, offs).mT if a_by_columns else times(dy, b.mT, offs)
        if ctx.needs_input_grad[1] and db is None:
            db = times(dy.mT, a, offs).mT if b_by_columns else times(a.mT, dy, offs)
        if ctx.needs_input_grad[2]:
            dbias = _bias_gradient(dy, ctx.bias_dtype, offs)
        return da, db, dbias, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        """One element of the batch after another."""
        return in_a_loop(GroupedProductFunction, info, in_dims, arguments)


def _of_rows_in_groups(
    needs: tuple, a: Tensor | None, b: Tensor | None, offs: Tensor | None, dy: Tensor, b_by_columns: bool
) -> tuple[Tensor | None, Tensor | None]:
    """da and db where rows of a are in groups, without the views that `product` takes; None for what is not served."""
    da = db = None
    if needs[0] and b is not None and b.dim() == 3:
        da = _fresh.try_product(dy, b.mT, offs, None)
    if needs[1] and a is not None and a.dim() == 2:
        db = (
            _fresh.try_contraction_of_rows(dy, a, offs) if b_by_columns else _fresh.try_contraction_of_rows(a, dy, offs)
        )
        if db is not None and b_by_columns:
            db = db.mT
    return da, db


def _differentiable_product(a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor:
    return grouped_mm(a, b, offs=offs)


def _bias_gradient(dy: Tensor, dtype: torch.dtype, offs: Tensor) -> Tensor:
    if torch.is_grad_enabled() and dy.requires_grad:  # as a product, because that has a gradient
        ones = dy.new_ones(dy.shape[0], 1)
        return grouped_mm(ones.mT, dy, offs=offs, out_dtype=dtype)[:, 0]
    dbias = dy.new_empty(offs.shape[0], dy.shape[1], dtype=dtype)
    _ops.bias_grad(by_rows(dy), offs, dbias, False, True)
    return dbias
