# SPDX-License-Identifier: Apache-2.0
"""grouped.h as a program in C meets it, where Python's own calls cannot go."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest
from core_call import Guarded, address

import grouped_core
from benchmarks.peers.c_structures import Launch, MmArguments, Status, Tensor

F32, I32, CPU, BAD_VALUE, INTERNAL = 3, 5, -1, 1, 4


def verdict(function, *arguments):
    """(code, message)"""
    status = Status(ctypes.sizeof(Status))
    code = getattr(ctypes.CDLL(str(sys.modules["grouped_core._core"].__file__)), function)(
        *arguments, ctypes.byref(status)
    )
    assert code == status.code
    return code, status.message.decode()


def described(array):
    tensor = Tensor(data=address(array), dtype=I32 if array.dtype == np.int32 else F32, rank=array.ndim, device=CPU)
    for i, (length, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        tensor.shape[i], tensor.strides[i] = length, stride // array.itemsize
    return tensor


def test_one_description_for_an_input_and_the_result_is_an_overlap():
    memory = np.ones(4 * 8 + 3, np.float32)
    first = -address(memory) // 4 % 4  # 16-byte aligned
    x = memory[first : first + 4 * 8].reshape(4, 8)
    shared = described(x)
    weight, sizes = np.ones((1, 8, 8), np.float32), np.array([4], np.int32)
    inputs = (shared, described(weight), described(sizes))
    arguments = MmArguments(ctypes.sizeof(MmArguments), *map(ctypes.pointer, inputs))
    arguments.out = ctypes.pointer(shared)
    words = "out must not overlap x; got memory that they share. Pass memory of its own."
    assert verdict("grouped_check", int(grouped_core.Op.MM), ctypes.byref(arguments)) == (BAD_VALUE, words)


@pytest.mark.parametrize("op", list(grouped_core.Op))
def test_no_arguments(op):
    assert verdict("grouped_check", int(op), None) == (INTERNAL, "arguments are needed")


@pytest.mark.parametrize("op", list(grouped_core.Op))
def test_a_short_structure_is_refused_before_its_fields_are_read(op):
    memory = (ctypes.c_uint64 * 32)(8, *[0xAAAA] * 31)  # what lies behind its 8 bytes is no field of it
    code, words = verdict("grouped_check", int(op), memory)
    assert code == INTERNAL
    assert ": arguments of 8 bytes; this library needs " in words


def test_a_size_without_a_workspace():
    inputs = [np.ones((4, 8), np.float32), np.ones((1, 8, 8), np.float32), np.array([4], np.int32)]
    out = Guarded(np.zeros((4, 8), np.float32))
    arguments = MmArguments(ctypes.sizeof(MmArguments), *map(ctypes.pointer, map(described, inputs)))
    arguments.out = ctypes.pointer(described(out.array))
    code, words = verdict("grouped_mm", ctypes.byref(arguments), ctypes.byref(Launch(workspace_size=4096)))
    assert code == INTERNAL
    assert words == "grouped_mm: workspace must hold 32 bytes; got 0. Ask grouped_workspace_size()."
    out.verify_unchanged("out")
