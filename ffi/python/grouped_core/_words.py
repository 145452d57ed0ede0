# SPDX-License-Identifier: Apache-2.0
"""The numbers of grouped.h under their names, and the strings that users write for them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple


class Op(IntEnum):
    """GROUPED_OP_*."""

    MM = 0
    WGRAD = 1
    BIAS_GRAD = 2
    ACTIVATION = 3
    ACTIVATION_GRAD = 4
    ROW_SCALE = 5
    ROW_DOT = 6
    LINEAR = 7


class DType(IntEnum):
    """GROUPED_F16 and so on; OTHER is any dtype that messages need not name."""

    OTHER = 0
    F16 = 1
    BF16 = 2
    F32 = 3
    F64 = 4
    I32 = 5
    I64 = 6
    BOOL = 7
    I8 = 8
    U8 = 9
    I16 = 10
    U16 = 11
    U32 = 12
    U64 = 13
    C64 = 14
    C128 = 15
    F8E4M3 = 16
    F8E5M2 = 17


class Tail(IntEnum):
    """What happens to the result's rows past the last group."""

    KEEP = 0
    ZERO = 1


# From 0 on CUDA ordinals.
CPU_DEVICE = -1
META_DEVICE = -2  # nowhere: a shape alone, in checks
REQUIRES_GRAD = 1  # flags of a tensor
NO_DATA = 2

ACTIVATIONS = {"swiglu": 0, "clamped_swiglu": 1, "geglu": 2, "squared_relu": 3}
_WEIGHT_LAYOUTS = {"gnk": 0, "gkn": 1}
_GATE_LAYOUTS = {"concatenated": 0, "interleaved": 1}


class Options(NamedTuple):
    """What an operation is told beside its tensors, in the order in which the core reads it."""

    weight_layout: int = 0
    sizes_kind: int = 0
    tail: int = 0
    accumulate: int = 0
    kind: int = 0
    gate_layout: int = 0
    alpha: float = 0.0
    limit: float = 0.0
    offset: float = 0.0


def _look_up(name: str, table: dict[str, int], value: str) -> int:
    if not isinstance(value, str) or value not in table:
        choices = ", ".join(f'"{choice}"' for choice in table)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}.")
    return table[value]


def weight_layout_code(weight_layout: str) -> int:
    """The number of "gnk" ([G, N, K]) or "gkn" ([G, K, N]); ValueError for any other."""
    return _look_up("weight_layout", _WEIGHT_LAYOUTS, weight_layout)


def other_layout(code: int) -> int:
    """The layout that reads the same storage transposed: forward's weight as dgrad's."""
    return 1 - code


class Activation(NamedTuple):
    """A checked choice of activation."""

    kind: int
    gate_layout: int
    alpha: float
    limit: float
    offset: float

    @property
    def gated(self) -> bool:
        """Whether h has a gate, and so twice the result's columns."""
        return self.kind != ACTIVATIONS["squared_relu"]

    def width(self, columns: int) -> int:
        """Columns of the result for h with `columns`; an odd count is left to the core to refuse."""
        return columns // 2 if self.gated else columns

    def check_columns(self, name: str, shape: Sequence[Any], weight_layout: int) -> None:
        """ValueError if the weight `name` before this activation makes no pairs of gate and up; symbols pass.

        Here, because the core only sees what that weight made, which no caller has given.
        """
        columns = shape[1 + weight_layout]
        if self.gated and type(columns) is int and columns % 2:
            wanted = "[G, K, 2F]" if weight_layout else "[G, 2F, K]"
            raise ValueError(
                f"{name} must be {wanted}, with as many columns of up as of gate; got {list(shape)}. "
                'Without a gate pass activation="squared_relu".'
            )

    def options(self, tail: int) -> Options:
        """As the core reads it."""
        return Options(tail=tail, **self._asdict())


def activation_kind(argument: str, name: str) -> int:
    """The number of an activation, given as `argument`; ValueError for an unknown name."""
    return _look_up(argument, ACTIVATIONS, name)


def activation_options(kind: str, gate_layout: str, alpha: float, limit: float, offset: float) -> Activation:
    """The activation of these names and numbers; ValueError for an unknown name."""
    return Activation(
        activation_kind("kind", kind),
        _look_up("gate_layout", _GATE_LAYOUTS, gate_layout),
        float(alpha),
        float(limit),
        float(offset),
    )
