# SPDX-License-Identifier: Apache-2.0
"""grouped_mm of the core against fp64, at every edge shape and dtype."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import CASES, draw, poison_tail
from core_call import LAYOUTS, assert_tail, mm, poisoned, sizes_of, transposed
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DTYPES, assert_bits, assert_close

from grouped_core import Tail

NARROW = ("bf16", "f16")
by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", list(DTYPES))
by_layout = pytest.mark.parametrize("layout", LAYOUTS)


def operands(rng, case, dtype, layout="gnk"):
    """x with a NaN tail, and weights with NaNs where no row reads them."""
    x = poison_tail(draw(rng, (case.T, case.K), dtype), case.S)
    weight = draw(rng, (case.G, case.N, case.K), dtype)
    weight[np.asarray(case.sizes, int) == 0] = np.nan
    return x, weight if layout == "gnk" else transposed(weight)


def epilogue(rng, case, dtype):
    bias = draw(rng, (case.G, case.N), dtype)
    bias[np.asarray(case.sizes, int) == 0] = np.nan
    return bias, poison_tail(draw(rng, (case.T,), dtype), case.S)


@by_layout
@by_dtype
@by_case
def test_product(rng, case, dtype, layout):
    x, weight = operands(rng, case, dtype, layout)
    y = mm(x, weight, case.sizes, layout=layout)
    expected, scale = reference.grouped_mm(x, weight, case.sizes, layout=layout)
    assert_close(y[: case.S], (expected[: case.S], scale[: case.S]), case.K)
    assert_tail(y, case.S, Tail.KEEP)


@pytest.mark.parametrize("which", ["bias", "row_scale", "both"])
@by_dtype
@by_case
def test_epilogue(rng, case, dtype, which):
    x, weight = operands(rng, case, dtype)
    bias, row_scale = epilogue(rng, case, dtype)
    bias, row_scale = bias if which != "row_scale" else None, row_scale if which != "bias" else None
    y = mm(x, weight, case.sizes, bias, row_scale, num_threads=2)
    expected, scale = reference.grouped_mm(x, weight, case.sizes, bias, row_scale)
    assert_close(y[: case.S], (expected[: case.S], scale[: case.S]), case.K + 2)
    assert_tail(y, case.S, Tail.KEEP)


@pytest.mark.parametrize("out_dtype", ["same", "f32"])
@pytest.mark.parametrize("dtype", NARROW)
@by_case
def test_f32_beside_16_bit(rng, case, dtype, out_dtype):
    x, weight = operands(rng, case, dtype)
    bias, row_scale = epilogue(rng, case, "f32")
    out = poisoned((case.T, case.N), DTYPES[dtype if out_dtype == "same" else "f32"], case.S)
    y = mm(x, weight, case.sizes, bias, row_scale, out=out)
    expected, scale = reference.grouped_mm(x, weight, case.sizes, bias, row_scale)
    assert_close(y[: case.S], (expected[: case.S], scale[: case.S]), case.K + 2)
    assert_tail(y, case.S, Tail.KEEP)


@by_dtype
@by_case
def test_zero_tail(rng, case, dtype):
    x, weight = operands(rng, case, dtype)
    kept = mm(x, weight, case.sizes)
    zeroed = mm(x, weight, case.sizes, tail=Tail.ZERO)
    assert_bits(zeroed[: case.S], kept[: case.S])
    assert_tail(zeroed, case.S, Tail.ZERO)


@pytest.mark.parametrize("kind", ["int64", "ends"])
@by_case
def test_kind_of_sizes_changes_no_bit(rng, case, kind):
    x, weight = operands(rng, case, "f32")
    sizes, code = sizes_of(case.sizes, kind)
    out = poisoned((case.T, case.N), x.dtype, case.S)
    y = mm(x, weight, sizes, out=out, sizes_kind=code)
    assert_bits(y, mm(x, weight, case.sizes, out=out))
    if kind == "ends":
        assert_bits(mm(x, weight, sizes.astype(np.int32), out=out, sizes_kind=1), y)


def test_product_bias_and_scale_are_rounded_once():
    # (256 + 3) * 1.5 = 388.5, in bf16 388. Rounding the sum first would give 260 * 1.5 = 390.
    ones = np.ones((1, 1), DTYPES["bf16"])
    y = mm(ones, 256 * ones[None], [1], 3 * ones, (1.5 * ones)[0])
    assert float(y[0, 0]) == 388


def test_f32_is_not_computed_in_fewer_bits():
    # 1 + 2^-20 needs 21 significand bits: TF32 has 11, bf16 8.
    x = np.full((1, 1), 1 + 2.0**-20, np.float32)
    assert mm(x, np.ones((1, 1, 1), np.float32), [1])[0, 0] == x[0, 0]


def test_16_bit_sums_are_kept_in_f32():
    # In a bf16 accumulator 256 + 1 stays 256 for ever.
    x = np.ones((1, 1024), DTYPES["bf16"])
    assert float(mm(x, np.ones((1, 1, 1024), DTYPES["bf16"]), [1])[0, 0]) == 1024


@pytest.mark.parametrize("dtype", NARROW)
def test_nan_and_infinity_inside_a_group_pass_through(rng, dtype):
    x = draw(rng, (3, 5), dtype)
    x[0, 2], x[1, 3] = np.nan, np.inf
    y = mm(x, np.ones((1, 4, 5), DTYPES[dtype]), [3])
    assert np.isnan(y[0]).all()
    assert np.isposinf(y[1]).all()
    assert np.isfinite(y[2].astype(np.float32)).all()


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=8),
    slack=st.integers(0, 9),
    K=st.integers(0, 70),
    N=st.integers(0, 70),
    dtype=st.sampled_from(list(DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    tail=st.sampled_from(list(Tail)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sizes(sizes, slack, K, N, dtype, layout, tail, seed):
    rng = np.random.default_rng(seed)
    S = sum(sizes)
    x = poison_tail(draw(rng, (S + slack, K), dtype), S)
    weight = draw(rng, (len(sizes), N, K) if layout == "gnk" else (len(sizes), K, N), dtype)
    y = mm(x, weight, np.asarray(sizes, np.int64), layout=layout, tail=tail, num_threads=2)
    expected, scale = reference.grouped_mm(x, weight, sizes, layout=layout)
    assert_close(y[:S], (expected[:S], scale[:S]), K)
    assert_tail(y, S, tail)
