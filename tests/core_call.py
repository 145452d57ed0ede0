# SPDX-License-Identifier: Apache-2.0
"""The core called on numpy arrays: every array in memory of its own between guard bytes that are checked afterwards.

`run` never works on the arrays it is given. It copies them, calls the core, and hands the buffers back; guards and
inputs must then be what they were, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from cases import SENTINEL
from tolerances import name_of

import grouped_core
from grouped_core import CPU_DEVICE, DType, Op, Options, Tail

LAYOUTS = ("gnk", "gkn")
BUFFERS = frozenset({"out", "dh", "d_row_scale", "dgrad_out", "wgrad_out"})
_GUARD = 64  # bytes on either side
_GUARD_BYTE = 0xA5
_ALIGNMENT = 64
_CODES = {
    np.dtype(np.float16): DType.F16,
    np.dtype(ml_dtypes.bfloat16): DType.BF16,
    np.dtype(np.float32): DType.F32,
    np.dtype(np.float64): DType.F64,
    np.dtype(np.int32): DType.I32,
    np.dtype(np.int64): DType.I64,
    np.dtype(np.bool_): DType.BOOL,
    np.dtype(np.int8): DType.I8,
    np.dtype(np.uint8): DType.U8,
    np.dtype(np.int16): DType.I16,
    np.dtype(np.uint16): DType.U16,
    np.dtype(np.uint32): DType.U32,
    np.dtype(np.uint64): DType.U64,
    np.dtype(np.complex64): DType.C64,
    np.dtype(np.complex128): DType.C128,
    np.dtype(ml_dtypes.float8_e4m3fn): DType.F8E4M3,
    np.dtype(ml_dtypes.float8_e5m2): DType.F8E5M2,
}


def dtype_code(dtype) -> int:
    """The core's number for a numpy dtype; OTHER for one it has no name for."""
    return int(_CODES.get(np.dtype(dtype), DType.OTHER))


def address(array) -> int:
    return array.__array_interface__["data"][0]


def describe(array, *, flags: int = 0, device: int = CPU_DEVICE, name: str = "") -> tuple | None:
    """The core's seven fields for an array."""
    if array is None:
        return None
    strides = tuple(s // array.itemsize for s in array.strides)
    return name, address(array), dtype_code(array.dtype), array.shape, strides, device, flags


class Guarded:
    """A copy of an array in aligned memory of its own, with guard bytes that touch it on either side."""

    def __init__(self, array, shift: int = 0):
        """`shift` bytes past the alignment, for tests of the alignment rule."""
        array = np.ascontiguousarray(array) if array.ndim else array
        self.raw = np.full(array.nbytes + 2 * _GUARD + _ALIGNMENT + shift, _GUARD_BYTE, np.uint8)
        self.begin = -(address(self.raw) + _GUARD) % _ALIGNMENT + _GUARD + shift
        self.end = self.begin + array.nbytes
        self.array = self.raw[self.begin : self.end].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self.before = self.raw.copy()

    def verify_guards(self, name: str) -> None:
        around = np.concatenate([self.raw[: self.begin], self.raw[self.end :]])
        if (around != _GUARD_BYTE).any():
            raise AssertionError(f"{name}: bytes outside the array were written")

    def verify_unchanged(self, name: str) -> None:
        if (self.raw != self.before).any():
            raise AssertionError(f"{name}: {(self.raw != self.before).sum()} bytes were written")


def workspace_for(op: Op, arrays: Mapping, layout: int) -> Guarded:
    """Exactly workspace_size() bytes, full of garbage."""
    dims = {}
    for name, letters in grouped_core.argument_dims(op, layout):
        if arrays.get(name) is not None:
            dims.update(zip(letters, arrays[name].shape, strict=True))
    base = arrays["out"] if op == Op.ROW_SCALE else next(iter(arrays.values()))
    size = grouped_core.workspace_size(
        op, dtype_code(base.dtype), CPU_DEVICE, dims.get("K", 0), dims.get("N", 0), dims["G"]
    )
    return Guarded(np.full(size, 0xFF, np.uint8))


def in_order(op: Op, arrays: Mapping) -> list:
    """The values of `arrays` in the order of the rule table; an unknown name is an error of the test."""
    names = [name for name, _ in grouped_core.argument_dims(op, 0)]
    if not set(arrays) <= set(names):
        raise KeyError(f"{set(arrays) - set(names)} are no arguments of {op!r}")
    return [arrays.get(name) for name in names]


def run(op: Op, arrays: Mapping, *, num_threads: int = 1, layout: str = "gnk", **options) -> dict:
    """Runs `op` on copies; the buffers by name. `arrays` begins with the operation's first argument."""
    options = Options(weight_layout=LAYOUTS.index(layout), **options)
    memory = {name: Guarded(array) for name, array in arrays.items() if array is not None}
    workspace = workspace_for(op, arrays, options.weight_layout)
    tensors = tuple(
        None if array is None else describe(array)
        for array in in_order(op, {name: m.array for name, m in memory.items()})
    )
    scratch = workspace.array
    grouped_core.run(op, tensors, tuple(options), address(scratch), scratch.nbytes, 0, num_threads)
    workspace.verify_guards("workspace")
    for name, m in memory.items():
        if name in BUFFERS:
            m.verify_guards(name)
        else:
            m.verify_unchanged(name)
    return {name: m.array for name, m in memory.items() if name in BUFFERS}


def poisoned(shape, dtype, tail_from: int | None = None):
    """A buffer of NaNs; from row `tail_from` on, of the sentinel that must survive."""
    a = np.full(shape, np.nan, dtype)
    if tail_from is not None:
        a[tail_from:] = SENTINEL
    return a


def sizes_of(sizes, dtype="int32"):
    """Group sizes, also as "ends"; returns (array, sizes_kind)."""
    if dtype == "ends":
        return np.cumsum(np.asarray(sizes, np.int64)), 1
    return np.asarray(sizes, dtype), 0


def mm(x, weight, sizes, bias=None, row_scale=None, *, layout="gnk", out=None, tail=Tail.KEEP, **more):
    """grouped_mm into a poisoned buffer of x's dtype, or into a copy of `out`."""
    if out is None:
        columns = weight.shape[1 + LAYOUTS.index(layout)]
        rows_used = int(np.sum(sizes)) if tail == Tail.KEEP else None
        out = poisoned((x.shape[0], columns), x.dtype, rows_used)
    group_sizes = sizes if isinstance(sizes, np.ndarray) else sizes_of(sizes)[0]
    arrays = {"x": x, "weight": weight, "group_sizes": group_sizes, "bias": bias, "row_scale": row_scale, "out": out}
    return run(Op.MM, arrays, layout=layout, tail=int(tail), **more)["out"]


def wgrad(x, dy, sizes, *, layout="gnk", out=None, **more):
    """grouped_wgrad into a poisoned buffer, or into a copy of `out`."""
    if out is None:
        shape = (dy.shape[1], x.shape[1]) if layout == "gnk" else (x.shape[1], dy.shape[1])
        out = poisoned((len(sizes), *shape), x.dtype)
    group_sizes = sizes if isinstance(sizes, np.ndarray) else sizes_of(sizes)[0]
    arrays = {"x": x, "dy": dy, "group_sizes": group_sizes, "out": out}
    return run(Op.WGRAD, arrays, layout=layout, **more)["out"]


def transposed(weight):
    """The same weight in the other storage."""
    return np.ascontiguousarray(weight.transpose(0, 2, 1))


def assert_tail(result, S: int, tail: Tail) -> None:
    """Rows from S on hold what the tail mode promises, bit for bit."""
    expected = np.full_like(result[S:], SENTINEL if tail == Tail.KEEP else 0)
    if result[S:].tobytes() != expected.tobytes():
        raise AssertionError(f"the tail under {tail!r} holds {result[S:]}")


def is_narrow(array) -> bool:
    return name_of(array.dtype) in ("f16", "bf16")
