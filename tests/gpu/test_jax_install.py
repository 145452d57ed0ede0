# SPDX-License-Identifier: Apache-2.0
"""install() on a GPU: jax.lax.ragged_dot on the core, forward and both gradients, and JAX's own again after it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME
from frameworks import from_jax, jax_gradients, to_jax
from hlo import PLUMBING, instructions
from problems import linear_problem
from ragged_cases import NONCONTRACTING, calls_of
from tolerances import DTYPES, assert_bits, assert_close

from grouped_core import Op
from jax_grouped import install, installed, ragged_dot, uninstall

HARD = BY_NAME["crosses_tiles"]
# The Hopper kernels take the first three in 16 bits; the others go to the portable ones.
CASES = [(n, d) for n in ("even", "tail", "crosses_tiles", "odd_everything", "all_empty") for d in ("bf16", "f32")]
CASES += [("even", "f16"), ("tail", "f64"), ("empty_middle", "f64")]


@pytest.fixture(autouse=True)
def leave_jax_as_it_was():
    yield
    uninstall()


def problem_of(rng, name, dtype):
    return linear_problem(rng, BY_NAME[name], dtype, bias=False, row_scale=False)


def step(lhs, rhs, sizes, dy):
    """Result and gradients by JAX's own rules."""
    y, pull = jax.vjp(lambda a, b: jax.lax.ragged_dot(a, b, sizes), lhs, rhs)
    return y, *pull(dy)


def operands(p):
    return tuple(to_jax(a) for a in (p.x, p.weight, p.sizes, p.dy))


def run(function, p):
    """[y, dx, dW] under jit."""
    return jax_gradients(lambda a, b: function(a, b, to_jax(p.sizes)), [p.x, p.weight], p.dy)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_result_and_gradients(rng, name, dtype):
    """NaN in every tail; the bounds of fp64; the bits of jax_grouped.ragged_dot."""
    p = problem_of(rng, name, dtype)
    with install():
        found = run(jax.lax.ragged_dot, p)
    ours = run(ragged_dot, p)
    expected = p.expected()
    for key, value, same in zip(("y", "x", "weight"), found, ours, strict=True):
        assert value.dtype == DTYPES[dtype]
        assert_close(from_jax(value), *expected[key], what=key)
        assert_bits(from_jax(value), from_jax(same), key)


def targets(function, *arguments):
    text = str(jax.jit(function).lower(*arguments).compile().as_text())
    return sorted(re.findall(r'custom_call_target="(grouped_\w+)"', text)), text


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_the_compiled_program(rng, dtype):
    """The core's calls and no copy of a weight while it holds; none of them before and after."""
    arguments = operands(problem_of(rng, "crosses_tiles", dtype))
    arguments = tuple(jnp.nan_to_num(a) for a in arguments)
    jitted = jax.jit(step)

    def assert_theirs():
        assert targets(step, *arguments)[0] == []
        assert calls_of(jitted, *arguments) == {}

    assert_theirs()
    with install():
        assert installed() == ("cuda",)
        found, text = targets(step, *arguments)
        assert found == ["grouped_mm_v1", "grouped_mm_v1", "grouped_wgrad_v1"]
        assert set(calls_of(jitted, *arguments)) == {Op.MM, Op.WGRAD}
        name = {"bf16": "bf16", "f32": "f32"}[dtype]
        G, K, N = arguments[1].shape
        shapes = {f"{name}[{G},{K},{N}]", f"{name}[{G},{N},{K}]"}
        made = {i.opcode for i in instructions(text) if shapes & set(i.shapes)}
        assert "custom-call" in made
        assert made <= PLUMBING | {"custom-call"}
    assert_theirs()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_fp32_result_of_16_bit_operands(rng, dtype):
    """The gradients are products in fp32, as JAX makes them: a cotangent that no 16-bit number equals counts whole."""
    p = problem_of(rng, "tail", dtype)
    p = replace(p, dy=p.dy.astype(np.float32) * np.float32(1 + 2**-12))
    with install():
        found = run(partial(jax.lax.ragged_dot, preferred_element_type=jnp.float32), p)
    expected = p.expected()
    for key, value, kind in zip(("y", "x", "weight"), found, ("f32", dtype, dtype), strict=True):
        assert value.dtype == DTYPES[kind]
        assert_close(from_jax(value), *expected[key], what=key)


def test_vmap(rng):
    problems = [problem_of(rng, "tail", "bf16") for _ in range(3)]
    problems = [replace(p, sizes=np.roll(p.sizes, i)) for i, p in enumerate(problems)]
    stacked = [jnp.stack(a) for a in zip(*(operands(p) for p in problems), strict=True)]
    with install():
        found = jax.jit(jax.vmap(step))(*stacked)
        for i, p in enumerate(problems):
            for a, b in zip(found, run(jax.lax.ragged_dot, p), strict=True):
                assert_bits(from_jax(a[i]), from_jax(b))


def test_hessian_of_the_drop_in(rng):
    """Every second derivative of jax_grouped.ragged_dot, in fp64, against those of an einsum."""
    case = NONCONTRACTING[0]
    lhs, rhs, sizes = map(jnp.asarray, case.draw(rng, "f64"))

    def take(function, a, b):
        def objective(a, b):
            return jnp.sum(function(a, b, sizes) ** 2)

        return jax.jit(jax.hessian(objective, (0, 1)))(a, b)

    assert set(calls_of(take, ragged_dot, lhs, rhs)) == {Op.MM, Op.WGRAD}
    found, expected = take(ragged_dot, lhs, rhs), take(case.truth, lhs, rhs)
    scale = take(case.truth, abs(lhs), abs(rhs))
    for a, b, s in zip(*map(jax.tree.leaves, (found, expected, scale)), strict=True):
        assert_close(from_jax(a), (from_jax(b), from_jax(s)), 1000)


def test_cpu_programs_are_left_alone(rng):
    p = problem_of(rng, "tail", "f32")
    with install(), jax.default_device(jax.devices("cpu")[0]):
        arguments = tuple(jax.device_put(np.nan_to_num(a), jax.devices("cpu")[0]) for a in (p.x, p.weight, p.sizes))
        assert targets(jax.lax.ragged_dot, *arguments)[0] == []
