# SPDX-License-Identifier: Apache-2.0
"""Activations of the core and their gradients against fp64: four kinds, both gate layouts, with row_scale."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference
from cases import CASES, draw, poison_tail
from core_call import assert_tail, poisoned, run, sizes_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DTYPES, assert_bits, assert_close

from grouped_core import ACTIVATIONS, Op, Tail, activation_options

# The operations behind one element (exp is a dozen, its result one ulp), each rounding once.
TERMS = 16
GATE_LAYOUTS = ("concatenated", "interleaved")
by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", list(DTYPES))
by_kind = pytest.mark.parametrize("kind", list(ACTIVATIONS))
by_layout = pytest.mark.parametrize("gate_layout", GATE_LAYOUTS)
by_dtype_and_scale = pytest.mark.parametrize(
    ("dtype", "scale"),
    [(d, s) for d in DTYPES for s in (None, "same", "f32") if s != "f32" or d in ("bf16", "f16")],
)
# The largest exponent an argument can have makes e^x err by |x| roundings: keep |x| moderate where bounds are tight.
MAGNITUDE = 2.0
CLAMP = {"alpha": 1.702, "limit": 2.5, "offset": 1.0}  # a limit that this data reaches


def width(kind, F):
    return F if kind == "squared_relu" else 2 * F


def options_of(kind, gate_layout, clamp=None, **more):
    choice = activation_options(kind, gate_layout, **(clamp or CLAMP))
    return {**choice._asdict(), **more}


def forward(h, sizes, kind, gate_layout="concatenated", row_scale=None, tail=Tail.KEEP, clamp=None, **more):
    group_sizes, code = sizes_of(sizes, more.pop("sizes_dtype", "int32"))
    columns = h.shape[1] if kind == "squared_relu" else h.shape[1] // 2
    out = poisoned((h.shape[0], columns), h.dtype, sum(sizes) if tail == Tail.KEEP else None)
    arrays = {"h": h, "group_sizes": group_sizes, "row_scale": row_scale, "out": out}
    threads = more.pop("num_threads", 1)
    options = options_of(kind, gate_layout, clamp, tail=int(tail), sizes_kind=code)
    return run(Op.ACTIVATION, arrays, num_threads=threads, **options)["out"]


def gradient(
    h, dy, sizes, kind, gate_layout="concatenated", row_scale=None, tail=Tail.KEEP, clamp=None, **more
) -> tuple[Any, Any]:
    """(dh, d_row_scale or None)"""
    S = sum(sizes) if tail == Tail.KEEP else None
    d_row_scale = None
    if row_scale is not None and more.get("wants_scale", True):
        d_row_scale = poisoned(h.shape[:1], row_scale.dtype, S)
    arrays = {
        "h": h,
        "dy": dy,
        "group_sizes": sizes_of(sizes)[0],
        "row_scale": row_scale,
        "dh": poisoned(h.shape, h.dtype, S),
        "d_row_scale": d_row_scale,
    }
    options = options_of(kind, gate_layout, clamp, tail=int(tail))
    found = run(Op.ACTIVATION_GRAD, arrays, num_threads=more.get("num_threads", 1), **options)
    return found["dh"], found.get("d_row_scale")


def scale_for(rng, case, scale, dtype):
    if scale is None:
        return None
    return poison_tail(draw(rng, (case.T,), dtype if scale == "same" else "f32"), case.S)


def used(pair, S):
    return pair[0][:S], pair[1][:S]


@by_layout
@by_kind
@by_dtype
@by_case
def test_forward(rng, case, dtype, kind, gate_layout):
    h = poison_tail(draw(rng, (case.T, width(kind, case.N)), dtype, MAGNITUDE), case.S)
    y = forward(h, case.sizes, kind, gate_layout)
    expected = reference.grouped_activation(h, case.sizes, kind, gate_layout=gate_layout, **CLAMP)
    assert_close(y[: case.S], used(expected, case.S), TERMS)
    assert_tail(y, case.S, Tail.KEEP)


@by_layout
@by_kind
@by_dtype_and_scale
def test_forward_with_row_scale(rng, dtype, kind, gate_layout, scale):
    for case in CASES[:5]:
        h = poison_tail(draw(rng, (case.T, width(kind, case.N)), dtype, MAGNITUDE), case.S)
        row_scale = scale_for(rng, case, scale, dtype)
        y = forward(h, case.sizes, kind, gate_layout, row_scale, num_threads=2)
        expected = reference.grouped_activation(h, case.sizes, kind, row_scale, gate_layout=gate_layout, **CLAMP)
        assert_close(y[: case.S], used(expected, case.S), TERMS, what=str(case))
        assert_tail(y, case.S, Tail.KEEP)


@by_layout
@by_kind
@by_dtype_and_scale
def test_gradient(rng, dtype, kind, gate_layout, scale):
    for case in CASES:
        h = poison_tail(draw(rng, (case.T, width(kind, case.N)), dtype, MAGNITUDE), case.S)
        dy = poison_tail(draw(rng, (case.T, case.N), dtype), case.S)
        row_scale = scale_for(rng, case, scale, dtype)
        dh, dscale = gradient(h, dy, case.sizes, kind, gate_layout, row_scale)
        for_h, for_scale = reference.grouped_activation_grad(
            h, dy, case.sizes, kind, row_scale, gate_layout=gate_layout, **CLAMP
        )
        assert_close(dh[: case.S], used(for_h, case.S), TERMS, what=f"dh of {case}")
        assert_tail(dh, case.S, Tail.KEEP)
        if scale is not None:
            assert_close(dscale[: case.S], used(for_scale, case.S), case.N + TERMS, what=f"dscale of {case}")
            assert_tail(dscale, case.S, Tail.KEEP)


@by_kind
@by_case
def test_zero_tail(rng, case, kind):
    h = poison_tail(draw(rng, (case.T, width(kind, case.N)), "bf16"), case.S)
    dy = poison_tail(draw(rng, (case.T, case.N), "bf16"), case.S)
    row_scale = scale_for(rng, case, "f32", "bf16")
    y = forward(h, case.sizes, kind, row_scale=row_scale, tail=Tail.ZERO)
    dh, dscale = gradient(h, dy, case.sizes, kind, row_scale=row_scale, tail=Tail.ZERO)
    for result in (y, dh, dscale):
        assert_tail(result, case.S, Tail.ZERO)
    kept_dh, kept_dscale = gradient(h, dy, case.sizes, kind, row_scale=row_scale)
    assert_bits(y[: case.S], forward(h, case.sizes, kind, row_scale=row_scale)[: case.S])
    assert_bits(dh[: case.S], kept_dh[: case.S])
    assert_bits(dscale[: case.S], kept_dscale[: case.S])


@pytest.mark.parametrize("sizes_dtype", ["int64", "ends"])
@by_kind
def test_kind_of_sizes_changes_no_bit(rng, kind, sizes_dtype):
    for case in CASES:
        h = draw(rng, (case.T, width(kind, case.N)), "f32")
        assert_bits(forward(h, case.sizes, kind, sizes_dtype=sizes_dtype), forward(h, case.sizes, kind), str(case))


@pytest.mark.parametrize("kind", [k for k in ACTIVATIONS if k != "squared_relu"])
@by_dtype
def test_gate_layouts_give_the_same_bits(rng, dtype, kind):
    h = draw(rng, (9, 2 * 37), dtype)
    mixed = np.stack([h[:, :37], h[:, 37:]], axis=2).reshape(9, -1)
    dy = draw(rng, (9, 37), dtype)
    assert_bits(forward(mixed, [4, 5], kind, "interleaved"), forward(h, [4, 5], kind))
    apart, _ = gradient(h, dy, [4, 5], kind)
    together, _ = gradient(mixed, dy, [4, 5], kind, "interleaved")
    assert_bits(np.concatenate([together[:, 0::2], together[:, 1::2]], axis=1), apart)


@by_kind
@by_dtype
def test_asking_for_d_row_scale_changes_no_bit_of_dh(rng, dtype, kind):
    h, dy, row_scale = draw(rng, (9, width(kind, 37)), dtype), draw(rng, (9, 37), dtype), draw(rng, (9,), dtype)
    alone, nothing = gradient(h, dy, [4, 5], kind, row_scale=row_scale, wants_scale=False)
    beside, _ = gradient(h, dy, [4, 5], kind, row_scale=row_scale)
    assert nothing is None
    assert_bits(alone, beside)


@by_kind
@by_dtype
def test_far_arguments_stay_finite(dtype, kind):
    far = {"f16": 200.0, "bf16": 1e4, "f32": 1e4, "f64": 1e4}[dtype]
    gate = np.array([-far, -100, -50, -1e-30, 0, 1e-30, 50, 100, far], DTYPES[dtype])[:, None]
    h = gate if kind == "squared_relu" else np.concatenate([gate, np.ones_like(gate)], axis=1)
    y = forward(h, [9], kind)
    dh, _ = gradient(h, np.ones_like(gate), [9], kind)
    assert np.isfinite(y.astype(np.float64)).all()
    assert np.isfinite(dh.astype(np.float64)).all()
    # Far to the left every kind is 0 and flat, far to the right it is its gate (clamped, or squared).
    assert abs(float(y[0, 0])) == 0
    assert abs(float(dh[0, 0])) == 0
    right = {"squared_relu": far * far, "clamped_swiglu": 2.5 * 2 / (1 + np.exp(-1.702 * 2.5))}.get(kind, far)
    assert float(y[-1, 0]) == pytest.approx(right, rel=2.0**-7)


@by_kind
@by_dtype
def test_the_farthest_arguments_to_the_left_are_flat(dtype, kind):
    lowest = ml_dtypes.finfo(DTYPES[dtype]).min
    gate = np.array([lowest, lowest / 4, lowest / 64], DTYPES[dtype])[:, None]
    h = gate if kind == "squared_relu" else np.concatenate([gate, np.ones_like(gate)], axis=1)
    assert (forward(h, [3], kind) == 0).all()
    assert (gradient(h, np.ones_like(gate), [3], kind)[0] == 0).all()


@by_kind
def test_nan_in_a_used_row_passes_through(rng, kind):
    h = draw(rng, (3, width(kind, 4)), "f32")
    h[1] = np.nan
    y = forward(h, [3], kind)
    dh, _ = gradient(h, draw(rng, (3, 4), "f32"), [3], kind)
    assert np.isnan(y[1]).all()
    assert np.isnan(dh[1]).all()
    assert np.isfinite(y[[0, 2]]).all()
    assert np.isfinite(dh[[0, 2]]).all()


@by_dtype
def test_clamp_and_its_gradient_at_and_beyond_the_limit(dtype):
    clamp = {"alpha": 1.0, "limit": 2.0, "offset": 0.5}
    # gate, up: inside; at both limits; gate beyond; up beyond on either side; gate far below (not clamped).
    h = np.array([[1, 1], [2, 2], [2, -2], [3, 1], [1, 3], [1, -3], [-8, 1]], DTYPES[dtype])
    dy = np.ones((7, 1), DTYPES[dtype])
    y = forward(h, [7], "clamped_swiglu", clamp=clamp)
    dh, _ = gradient(h, dy, [7], "clamped_swiglu", clamp=clamp)
    options = {"gate_layout": "concatenated", **clamp}
    assert_close(y, reference.grouped_activation(h, [7], "clamped_swiglu", **options), TERMS)
    assert_close(dh, reference.grouped_activation_grad(h, dy, [7], "clamped_swiglu", **options)[0], TERMS)
    zero = dh == 0
    expected = np.zeros((7, 2), bool)
    expected[3, 0] = expected[4, 1] = expected[5, 1] = True
    assert (zero == expected).all()


@settings(max_examples=40, deadline=None, print_blob=True)
@given(
    sizes=st.lists(st.integers(0, 30), max_size=6),
    slack=st.integers(0, 9),
    F=st.integers(0, 600),
    dtype=st.sampled_from(list(DTYPES)),
    kind=st.sampled_from(list(ACTIVATIONS)),
    gate_layout=st.sampled_from(GATE_LAYOUTS),
    tail=st.sampled_from(list(Tail)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sizes(sizes, slack, F, dtype, kind, gate_layout, tail, seed):
    rng = np.random.default_rng(seed)
    S = sum(sizes)
    h = poison_tail(draw(rng, (S + slack, width(kind, F)), dtype), S)
    dy = poison_tail(draw(rng, (S + slack, F), dtype), S)
    y = forward(h, sizes, kind, gate_layout, tail=tail, num_threads=2)
    dh, _ = gradient(h, dy, sizes, kind, gate_layout, tail=tail, num_threads=2)
    options = {"gate_layout": gate_layout, **CLAMP}
    assert_close(y[:S], used(reference.grouped_activation(h, sizes, kind, **options), S), TERMS)
    assert_close(dh[:S], used(reference.grouped_activation_grad(h, dy, sizes, kind, **options)[0], S), TERMS)
    assert_tail(y, S, tail)
    assert_tail(dh, S, tail)
