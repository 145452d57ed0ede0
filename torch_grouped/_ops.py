# SPDX-License-Identifier: Apache-2.0
"""The core's operations as torch operators.

Each writes into its result argument and returns nothing: that is the only form which eager mode, torch.compile and
Inductor all leave alone, rows past the last group included. What an operation does is written once and run in one of
two ways: through the dispatcher, on descriptions of the tensors, or in plain eager mode directly on the tensors. Both
bump the version counter of what was written, so that autograd reports a saved buffer that was overwritten. The fake
implementations run the same rules on shapes that may be symbols.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grouped_core import Activation, Op, Options, Tail, argument_dims, check, check_symbolic, other_layout, run
from torch_grouped import _direct
from torch_grouped._describe import current_stream, describe, describe_fake, new_workspace
from torch_grouped._nvtx import with_range

_library = torch.library.Library("grouped_ffi", "DEF")
_increment_version = torch._C._increment_version  # what torch.autograd.graph.increment_version calls

Tensors = tuple[Tensor | None, ...]
NO_NAMES: dict[int, str] = {}


def _number_of_threads(tensor: Tensor) -> int:
    return torch.get_num_threads() if not tensor.is_cuda else 1


def _mark_written(tensors: Tensors) -> None:
    for tensor in tensors:
        if tensor is not None and not tensor.is_inference():
            _increment_version((tensor,))


class _Described:
    """Calls on descriptions made in Python. They raise what the rules forbid, so that True is all they return."""

    @staticmethod
    def check(op: Op, tensors: Tensors, options: Options, names: dict[int, str] = NO_NAMES) -> bool:
        check(op, tuple(describe(t, names.get(i, "")) for i, t in enumerate(tensors)), options)
        return True

    @staticmethod
    def run(op: Op, tensors: Tensors, options: Options, written: Tensors, names: dict[int, str] = NO_NAMES) -> bool:
        """`names`: how messages call the tensors at some places, where not as the rules do."""
        descriptions = tuple(describe(t, names.get(i, "")) for i, t in enumerate(tensors))
        like = tensors[_PLACE_OF_BASE.get(op, 0)]
        if like is None:
            raise AssertionError(f"{op.name} has no tensor that gives its dtype")
        workspace = new_workspace(op, like, *_sizes(op, tensors, options.weight_layout))
        run(
            op,
            descriptions,
            options,
            workspace.data_ptr(),
            workspace.numel(),
            current_stream(like.device),
            _number_of_threads(like),
        )
        _mark_written(written)
        return True


class _Direct:
    """Calls on the tensors themselves. False where those on descriptions have something to say or to serve."""

    @staticmethod
    def check(op: Op, tensors: Tensors, options: Options, names: dict[int, str] = NO_NAMES) -> bool:
        return _direct.calls is not None and _direct.calls.check(op, tensors, options)

    @staticmethod
    def run(op: Op, tensors: Tensors, options: Options, written: Tensors, names: dict[int, str] = NO_NAMES) -> bool:
        if _direct.calls is None or not _direct.calls.run(op, tensors, options, torch.get_num_threads()):
            return False
        _mark_written(written)
        return True


_PLACE_OF_BASE = {Op.ROW_SCALE: 3}  # of the tensor whose dtype decides the workspace


@functools.cache
def _letters(op: Op, weight_layout: int) -> tuple[str, ...]:
    return tuple(dims for _, dims in argument_dims(op, weight_layout))


def _sizes(op: Op, tensors: Tensors, weight_layout: int) -> tuple[int, int, int]:
    """K, N and G, 0 for one that no tensor has. Shapes that do not fit are for the rules to refuse."""
    found: dict[str, int] = {}
    for tensor, letters in zip(tensors, _letters(op, weight_layout), strict=True):
        if tensor is not None:
            found.update(zip(letters, tensor.shape, strict=False))
    return found.get("K", 0), found.get("N", 0), found.get("G", 0)


@functools.cache
def _options(
    weight_layout: int = 0, zero_tail: bool = False, accumulate: bool = False, *, ends: bool = False
) -> Options:
    return Options(weight_layout, int(ends), int(_tail(zero_tail)), int(accumulate))


@functools.lru_cache(maxsize=256)
def _activation_options(
    kind: int, gate_layout: int, alpha: float, limit: float, offset: float, zero_tail: bool
) -> Options:
    return Activation(kind, gate_layout, alpha, limit, offset).options(int(_tail(zero_tail)))


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


def _core_operator(schema: str, fake: Callable[..., None]) -> Callable[[Callable[..., bool]], Callable[..., None]]:
    """The same for an operation of the core. The decorated function takes the way to call the core first."""

    def register(implementation: Callable[..., bool]) -> Callable[..., None]:
        def described(*arguments: Any) -> None:
            implementation(_Described, *arguments)

        operator = _operator(schema, fake)(described)

        def call(*arguments: Any) -> None:
            if not (_direct.is_eager() and implementation(_Direct, *arguments)):
                operator(*arguments)

        return functools.update_wrapper(call, implementation, ("__module__", "__name__", "__qualname__", "__doc__"))

    return register


def invoke(eager: bool, operator: Any, *arguments: Any) -> None:
    """``operator(*arguments)``. `eager`: it is known that `is_eager()`, which costs as much to ask as the rules."""
    if not (eager and operator.__wrapped__(_Direct, *arguments)):
        operator(*arguments)


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


@_core_operator(
    "linear(Tensor x, Tensor weight, Tensor group_sizes, Tensor? bias, Tensor? row_scale, Tensor(a!) out, "
    "Tensor? dgrad_out, Tensor? wgrad_out, int weight_layout, bool zero_tail)",
    _linear_fake,
)
def linear(call, x, weight, group_sizes, bias, row_scale, out, dgrad_out, wgrad_out, weight_layout, zero_tail):
    """Forward. The gradient buffers are only checked, so that a bad one fails here and not in backward."""
    tensors = (x, weight, group_sizes, bias, row_scale, out)
    options = _options(weight_layout, zero_tail)
    has_buffers = dgrad_out is not None or wgrad_out is not None
    # Of `out` alone the product has these rules, but for a wider dtype, and other words, which nobody reads here.
    if not has_buffers and not zero_tail:
        has_buffers = call is not _Direct or out.dtype != x.dtype
    if has_buffers and not call.check(Op.LINEAR, (*tensors, dgrad_out, wgrad_out), options):
        return False
    return call.run(Op.MM, tensors, options, (out,))


_DGRAD_NAMES = {0: "dy", 5: "dgrad_out"}


def _dgrad_fake(dy, weight, group_sizes, row_scale, dgrad_out, scaled_out, weight_layout, zero_tail):
    inputs = {"dy": dy, "weight": weight, "group_sizes": group_sizes, "bias": None, "row_scale": row_scale}
    for target in (dgrad_out, scaled_out):
        if target is not None:
            _check_fake(Op.MM, {**inputs, "dgrad_out": target}, Options(weight_layout=other_layout(weight_layout)))


@_core_operator(
    "dgrad(Tensor dy, Tensor weight, Tensor group_sizes, Tensor? row_scale, Tensor(a!) dgrad_out, "
    "Tensor? scaled_out, int weight_layout, bool zero_tail)",
    _dgrad_fake,
)
def dgrad(call, dy, weight, group_sizes, row_scale, dgrad_out, scaled_out, weight_layout, zero_tail):
    """dx = dy @ W^T * row_scale: forward with the same storage read the other way.

    `scaled_out` is where a later operation will put what this one makes; it is only checked.
    """
    inputs = (dy, weight, group_sizes, None, row_scale)
    options = _options(other_layout(weight_layout), zero_tail)
    if scaled_out is not None and not call.check(Op.MM, (*inputs, scaled_out), options, _DGRAD_NAMES):
        return False
    return call.run(Op.MM, (*inputs, dgrad_out), options, (dgrad_out,), _DGRAD_NAMES)


def _wgrad_fake(x, dy, group_sizes, wgrad_out, weight_layout, accumulate):
    tensors = {"x": x, "dy": dy, "group_sizes": group_sizes, "wgrad_out": wgrad_out}
    _check_fake(Op.WGRAD, tensors, Options(weight_layout=weight_layout))


@_core_operator(
    "wgrad(Tensor x, Tensor dy, Tensor group_sizes, Tensor(a!) wgrad_out, int weight_layout, bool accumulate)",
    _wgrad_fake,
)
def wgrad(call, x, dy, group_sizes, wgrad_out, weight_layout, accumulate):
    """dW (+)= x^T dy over each group's rows."""
    options = _options(weight_layout, False, accumulate)
    return call.run(Op.WGRAD, (x, dy, group_sizes, wgrad_out), options, (wgrad_out,), {3: "wgrad_out"})


def _bias_grad_fake(dy, group_sizes, out, accumulate, ends=False):
    _check_fake(Op.BIAS_GRAD, {"dy": dy, "group_sizes": group_sizes, "out": out}, Options())


@_core_operator(
    "bias_grad(Tensor dy, Tensor group_sizes, Tensor(a!) out, bool accumulate, bool ends=False)",
    _bias_grad_fake,
)
def bias_grad(call, dy, group_sizes, out, accumulate, ends=False):
    """db (+)= sum of dy over each group's rows. `ends`: group_sizes holds their running sums."""
    return call.run(Op.BIAS_GRAD, (dy, group_sizes, out), _options(0, False, accumulate, ends=ends), (out,))


# The operands of torch's grouped_mm, and those of the transposed product.
_PRODUCT_NAMES = (
    {0: "a", 1: "b", 2: "offs", 3: "bias", 4: "row_scale", 5: "out"},
    {0: "b.mT", 1: "a", 2: "offs", 3: "bias", 4: "row_scale", 5: "out.mT"},
)


def _product_fake(rows, matrices, offs, bias, out, weight_layout, transposed, zero_tail):
    given = (rows, matrices, offs, bias, None, out)
    tensors = dict(zip(_PRODUCT_NAMES[transposed].values(), given, strict=True))
    _check_fake(Op.MM, tensors, Options(weight_layout=weight_layout))


@_core_operator(
    "product(Tensor rows, Tensor matrices, Tensor offs, Tensor? bias, Tensor(a!) out, int weight_layout, "
    "bool transposed, bool zero_tail)",
    _product_fake,
)
def product(call, rows, matrices, offs, bias, out, weight_layout, transposed, zero_tail):
    """out[t] = rows[t] @ matrices[g(t)], offs the end of each group. `transposed`: of what messages speak."""
    tensors = (rows, matrices, offs, bias, None, out)
    options = _options(weight_layout, zero_tail, ends=True)
    return call.run(Op.MM, tensors, options, (out,), _PRODUCT_NAMES[transposed])


_CONTRACTION_NAMES = {0: "a.mT", 1: "b", 2: "offs"}


def _contraction_fake(left, right, offs, out, weight_layout):
    _check_fake(Op.WGRAD, {"a.mT": left, "b": right, "offs": offs, "out": out}, Options(weight_layout=weight_layout))


@_core_operator(
    "contraction(Tensor left, Tensor right, Tensor offs, Tensor(a!) out, int weight_layout)", _contraction_fake
)
def contraction(call, left, right, offs, out, weight_layout):
    """out[g] = left_g^T right_g over each group's rows, offs the end of each group."""
    options = _options(weight_layout, ends=True)
    return call.run(Op.WGRAD, (left, right, offs, out), options, (out,), _CONTRACTION_NAMES)


def _row_scale_fake(x, group_sizes, row_scale, out, zero_tail):
    tensors = {"x": x, "group_sizes": group_sizes, "row_scale": row_scale, "out": out}
    _check_fake(Op.ROW_SCALE, tensors, Options())


@_core_operator(
    "row_scale(Tensor x, Tensor group_sizes, Tensor row_scale, Tensor(a!) out, bool zero_tail)", _row_scale_fake
)
def row_scale(call, x, group_sizes, row_scale, out, zero_tail):
    """out[t] = x[t] * row_scale[t]."""
    return call.run(Op.ROW_SCALE, (x, group_sizes, row_scale, out), _options(0, zero_tail), (out,))


def _row_dot_fake(a, b, group_sizes, dy, bias, out, zero_tail):
    tensors = {"a": a, "b": b, "group_sizes": group_sizes, "dy": dy, "bias": bias, "out": out}
    _check_fake(Op.ROW_DOT, tensors, Options())


@_core_operator(
    "row_dot(Tensor a, Tensor b, Tensor group_sizes, Tensor? dy, Tensor? bias, Tensor(a!) out, bool zero_tail)",
    _row_dot_fake,
)
def row_dot(call, a, b, group_sizes, dy, bias, out, zero_tail):
    """out[t] = a[t] . b[t] + dy[t] . bias[g(t)]: the gradient of a linear layer's row_scale."""
    return call.run(Op.ROW_DOT, (a, b, group_sizes, dy, bias, out), _options(0, zero_tail), (out,))


def _activation_fake(h, group_sizes, row_scale, out, dgrad_out, kind, gate_layout, alpha, limit, offset, zero_tail):
    options = Activation(kind, gate_layout, alpha, limit, offset).options(_tail(zero_tail))
    tensors = {"h": h, "group_sizes": group_sizes, "row_scale": row_scale, "out": out}
    _check_fake(Op.ACTIVATION, tensors, options)
    if dgrad_out is not None:
        tensors = {"h": h, "out": out, "group_sizes": group_sizes, "row_scale": row_scale, "dgrad_out": dgrad_out}
        _check_fake(Op.ACTIVATION_GRAD, {**tensors, "d_row_scale": None}, options)


@_core_operator(
    "activation(Tensor h, Tensor group_sizes, Tensor? row_scale, Tensor(a!) out, Tensor? dgrad_out, int kind, "
    "int gate_layout, float alpha, float limit, float offset, bool zero_tail)",
    _activation_fake,
)
def activation(call, h, group_sizes, row_scale, out, dgrad_out, kind, gate_layout, alpha, limit, offset, zero_tail):
    """out = activation(h) * row_scale. The gradient buffer is only checked, as in `linear`."""
    options = _activation_options(kind, gate_layout, alpha, limit, offset, zero_tail)
    tensors = (h, group_sizes, row_scale, out)
    if dgrad_out is not None:
        # Backward's rules, with the result in the place of its gradient.
        backward = (h, out, group_sizes, row_scale, dgrad_out, None)
        forward_fits = call.check(Op.ACTIVATION, tensors, options)
        if not (forward_fits and call.check(Op.ACTIVATION_GRAD, backward, options, {1: "out", 4: "dgrad_out"})):
            return False
    return call.run(Op.ACTIVATION, tensors, options, (out,))


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


@_core_operator(
    "activation_grad(Tensor h, Tensor dy, Tensor group_sizes, Tensor? row_scale, Tensor(a!) dh, "
    "Tensor(b!)? d_row_scale, int kind, int gate_layout, float alpha, float limit, float offset, bool zero_tail)",
    _activation_grad_fake,
)
def activation_grad(
    call, h, dy, group_sizes, row_scale, dh, d_row_scale, kind, gate_layout, alpha, limit, offset, zero_tail
):
    """dh and, where asked, the gradient of row_scale."""
    options = _activation_options(kind, gate_layout, alpha, limit, offset, zero_tail)
    tensors = (h, dy, group_sizes, row_scale, dh, d_row_scale)
    return call.run(Op.ACTIVATION_GRAD, tensors, options, (dh, d_row_scale), {4: "dgrad_out"})
