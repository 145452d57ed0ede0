# SPDX-License-Identifier: Apache-2.0
"""The grouped MLP as two torch operators, forward and backward: the rules of all its parts first, then the parts.

They write into what they are given and return nothing, as the operators of _ops.py do. What lies between the parts in
backward is theirs alone and comes from torch's allocator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_core import NO_DATA, Activation, DType, Op, Options, Tail, check, other_layout
from torch_grouped import _direct, _ops
from torch_grouped._describe import describe, describe_fake
from torch_grouped._ops import _check_fake, _operator

_Rule = tuple[Op, dict[str, Tensor | None], Options]
# What messages call the tensors between the parts, which the caller never sees.
FC1_RESULT, ACTIVATION = "fc1's result", "activation"


class _Operands(NamedTuple):
    """What one call to the MLP was given, buffers among it."""

    x: Tensor
    fc1_weight: Tensor
    fc2_weight: Tensor
    group_sizes: Tensor
    fc1_bias: Tensor | None
    fc2_bias: Tensor | None
    row_scale: Tensor | None
    h: Tensor
    a: Tensor
    out: Tensor
    dgrad_out: Tensor | None
    fc1_wgrad_out: Tensor | None
    fc2_wgrad_out: Tensor | None

    def rules(self, weight_layout: int, choice: Activation) -> Iterator[_Rule]:
        """The checks that the parts will make, under the MLP's names, with what backward will write."""
        layout = Options(weight_layout=weight_layout)
        common = {"group_sizes": self.group_sizes}
        fc1 = {
            "x": self.x,
            "fc1_weight": self.fc1_weight,
            **common,
            "fc1_bias": self.fc1_bias,
            "row_scale": self.row_scale,
            FC1_RESULT: self.h,
            "dgrad_out": self.dgrad_out,
            "fc1_wgrad_out": self.fc1_wgrad_out,
        }
        yield Op.LINEAR, fc1, layout
        choice.check_columns("fc1_weight", self.fc1_weight.shape, weight_layout)
        activation = {FC1_RESULT: self.h, **common, "row_scale": self.row_scale, ACTIVATION: self.a}
        yield Op.ACTIVATION, activation, choice.options(Tail.KEEP)
        fc2 = {
            ACTIVATION: self.a,
            "fc2_weight": self.fc2_weight,
            **common,
            "fc2_bias": self.fc2_bias,
            "row_scale": self.row_scale,
            "out": self.out,
            "dgrad_out": None,
            "fc2_wgrad_out": self.fc2_wgrad_out,
        }
        yield Op.LINEAR, fc2, layout

    def pairs_in_no_rule(self, *, given_out: bool) -> list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]]:
        """(buffers, others) that no part has together, and that must lie apart all the same; new memory does."""
        at_fc1 = {"dgrad_out": self.dgrad_out, "fc1_wgrad_out": self.fc1_wgrad_out}
        at_fc2 = {"out": self.out if given_out else None, "fc2_wgrad_out": self.fc2_wgrad_out}
        from_fc1 = {"x": self.x, "fc1_weight": self.fc1_weight, "fc1_bias": self.fc1_bias}
        from_fc2 = {"fc2_weight": self.fc2_weight, "fc2_bias": self.fc2_bias, **at_fc2}
        return [(at_fc1, from_fc2), (at_fc2, from_fc1)]


_HALF = int(DType.F16)
_NO_OPTIONS = tuple(Options())


def _as_memory(name: str, tensor: Tensor) -> tuple:
    return name, tensor.data_ptr(), _HALF, (tensor.nbytes // 2, 1), None, tensor.get_device(), 0


def check_apart(buffers: dict[str, Tensor | None], others: dict[str, Tensor | None]) -> None:
    """The core's rule on overlap, for tensors that are in no operation together.

    The core is asked about a bias gradient, which reads a matrix and writes one of other rows: each tensor stands
    there as a column of 16-bit numbers.
    """
    for name, buffer in buffers.items():
        if buffer is None:
            continue
        written = _as_memory(name, buffer)
        sizes = ("", 0, int(DType.I32), written[3][:1], None, written[5], NO_DATA)
        for other_name, other in others.items():
            if other is not None:
                check(Op.BIAS_GRAD, (_as_memory(other_name, other), sizes, written), _NO_OPTIONS)


class _Settings(NamedTuple):
    """What follows the tensors in both operators."""

    weight_layout: int
    choice: Activation
    rest: tuple

    @classmethod
    def of(cls, numbers: tuple) -> _Settings:
        """From the operator's arguments: layout, the five of the activation, and what is the operator's own."""
        return cls(numbers[0], Activation(*numbers[1:6]), numbers[6:])


_FORWARD, _BACKWARD = 13, 15  # tensors before the settings


def _operator_of_parts(
    schema: str, fake: Callable[..., None], tensors: int, parts: Callable[..., None], fits: Callable[..., bool]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `_operator`, for a check in the core's words before `parts`.

    Where nothing would notice an operator, `parts` are called without one around them if `fits` finds no mistake.
    """

    def register(check_in_words: Callable[..., None]) -> Callable[..., None]:
        def described(*arguments: Any) -> None:
            check_in_words(*arguments)
            parts(*arguments)

        operator = _operator(schema, fake)(described)

        def call(*arguments: Any) -> None:
            plain = _direct.is_eager() and all(map(_is_memory, arguments[:tensors]))
            (parts if plain and fits(*arguments) else operator)(*arguments)

        return functools.update_wrapper(call, check_in_words, ("__module__", "__name__", "__qualname__", "__doc__"))

    return register


def _is_memory(tensor: Tensor | None) -> bool:
    return tensor is None or (type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta)


def _mlp_fake(*arguments):
    settings = _Settings.of(arguments[_FORWARD:])
    for op, tensors, options in _Operands(*arguments[:_FORWARD]).rules(settings.weight_layout, settings.choice):
        _check_fake(op, tensors, options)


def _mlp_fits(*arguments):
    # The rules of `_Operands.rules`, on the tensors themselves.
    x, fc1_weight, fc2_weight, group_sizes, fc1_bias, fc2_bias, row_scale, h, a, out = arguments[:10]
    dgrad_out, fc1_wgrad_out, fc2_wgrad_out, weight_layout, *choice = arguments[10 : _FORWARD + 6]
    if _direct.calls is None:
        return False
    fits = _direct.calls.check
    layout = _ops._options(weight_layout)
    return (
        fits(Op.LINEAR, (x, fc1_weight, group_sizes, fc1_bias, row_scale, h, dgrad_out, fc1_wgrad_out), layout)
        and fits(Op.ACTIVATION, (h, group_sizes, row_scale, a), _ops._activation_options(*choice, False))
        and fits(Op.LINEAR, (a, fc2_weight, group_sizes, fc2_bias, row_scale, out, None, fc2_wgrad_out), layout)
    )


def _mlp_parts(*arguments):
    x, fc1_weight, fc2_weight, group_sizes, fc1_bias, fc2_bias, row_scale, h, a, out = arguments[:10]
    weight_layout, choice, (zero_tail,) = _Settings.of(arguments[_FORWARD:])
    if not zero_tail or arguments[10:_FORWARD] != (None, None, None):
        for buffers, others in _Operands(*arguments[:_FORWARD]).pairs_in_no_rule(given_out=not zero_tail):
            check_apart(buffers, others)
    _ops.linear(x, fc1_weight, group_sizes, fc1_bias, None, h, None, None, weight_layout, False)
    _ops.activation(h, group_sizes, row_scale, a, None, *choice, False)
    _ops.linear(a, fc2_weight, group_sizes, fc2_bias, None, out, None, None, weight_layout, zero_tail)


@_operator_of_parts(
    "mlp(Tensor x, Tensor fc1_weight, Tensor fc2_weight, Tensor group_sizes, Tensor? fc1_bias, Tensor? fc2_bias, "
    "Tensor? row_scale, Tensor(a!) h, Tensor(b!) a, Tensor(c!) out, Tensor? dgrad_out, Tensor? fc1_wgrad_out, "
    "Tensor? fc2_wgrad_out, int weight_layout, int kind, int gate_layout, float alpha, float limit, float offset, "
    "bool zero_tail)",
    _mlp_fake,
    _FORWARD,
    _mlp_parts,
    _mlp_fits,
)
def mlp(*arguments):
    """out = activation(x W1 + b1) * row_scale W2 + b2. h and a take what lies between; their tails stay as they are."""
    settings = _Settings.of(arguments[_FORWARD:])
    for op, tensors, options in _Operands(*arguments[:_FORWARD]).rules(settings.weight_layout, settings.choice):
        check(op, tuple(describe(t, name) for name, t in tensors.items()), tuple(options))


def _like_activation(dy: Tensor, h: Tensor | None, a: Tensor | None, choice: Activation) -> Tensor:
    """New memory for the activation's result or its gradient."""
    if a is not None:
        return torch.empty_like(a)
    if h is None or h.dim() != 2:
        return dy.new_empty(0, 0)  # not needed, or refused at h itself
    return h.new_empty(h.shape[0], choice.width(h.shape[1]))


class _GradOperands(NamedTuple):
    """What the backward of one call was given; None for what it does not need or nobody wants."""

    dy: Tensor
    x: Tensor | None
    fc1_weight: Tensor | None
    fc2_weight: Tensor | None
    group_sizes: Tensor
    row_scale: Tensor | None
    h: Tensor | None
    a: Tensor | None
    dgrad_out: Tensor | None
    d_fc1_weight: Tensor | None
    d_fc2_weight: Tensor | None
    d_fc1_bias: Tensor | None
    d_fc2_bias: Tensor | None
    d_row_scale: Tensor | None
    dh: Tensor | None

    @property
    def through_fc1(self) -> bool:
        """Whether anything before fc2 gets a gradient."""
        results = (self.dgrad_out, self.d_fc1_weight, self.d_fc1_bias, self.d_row_scale, self.dh)
        return any(t is not None for t in results)

    def rules(self, da: Tensor, weight_layout: int, choice: Activation) -> list[_Rule]:
        """The checks that the parts will make, under the MLP's names; h and da stand for gradients like them."""
        read_other_way = Options(weight_layout=other_layout(weight_layout))
        layout = Options(weight_layout=weight_layout)
        sizes = {"group_sizes": self.group_sizes}
        absent: dict[str, Tensor | None] = {"bias": None, "row_scale": None}
        dh = self.h if self.dh is None else self.dh
        found: list[_Rule] = []
        fc1: dict[str, Tensor | None]
        fc2: dict[str, Tensor | None]
        if self.through_fc1:
            fc2 = {"dy": self.dy, "fc2_weight": self.fc2_weight, **sizes, **absent, "da": da}
            activation = {FC1_RESULT: self.h, "da": da, **sizes, "row_scale": self.row_scale, "dh": dh}
            found.append((Op.MM, fc2, read_other_way))
            found.append(
                (Op.ACTIVATION_GRAD, {**activation, "d_row_scale": self.d_row_scale}, choice.options(Tail.KEEP))
            )
        if self.d_fc2_weight is not None:
            fc2 = {ACTIVATION: da, "dy": self.dy, **sizes, "fc2_wgrad_out": self.d_fc2_weight}
            found.append((Op.WGRAD, fc2, layout))
        if self.d_fc2_bias is not None:
            found.append((Op.BIAS_GRAD, {"dy": self.dy, **sizes, "d_fc2_bias": self.d_fc2_bias}, Options()))
        if self.d_fc1_weight is not None:
            fc1 = {"x": self.x, "dh": self.h, **sizes, "fc1_wgrad_out": self.d_fc1_weight}
            found.append((Op.WGRAD, fc1, layout))
        if self.d_fc1_bias is not None:
            found.append((Op.BIAS_GRAD, {"dh": self.h, **sizes, "d_fc1_bias": self.d_fc1_bias}, Options()))
        if self.dgrad_out is not None:
            fc1 = {"dh": self.h, "fc1_weight": self.fc1_weight, **sizes, **absent, "dgrad_out": self.dgrad_out}
            found.append((Op.MM, fc1, read_other_way))
        return found


def _mlp_grad_fake(*arguments):
    given = _GradOperands(*arguments[:_BACKWARD])
    weight_layout, choice, _ = _Settings.of(arguments[_BACKWARD:])
    da = _like_activation(given.dy, given.h, given.a, choice)
    for op, tensors, options in given.rules(da, weight_layout, choice):
        _check_fake(op, tensors, options)


def _mlp_grad_parts(*arguments):
    # The incoming gradient must not lie in a buffer that is written, though by then it has been read: the rule is the
    # linear layer's.
    given = _GradOperands(*arguments[:_BACKWARD])
    weight_layout, choice, (accumulate_fc1, accumulate_fc2, zero_tail) = _Settings.of(arguments[_BACKWARD:])
    dy, x, fc1_weight, fc2_weight, group_sizes, row_scale, h, a = given[:8]
    dgrad_out, d_fc1_weight, d_fc2_weight, d_fc1_bias, d_fc2_bias, d_row_scale, dh = given[8:]
    da = _like_activation(dy, h, a, choice)
    check_apart({"dgrad_out": dgrad_out, "fc1_wgrad_out": d_fc1_weight, "fc2_wgrad_out": d_fc2_weight}, {"dy": dy})
    if given.through_fc1:
        _ops.dgrad(dy, fc2_weight, group_sizes, None, da, None, weight_layout, False)
    if d_fc2_weight is not None:
        if a is None:
            a = torch.empty_like(da)
            _ops.activation(h, group_sizes, row_scale, a, None, *choice, False)
        _ops.wgrad(a, dy, group_sizes, d_fc2_weight, weight_layout, accumulate_fc2)
        del a
    if d_fc2_bias is not None:
        _ops.bias_grad(dy, group_sizes, d_fc2_bias, False)
    if not given.through_fc1 or h is None:
        return
    if dh is None:
        dh = torch.empty_like(h)
    _ops.activation_grad(h, da, group_sizes, row_scale, dh, d_row_scale, *choice, False)
    del da  # its memory serves the rest
    if d_fc1_weight is not None:
        _ops.wgrad(x, dh, group_sizes, d_fc1_weight, weight_layout, accumulate_fc1)
    if d_fc1_bias is not None:
        _ops.bias_grad(dh, group_sizes, d_fc1_bias, False)
    if dgrad_out is not None:
        _ops.dgrad(dh, fc1_weight, group_sizes, None, dgrad_out, None, weight_layout, zero_tail)


def _nothing_to_find(*arguments):
    # Forward has checked what is saved and the buffers, autograd the gradient, and each part checks its own.
    return _direct.calls is not None


@_operator_of_parts(
    "mlp_grad(Tensor dy, Tensor? x, Tensor? fc1_weight, Tensor? fc2_weight, Tensor group_sizes, "
    "Tensor? row_scale, Tensor? h, Tensor? a, Tensor(a!)? dgrad_out, Tensor(b!)? d_fc1_weight, "
    "Tensor(c!)? d_fc2_weight, Tensor(d!)? d_fc1_bias, Tensor(e!)? d_fc2_bias, Tensor(f!)? d_row_scale, "
    "Tensor(g!)? dh, int weight_layout, int kind, int gate_layout, float alpha, float limit, float offset, "
    "bool accumulate_fc1, bool accumulate_fc2, bool zero_tail)",
    _mlp_grad_fake,
    _BACKWARD,
    _mlp_grad_parts,
    _nothing_to_find,
)
def mlp_grad(*arguments):
    """The gradients that have a place given, that of h among them; a is computed again from h where it was not kept."""
    given = _GradOperands(*arguments[:_BACKWARD])
    weight_layout, choice, _ = _Settings.of(arguments[_BACKWARD:])
    da = _like_activation(given.dy, given.h, given.a, choice)
    for op, tensors, options in given.rules(da, weight_layout, choice):
        # Without addresses: h stands for its gradient, and each part looks at its own.
        check(op, tuple(describe_fake(t, name) for name, t in tensors.items()), tuple(options))
