# SPDX-License-Identifier: Apache-2.0
"""Refusals that are about numbers: options, the workspace, the sizes of the groups, a build without the device."""

from __future__ import annotations

import re

import numpy as np
import pytest
from rule_call import LAUNCHED, OPTIONS, Call, G, K, N

import grouped_core
from grouped_core import Op, Options

OPTION_ROWS = [
    (Op.MM, {"weight_layout": 2}, "weight_layout must be from 0 to 1; got 2."),
    (Op.WGRAD, {"weight_layout": -1}, "weight_layout must be from 0 to 1; got -1."),
    (Op.LINEAR, {"weight_layout": 7}, "weight_layout must be from 0 to 1; got 7."),
    *((op, {"sizes_kind": 2}, "sizes_kind must be from 0 to 1; got 2.") for op in Op),
    *((op, {"tail": 2}, "tail must be from 0 to 1; got 2.") for op in LAUNCHED if op not in (Op.WGRAD, Op.BIAS_GRAD)),
    *((op, {"kind": 4}, "kind must be from 0 to 3; got 4.") for op in (Op.ACTIVATION, Op.ACTIVATION_GRAD)),
    *((op, {"gate_layout": -1}, "gate_layout must be from 0 to 1; got -1.") for op in OPTIONS),
]


@pytest.mark.parametrize(
    ("op", "options", "message"),
    OPTION_ROWS,
    ids=[f"{op.name.lower()}-{name}={value}" for op, o, _ in OPTION_ROWS for name, value in o.items()],
)
def test_numbers_that_are_no_option(op, options, message):
    call = Call(op)
    call.options.update(options)
    call.refused(ValueError, message)


def test_unknown_operation():
    for op in (-1, len(Op)):
        with pytest.raises(RuntimeError, match=f"^no operation has number {op}$"):
            grouped_core.check(op, (None,) * 8, tuple(Options()))


@pytest.mark.parametrize("op", LAUNCHED, ids=lambda op: op.name.lower())
def test_short_workspace(op):
    call = Call(op)
    needed = grouped_core.workspace_size(op, grouped_core.DType.F32, -1, K, N, G)
    assert needed > 0
    with pytest.raises(RuntimeError) as caught:
        call.run(workspace_size=needed - 1)
    assert str(caught.value) == (
        f"grouped_{op.name.lower()}: workspace must hold {needed} bytes; got {needed - 1}. "
        "Ask grouped_workspace_size()."
    )
    call.verify_untouched()
    call.run(workspace_size=needed)


@pytest.mark.skipif(grouped_core.has_cuda(), reason="this build has CUDA kernels")
def test_no_cuda_kernels():
    call = Call(Op.MM)
    for name in call.names():
        call.fields[name] = {"device": 1}
    with pytest.raises(NotImplementedError) as caught:
        call.run()
    assert str(caught.value) == (
        "this build of grouped-ffi has no CUDA kernels; got tensors on cuda:1. Build with GROUPED_CUDA=ON."
    )
    call.check()


BIG = 2**62
SIZES = [
    ("negative", 0, [2, -1], "group_sizes[1] = -1 is negative. A group holds 0 rows or more."),
    ("most_negative", 0, [-(2**63), 6], f"group_sizes[0] = {-(2**63)} is negative. A group holds 0 rows or more."),
    (
        "sum_too_large",
        0,
        [4, 3],
        "group_sizes[1] = 3 does not fit: group 1 begins at row 4 of T=6, so 2 rows are left. "
        "sum(group_sizes) must be at most T.",
    ),
    (
        "one_too_large",
        0,
        [7, 0],
        "group_sizes[0] = 7 does not fit: group 0 begins at row 0 of T=6, so 6 rows are left. "
        "sum(group_sizes) must be at most T.",
    ),
    (
        "sum_overflows",
        0,
        [BIG, BIG],
        f"group_sizes[0] = {BIG} does not fit: group 0 begins at row 0 of T=6, so 6 rows are left. "
        "sum(group_sizes) must be at most T.",
    ),
    (
        "ends_decrease",
        1,
        [4, 3],
        "group_sizes[1] = 3 as an end lies before the end of the group before it, 4. Ends must not decrease.",
    ),
    (
        "negative_end",
        1,
        [-1, 3],
        "group_sizes[0] = -1 as an end lies before the end of the group before it, 0. Ends must not decrease.",
    ),
]


@pytest.mark.parametrize("op", LAUNCHED, ids=lambda op: op.name.lower())
@pytest.mark.parametrize(("kind", "sizes", "message"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES])
def test_sizes_that_do_not_fit(op, kind, sizes, message):
    call = Call(op, sizes_kind=kind)
    call.put("group_sizes", np.array(sizes, np.int64))
    call.check()  # the values are not the rules' business
    with pytest.raises(ValueError) as caught:
        call.run()
    assert str(caught.value) == message
    call.verify_untouched()


@pytest.mark.parametrize("op", LAUNCHED, ids=lambda op: op.name.lower())
def test_end_past_the_rows(op):
    call = Call(op, sizes_kind=1)
    call.put("group_sizes", np.array([2, 7], np.int32))
    with pytest.raises(ValueError, match=re.escape("group_sizes[1] = 7")):
        call.run()
    call.verify_untouched()
