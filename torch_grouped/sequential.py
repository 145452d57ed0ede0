# SPDX-License-Identifier: Apache-2.0
"""Sequential: operations one after another, each with inputs and buffers of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from torch_grouped._fusion import run_as_one, same_splits
from torch_grouped.activations import GroupedActivation
from torch_grouped.grouped_linear import GroupedLinear
from torch_grouped.grouped_mlp import GroupedMLP

__all__ = ["GRAD_INPUT_BUFFER_KEY", "OUTPUT_BUFFER_KEY", "Sequential"]

OUTPUT_BUFFER_KEY = "output"
GRAD_INPUT_BUFFER_KEY = "grad_input"
_KEYWORDS = {OUTPUT_BUFFER_KEY: "out", GRAD_INPUT_BUFFER_KEY: "dgrad_out"}
_TAKES_BUFFERS = (GroupedLinear, GroupedActivation, GroupedMLP)

OpKwargs = Mapping[nn.Module | int, Mapping[str, Any]]


class _Call(NamedTuple):
    """One operation of one forward: where it stands, what it is, its inputs and its buffers as keywords."""

    position: int
    module: Any
    extra: tuple
    buffers: dict[str, Tensor | None]


def _names_of_extra_inputs(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, GroupedLinear | GroupedMLP):
        return ("m_splits",)
    if isinstance(module, GroupedActivation):
        return ("probs",) * module.num_extra_inputs
    if isinstance(module, Sequential):
        return tuple(name for inner in module for name in _names_of_extra_inputs(inner))
    return ()


class Sequential(nn.Sequential):
    """Operations one after another, where `GroupedLinear` and its kin get their extra inputs and buffers.

    `GroupedLinear`, an activation of `torch_grouped` and `GroupedLinear` in a row run as one grouped MLP where that
    changes nothing that can be seen: same sizes for both layers (the same tensor, or equal lists), no buffer on an
    edge between them, no hooks on them, no options that the one step does not know. Bits are the same either way.

    An operation's extra inputs are ``m_splits`` for `GroupedLinear` and `GroupedMLP`, ``probs`` for a scaled
    activation, and none for any other module. An activation takes its rows' sizes from the `GroupedLinear` or
    `GroupedMLP` before it in the same Sequential; where there is none, all rows count and there is no tail.
    """

    @property
    def num_extra_inputs(self) -> int:
        """How many inputs `forward` takes beside the first."""
        return len(_names_of_extra_inputs(self))

    def forward(self, input: Tensor, *extra_inputs: Any, op_kwargs: OpKwargs | None = None) -> Tensor:
        """Applies the operations in turn.

        Args:
          input: rows, as the first operation takes them.
          extra_inputs: each operation's extra inputs, in order.
          op_kwargs: buffers of operations, by module or by index (negative ones count from the end):
            ``{OUTPUT_BUFFER_KEY: out, GRAD_INPUT_BUFFER_KEY: dgrad_out}``, either or both.

        Returns:
          What the last operation gives.

        Raises:
          ValueError: another number of extra inputs; in op_kwargs a key that is not in here, that stands for several
            operations or for the same one as another key, a target that takes no buffers, an unknown keyword.
          TypeError: a key that is neither a module nor an index.
          Else what the operations raise.
        """
        calls = _plan(list(self), extra_inputs, op_kwargs or {})
        x, m_splits = input, None
        while calls:
            fused = _first_three_as_one(calls, x)
            if fused is not None:
                x, m_splits, calls = fused, calls[0].extra[0], calls[3:]
                continue
            call, calls = calls[0], calls[1:]
            if isinstance(call.module, GroupedLinear | GroupedMLP):
                (m_splits,) = call.extra
            options: dict[str, Any] = dict(call.buffers)
            if isinstance(call.module, GroupedActivation):
                options["m_splits"] = m_splits
            x = call.module(x, *call.extra, **options)
        return x


def _first_three_as_one(calls: list[_Call], x: Tensor) -> Tensor | None:
    if len(calls) < 3:
        return None
    fc1, activation, fc2 = calls[:3]
    linears = isinstance(fc1.module, GroupedLinear) and isinstance(fc2.module, GroupedLinear)
    if not linears or not same_splits(fc1.extra[0], fc2.extra[0]):
        return None
    on_inner_edges = (fc1.buffers.get("out"), *activation.buffers.values(), fc2.buffers.get("dgrad_out"))
    if any(buffer is not None for buffer in on_inner_edges):
        return None
    return run_as_one(
        fc1.module,
        activation.module,
        fc2.module,
        x,
        fc1.extra[0],
        activation.extra[0] if isinstance(activation.module, GroupedActivation) and activation.extra else None,
        out=fc2.buffers.get("out"),
        dgrad_out=fc1.buffers.get("dgrad_out"),
    )


def _plan(modules: list[nn.Module], extra_inputs: tuple, op_kwargs: OpKwargs) -> list[_Call]:
    """What each operation gets."""
    wanted = [_names_of_extra_inputs(module) for module in modules]
    if sum(map(len, wanted)) != len(extra_inputs):
        listed = "; ".join(
            f"{i} {type(m).__name__}: {', '.join(names)}"
            for i, (m, names) in enumerate(zip(modules, wanted, strict=True))
            if names
        )
        raise ValueError(
            f"extra_inputs must be {sum(map(len, wanted))} ({listed or 'no operation takes any'}); got "
            f"{len(extra_inputs)}. Pass each operation's inputs, in order."
        )
    for i, module in enumerate(modules):
        if isinstance(module, GroupedLinear) and module.return_bias:
            raise ValueError(
                f"operation {i} must give its result alone; got a GroupedLinear with return_bias=True, which gives a "
                "pair. Construct it without."
            )
    buffers = _buffers_by_position(modules, op_kwargs)
    calls, begin = [], 0
    for i, (module, names) in enumerate(zip(modules, wanted, strict=True)):
        calls.append(_Call(i, module, extra_inputs[begin : begin + len(names)], buffers.get(i, {})))
        begin += len(names)
    return calls


def _buffers_by_position(modules: list[nn.Module], op_kwargs: OpKwargs) -> dict[int, dict[str, Tensor | None]]:
    found: dict[int, dict[str, Tensor | None]] = {}
    for key, given in op_kwargs.items():
        position = _position(modules, key)
        module = modules[position]
        if position in found:
            raise ValueError(
                f"op_kwargs must name each operation once; got two keys for operation {position} "
                f"({type(module).__name__}). Put its buffers under one key."
            )
        if not isinstance(module, _TAKES_BUFFERS):
            raise ValueError(
                f"op_kwargs must name operations that take buffers; got operation {position}, a "
                f"{type(module).__name__}, which takes none. Name a GroupedLinear, an activation of "
                "torch_grouped or a GroupedMLP."
            )
        for keyword in given:
            if keyword not in _KEYWORDS:
                raise ValueError(
                    f'op_kwargs of operation {position} must have the keys OUTPUT_BUFFER_KEY="output" and '
                    f'GRAD_INPUT_BUFFER_KEY="grad_input" alone; got {keyword!r}. Take it out.'
                )
        found[position] = {_KEYWORDS[keyword]: buffer for keyword, buffer in given.items()}
    return found


def _position(modules: list[nn.Module], key: Any) -> int:
    """Where the operation that `key` names stands."""
    if isinstance(key, nn.Module):
        positions = [i for i, module in enumerate(modules) if module is key]
        if not positions:
            raise ValueError(
                f"op_kwargs must name operations of this Sequential; got a {type(key).__name__} that is not in it. "
                "Name one of its own modules or an index."
            )
        if len(positions) > 1:
            raise ValueError(
                f"op_kwargs must say which operation it means; got a {type(key).__name__} that stands at "
                f"{', '.join(map(str, positions))}. Name it by index."
            )
        return positions[0]
    if not isinstance(key, int) or isinstance(key, bool):
        raise TypeError(f"op_kwargs must have modules or indices as keys; got {key!r}.")
    if not -len(modules) <= key < len(modules):
        raise ValueError(
            f"op_kwargs must name operations of this Sequential; got index {key}, and it has {len(modules)}."
        )
    return key % len(modules)
