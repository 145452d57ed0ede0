# SPDX-License-Identifier: Apache-2.0
"""A good call of every operation of the core, ways to spoil it, and the words that refusals share."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from core_call import LAYOUTS, Guarded, address, describe, in_order
from numpy.typing import DTypeLike

import grouped_core
from grouped_core import Op, Options

BF16 = np.dtype(ml_dtypes.bfloat16)
T, K, N, G, F = 6, 4, 8, 2, 8
OPTIONS = {Op.ACTIVATION: {"kind": 0}, Op.ACTIVATION_GRAD: {"kind": 0}}
LETTERS = {"T": T, "K": K, "N": N, "G": G, "F": F, "H": 2 * F}
LAUNCHED = [op for op in Op if op != Op.LINEAR]


class Call:
    """A good call of `op` in memory with guards; `run` and `check` must leave every byte alone when they raise."""

    def __init__(self, op, layout="gnk", dtype=np.float32, **options):
        self.op = op
        self.options = {"weight_layout": LAYOUTS.index(layout), **OPTIONS.get(op, {}), **options}
        self.memory, self.arrays = {}, {}
        self.fields = {}  # name -> changes to the seven fields
        for name, letters in grouped_core.argument_dims(op, LAYOUTS.index(layout)):
            if name == "group_sizes":
                self.put(name, np.array([3, 2], np.int32))
            else:
                self.put(name, np.ones([LETTERS[c] for c in letters], dtype))

    def put(self, name, array, *, shift=0):
        self.memory[name] = Guarded(array, shift)
        self.arrays[name] = self.memory[name].array

    def view(self, name, array):
        """`array` lies in memory that is another argument's."""
        self.arrays[name] = array

    def leave_out(self, name):
        self.arrays[name] = None

    def tensors(self):
        tensors = []
        for name, array in zip(self.names(), in_order(self.op, self.arrays), strict=True):
            fields = describe(array, **self.fields.get(name, {})) if array is not None else None
            tensors.append(fields)
        return tuple(tensors)

    def names(self):
        return [name for name, _ in grouped_core.argument_dims(self.op, 0)]

    def check(self):
        grouped_core.check(self.op, self.tensors(), tuple(Options(**self.options)))

    def run(self, workspace_size=None):
        workspace = np.zeros(1 << 16, np.uint8)
        size = workspace.nbytes if workspace_size is None else workspace_size
        grouped_core.run(self.op, self.tensors(), tuple(Options(**self.options)), address(workspace), size, 0, 1)

    def refused(self, error, message):
        """Both ways in raise `error` with exactly `message`, and nothing is written."""
        for enter in (self.check, self.run):
            with pytest.raises(error) as caught:
                enter()
            assert type(caught.value) is error
            assert str(caught.value) == message
        self.verify_untouched()

    def verify_untouched(self):
        for name, memory in self.memory.items():
            memory.verify_unchanged(name)


def put(name, shape, dtype: DTypeLike = np.float32):
    return lambda call: call.put(name, np.ones(shape, dtype))


def leave_out(*names):
    return lambda call: [call.leave_out(name) for name in names]


def flag(name, **fields):
    return lambda call: call.fields.__setitem__(name, fields)


def strided(name):
    def change(call):
        a = call.arrays[name]
        call.put(name, np.ones((*a.shape[:-1], 2 * a.shape[-1]), a.dtype))
        call.view(name, call.arrays[name][..., ::2])

    return change


def shifted(name, by):
    return lambda call: call.put(name, call.arrays[name].copy(), shift=by)


def all_of(*changes):
    return lambda call: [change(call) for change in changes]


GNK = ' The layout assumed is weight_layout="gnk"; "gkn" reads [G, K, N].'
GKN = ' The layout assumed is weight_layout="gkn"; "gnk" reads [G, N, K].'
BUFFER = ", contiguous, 16-byte aligned"
COMPUTED = "f16, bf16, f32 or f64"
