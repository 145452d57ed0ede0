# SPDX-License-Identifier: Apache-2.0
"""Autograd over the operators: which gradients are computed, and where they go.

Gradient buffers are kept on `ctx`, not saved: layers share one buffer, and a saved tensor that another layer's
backward has written since would be reported as modified.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from grouped_core import Activation
from torch_grouped import _fresh, _ops
from torch_grouped._describe import accumulator
from torch_grouped._direct import is_eager
from torch_grouped._transforms import first_derivative_only, in_a_loop


def needs_graph(*tensors: Tensor | None) -> bool:
    """Whether autograd has to know of an operation on these."""
    if is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def apply(function: Any, inputs: tuple[Tensor | None, ...], *others: Any) -> Any:
    """`function.apply(*inputs, *others)`, without what that costs where nothing needs it.

    Args:
      function: its `forward` takes no ctx.
      inputs: the arguments that may get a gradient, which come first.
      others: the rest.
    """
    if is_eager():
        return apply_eagerly(function, needs_graph(*inputs), (*inputs, *others))
    return function.apply(*inputs, *others)


def apply_eagerly(function: Any, graph: bool, inputs: tuple) -> Any:
    """`apply` for who knows already that it is eager, and whether autograd needs a graph."""
    if not graph:
        return function.forward(*inputs)
    return _apply_without_names(function)(*inputs)


@functools.cache
def _apply_without_names(function: Any) -> Callable[..., Any]:
    # Without the binding of arguments to names that Function.apply does before. That is what a setup_context of its own
    # costs: a forward that takes ctx was measured to be no faster.
    return super(torch.autograd.Function, function).apply  # pyright: ignore[reportAttributeAccessIssue]


class GroupedLinearFunction(torch.autograd.Function):
    """`functional.grouped_linear` on checked layouts and sizes that are where x is.

    take_wgrad: called in backward with the operands of the weight gradient, in the place of its computation; returns
    what autograd is to accumulate in the weight.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        row_scale: Tensor | None,
        group_sizes: Tensor,
        out: Tensor | None,
        dgrad_out: Tensor | None,
        wgrad_out: Tensor | None,
        accumulate_wgrad: bool,
        weight_layout: int,
        take_wgrad: Callable[..., Tensor | None] | None,
    ) -> Tensor:
        """Writes y into `out`, or into memory of its own with a zeroed tail."""
        operands = (x, weight, group_sizes, bias, row_scale)
        if out is None:
            return _fresh.linear(*operands, dgrad_out, wgrad_out, weight_layout, eager=is_eager())
        _ops.linear(*operands, out, dgrad_out, wgrad_out, weight_layout, False)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Saves what the wanted gradients need; `out` is never among it."""
        _save_for_linear(ctx, inputs[:6], inputs[6:])

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy: Tensor) -> tuple:
        """dx into `dgrad_out`, dW into `wgrad_out`, where they were given."""
        x, weight, bias, row_scale, group_sizes = ctx.saved_tensors
        dgrad_out, wgrad_out, accumulate_wgrad, weight_layout, take_wgrad = ctx.buffers_and_how
        needs = ctx.needs_input_grad
        needs_dx, needs_dweight, needs_dbias, needs_dscale = needs[:4]
        dy = dy.contiguous()
        eager = is_eager()
        dx = dweight = dbias = dscale = None

        if needs_dscale:
            operands = (dy, x, weight, group_sizes, bias, row_scale)
            dx, dscale = _with_row_scale_gradient(*operands, dgrad_out, weight_layout, needs_dx)
        elif needs_dx and dgrad_out is None:
            dx = _fresh.dgrad(dy, weight, group_sizes, row_scale, weight_layout, eager=eager)
        elif needs_dx:
            dx = dgrad_out
            _ops.invoke(eager, _ops.dgrad, dy, weight, group_sizes, row_scale, dx, None, weight_layout, False)
        if needs_dweight or needs_dbias:
            dz = dy
            if row_scale is not None:
                dz = torch.empty_like(dy)
                _ops.invoke(eager, _ops.row_scale, dy, group_sizes, row_scale, dz, False)
            if needs_dweight and take_wgrad is not None:
                dweight = take_wgrad(x, dz, group_sizes, weight_layout)
            elif needs_dweight and wgrad_out is not None:
                _ops.invoke(eager, _ops.wgrad, x, dz, group_sizes, wgrad_out, weight_layout, accumulate_wgrad)
            elif needs_dweight:
                dweight = _fresh.wgrad(x, dz, group_sizes, weight_layout, eager=eager)
            if needs_dbias:
                dbias = dy.new_empty(group_sizes.shape[0], dy.shape[1], dtype=ctx.bias_dtype)
                _ops.invoke(eager, _ops.bias_grad, dz, group_sizes, dbias, False)
        return (dx, dweight, dbias, dscale) + (None,) * (len(needs) - 4)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        """One element of the batch after another."""
        return in_a_loop(GroupedLinearFunction, info, in_dims, arguments)


class GroupedLinearFunctionEager(GroupedLinearFunction):
    """The same where `is_eager()`, with all that autograd need not look at in one argument, because each costs.

    how: dgrad_out, wgrad_out, accumulate_wgrad, weight_layout and take_wgrad.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        row_scale: Tensor | None,
        group_sizes: Tensor,
        out: Tensor | None,
        how: tuple,
    ) -> Tensor:
        """Writes y into `out`, or into memory of its own with a zeroed tail."""
        dgrad_out, wgrad_out, _, weight_layout, _ = how
        operands = (x, weight, group_sizes, bias, row_scale)
        if out is not None:
            _ops.invoke(True, _ops.linear, *operands, out, dgrad_out, wgrad_out, weight_layout, False)
            return out
        if dgrad_out is None and wgrad_out is None:
            y = _fresh.try_linear(*operands, weight_layout)
            if y is not None:
                return y
        return _fresh.linear(*operands, dgrad_out, wgrad_out, weight_layout, eager=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Saves what the wanted gradients need; `out` is never among it."""
        _save_for_linear(ctx, inputs[:6], inputs[6])


def _save_for_linear(ctx: Any, tensors: tuple, how: tuple) -> None:
    x, weight, bias, row_scale, group_sizes, out = tensors
    ctx.buffers_and_how = how  # one attribute: each costs
    if out is not None:
        ctx.mark_dirty(out)
    of_x, of_weight, of_bias, of_scale = ctx.needs_input_grad[:4]
    if bias is not None and of_bias:
        ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(
        x if of_weight or of_scale else None,
        weight if of_x or of_scale else None,
        bias if of_scale else None,
        row_scale,
        group_sizes,
    )


def _with_row_scale_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    group_sizes: Tensor,
    bias: Tensor | None,
    row_scale: Tensor,
    dgrad_out: Tensor | None,
    weight_layout: int,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor]:
    zero_tail = dgrad_out is None
    dx = dgrad_out
    if zero_tail and needs_dx:
        dx = dy.new_empty(dy.shape[0], _fresh.size_or_zero(weight, 2 - weight_layout, 3))
    # The gradient of row_scale is x . (dy W^T) + dy . bias: one product serves it and dx. Kept in the accumulator's
    # dtype, so that scaling and rounding it gives the bits that the fused epilogue gives.
    unscaled = torch.empty_like(x, dtype=accumulator(x.dtype))
    _ops.dgrad(dy, weight, group_sizes, None, unscaled, dx if needs_dx else None, weight_layout, False)
    dscale = torch.empty_like(row_scale)
    _ops.row_dot(x, unscaled, group_sizes, None if bias is None else dy, bias, dscale, True)
    if not needs_dx:
        return None, dscale
    _ops.row_scale(unscaled, group_sizes, row_scale, dx, zero_tail)
    return dx, dscale


class GroupedActivationFunction(torch.autograd.Function):
    """`functional.grouped_activation` with its names turned into numbers."""

    @staticmethod
    def forward(
        h: Tensor,
        row_scale: Tensor | None,
        group_sizes: Tensor,
        out: Tensor | None,
        dgrad_out: Tensor | None,
        kind: int,
        gate_layout: int,
        alpha: float,
        limit: float,
        offset: float,
    ) -> Tensor:
        """Writes the result into `out`, or into memory of its own with a zeroed tail."""
        choice = Activation(kind, gate_layout, alpha, limit, offset)
        y = out
        if y is None and dgrad_out is None and is_eager():
            y = _fresh.try_activation(h, group_sizes, row_scale, choice, zero_tail=True)
            if y is not None:
                return y
        if y is None:
            y = h.new_empty(h.shape[0], choice.width(h.shape[1])) if h.dim() == 2 else h.new_empty(0, 0)
        _ops.activation(h, group_sizes, row_scale, y, dgrad_out, *choice, out is None)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Saves h and row_scale; the activation itself is recomputed."""
        h, row_scale, group_sizes, out, ctx.dgrad_out = inputs[:5]
        ctx.choice = Activation(*inputs[5:])
        if out is not None:
            ctx.mark_dirty(out)
        ctx.save_for_backward(h, row_scale, group_sizes)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy: Tensor) -> tuple:
        """dh into `dgrad_out` where it was given, and the gradient of row_scale."""
        h, row_scale, group_sizes = ctx.saved_tensors
        dgrad_out = ctx.dgrad_out if ctx.needs_input_grad[0] else None
        zero_tail = dgrad_out is None
        dh = torch.empty_like(h) if zero_tail else dgrad_out
        # Zeros, because with a buffer for dh the operator leaves the tail of dscale alone too.
        dscale = torch.zeros_like(row_scale) if ctx.needs_input_grad[1] else None
        _ops.activation_grad(h, dy.contiguous(), group_sizes, row_scale, dh, dscale, *ctx.choice, zero_tail)
        return dh, dscale, None, None, None, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        """One element of the batch after another."""
        return in_a_loop(GroupedActivationFunction, info, in_dims, arguments)
