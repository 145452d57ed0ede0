# SPDX-License-Identifier: Apache-2.0
"""The grouped MLP as one step of autograd: linear layer, activation, linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grouped_core import Activation, activation_kind, activation_options, weight_layout_code
from torch_grouped import _mlp_ops, _ops
from torch_grouped._autocast import autocast_operands
from torch_grouped._autograd import apply
from torch_grouped._buffers import apart_from, detached, detached_out
from torch_grouped._direct import is_eager
from torch_grouped._fresh import size_or_zero, try_mlp
from torch_grouped._sizes import GroupSizes, on_device
from torch_grouped._transforms import first_derivative_only, in_a_loop, refuse_buffers_under_transforms

__all__ = ["GroupedMLPFunction", "grouped_mlp"]

TakeWgrad = Callable[..., Tensor | None]


class GroupedMLPFunction(torch.autograd.Function):
    """`grouped_mlp` on checked names and sizes that are where x is. Its results are y, h and a.

    take_fc1, take_fc2: called in backward with the operands of the weight gradient, in the place of its computation;
    see `GroupedLinearFunction`.
    """

    @staticmethod
    def forward(
        x: Tensor,
        fc1_weight: Tensor,
        fc2_weight: Tensor,
        group_sizes: Tensor,
        fc1_bias: Tensor | None,
        fc2_bias: Tensor | None,
        row_scale: Tensor | None,
        out: Tensor | None,
        dgrad_out: Tensor | None,
        fc1_wgrad_out: Tensor | None,
        fc2_wgrad_out: Tensor | None,
        accumulate_fc1: bool,
        accumulate_fc2: bool,
        recompute_activation: bool,
        weight_layout: int,
        kind: int,
        gate_layout: int,
        alpha: float,
        limit: float,
        offset: float,
        take_fc1: TakeWgrad | None,
        take_fc2: TakeWgrad | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Writes y into `out`, or into memory of its own with a zeroed tail; h and a are what lies between."""
        choice = Activation(kind, gate_layout, alpha, limit, offset)
        if all(b is None for b in (out, dgrad_out, fc1_wgrad_out, fc2_wgrad_out)) and is_eager():
            operands = (x, fc1_weight, fc2_weight, group_sizes, fc1_bias, fc2_bias, row_scale)
            made = try_mlp(*operands, weight_layout, choice)
            if made is not None:
                return made
        rows = x.shape[0] if x.dim() else 0
        columns = size_or_zero(fc1_weight, 1 + weight_layout, 3)
        h = x.new_empty(rows, columns)
        a = x.new_empty(rows, choice.width(columns))
        y = x.new_empty(rows, size_or_zero(fc2_weight, 1 + weight_layout, 3)) if out is None else out
        _mlp_ops.mlp(
            x,
            fc1_weight,
            fc2_weight,
            group_sizes,
            fc1_bias,
            fc2_bias,
            row_scale,
            h,
            a,
            y,
            dgrad_out,
            fc1_wgrad_out,
            fc2_wgrad_out,
            weight_layout,
            *choice,
            out is None,
        )
        return y, h, a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Saves what the wanted gradients need. `out` is never among it."""
        x, fc1_weight, fc2_weight, group_sizes, fc1_bias, fc2_bias, row_scale, out = inputs[:8]
        ctx.dgrad_out, ctx.wgrads_out = inputs[8], inputs[9:11]
        ctx.accumulate, recompute_activation, ctx.weight_layout = inputs[11:13], inputs[13], inputs[14]
        ctx.choice, ctx.take_wgrads = Activation(*inputs[15:20]), inputs[20:]
        _, h, a = output
        ctx.mark_non_differentiable(h, a)
        ctx.set_materialize_grads(False)  # else zeros for h and a
        if out is not None:
            ctx.mark_dirty(out)
        of_x, of_fc1, of_fc2, _, of_fc1_bias, of_fc2_bias, of_scale = ctx.needs_input_grad[:7]
        ctx.bias_dtypes = (fc1_bias.dtype if of_fc1_bias else None, fc2_bias.dtype if of_fc2_bias else None)
        ctx.through_fc1 = of_x or of_fc1 or of_fc1_bias or of_scale
        keep_h = ctx.through_fc1 or (of_fc2 and recompute_activation)
        ctx.save_for_backward(
            x if of_fc1 else None,
            fc1_weight if of_x or of_fc1 else None,
            fc2_weight if ctx.through_fc1 or of_fc2 else None,
            group_sizes,
            row_scale if keep_h else None,
            h if keep_h else None,
            a if of_fc2 and not recompute_activation else None,
        )

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple:
        """dx into `dgrad_out`, dW into the targets of the weights, where they were given."""
        if dy is None:
            return (None,) * 22
        x, fc1_weight, fc2_weight, group_sizes, row_scale, h, a = ctx.saved_tensors
        of_x, of_fc1, of_fc2, _, of_fc1_bias, of_fc2_bias, of_scale = ctx.needs_input_grad[:7]
        dy = dy.contiguous()
        groups, rows = group_sizes.shape[0], dy.shape[0]

        dx = dbias1 = dbias2 = dscale = None
        if of_x:
            dx = ctx.dgrad_out
            if dx is None:
                dx = dy.new_empty(rows, size_or_zero(fc1_weight, 2 - ctx.weight_layout, 3))
        take_fc1, take_fc2 = ctx.take_wgrads
        computed = (of_fc1 and take_fc1 is None, of_fc2 and take_fc2 is None)
        targets = [
            torch.empty_like(weight) if wanted and target is None else target if wanted else None
            for weight, target, wanted in zip((fc1_weight, fc2_weight), ctx.wgrads_out, computed, strict=True)
        ]
        dh = torch.empty_like(h) if of_fc1 and take_fc1 is not None else None
        if a is None and of_fc2 and take_fc2 is not None:
            a = h.new_empty(rows, ctx.choice.width(h.shape[1]))
            _ops.activation(h, group_sizes, row_scale, a, None, *ctx.choice, False)
        if of_fc1_bias:
            dbias1 = dy.new_empty(groups, h.shape[1], dtype=ctx.bias_dtypes[0])
        if of_fc2_bias:
            dbias2 = dy.new_empty(groups, dy.shape[1], dtype=ctx.bias_dtypes[1])
        if of_scale:
            dscale = torch.zeros_like(row_scale)  # its tail is not written
        _mlp_ops.mlp_grad(
            dy,
            x,
            fc1_weight if of_x else None,
            fc2_weight if ctx.through_fc1 else None,
            group_sizes,
            row_scale,
            h,
            a,
            dx,
            *targets,
            dbias1,
            dbias2,
            dscale,
            dh,
            ctx.weight_layout,
            *ctx.choice,
            *(
                accumulate and given is not None
                for accumulate, given in zip(ctx.accumulate, ctx.wgrads_out, strict=True)
            ),
            ctx.dgrad_out is None,
        )
        dweights = [target if given is None else None for target, given in zip(targets, ctx.wgrads_out, strict=True)]
        if of_fc2 and take_fc2 is not None:
            dweights[1] = take_fc2(a, dy, group_sizes, ctx.weight_layout)
        if dh is not None and take_fc1 is not None:
            dweights[0] = take_fc1(x, dh, group_sizes, ctx.weight_layout)
        return dx, *dweights, None, dbias1, dbias2, dscale, *(None,) * 15

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        """One element of the batch after another."""
        return in_a_loop(GroupedMLPFunction, info, in_dims, arguments)


def check_activation(activation: str) -> None:
    """ValueError for a name that is no activation's, under the argument's name here."""
    activation_kind("activation", activation)


def run_mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    group_sizes: GroupSizes,
    fc1_bias: Tensor | None,
    fc2_bias: Tensor | None,
    row_scale: Tensor | None,
    *,
    choice: Activation,
    weight_layout: str = "gnk",
    out: Tensor | None = None,
    dgrad_out: Tensor | None = None,
    wgrads_out: tuple[Tensor | None, Tensor | None] = (None, None),
    accumulate: tuple[bool, bool] = (False, False),
    take_wgrads: tuple[TakeWgrad | None, TakeWgrad | None] = (None, None),
    recompute_activation: bool = False,
) -> Tensor:
    """`grouped_mlp` with a checked activation, and with what becomes of each weight's gradient by itself."""
    x, fc1_weight, fc2_weight, fc1_bias, fc2_bias, row_scale = autocast_operands(
        x, fc1_weight, fc2_weight, vectors=(fc1_bias, fc2_bias, row_scale)
    )
    refuse_buffers_under_transforms(
        out=out, dgrad_out=dgrad_out, fc1_wgrad_out=wgrads_out[0], fc2_wgrad_out=wgrads_out[1]
    )
    inputs = (x, fc1_weight, fc2_weight, on_device(group_sizes, x), fc1_bias, fc2_bias, row_scale)
    y, _, _ = apply(
        GroupedMLPFunction,
        inputs,
        detached_out(out, *inputs),
        detached(dgrad_out),
        detached(wgrads_out[0]),
        detached(wgrads_out[1]),
        *accumulate,
        recompute_activation,
        weight_layout_code(weight_layout),
        *choice,
        *take_wgrads,
    )
    return apart_from(out, y)


def grouped_mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc2_weight: Tensor,
    group_sizes: GroupSizes,
    fc1_bias: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    *,
    activation: str = "swiglu",
    gate_layout: str = "concatenated",
    alpha: float = 1.702,
    limit: float = 7.0,
    offset: float = 1.0,
    row_scale: Tensor | None = None,
    out: Tensor | None = None,
    dgrad_out: Tensor | None = None,
    fc1_wgrad_out: Tensor | None = None,
    fc2_wgrad_out: Tensor | None = None,
    accumulate_wgrad: bool = False,
    recompute_activation: bool = False,
    weight_layout: str = "gnk",
) -> Tensor:
    """The experts of a mixture: ``y[t] = (activation(x[t] @ W1^T + b1) * row_scale[t]) @ W2^T + b2``, W and b of g(t).

    The bits are those of `grouped_linear`, `grouped_activation` and `grouped_linear` one after another.

    Args:
      x: ``[T, K]`` f16, bf16, f32 or f64, contiguous, on CPU or CUDA.
      fc1_weight: ``[G, 2F, K]`` (``weight_layout="gnk"``) or ``[G, K, 2F]`` (``"gkn"``), dtype of x; F, not 2F, for
        ``"squared_relu"``.
      fc2_weight: ``[G, N, F]`` or ``[G, F, N]``, dtype of x.
      group_sizes: ``[G]`` int32 or int64 on x's device (never synchronises), or a host list or CPU tensor of ints,
        which is uploaded through pinned memory.
      fc1_bias: ``[G, 2F]`` (or F), dtype of x, or f32 beside 16-bit x.
      fc2_bias: ``[G, N]``, likewise. It is not scaled by row_scale.
      activation: ``"swiglu"``, ``"clamped_swiglu"`` (gpt-oss), ``"geglu"`` (tanh form) or ``"squared_relu"``.
      gate_layout: how W1 orders its outputs: ``"concatenated"``: [gate | up]; ``"interleaved"``: gate0, up0, ...
      alpha: slope inside the sigmoid, of the clamped kind alone.
      limit: clamp of gate (from above) and up (both sides), of the clamped kind alone.
      offset: added to up, of the clamped kind alone.
      row_scale: ``[T]``, dtype of x, or f32 beside 16-bit x: the router's probability of each row, applied to the
        activation; gets a gradient.
      out: ``[T, N]``, dtype of x: fc2 writes y there and the result aliases it.
      dgrad_out: ``[T, K]``, dtype of x: backward writes the gradient of x there and hands that memory upstream, as
        for `grouped_linear`.
      fc1_wgrad_out: shape of fc1_weight, its dtype or f32 beside 16-bit: backward writes the gradient of fc1_weight
        there and ``fc1_weight.grad`` gets nothing.
      fc2_wgrad_out: likewise for fc2_weight.
      accumulate_wgrad: add to what those two hold instead of overwriting it.
      recompute_activation: keep fc1's result alone for backward and compute the activation again: saves ``[T, F]``
        for one elementwise pass, same bits.
      weight_layout: how both weights are stored.

    Returns:
      ``[T, N]``, dtype of x.

    Raises:
      ValueError: an unknown name, or a shape, device, layout, alignment or overlap that the rules forbid; sizes that
        do not fit, on CPU always and on CUDA under ``GROUPED_CHECK=1``. In backward: an incoming gradient that
        overlaps a buffer.
      TypeError: a dtype that the rules forbid.
      RuntimeError: host sizes during CUDA graph capture.

    All arguments, those of backward among them, are checked before anything runs.

    Tail: with ``out`` or ``dgrad_out`` rows ``S..T`` of it are neither read nor written; without, they are zeros. A
    NaN in the tail of an input reaches no result.
    Empty groups: legal anywhere; their weight gradients are zero, or unchanged when accumulating.
    Aliasing: buffers must be contiguous, 16-byte aligned, apart from every input and each other, and must not
    require grad. Nothing saves ``out``, so it may be overwritten once nothing else needs it.
    Determinism: bitwise repeatable, the same with and without buffers and from JAX. 16-bit inputs are summed in
    fp32; fc1's result, the activation and y are each rounded once.
    Source: the grouped MLP of TransformerEngine's operation fuser, with caller buffers (its PR #3161).
    """
    check_activation(activation)
    return run_mlp(
        x,
        fc1_weight,
        fc2_weight,
        group_sizes,
        fc1_bias,
        fc2_bias,
        row_scale,
        choice=activation_options(activation, gate_layout, alpha, limit, offset),
        weight_layout=weight_layout,
        out=out,
        dgrad_out=dgrad_out,
        wgrads_out=(fc1_wgrad_out, fc2_wgrad_out),
        accumulate=(accumulate_wgrad, accumulate_wgrad),
        recompute_activation=recompute_activation,
    )
