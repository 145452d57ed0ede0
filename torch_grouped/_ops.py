# SPDX-License-Identifier: Apache-2.0
"""The core's operations as torch operators.

Each writes into its result argument and returns nothing: that is the only form which eager mode, torch.compile and
Inductor all leave alone, rows past the last group included. A Python implementation calls the core on raw
addresses and bumps the version counter of what it wrote, so that autograd reports a saved buffer that was
overwritten. The fake implementations run the same rules on shapes that may be symbols.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from grouped_core import Activation, Op, Options, Tail, check, check_symbolic, other_layout, run
from torch_grouped._describe import current_stream, describe, describe_fake, new_workspace
from torch_grouped._nvtx import with_range

_library = torch.library.Library("grouped_ffi", "DEF")


def _number_of_threads(tensor: torch.Tensor) -> int:
    return torch.get_num_threads() if tensor.device.type == "cpu" else 1


def _launch(
    op: Op,
    tensors: tuple[tuple | None, ...],
    options: Options,
    like: torch.Tensor,
    dims: tuple[int, int, int],
    *written: torch.Tensor | None,
) -> None:
    """Runs `op`; `like` gives device and dtype, `dims` K, N and G for the workspace."""
    workspace = new_workspace(op, like, *dims)
    run(
        op,
        tensors,
        options,
        workspace.data_ptr(),
        workspace.numel(),
        current_stream(like.device),
        _number_of_threads(like),
    )
    for tensor in written:
        if tensor is not None and not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _tail(zero_tail: bool) -> Tail:
    return Tail.ZERO if zero_tail else Tail.KEEP


def _operator(schema: str, fake: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Defines the operator that `schema` names, with the decorated function for CPU and CUDA."""

    def register(implementation: Callable[..., None]) -> Callable[..., None]:
        name = schema.partition("(")[0]
        _library.define(f"{schema} -> ()")
        implementation = with_range(name, implementation)
        for device in ("CPU", "CUDA"):
            _library.impl(name, implementation, device)
        torch.library.register_fake(f"grouped_ffi::{name}", fake, lib=_library)
        return getattr(torch.ops.grouped_ffi, name).default

    return register


def _hint(size: int | torch.SymInt) -> int | None:
    return size.node.hint if isinstance(size, torch.SymInt) and size.node.has_hint() else None


def _check_fake(op: Op, tensors: dict[str, torch.Tensor | None], options: Options) -> None:
    """The core's rules on fake tensors, named as the dictionary names them."""
    check_symbolic(op, [describe_fake(t, name) for name, t in tensors.items()], options, hint=_hint)


def _linear_fake(x, weight, group_sizes, bias, row_scale, out, dgrad_out, wgrad_out, weight_layout, zero_tail):
    tensors = {
        "x": x,
        "weight": weight,
        "group_sizes": group_sizes,
        "bias": bias,
        "row_scale": row_scale,
        "out": out,
        "dgrad_out": dgrad_out,
        "wgrad_out": wgrad_out,
    }
    _check_fake(Op.LINEAR, tensors, Options(weight_layout=weight_layout))


@_operator(
    "linear(Tensor x, Tensor weight, Tensor group_sizes, Tensor? bias, Tensor? row_scale, Tensor(a!) out, "
    "Tensor? dgrad_out, Tensor? wgrad_out, int weight_layout, bool zero_tail)",
    _linear_fake,
)
def linear(x, weight, group_sizes, bias, row_scale, out, dgrad_out, wgrad_out, weight_layout, zero_tail):
    """Forward. The gradient buffers are only checked, so that a bad one fails here and not in backward."""
    tensors = (
        describe(x),
        describe(weight),
        describe(group_sizes),
        describe(bias),
        describe(row_scale),
        describe(out),
    )
    options = Options(weight_layout=weight_layout, tail=_tail(zero_tail))
    given_out = not zero_tail
    is_matrix = x.dim() == 2 and group_sizes.dim() == 1  # what the sizes below are read from
    if given_out or dgrad_out is not None or wgrad_out is not None or not is_matrix:
        check(Op.LINEAR, (*tensors, describe(dgrad_out), describe(wgrad_out)), options)
    _launch(Op.MM, tensors, options, x, (x.shape[-1], out.shape[-1], group_sizes.shape[0]), out)


def _dgrad_fake(dy, weight, group_sizes, row_scale, dgrad_out, scaled_out, weight_layout, zero_tail):
    inputs = {"dy": dy, "weight": weight, "group_sizes": group_sizes, "bias": None, "row_scale": row_scale}
    for target in (dgrad_out, scaled_out):
        if target is not None:
            _check_fake(Op.MM, {**inputs, "dgrad_out": target}, Options(weight_layout=other_layout(weight_layout)))


@_operator(
    "dgrad(Tensor dy, Tensor weight, Tensor group_sizes, Tensor? row_scale, Tensor(a!) dgrad_out, "
    "Tensor? scaled_out, int weight_layout, bool zero_tail)",
    _dgrad_fake,
)
def dgrad(dy, weight, group_sizes, row_scale, dgrad_out, scaled_out, weight_layout, zero_tail):
    """dx = dy @ W^T * row_scale: forward with the same storage read the other way.

    `scaled_out` is where a later operation will put what this one makes; it is only checked.
    """
    inputs = (describe(dy, "dy"), describe(weight), describe(group_sizes), None, describe(row_scale))
    tensors = (*inputs, describe(dgrad_out, "dgrad_out"))
    options = Options(weight_layout=other_layout(weight_layout), tail=_tail(zero_tail))
    if scaled_out is not None:
        check(Op.MM, (*inputs, describe(scaled_out, "dgrad_out")), options)
    dims = (dy.shape[-1], dgrad_out.shape[-1], group_sizes.shape[0])
    _launch(Op.MM, tensors, options, dy, dims, dgrad_out)


def _wgrad_fake(x, dy, group_sizes, wgrad_out, weight_layout, accumulate):
    tensors = {"x": x, "dy": dy, "group_sizes": group_sizes, "wgrad_out": wgrad_out}
    _check_fake(Op.WGRAD, tensors, Options(weight_layout=weight_layout))


@_operator(
    "wgrad(Tensor x, Tensor dy, Tensor group_sizes, Tensor(a!) wgrad_out, int weight_layout, bool accumulate)",
    _wgrad_fake,
)
def wgrad(x, dy, group_sizes, wgrad_out, weight_layout, accumulate):
    """dW (+)= x^T dy over each group's rows."""
    tensors = (describe(x), describe(dy), describe(group_sizes), describe(wgrad_out, "wgrad_out"))
    options = Options(weight_layout=weight_layout, accumulate=int(accumulate))
    _launch(Op.WGRAD, tensors, options, x, (x.shape[-1], dy.shape[-1], group_sizes.shape[0]), wgrad_out)


def _bias_grad_fake(dy, group_sizes, out, accumulate):
    _check_fake(Op.BIAS_GRAD, {"dy": dy, "group_sizes": group_sizes, "out": out}, Options())


@_operator("bias_grad(Tensor dy, Tensor group_sizes, Tensor(a!) out, bool accumulate)", _bias_grad_fake)
def bias_grad(dy, group_sizes, out, accumulate):
    """db (+)= sum of dy over each group's rows."""
    tensors = (describe(dy), describe(group_sizes), describe(out))
    options = Options(accumulate=int(accumulate))
    _launch(Op.BIAS_GRAD, tensors, options, dy, (0, dy.shape[-1], group_sizes.shape[0]), out)


def _row_scale_fake(x, group_sizes, row_scale, out, zero_tail):
    tensors = {"x": x, "group_sizes": group_sizes, "row_scale": row_scale, "out": out}
    _check_fake(Op.ROW_SCALE, tensors, Options())


@_operator("row_scale(Tensor x, Tensor group_sizes, Tensor row_scale, Tensor(a!) out, bool zero_tail)", _row_scale_fake)
def row_scale(x, group_sizes, row_scale, out, zero_tail):
    """out[t] = x[t] * row_scale[t]."""
    tensors = (describe(x), describe(group_sizes), describe(row_scale), describe(out))
    options = Options(tail=_tail(zero_tail))
    _launch(Op.ROW_SCALE, tensors, options, out, (x.shape[-1], 0, group_sizes.shape[0]), out)


def _row_dot_fake(a, b, group_sizes, dy, bias, out, zero_tail):
    tensors = {"a": a, "b": b, "group_sizes": group_sizes, "dy": dy, "bias": bias, "out": out}
    _check_fake(Op.ROW_DOT, tensors, Options())


@_operator(
    "row_dot(Tensor a, Tensor b, Tensor group_sizes, Tensor? dy, Tensor? bias, Tensor(a!) out, bool zero_tail)",
    _row_dot_fake,
)
def row_dot(a, b, group_sizes, dy, bias, out, zero_tail):
    """out[t] = a[t] . b[t] + dy[t] . bias[g(t)]: the gradient of a linear layer's row_scale."""
    tensors = (describe(a), describe(b), describe(group_sizes), describe(dy), describe(bias), describe(out))
    columns = 0 if bias is None else bias.shape[-1]
    options = Options(tail=_tail(zero_tail))
    _launch(Op.ROW_DOT, tensors, options, a, (a.shape[-1], columns, group_sizes.shape[0]), out)


def _activation_fake(h, group_sizes, row_scale, out, dgrad_out, kind, gate_layout, alpha, limit, offset, zero_tail):
    options = Activation(kind, gate_layout, alpha, limit, offset).options(_tail(zero_tail))
    tensors = {"h": h, "group_sizes": group_sizes, "row_scale": row_scale, "out": out}
    _check_fake(Op.ACTIVATION, tensors, options)
    if dgrad_out is not None:
        tensors = {"h": h, "out": out, "group_sizes": group_sizes, "row_scale": row_scale, "dgrad_out": dgrad_out}
        _check_fake(Op.ACTIVATION_GRAD, {**tensors, "d_row_scale": None}, options)


@_operator(
    "activation(Tensor h, Tensor group_sizes, Tensor? row_scale, Tensor(a!) out, Tensor? dgrad_out, int kind, "
    "int gate_layout, float alpha, float limit, float offset, bool zero_tail)",
    _activation_fake,
)
def activation(h, group_sizes, row_scale, out, dgrad_out, kind, gate_layout, alpha, limit, offset, zero_tail):
    """out = activation(h) * row_scale. The gradient buffer is only checked, as in `linear`."""
    options = Activation(kind, gate_layout, alpha, limit, offset).options(_tail(zero_tail))
    tensors = (describe(h), describe(group_sizes), describe(row_scale), describe(out))
    if dgrad_out is not None:
        check(Op.ACTIVATION, tensors, options)
        # Backward's rules, with the result in the place of its gradient.
        h_, sizes, scale, _ = tensors
        backward = (h_, describe(out, "out"), sizes, scale, describe(dgrad_out, "dgrad_out"), None)
        check(Op.ACTIVATION_GRAD, backward, options)
    _launch(Op.ACTIVATION, tensors, options, h, (0, 0, group_sizes.shape[0]), out)


def _activation_grad_fake(
    h, dy, group_sizes, row_scale, dh, d_row_scale, kind, gate_layout, alpha, limit, offset, zero_tail
):
    choice = Activation(kind, gate_layout, alpha, limit, offset)
    tensors = {
        "h": h,
        "dy": dy,
        "group_sizes": group_sizes,
        "row_scale": row_scale,
        "dgrad_out": dh,
        "d_row_scale": d_row_scale,
    }
    _check_fake(Op.ACTIVATION_GRAD, tensors, choice.options(_tail(zero_tail)))


@_operator(
    "activation_grad(Tensor h, Tensor dy, Tensor group_sizes, Tensor? row_scale, Tensor(a!) dh, "
    "Tensor(b!)? d_row_scale, int kind, int gate_layout, float alpha, float limit, float offset, bool zero_tail)",
    _activation_grad_fake,
)
def activation_grad(h, dy, group_sizes, row_scale, dh, d_row_scale, kind, gate_layout, alpha, limit, offset, zero_tail):
    """dh and, where asked, the gradient of row_scale."""
    choice = Activation(kind, gate_layout, alpha, limit, offset)
    tensors = (
        describe(h),
        describe(dy),
        describe(group_sizes),
        describe(row_scale),
        describe(dh, "dgrad_out"),
        describe(d_row_scale),
    )
    dims = (0, 0, group_sizes.shape[0])
    _launch(Op.ACTIVATION_GRAD, tensors, choice.options(_tail(zero_tail)), h, dims, dh, d_row_scale)
