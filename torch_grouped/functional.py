# SPDX-License-Identifier: Apache-2.0
"""Grouped linear layers and activations as functions, with autograd and with results in the caller's memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from grouped_core import activation_options, weight_layout_code
from torch_grouped import _fresh
from torch_grouped._autocast import autocast_operands, autocast_probs
from torch_grouped._autograd import (
    GroupedActivationFunction,
    GroupedLinearFunction,
    GroupedLinearFunctionEager,
    apply,
    apply_eagerly,
    needs_graph,
)
from torch_grouped._buffers import apart_from as _apart_from
from torch_grouped._buffers import detached as _detached
from torch_grouped._buffers import detached_out as _detached_out
from torch_grouped._direct import is_eager, may_autocast
from torch_grouped._grouped_mm import grouped_mm
from torch_grouped._mlp import grouped_mlp
from torch_grouped._sizes import GroupSizes, on_device
from torch_grouped._transforms import refuse_buffers_under_transforms

_GNK = weight_layout_code("gnk")

__all__ = ["grouped_activation", "grouped_linear", "grouped_mlp", "grouped_mm"]


def grouped_linear(
    x: Tensor,
    weight: Tensor,
    group_sizes: GroupSizes,
    bias: Tensor | None = None,
    *,
    row_scale: Tensor | None = None,
    out: Tensor | None = None,
    dgrad_out: Tensor | None = None,
    wgrad_out: Tensor | None = None,
    accumulate_wgrad: bool = False,
    weight_layout: str = "gnk",
) -> Tensor:
    """One linear layer per group of rows: ``y[t] = (x[t] @ W[g(t)]^T + bias[g(t)]) * row_scale[t]``.

    Rows of group 0 come first, then those of group 1, and so on; ``S = sum(group_sizes)`` may be less than ``T``.

    Args:
      x: ``[T, K]`` f16, bf16, f32 or f64, contiguous, on CPU or CUDA.
      weight: ``[G, N, K]`` (``weight_layout="gnk"``) or ``[G, K, N]`` (``"gkn"``), dtype of x.
      group_sizes: ``[G]`` int32 or int64 on x's device (never synchronises), or a host list or CPU tensor of ints,
        which is uploaded through pinned memory.
      bias: ``[G, N]``, dtype of x, or f32 beside 16-bit x.
      row_scale: ``[T]``, likewise; the router's probability of each row.
      out: ``[T, N]``, dtype of x: the kernel writes y there and the result aliases it.
      dgrad_out: ``[T, K]``, dtype of x: backward writes the gradient of x there and hands that memory upstream, to
        the operation that made x, to hooks and to ``torch.autograd.grad``. ``x.grad`` is a copy of it, and where x
        has other consumers autograd adds their gradients in memory of its own.
      wgrad_out: the weight's shape, its dtype or f32 beside 16-bit: backward writes the gradient of weight there
        and ``weight.grad`` gets nothing.
      accumulate_wgrad: add to what wgrad_out holds instead of overwriting it.
      weight_layout: how weight is stored.

    Returns:
      ``[T, N]``, dtype of x.

    Raises:
      ValueError: a shape, device, layout, alignment or overlap that the rules forbid; sizes that do not fit, on
        CPU always and on CUDA under ``GROUPED_CHECK=1``.
      TypeError: a dtype that the rules forbid.
      RuntimeError: host sizes during CUDA graph capture.

    Tail: with ``out`` or ``dgrad_out`` rows ``S..T`` of it are neither read nor written; without, they are zeros.
    A NaN in the tail of an input reaches no result.
    Empty groups: legal anywhere; their weight gradient is zero, or unchanged when accumulating.
    Aliasing: buffers must be contiguous, 16-byte aligned, apart from every input and each other, and must not
    require grad. A buffer may be used again once nothing that still needs its content does; autograd reports a
    saved one that was overwritten. ``out`` must not be made in inference mode where gradients are wanted.
    Determinism: bitwise repeatable, the same with and without buffers and from JAX; ``y[t]`` depends on ``x[t]``
    and ``W[g(t)]`` only. 16-bit inputs are summed in fp32, and each stored tensor is rounded once. With
    ``row_scale`` the weight and bias gradients are those of ``dy * row_scale`` rounded to dtype of x.
    Source: the semantics of TransformerEngine's GroupedLinear with caller buffers (its PR #3161).
    """
    how = (row_scale, out, dgrad_out, wgrad_out, accumulate_wgrad, weight_layout)
    return linear_with(None, x, weight, group_sizes, bias, *how)


def linear_with(
    take_wgrad: Callable[..., Tensor | None] | None,
    x: Tensor,
    weight: Tensor,
    group_sizes: GroupSizes,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    out: Tensor | None = None,
    dgrad_out: Tensor | None = None,
    wgrad_out: Tensor | None = None,
    accumulate_wgrad: bool = False,
    weight_layout: str = "gnk",
) -> Tensor:
    """`grouped_linear` whose weight gradient `take_wgrad` computes; see `GroupedLinearFunction`."""
    layout = _GNK if weight_layout == "gnk" else weight_layout_code(weight_layout)
    eager = is_eager()
    graph = eager and needs_graph(x, weight, bias, row_scale)
    has_buffers = not (out is None and dgrad_out is None and wgrad_out is None)
    if not eager or may_autocast():
        refuse_buffers_under_transforms(out=out, dgrad_out=dgrad_out, wgrad_out=wgrad_out)
        x, weight, bias, row_scale = autocast_operands(x, weight, vectors=(bias, row_scale))
    elif not graph and not has_buffers:
        # The rest would find nothing to do. It takes what this does not, host sizes and mistakes among it.
        y = _fresh.try_linear(x, weight, group_sizes, bias, row_scale, layout)
        if y is not None:
            return y
    if has_buffers:
        out = _detached_out(out, x, weight, bias, row_scale)
        dgrad_out, wgrad_out = _detached(dgrad_out), _detached(wgrad_out)
    inputs = (x, weight, bias, row_scale, on_device(group_sizes, x), out)
    how = (dgrad_out, wgrad_out, accumulate_wgrad, layout, take_wgrad)
    if graph:
        return apply_eagerly(GroupedLinearFunctionEager, True, (*inputs, how))
    if eager:
        return GroupedLinearFunctionEager.forward(*inputs, how)
    return _apart_from(out, GroupedLinearFunction.apply(*inputs, *how))


def grouped_activation(
    h: Tensor,
    group_sizes: GroupSizes,
    kind: str = "swiglu",
    *,
    row_scale: Tensor | None = None,
    gate_layout: str = "concatenated",
    alpha: float = 1.702,
    limit: float = 7.0,
    offset: float = 1.0,
    out: Tensor | None = None,
    dgrad_out: Tensor | None = None,
) -> Tensor:
    """The activation between two grouped linear layers: ``y[t] = activation(h[t]) * row_scale[t]``.

    Args:
      h: ``[T, 2F]`` (gate and up) or, for ``"squared_relu"``, ``[T, F]``; f16, bf16, f32 or f64, contiguous.
      group_sizes: as for `grouped_linear`; only their sum matters here.
      kind: ``"swiglu"``, ``"clamped_swiglu"`` (gpt-oss), ``"geglu"`` (tanh form) or ``"squared_relu"``.
      row_scale: ``[T]``, dtype of h, or f32 beside 16-bit h; gets a gradient.
      gate_layout: ``"concatenated"``: h = [gate | up]; ``"interleaved"``: gate0, up0, gate1, up1, ...
      alpha: slope inside the sigmoid, of the clamped kind alone.
      limit: clamp of gate (from above) and up (both sides), of the clamped kind alone.
      offset: added to up, of the clamped kind alone.
      out: ``[T, F]``, dtype of h: written in place, and the result aliases it.
      dgrad_out: shape and dtype of h: backward writes the gradient of h there.

    Returns:
      ``[T, F]``, dtype of h.

    Raises:
      ValueError: an unknown name, or a shape, device, layout, alignment or overlap that the rules forbid; sizes that
        do not fit, as `grouped_linear`.
      TypeError: a dtype that the rules forbid.
      RuntimeError: host sizes during CUDA graph capture.

    Tail, empty groups, aliasing: as `grouped_linear`.
    Determinism: bitwise repeatable and the same from JAX: exp is the core's own. Computed in fp32 (fp64 for f64),
    rounded once.
    Source: SwiGLU and GEGLU of Shazeer 2020, the clamped form of gpt-oss, squared ReLU of So et al. 2021.
    """
    choice = activation_options(kind, gate_layout, alpha, limit, offset)
    refuse_buffers_under_transforms(out=out, dgrad_out=dgrad_out)
    sizes = on_device(group_sizes, h)
    row_scale = autocast_probs(h, row_scale)
    buffers = _detached_out(out, h, row_scale), _detached(dgrad_out)
    y = apply(GroupedActivationFunction, (h, row_scale), sizes, *buffers, *choice)
    return _apart_from(out, y)
