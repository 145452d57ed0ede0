# SPDX-License-Identifier: Apache-2.0
"""Calls that the core refuses, as users see them: the exception's type, the whole sentence, and that nothing was
written. test_rules_walk.py takes every argument through every rule."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from core_call import LAYOUTS, Guarded
from rule_call import (
    BF16,
    BUFFER,
    COMPUTED,
    GKN,
    GNK,
    Call,
    F,
    G,
    K,
    N,
    T,
    flag,
    leave_out,
    put,
    shifted,
    strided,
)

from grouped_core import NO_DATA, REQUIRES_GRAD, Op

# id, operation, layout, change, error, the whole message
TABLE = [
    ("x_rank", Op.MM, "gnk", put("x", (T, K, 1)), ValueError, f"x must be [T, K] {COMPUTED}; got [6, 4, 1] f32."),
    ("x_dtype", Op.MM, "gnk", put("x", (T, K), np.int8), TypeError, f"x must be [T=6, K=4] {COMPUTED}; got [6, 4] i8."),
    (
        "x_fp8",
        Op.MM,
        "gnk",
        put("x", (T, K), ml_dtypes.float8_e4m3fn),
        TypeError,
        f"x must be [T=6, K=4] {COMPUTED}; got [6, 4] f8e4m3.",
    ),
    (
        "k_mismatch_gnk",
        Op.MM,
        "gnk",
        put("weight", (G, N, K + 1)),
        ValueError,
        "weight must be [G, N, K=4] f32; got [2, 8, 5] f32." + GNK,
    ),
    (
        "k_mismatch_gkn",
        Op.MM,
        "gkn",
        put("weight", (G, N, K)),
        ValueError,
        "weight must be [G, K=4, N] f32; got [2, 8, 4] f32." + GKN,
    ),
    (
        "weight_rank",
        Op.MM,
        "gnk",
        put("weight", (N, K)),
        ValueError,
        "weight must be [G, N, K=4] f32; got [8, 4] f32." + GNK,
    ),
    (
        "mixed_dtype",
        Op.MM,
        "gkn",
        put("weight", (G, K, N), BF16),
        TypeError,
        "weight must be [G=2, K=4, N=8] f32; got [2, 4, 8] bf16." + GKN,
    ),
    (
        "sizes_dtype",
        Op.MM,
        "gnk",
        put("group_sizes", (G,), np.uint32),
        TypeError,
        "group_sizes must be [G=2] i32 or i64; got [2] u32.",
    ),
    (
        "sizes_float",
        Op.WGRAD,
        "gnk",
        put("group_sizes", (G,), np.float32),
        TypeError,
        "group_sizes must be [G=2] i32 or i64; got [2] f32.",
    ),
    (
        "sizes_length",
        Op.MM,
        "gnk",
        put("group_sizes", (G + 1,), np.int32),
        ValueError,
        "group_sizes must be [G=2] i32 or i64; got [3] i32.",
    ),
    (
        "bias_shape",
        Op.MM,
        "gnk",
        put("bias", (N,)),
        ValueError,
        "bias must be [G=2, N=8] f32; got [8] f32.",
    ),
    (
        "row_scale_shape",
        Op.MM,
        "gnk",
        put("row_scale", (T, 1)),
        ValueError,
        "row_scale must be [T=6] f32; got [6, 1] f32.",
    ),
    (
        "row_scale_wider_than_f32_x",
        Op.MM,
        "gnk",
        put("row_scale", (T,), np.float64),
        TypeError,
        "row_scale must be [T=6] f32; got [6] f64.",
    ),
    (
        "out_shape",
        Op.MM,
        "gnk",
        put("out", (T, N + 1)),
        ValueError,
        f"out must be [T=6, N=8] f32{BUFFER}; got [6, 9] f32.",
    ),
    (
        "out_dtype",
        Op.MM,
        "gnk",
        put("out", (T, N), BF16),
        TypeError,
        f"out must be [T=6, N=8] f32{BUFFER}; got [6, 8] bf16.",
    ),
    (
        "x_device",
        Op.MM,
        "gnk",
        flag("weight", device=0),
        ValueError,
        "weight must be on cpu, as x is; got cuda:0. Move it before the call.",
    ),
    (
        "all_but_one_on_the_gpu",
        Op.BIAS_GRAD,
        "gnk",
        flag("dy", device=3),
        ValueError,
        "group_sizes must be on cuda:3, as dy is; got cpu. Move it before the call.",
    ),
    (
        "x_strided",
        Op.MM,
        "gnk",
        strided("x"),
        ValueError,
        "x must be contiguous; got shape [6, 4] with strides [8, 2]. Pass a contiguous copy.",
    ),
    (
        "out_strided",
        Op.MM,
        "gnk",
        strided("out"),
        ValueError,
        "out must be contiguous; got shape [6, 8] with strides [16, 2]. Pass a contiguous buffer.",
    ),
    (
        "out_requires_grad",
        Op.MM,
        "gnk",
        flag("out", flags=REQUIRES_GRAD),
        ValueError,
        "out must not require grad: it is memory to write into; got a tensor that does. Pass out.detach().",
    ),
    (
        "out_misaligned",
        Op.MM,
        "gnk",
        shifted("out", 4),
        ValueError,
        "out must be 16-byte aligned; got an address 4 bytes past a multiple of 16. "
        "Begin it at the start of an allocation.",
    ),
    (
        "dgrad_out_shape",
        Op.LINEAR,
        "gnk",
        put("dgrad_out", (T + 1, K)),
        ValueError,
        f"dgrad_out must be [T=6, K=4] f32{BUFFER}; got [7, 4] f32. Pass dgrad_out=None to do without it.",
    ),
    (
        "wgrad_out_shape",
        Op.LINEAR,
        "gkn",
        put("wgrad_out", (G, N, K)),
        ValueError,
        f"wgrad_out must be [G=2, K=4, N=8] f32{BUFFER}; got [2, 8, 4] f32.{GKN} Pass wgrad_out=None to do without it.",
    ),
    (
        "odd_gated_width",
        Op.ACTIVATION,
        "gnk",
        put("h", (T, 2 * F + 1)),
        ValueError,
        f"h must be [T, 2F] {COMPUTED}; got [6, 17] f32.",
    ),
    (
        "activation_width",
        Op.ACTIVATION,
        "gnk",
        put("out", (T, 2 * F)),
        ValueError,
        f"out must be [T=6, F=8] f32{BUFFER}; got [6, 16] f32.",
    ),
    (
        "d_row_scale_dtype",
        Op.ACTIVATION_GRAD,
        "gnk",
        put("d_row_scale", (T,), np.float64),
        TypeError,
        f"d_row_scale must be [T=6] f32 as row_scale{BUFFER}; got [6] f64. Pass d_row_scale=None to do without it.",
    ),
    (
        "d_row_scale_alone",
        Op.ACTIVATION_GRAD,
        "gnk",
        leave_out("row_scale"),
        ValueError,
        "d_row_scale needs row_scale; got none.",
    ),
    (
        "dy_without_bias",
        Op.ROW_DOT,
        "gnk",
        leave_out("bias"),
        ValueError,
        "grouped_row_dot takes dy and bias together; got one of them.",
    ),
    (
        "bias_without_dy",
        Op.ROW_DOT,
        "gnk",
        leave_out("dy"),
        ValueError,
        "grouped_row_dot takes dy and bias together; got one of them.",
    ),
    ("no_weight", Op.MM, "gnk", leave_out("weight"), ValueError, "grouped_mm needs weight; got none."),
    ("no_out", Op.ROW_SCALE, "gnk", leave_out("out"), ValueError, "grouped_row_scale needs out; got none."),
]


@pytest.mark.parametrize(
    ("op", "layout", "change", "error", "message"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_sentence(op, layout, change, error, message):
    call = Call(op, layout)
    call.check()  # good before the change
    change(call)
    call.refused(error, message)


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name.lower())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unchanged_calls_are_good(op, layout):
    call = Call(op, layout)
    call.check()
    call.verify_untouched()
    call.run()
    for name, memory in call.memory.items():
        memory.verify_guards(name)


def test_neighbours_in_one_allocation_do_not_overlap():
    call = Call(Op.MM)
    out = call.arrays["out"]
    block = Guarded(np.ones(T * K + T * N, np.float32))
    call.view("x", block.array[: T * K].reshape(T, K))
    call.view("out", block.array[T * K :].reshape(T, N))
    assert out.shape == call.arrays["out"].shape
    call.run()
    assert (call.arrays["out"][:5] == K + 1).all()


def test_inputs_may_share_memory():
    call = Call(Op.ROW_DOT)
    call.view("b", call.arrays["a"])
    call.run()
    assert (call.arrays["out"][:5] == K + N).all()


def test_without_data_pointer_rules_are_skipped():
    call = Call(Op.MM)
    call.view("out", call.arrays["out"])
    for name in call.names():
        call.fields[name] = {"flags": NO_DATA}
    shifted("out", 4)(call)
    call.check()
    call.put("out", np.ones((T, N + 1), np.float32))
    with pytest.raises(ValueError, match="out must be"):
        call.check()


# Each row breaks a rule and all rules after it: the first is the one reported.
ORDER = [
    ("shape", put("out", (T, N + 1), BF16), r"got \[6, 9\] bf16"),
    ("dtype", put("out", (T, N), BF16), r"got \[6, 8\] bf16"),
    ("device", flag("out", device=0, flags=REQUIRES_GRAD), "must be on cpu"),
    ("contiguous", strided("out"), "must be contiguous"),
    ("grad", lambda call: None, "must not require grad"),
]


@pytest.mark.parametrize("first", range(len(ORDER)), ids=[row[0] for row in ORDER])
def test_order_of_the_rules(first):
    call = Call(Op.MM)
    shifted("out", 4)(call)
    call.fields["out"] = {"flags": REQUIRES_GRAD}
    if first <= 3:
        strided("out")(call)
        call.memory["out"].verify_guards("out")
    if first <= 2:
        call.fields["out"] = {"device": 0, "flags": REQUIRES_GRAD}
    if first <= 1:
        shape = (T, N + 1) if first == 0 else (T, N)
        call.put("out", np.ones((shape[0], 2 * shape[1]), BF16))
        call.view("out", call.arrays["out"][:, ::2])
    error = TypeError if ORDER[first][0] == "dtype" else ValueError
    with pytest.raises(error, match=ORDER[first][2]):
        call.check()


def test_alignment_before_overlap():
    call = Call(Op.MM)
    x = Guarded(np.ones((T, N + 1), np.float32))
    call.view("out", x.array.reshape(-1)[1 : 1 + T * N].reshape(T, N))
    call.view("x", x.array.reshape(-1)[: T * K].reshape(T, K))
    with pytest.raises(ValueError, match="out must be 16-byte aligned; got an address 4 bytes past"):
        call.check()


def test_earlier_arguments_first():
    call = Call(Op.MM)
    strided("x")(call)
    call.put("out", np.ones((1,), BF16))
    with pytest.raises(ValueError, match="x must be contiguous"):
        call.check()


def test_a_message_that_is_too_long_is_cut_not_overrun():
    name = "n" * 5000
    call = Call(Op.MM)
    call.fields["x"] = {"name": name, "device": 0}
    call.fields["weight"] = {"name": name}
    with pytest.raises(ValueError) as caught:
        call.check()
    assert str(caught.value) == name[:1011]


def test_more_dimensions_than_can_be_described():
    call = Call(Op.MM)
    call.put("x", np.ones((1,) * 9, np.float32))
    call.refused(ValueError, f"x must be [T, K] {COMPUTED}; got 9 dimensions f32.")
