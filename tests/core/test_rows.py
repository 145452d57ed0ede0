# SPDX-License-Identifier: Apache-2.0
"""row_scale and row_dot of the core against fp64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import CASES, draw, poison_tail
from core_call import assert_tail, poisoned, run, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DTYPES, assert_bits, assert_close

from grouped_core import Op, Tail

by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_tail = pytest.mark.parametrize("tail", list(Tail), ids=lambda t: t.name.lower())
# x, row_scale, out
SCALE_DTYPES = [
    ("f32", "f32", "f32"),
    ("f64", "f64", "f64"),
    *((x, s, out) for out in ("bf16", "f16") for x in (out, "f32") for s in (out, "f32")),
]
# a and dy, b, bias, out
DOT_DTYPES = [
    ("f32", "f32", "f32", "f32"),
    ("f64", "f64", "f64", "f64"),
    ("bf16", "bf16", "bf16", "bf16"),
    ("bf16", "f32", "bf16", "f32"),
    ("bf16", "f32", "f32", "bf16"),
    ("f16", "f16", "f16", "f16"),
    ("f16", "f32", "f32", "f32"),
]


def row_scale(x, sizes, scale, out, kind="int32", **options):
    group_sizes, code = sizes_of(sizes, kind)
    arrays = {"x": x, "group_sizes": group_sizes, "row_scale": scale, "out": out}
    return run(Op.ROW_SCALE, arrays, sizes_kind=code, **options)["out"]


def row_dot(a, b, sizes, dy, bias, out, kind="int32", **options):
    group_sizes, code = sizes_of(sizes, kind)
    arrays = {"a": a, "b": b, "group_sizes": group_sizes, "dy": dy, "bias": bias, "out": out}
    return run(Op.ROW_DOT, arrays, sizes_kind=code, **options)["out"]


def buffer(shape, dtype, S, tail):
    return poisoned(shape, DTYPES[dtype], S if tail == Tail.KEEP else None)


@by_tail
@pytest.mark.parametrize("dtypes", SCALE_DTYPES, ids="-".join)
@by_case
def test_row_scale(rng, case, dtypes, tail):
    x = poison_tail(draw(rng, (case.T, case.K), dtypes[0]), case.S)
    scale = poison_tail(draw(rng, (case.T,), dtypes[1]), case.S)
    y = row_scale(x, case.sizes, scale, buffer(x.shape, dtypes[2], case.S, tail), tail=int(tail), num_threads=2)
    expected, bound = reference.grouped_row_scale(x, case.sizes, scale)
    assert_close(y[: case.S], (expected[: case.S], bound[: case.S]), 1)
    assert_tail(y, case.S, tail)


@by_tail
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtypes", DOT_DTYPES, ids="-".join)
@by_case
def test_row_dot(rng, case, dtypes, with_bias, tail):
    a = poison_tail(draw(rng, (case.T, case.K), dtypes[0]), case.S)
    b = poison_tail(draw(rng, (case.T, case.K), dtypes[1]), case.S)
    dy = bias = None
    if with_bias:
        dy = poison_tail(draw(rng, (case.T, case.N), dtypes[0]), case.S)
        bias = draw(rng, (case.G, case.N), dtypes[2])
        bias[np.asarray(case.sizes, int) == 0] = np.nan
    out = buffer((case.T,), dtypes[3], case.S, tail)
    y = row_dot(a, b, case.sizes, dy, bias, out, tail=int(tail), num_threads=2)
    expected, bound = reference.grouped_row_dot(a, b, case.sizes, dy, bias)
    assert_close(y[: case.S], (expected[: case.S], bound[: case.S]), case.K + (case.N if with_bias else 0))
    assert_tail(y, case.S, tail)


@pytest.mark.parametrize("kind", ["int64", "ends"])
@by_case
def test_kind_of_sizes_changes_no_bit(rng, case, kind):
    x, scale = draw(rng, (case.T, case.K), "f32"), draw(rng, (case.T,), "f32")
    dy, bias = draw(rng, (case.T, case.N), "f32"), draw(rng, (case.G, case.N), "f32")
    scaled, dots = poisoned(x.shape, x.dtype, case.S), poisoned(scale.shape, scale.dtype, case.S)
    assert_bits(row_scale(x, case.sizes, scale, scaled, kind), row_scale(x, case.sizes, scale, scaled))
    assert_bits(row_dot(x, x, case.sizes, dy, bias, dots, kind), row_dot(x, x, case.sizes, dy, bias, dots))


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=8),
    slack=st.integers(0, 9),
    K=st.integers(0, 600),
    N=st.integers(0, 70),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sizes(sizes, slack, K, N, dtype, seed):
    rng = np.random.default_rng(seed)
    S, T = sum(sizes), sum(sizes) + slack
    a, b = (poison_tail(draw(rng, (T, K), dtype), S) for _ in range(2))
    dy, bias = poison_tail(draw(rng, (T, N), dtype), S), draw(rng, (len(sizes), N), dtype)
    y = row_dot(a, b, sizes, dy, bias, poisoned((T,), a.dtype, S), num_threads=2)
    expected, bound = reference.grouped_row_dot(a, b, sizes, dy, bias)
    assert_close(y[:S], (expected[:S], bound[:S]), K + N)
    assert_tail(y, S, Tail.KEEP)
