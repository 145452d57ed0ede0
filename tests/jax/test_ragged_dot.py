# SPDX-License-Identifier: Apache-2.0
"""jax_grouped.ragged_dot against jax.lax.ragged_dot and fp64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import BY_NAME, CASES, SENTINEL
from jax_calls import wide_enough
from problems import linear_problem, poisoned_buffer
from tolerances import DTYPES, assert_bits, assert_close

from jax_grouped import ragged_dot

# Where lax.ragged_dot has something to multiply; test_result_and_gradients takes the empty cases too.
SHARED_CASES = [c for c in CASES if c.K > 0 and c.G > 0 and c.T > 0 and c.N > 0]
HARD = BY_NAME["empty_middle"]


def problem_of(rng, case, dtype, **options):
    return linear_problem(rng, case, dtype, bias=False, row_scale=False, **options)


@partial(jax.jit, static_argnames=("function", "preferred"))
def value_and_cotangents(function, lhs, rhs, sizes, dy, preferred=None):
    y, pull_back = jax.vjp(lambda a, b: function(a, b, sizes, preferred_element_type=preferred), lhs, rhs)
    return y, *pull_back(dy)


def run(function, problem, dy=None, preferred=None):
    with wide_enough(problem.x, problem.sizes):
        arguments = [jnp.asarray(a) for a in (problem.x, problem.weight, problem.sizes)]
        dy = jnp.asarray(problem.dy if dy is None else dy)
        return [np.asarray(a) for a in value_and_cotangents(function, *arguments, dy, preferred)]


def without_nan_tail(problem):
    """lax.ragged_dot multiplies the tail by zero, so a NaN there would spread."""
    clean = {"x": problem.x.copy(), "dy": problem.dy.copy()}
    for a in clean.values():
        a[problem.S :] = 1
    return replace(problem, **clean)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_result_and_gradients(rng, case, dtype) -> None:
    problem = problem_of(rng, case, dtype)
    expected = problem.expected()
    for name, value in zip(("y", "x", "weight"), run(ragged_dot, problem), strict=True):
        pair, terms = expected[name]
        assert value.dtype == DTYPES[dtype]
        assert_close(value, pair, terms, what=name)


@pytest.mark.parametrize("case", SHARED_CASES, ids=str)
def test_agrees_with_lax(rng, case) -> None:
    """In fp64, where both are close enough to the truth that only a different meaning could part them."""
    problem = without_nan_tail(problem_of(rng, case, "f64"))
    ours, theirs = run(ragged_dot, problem), run(jax.lax.ragged_dot, problem)
    expected = problem.expected()
    for name, a, b in zip(("y", "x", "weight"), ours, theirs, strict=True):
        assert_close(a, (b.astype(np.float64), expected[name][0][1]), expected[name][1], what=name)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("case", ["tail", "crosses_tiles", "all_empty"])
def test_fp32_result_of_16_bit_inputs(rng, case, dtype) -> None:
    problem = problem_of(rng, BY_NAME[case], dtype)
    y, dlhs, drhs = run(ragged_dot, problem, problem.dy.astype(np.float32), preferred=jnp.float32)
    assert y.dtype == np.float32
    assert dlhs.dtype == drhs.dtype == DTYPES[dtype]
    expected = problem.expected()
    for name, value in (("y", y), ("x", dlhs), ("weight", drhs)):
        assert_close(value, *expected[name], what=name)


def test_incoming_gradient_is_rounded_to_the_inputs_dtype(rng) -> None:
    """A gradient of fp32 that no 16-bit number equals gives the bits of the rounded one."""
    problem = problem_of(rng, HARD, "bf16")
    dy = problem.dy.astype(np.float32) * np.float32(1 + 2**-12)
    assert not np.array_equal(dy[: HARD.S], dy[: HARD.S].astype(DTYPES["bf16"]).astype(np.float32))
    fine = run(ragged_dot, problem, dy, preferred=jnp.float32)
    rounded = run(ragged_dot, problem, dy.astype(DTYPES["bf16"]).astype(np.float32), preferred=jnp.float32)
    for a, b in zip(fine, rounded, strict=True):
        assert_bits(a, b)


def result_with_int32_sizes(problem) -> np.ndarray:
    return np.asarray(jax.jit(ragged_dot)(problem.x, problem.weight, problem.sizes.astype(np.int32)))


@pytest.mark.parametrize("sizes_dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64])
def test_sizes_of_any_integer_type(rng, sizes_dtype) -> None:
    problem = problem_of(rng, HARD, "f32", sizes_dtype=sizes_dtype)
    expected = result_with_int32_sizes(problem)
    with jax.enable_x64(sizes_dtype in (np.int64, np.uint64)):
        sizes = jnp.asarray(problem.sizes)
        assert sizes.dtype == sizes_dtype
        assert_bits(jax.jit(ragged_dot)(problem.x, problem.weight, sizes), expected)


@pytest.mark.parametrize("sizes_dtype", [np.float32, np.bool_])
def test_sizes_that_are_no_integers(rng, sizes_dtype) -> None:
    problem = problem_of(rng, HARD, "f32")
    with pytest.raises(TypeError, match=r"group_sizes must be \[G=4\] i32 or i64; got \[4\] (f32|bool)\."):
        jax.jit(ragged_dot)(problem.x, problem.weight, problem.sizes.astype(sizes_dtype))


@pytest.mark.parametrize("preferred", [None, jnp.float32], ids=["same", "f32"])
def test_out_is_written_and_its_tail_kept(rng, preferred) -> None:
    problem = problem_of(rng, HARD, "bf16")
    arguments = (problem.x, problem.weight, problem.sizes)
    plain = np.asarray(jax.jit(partial(ragged_dot, preferred_element_type=preferred))(*arguments))
    out = poisoned_buffer(plain.shape, "bf16" if preferred is None else "f32", HARD.S, SENTINEL)

    @jax.jit
    def call(lhs, rhs, sizes, out, dy):
        y, pull_back = jax.vjp(
            lambda a, b: ragged_dot(a, b, sizes, preferred_element_type=preferred, out=out), lhs, rhs
        )
        return y, *pull_back(dy)

    y, dlhs, drhs = call(*arguments, out, problem.dy.astype(out.dtype))
    assert_bits(np.asarray(y)[: HARD.S], plain[: HARD.S], "y")
    assert_bits(np.asarray(y)[HARD.S :], out[HARD.S :], "the tail of out")
    expected = problem.expected()
    assert_close(dlhs, *expected["x"], what="dlhs")
    assert_close(drhs, *expected["weight"], what="drhs")


def test_out_of_another_dtype_than_the_result(rng) -> None:
    problem = problem_of(rng, HARD, "bf16")
    out = np.zeros(problem.dy.shape, np.float32)
    with pytest.raises(TypeError, match=r"out must have the result's dtype bfloat16; got float32\."):
        jax.jit(ragged_dot)(problem.x, problem.weight, problem.sizes, out=out)


@pytest.mark.parametrize("precision", ["default", "highest", jax.lax.Precision.HIGH])
def test_precision_changes_nothing(rng, precision) -> None:
    problem = problem_of(rng, HARD, "f32")
    y = jax.jit(partial(ragged_dot, precision=precision))(problem.x, problem.weight, problem.sizes)
    pair = reference.grouped_mm(problem.x, problem.weight, problem.sizes, layout="gkn")
    assert_close(y, pair, HARD.K, what="y")
    assert_bits(y, result_with_int32_sizes(problem))
