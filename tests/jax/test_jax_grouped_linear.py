# SPDX-License-Identifier: Apache-2.0
"""jax_grouped.grouped_linear: results and cotangents against fp64, with and without buffers."""

from __future__ import annotations

from itertools import product
from typing import Any

import jax_calls
import numpy as np
import pytest
from cases import BY_NAME, CASES, SENTINEL, draw
from problems import LinearProblem, is_narrow, linear_problem, poisoned_buffer
from tolerances import DTYPES, assert_bits, assert_close

from jax_grouped import grouped_linear

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", ["gkn", "gnk"])
# One with a tail, an empty group and sizes that divide nothing.
HARD = BY_NAME["empty_middle"]


def assert_expected(found: dict, problem: LinearProblem, **expected_options) -> None:
    expected = problem.expected(**expected_options)
    assert found.keys() == expected.keys()
    for name, (reference_pair, terms) in expected.items():
        assert_close(found[name], reference_pair, terms, what=name)


@every_case
@every_dtype
def test_result_and_cotangents(rng, case, dtype) -> None:
    """All arguments at once; the NaN in every tail must reach nothing, and results end in zeros."""
    problem = linear_problem(rng, case, dtype)
    found = jax_calls.linear(problem)
    assert {a.dtype for a in found.values()} == {DTYPES[dtype]}
    assert_expected(found, problem)
    for name in ("y", "x", "row_scale"):
        assert_bits(found[name][case.S :], np.zeros_like(found[name][case.S :]), f"the tail of {name}")


@pytest.mark.parametrize(("bias", "row_scale"), [(False, False), (True, False), (False, True)])
@every_dtype
@every_layout
def test_absent_arguments(rng, bias, row_scale, dtype, layout) -> None:
    problem = linear_problem(rng, HARD, dtype, bias=bias, row_scale=row_scale, layout=layout)
    assert_expected(jax_calls.linear(problem), problem)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("case", ["tail", "odd_everything", "all_empty"])
def test_fp32_bias_and_row_scale_beside_16_bit(rng, case, dtype) -> None:
    problem = linear_problem(rng, BY_NAME[case], dtype, vector_dtype="f32")
    found = jax_calls.linear(problem)
    assert found["bias"].dtype == found["row_scale"].dtype == np.float32
    assert_expected(found, problem)


@every_case
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_layouts_have_the_same_bits(rng, case, dtype) -> None:
    problem = linear_problem(rng, case, dtype)
    gkn, gnk = jax_calls.linear(problem), jax_calls.linear(problem.in_layout("gnk"))
    gnk["weight"] = gnk["weight"].transpose(0, 2, 1)
    for name, value in gkn.items():
        assert_bits(value, gnk[name], name)


@pytest.mark.parametrize("dtype", ["bf16", "f64"])
def test_int64_sizes_have_the_same_bits(rng, dtype) -> None:
    problem = linear_problem(rng, HARD, dtype)
    wide = LinearProblem(**{**vars(problem), "sizes": problem.sizes.astype(np.int64)})
    narrow, found = jax_calls.linear(problem), jax_calls.linear(wide)
    for name, value in narrow.items():
        assert_bits(value, found[name], name)


def buffers_for(problem: LinearProblem, dtype: str) -> dict[str, Any]:
    S = problem.S
    return {
        "out": poisoned_buffer(problem.dy.shape, dtype, S, SENTINEL),
        "dgrad_out": poisoned_buffer(problem.x.shape, dtype, S, SENTINEL),
        "wgrad_out": np.full(problem.weight.shape, np.nan, DTYPES[dtype]),
    }


def assert_same_above_the_tail(found, plain, S: int, what: str, *, is_buffer: bool) -> None:
    assert_bits(found[:S], plain[:S], what)
    tail = np.full_like(plain[S:], SENTINEL if is_buffer else 0)
    assert_bits(found[S:], tail, f"the tail of {what}")


@every_case
@every_dtype
def test_buffers_have_the_same_bits(rng, case, dtype) -> None:
    """With all three buffers: results as without, tails as the caller left them, weight's own cotangent zero."""
    problem = linear_problem(rng, case, dtype)
    plain, found = jax_calls.linear(problem), jax_calls.linear(problem, **buffers_for(problem, dtype))
    assert_same_above_the_tail(found["y"], plain["y"], case.S, "y", is_buffer=True)
    assert_same_above_the_tail(found["x"], plain["x"], case.S, "dx", is_buffer=True)
    assert_bits(found["dgrad_out"], found["x"], "the cotangent of dgrad_out")
    assert_bits(found["wgrad_out"], plain["weight"], "the cotangent of wgrad_out")
    assert_bits(found["weight"], np.zeros_like(problem.weight), "the cotangent of weight")
    for name in ("bias", "row_scale"):
        assert_bits(found[name], plain[name], name)


SUBSETS = [
    pytest.param(chosen, id="+".join(n for n, c in zip(("out", "dgrad", "wgrad"), chosen, strict=True) if c))
    for chosen in product((False, True), repeat=3)
    if any(chosen)
]


@pytest.mark.parametrize("given", SUBSETS)
@pytest.mark.parametrize("row_scale", [False, True], ids=["plain", "row_scale"])
@every_layout
def test_each_buffer_alone(rng, given, row_scale, layout) -> None:
    problem = linear_problem(rng, HARD, "bf16", row_scale=row_scale, layout=layout)
    plain = jax_calls.linear(problem)
    buffers = buffers_for(problem, "bf16")
    buffers = {name: b for (name, b), chosen in zip(buffers.items(), given, strict=True) if chosen}
    found = jax_calls.linear(problem, **buffers)
    assert found.keys() == plain.keys() | (buffers.keys() - {"out"})
    assert_same_above_the_tail(found["y"], plain["y"], HARD.S, "y", is_buffer="out" in buffers)
    assert_same_above_the_tail(found["x"], plain["x"], HARD.S, "dx", is_buffer="dgrad_out" in buffers)
    if "dgrad_out" in buffers:
        assert_bits(found["dgrad_out"], found["x"], "the cotangent of dgrad_out")
    if "wgrad_out" in buffers:
        assert_bits(found["wgrad_out"], plain["weight"], "the cotangent of wgrad_out")
        assert_bits(found["weight"], np.zeros_like(problem.weight), "the cotangent of weight")
    else:
        assert_bits(found["weight"], plain["weight"], "dW")


@every_case
@pytest.mark.parametrize(
    ("dtype", "target"), [(d, t) for d in DTYPES for t in dict.fromkeys((d, "f32")) if t == d or is_narrow(d)]
)
def test_wgrad_accumulates(rng, case, dtype, target) -> None:
    """+= is one sum in the accumulator, rounded once to the target."""
    problem = linear_problem(rng, case, dtype, bias=False, row_scale=False)
    old = draw(rng, problem.weight.shape, target)
    found = jax_calls.linear(problem, wgrad_out=old, accumulate_wgrad=True)["wgrad_out"]
    assert found.dtype == old.dtype
    pair, terms = problem.expected(old_wgrad=old)["weight"]
    assert_close(found, pair, terms, what="wgrad_out")
    for g, size in enumerate(case.sizes):
        if size == 0:
            assert_bits(found[g], old[g], f"wgrad_out of the empty group {g}")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_fp32_wgrad_is_not_rounded_to_16_bits(rng, dtype) -> None:
    problem = linear_problem(rng, HARD, dtype)
    target = np.full(problem.weight.shape, np.nan, np.float32)
    found = jax_calls.linear(problem, wgrad_out=target)
    pair, terms = problem.expected()["weight"]
    assert_close(found["wgrad_out"], pair, terms, what="wgrad_out")
    assert_bits(found["wgrad_out"].astype(DTYPES[dtype]), jax_calls.linear(problem)["weight"], "rounded wgrad_out")


def test_accumulate_without_a_buffer_overwrites(rng) -> None:
    problem = linear_problem(rng, HARD, "f32")
    plain, found = jax_calls.linear(problem), jax_calls.linear(problem, accumulate_wgrad=True)
    assert_bits(found["weight"], plain["weight"])


def test_eager_has_the_bits_of_jit(rng) -> None:
    p = linear_problem(rng, HARD, "f32")
    arguments: dict[str, Any] = {**p.inputs, "group_sizes": p.sizes}  # of numpy, which JAX takes too
    y = grouped_linear(**arguments)
    assert_bits(y, jax_calls.linear(p)["y"])


def test_twice_has_the_same_bits(rng) -> None:
    problem = linear_problem(rng, BY_NAME["crosses_tiles"], "bf16")
    first, second = jax_calls.linear(problem), jax_calls.linear(problem)
    for name, value in first.items():
        assert_bits(value, second[name], name)
