# SPDX-License-Identifier: Apache-2.0
"""Every argument of every operation through every rule. The sentences are put together here from what grouped.h says
of the arguments, not from the core's own words."""

from __future__ import annotations

import numpy as np
import pytest
from core_call import BUFFERS, LAYOUTS, Guarded
from rule_call import BUFFER, COMPUTED, GKN, GNK, LETTERS, Call, flag, shifted, strided

import grouped_core
from grouped_core import REQUIRES_GRAD, Op


def walk():
    """(op, layout, argument, letters) for everything that can be wrong."""
    for op in Op:
        for layout in LAYOUTS:
            rules = grouped_core.argument_dims(op, LAYOUTS.index(layout))
            if layout == "gkn" and not any("NK" in letters or "KN" in letters for _, letters in rules):
                continue  # the layout means nothing to this operation
            for name, letters in rules:
                yield pytest.param(op, layout, name, letters, id=f"{op.name.lower()}-{layout}-{name}")


ARGUMENTS = list(walk())
by_argument = pytest.mark.parametrize(("op", "layout", "name", "letters"), ARGUMENTS)
by_buffer = pytest.mark.parametrize(
    ("op", "layout", "name", "letters"), [p for p in ARGUMENTS if p.values[2] in BUFFERS]
)
OPTIONAL_BUFFERS = {(Op.LINEAR, "out"), (Op.LINEAR, "dgrad_out"), (Op.LINEAR, "wgrad_out")} | {
    (Op.ACTIVATION_GRAD, "d_row_scale")
}


def way_out(op, layout, name, letters):
    text = {"GNK": GNK, "GKN": GKN}.get(letters, "")
    return text + (f" Pass {name}=None to do without it." if (op, name) in OPTIONAL_BUFFERS else "")


def sentence(op, layout, name, letters: str, bound, dtype, got):
    """What a wrong shape or dtype is told; `bound` are the letters that arguments before it have set."""
    dims = ", ".join({"H": "2F"}.get(c, c) + (f"={LETTERS[c]}" if c in bound else "") for c in letters)
    buffer = BUFFER if name in BUFFERS else ""
    return f"{name} must be [{dims}] {dtype}{buffer}; got {got}.{way_out(op, layout, name, letters)}"


def letters_before(op, layout, name):
    bound = ""
    for other, letters in grouped_core.argument_dims(op, LAYOUTS.index(layout)):
        if other == name:
            return bound
        bound += letters + ("F" if "H" in letters else "")
    raise KeyError(name)


def expected_dtype(op, name, is_first):
    if name == "group_sizes":
        return "i32 or i64"
    if name == "d_row_scale":
        return "f32 as row_scale"
    base = {Op.ROW_SCALE: "out"}.get(op)
    return COMPUTED if name == base or (base is None and is_first) else "f32"


@by_argument
def test_rank_of_every_argument(op, layout, name, letters):
    call = Call(op, layout)
    before = letters_before(op, layout, name)
    shape = (*call.arrays[name].shape, 1)
    call.put(name, np.ones(shape, call.arrays[name].dtype))
    got = f"{list(shape)} {'i32' if name == 'group_sizes' else 'f32'}"
    dtype = expected_dtype(op, name, not before)
    call.refused(ValueError, sentence(op, layout, name, letters, before, dtype, got))


@by_argument
def test_every_dimension_that_another_argument_set(op, layout, name, letters):
    before = letters_before(op, layout, name)
    for i, letter in enumerate(letters):
        if letter not in before:
            continue
        call = Call(op, layout)
        shape = list(call.arrays[name].shape)
        shape[i] += 2
        call.put(name, np.ones(shape, call.arrays[name].dtype))
        got = f"{shape} {'i32' if name == 'group_sizes' else 'f32'}"
        call.refused(ValueError, sentence(op, layout, name, letters, before, expected_dtype(op, name, not before), got))


@by_argument
def test_dtype_of_every_argument(op, layout, name, letters):
    call = Call(op, layout)
    before = letters_before(op, layout, name)
    call.put(name, np.ones(call.arrays[name].shape, np.complex64))
    # By the time a dtype is judged, the argument's own shape has set its letters.
    got = f"{list(call.arrays[name].shape)} c64"
    expected = sentence(op, layout, name, letters, before + letters, expected_dtype(op, name, not before), got)
    call.refused(TypeError, expected)


@by_argument
def test_layout_of_every_argument(op, layout, name, letters):
    call = Call(op, layout)
    strided(name)(call)
    array = call.arrays[name]
    strides = [s // array.itemsize for s in array.strides]
    copy = "buffer" if name in BUFFERS else "copy"
    call.refused(
        ValueError,
        f"{name} must be contiguous; got shape {list(array.shape)} with strides {strides}. Pass a contiguous {copy}.",
    )


@by_argument
def test_grad_and_alignment_are_rules_for_buffers_alone(op, layout, name, letters):
    for change, message in (
        (
            flag(name, flags=REQUIRES_GRAD),
            f"{name} must not require grad: it is memory to write into; got a tensor that does. Pass {name}.detach().",
        ),
        (
            shifted(name, 8),
            f"{name} must be 16-byte aligned; got an address 8 bytes past a multiple of 16. "
            "Begin it at the start of an allocation.",
        ),
    ):
        call = Call(op, layout)
        change(call)
        if name in BUFFERS:
            call.refused(ValueError, message)
        else:
            call.check()


@by_buffer
def test_every_buffer_stands_apart_from_every_other_argument(op, layout, name, letters):
    names = Call(op, layout).names()
    for other in names:
        if other == name:
            continue
        call = Call(op, layout)
        # One allocation holds both; they share its 16 last bytes, or the whole of the smaller one.
        mine, theirs = call.arrays[name], call.arrays[other]
        shared = min(16, mine.nbytes, theirs.nbytes)
        begin = (theirs.nbytes - shared) // 16 * 16
        block = Guarded(np.zeros(begin + mine.nbytes + theirs.nbytes, np.uint8))
        block.array[: theirs.nbytes] = np.frombuffer(theirs.tobytes(), np.uint8)
        block.before = block.raw.copy()
        call.memory["block"] = block
        call.view(other, block.array[: theirs.nbytes].view(theirs.dtype).reshape(theirs.shape))
        call.view(name, block.array[begin : begin + mine.nbytes].view(mine.dtype).reshape(mine.shape))
        # Of two buffers the earlier one is judged first.
        first, second = (name, other)
        if other in BUFFERS and names.index(other) < names.index(name):
            first, second = other, name
        call.refused(
            ValueError,
            f"{first} must not overlap {second}; got memory that they share. Pass memory of its own.",
        )
