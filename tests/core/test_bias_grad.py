# SPDX-License-Identifier: Apache-2.0
"""The bias gradient of the core against fp64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import CASES, draw, poison_tail
from core_call import poisoned, run, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DTYPES, assert_bits, assert_close

from grouped_core import Op

by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_target = pytest.mark.parametrize(
    ("dtype", "target"),
    [("f32", "f32"), ("f64", "f64"), ("bf16", "bf16"), ("bf16", "f32"), ("f16", "f16"), ("f16", "f32")],
)


def bias_grad(dy, sizes, out, kind="int32", **options):
    group_sizes, code = sizes_of(sizes, kind)
    arrays = {"dy": dy, "group_sizes": group_sizes, "out": out}
    return run(Op.BIAS_GRAD, arrays, sizes_kind=code, **options)["out"]


@by_target
@by_case
def test_overwrite(rng, case, dtype, target):
    dy = poison_tail(draw(rng, (case.T, case.N), dtype), case.S)
    db = bias_grad(dy, case.sizes, poisoned((case.G, case.N), DTYPES[target]))
    assert_close(db, reference.grouped_bias_grad(dy, case.sizes), max(case.sizes, default=0))
    empty = db[np.asarray(case.sizes, int) == 0]
    assert_bits(empty, np.zeros_like(empty), "an empty group")


@by_target
@by_case
def test_accumulate(rng, case, dtype, target):
    dy = poison_tail(draw(rng, (case.T, case.N), dtype), case.S)
    old = draw(rng, (case.G, case.N), target)
    db = bias_grad(dy, case.sizes, old, accumulate=1, num_threads=2)
    expected = reference.grouped_bias_grad(dy, case.sizes, old=old)
    assert_close(db, expected, max(case.sizes, default=0) + 1)
    empty = np.asarray(case.sizes, int) == 0
    assert_bits(db[empty], old[empty], "an empty group")


@pytest.mark.parametrize("kind", ["int64", "ends"])
@by_case
def test_kind_of_sizes_changes_no_bit(rng, case, kind):
    dy = poison_tail(draw(rng, (case.T, case.N), "f32"), case.S)
    out = poisoned((case.G, case.N), dy.dtype)
    assert_bits(bias_grad(dy, case.sizes, out, kind), bias_grad(dy, case.sizes, out))


@pytest.mark.parametrize(("target", "expected"), [("f32", 259), ("bf16", 260)])
def test_accumulating_adds_in_f32_and_rounds_once(target, expected):
    # Rounding the sum 256 + 1 to bf16 before adding 2 would give 258.
    dy = np.array([[256], [1]], DTYPES["bf16"])
    old = np.full((1, 1), 2, DTYPES[target])
    assert float(bias_grad(dy, [2], old, accumulate=1)[0, 0]) == expected


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=8),
    slack=st.integers(0, 9),
    N=st.integers(0, 300),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sizes(sizes, slack, N, dtype, seed):
    rng = np.random.default_rng(seed)
    S = sum(sizes)
    dy = poison_tail(draw(rng, (S + slack, N), dtype), S)
    db = bias_grad(dy, sizes, poisoned((len(sizes), N), dy.dtype), num_threads=2)
    assert_close(db, reference.grouped_bias_grad(dy, sizes), max(sizes, default=0))
