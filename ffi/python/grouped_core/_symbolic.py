# SPDX-License-Identifier: Apache-2.0
"""The core's rules for tracers whose sizes are symbols: torch.compile, torch.export, jax.export.

The core judges numbers. So each symbol is replaced by a number, the same one wherever the rule table has the same
letter and the tracer finds the sizes equal; comparing is also what makes the tracer note the assumption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grouped_core._core import argument_dims, check
from grouped_core._words import Activation, Op, Options

_FIRST_STAND_IN = 1 << 20  # even, as is what is added: a gated h has an even number of columns


def check_symbolic(
    op: int,
    tensors: Sequence[tuple | None],
    options: Options,
    *,
    same: Callable[[Any, Any], bool] = lambda a, b: bool(a == b),
    hint: Callable[[Any], int | None] = lambda symbol: None,
) -> None:
    """`check` for shapes that hold ints, symbols or both.

    Args:
      op: the operation.
      tensors: as `check` takes them; shapes and strides may hold symbols.
      options: as `check` takes them.
      same: whether two sizes are equal; called for sizes that share a letter.
      hint: a number to show in a message for a symbol, if there is one.

    Raises:
      ValueError, TypeError: the core's, in the core's words.
    """
    bound: dict[str, tuple[Any, int]] = {}

    def number_of(symbol: Any, letter: str = "") -> int:
        """The number that stands for a symbol: its hint, or for want of one a number of the letter's own."""
        if type(symbol) is int:
            return symbol
        given = hint(symbol)
        return _FIRST_STAND_IN + 2 * sum(map(ord, letter)) if given is None else given

    def concrete(letter: str, size: Any) -> int:
        if letter not in bound:
            bound[letter] = (size, number_of(size, letter))
            if letter == "H":
                gated = Activation(options.kind, 0, 0.0, 0.0, 0.0).gated
                value, number = bound["H"]
                bound["F"] = (value // 2, number // 2) if gated else (value, number)
        value, number = bound[letter]
        if type(size) is int and type(value) is int:
            return size
        if same(size, value):
            return number
        unequal = number_of(size, letter)
        return unequal if unequal != number else number + 2

    def with_numbers(tensor: tuple | None, letters: str) -> tuple | None:
        if tensor is None:
            return None
        name, address, dtype, shape, strides, device, flags = tensor
        if len(shape) != len(letters):
            numbers = tuple(number_of(size) for size in shape)
        else:
            numbers = tuple(concrete(letter, size) for letter, size in zip(letters, shape, strict=True))
        if strides is not None:
            strides = tuple(number_of(stride) for stride in strides)
        return name, address, dtype, numbers, strides, device, flags

    rules = argument_dims(Op(op), options.weight_layout)
    check(
        op,
        tuple(with_numbers(t, dims) for t, (_, dims) in zip(tensors, rules, strict=True)),
        tuple(options),
    )
