# SPDX-License-Identifier: Apache-2.0
"""grouped_wgrad of the core against fp64: overwriting and accumulating, 16-bit and fp32 targets, both storages."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import CASES, draw, poison_tail
from core_call import LAYOUTS, poisoned, sizes_of, wgrad
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DTYPES, assert_bits, assert_close

by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", list(DTYPES))
by_layout = pytest.mark.parametrize("layout", LAYOUTS)
by_target = pytest.mark.parametrize(
    ("dtype", "target"),
    [("f32", "f32"), ("f64", "f64"), ("bf16", "bf16"), ("bf16", "f32"), ("f16", "f16"), ("f16", "f32")],
)


def operands(rng, case, dtype):
    x = poison_tail(draw(rng, (case.T, case.K), dtype), case.S)
    dy = poison_tail(draw(rng, (case.T, case.N), dtype), case.S)
    return x, dy


def shape_of(case, layout):
    return (case.G, case.N, case.K) if layout == "gnk" else (case.G, case.K, case.N)


def most_rows(case):
    return max(case.sizes, default=0)


def assert_all_bits_zero(a):
    assert_bits(a, np.zeros_like(a), "an empty group")


@by_layout
@by_target
@by_case
def test_overwrite(rng, case, dtype, target, layout):
    x, dy = operands(rng, case, dtype)
    out = poisoned(shape_of(case, layout), DTYPES[target])
    dw = wgrad(x, dy, case.sizes, layout=layout, out=out)
    assert_close(dw, reference.grouped_wgrad(x, dy, case.sizes, layout=layout), most_rows(case))
    assert_all_bits_zero(dw[np.asarray(case.sizes, int) == 0])


@by_layout
@by_target
@by_case
def test_accumulate(rng, case, dtype, target, layout):
    x, dy = operands(rng, case, dtype)
    old = draw(rng, shape_of(case, layout), target)
    dw = wgrad(x, dy, case.sizes, layout=layout, out=old, accumulate=1, num_threads=2)
    expected = reference.grouped_wgrad(x, dy, case.sizes, layout=layout, old=old)
    assert_close(dw, expected, most_rows(case) + 1)
    empty = np.asarray(case.sizes, int) == 0
    assert_bits(dw[empty], old[empty], "an empty group")


def test_empty_group_is_left_alone_when_accumulating_even_a_nan():
    ones = np.ones((2, 3), np.float32)
    old = np.full((2, 3, 3), np.nan, np.float32)
    old[1] = 1
    dw = wgrad(ones, ones, [0, 2], out=old, accumulate=1)
    assert_bits(dw[0], old[0])
    assert (dw[1] == 3).all()


@pytest.mark.parametrize("kind", ["int64", "ends"])
@by_case
def test_kind_of_sizes_changes_no_bit(rng, case, kind):
    x, dy = operands(rng, case, "bf16")
    sizes, code = sizes_of(case.sizes, kind)
    assert_bits(wgrad(x, dy, sizes, sizes_kind=code), wgrad(x, dy, case.sizes))


@pytest.mark.parametrize(("target", "expected"), [("f32", 257), ("bf16", 256)])
def test_accumulating_adds_in_f32(target, expected):
    # 256 + 1 = 257 lies between bf16's 256 and 258 and goes to the even one.
    one = np.ones((1, 1), DTYPES["bf16"])
    old = np.full((1, 1, 1), 256, DTYPES[target])
    assert float(wgrad(one, one, [1], out=old, accumulate=1)[0, 0, 0]) == expected


def test_accumulating_rounds_once():
    # 2 + (256 + 1) = 259, in bf16 260. Rounding the product first would give 2 + 256 = 258.
    x = np.ones((2, 1), DTYPES["bf16"])
    dy = np.array([[256], [1]], DTYPES["bf16"])
    old = np.full((1, 1, 1), 2, DTYPES["bf16"])
    assert float(wgrad(x, dy, [2], out=old, accumulate=1)[0, 0, 0]) == 260


def test_many_small_steps_survive_in_an_f32_target():
    # 300 microbatches of 1 on top of 256: a bf16 target would stay at 256.
    one = np.ones((1, 1), DTYPES["bf16"])
    target = np.full((1, 1, 1), 256, np.float32)
    for _ in range(300):
        target = wgrad(one, one, [1], out=target, accumulate=1)
    assert target[0, 0, 0] == 556


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=8),
    slack=st.integers(0, 9),
    K=st.integers(0, 70),
    N=st.integers(0, 70),
    dtype=st.sampled_from(list(DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    accumulate=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sizes(sizes, slack, K, N, dtype, layout, accumulate, seed):
    rng = np.random.default_rng(seed)
    S = sum(sizes)
    x = poison_tail(draw(rng, (S + slack, K), dtype), S)
    dy = poison_tail(draw(rng, (S + slack, N), dtype), S)
    shape = (len(sizes), N, K) if layout == "gnk" else (len(sizes), K, N)
    old = draw(rng, shape, dtype) if accumulate else poisoned(shape, DTYPES[dtype])
    dw = wgrad(x, dy, np.asarray(sizes, np.int64), layout=layout, out=old, accumulate=accumulate, num_threads=2)
    expected = reference.grouped_wgrad(x, dy, sizes, layout=layout, old=old if accumulate else None)
    assert_close(dw, expected, max(sizes, default=0) + 1)
