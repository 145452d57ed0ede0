# SPDX-License-Identifier: Apache-2.0
"""While install() holds: what holds of jax.lax.ragged_dot itself, in every mode, dtype, derivative and batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, CASES
from jax_calls import wide_enough
from problems import linear_problem
from ragged_cases import CONTRACTING, EXTENT, NONCONTRACTING, calls_of
from tolerances import DTYPES, assert_bits, assert_close

from grouped_core import Op
from jax_grouped import EXPORT_CHECKS, install, ragged_dot, ragged_dot_general

HARD = BY_NAME["empty_middle"]
GENERAL = NONCONTRACTING + CONTRACTING


@pytest.fixture(scope="module", autouse=True)
def jax_on_the_core():
    with install(("cpu",)):
        yield


def value_and_cotangents(function, lhs, rhs, sizes, dy):
    y, pull = jax.vjp(lambda a, b: function(a, b, sizes), lhs, rhs)
    return y, *pull(dy)


compiled = jax.jit(value_and_cotangents, static_argnums=0)


def run(function, problem, dy=None):
    with wide_enough(problem.x, problem.sizes):
        arguments = (problem.x, problem.weight, problem.sizes, problem.dy if dy is None else dy)
        return compiled(function, *map(jnp.asarray, arguments))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_result_and_gradients(rng, case, dtype) -> None:
    """Within the bounds of fp64, NaN in every tail, and the bits of jax_grouped.ragged_dot."""
    p = linear_problem(rng, case, dtype, bias=False, row_scale=False)
    # XLA drops a call whose result has no element.
    products = (p.dy.size > 0) + (p.x.size > 0)
    launches = {op: n for op, n in ((Op.MM, products), (Op.WGRAD, int(p.weight.size > 0))) if n}
    assert calls_of(run, jax.lax.ragged_dot, p) == launches
    expected = p.expected()
    theirs, ours = run(jax.lax.ragged_dot, p), run(ragged_dot, p)
    for name, value, same in zip(("y", "x", "weight"), theirs, ours, strict=True):
        assert value.dtype == DTYPES[dtype]
        assert_close(value, *expected[name], what=name)
        assert_bits(value, same, name)


@pytest.mark.parametrize("case", GENERAL, ids=str)
@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_every_mode(rng, case, dtype) -> None:
    with jax.enable_x64(dtype == "f64"):
        arguments = tuple(map(jnp.asarray, case.draw(rng, dtype)))
        theirs, ours = (
            jax.jit(partial(f, ragged_dot_dimension_numbers=case.numbers))
            for f in (jax.lax.ragged_dot_general, ragged_dot_general)
        )
        y = jax.block_until_ready(theirs(*arguments))  # or it would still be counting
        assert calls_of(theirs, *arguments) == calls_of(ours, *arguments) != {}
        assert_bits(y, ours(*arguments))
    assert_close(y, case.pair(*arguments), case.terms)


@pytest.mark.parametrize("case", NONCONTRACTING, ids=str)
def test_gradients_of_every_mode(rng, case) -> None:
    """Of the mode whose gradients JAX has: it makes new dimension numbers for them, and all of those are served."""
    with jax.enable_x64(True):
        lhs, rhs, sizes = map(jnp.asarray, case.draw(rng, "f64"))
        dy = jnp.asarray(rng.standard_normal([EXTENT[c] for c in case.result]))

        def take(function, lhs, rhs, dy):
            return jax.jit(lambda *a: jax.vjp(lambda b, c: function(b, c, sizes), *a[:2])[1](a[2]))(lhs, rhs, dy)

        own = partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=case.numbers)
        counted = calls_of(take, own, lhs, rhs, dy)
        found, expected = take(own, lhs, rhs, dy), take(case.truth, lhs, rhs, dy)
        scale = take(case.truth, abs(lhs), abs(rhs), abs(dy))
    assert set(counted) == {Op.MM, Op.WGRAD}
    terms = EXTENT["m"] * EXTENT["n"] * EXTENT["k"]
    for a, b, s in zip(found, expected, scale, strict=True):
        assert_close(a, (np.asarray(b), np.asarray(s)), terms)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_fp32_result_of_16_bit_operands(rng, dtype) -> None:
    """Gradients are products in fp32 with an fp32 cotangent that no 16-bit number equals, as JAX has them."""
    p = linear_problem(rng, HARD, dtype, bias=False, row_scale=False)
    dy = p.dy.astype(np.float32) * np.float32(1 + 2**-12)
    found = run(partial(jax.lax.ragged_dot, preferred_element_type=jnp.float32), p, dy)
    expected = replace(p, dy=dy).expected()
    for name, value, kind in zip(("y", "x", "weight"), found, ("f32", dtype, dtype), strict=True):
        assert value.dtype == DTYPES[kind]
        assert_close(value, *expected[name], what=name)


WIDENED = [("bf16", "f32", None), ("f32", "f16", None), ("f32", "f32", "f64"), ("bf16", "bf16", "f64")]


@pytest.mark.parametrize(("left", "right", "preferred"), WIDENED)
def test_operands_of_two_dtypes(rng, left, right, preferred) -> None:
    """Cast up, so nothing is lost: within the bound of the wider."""
    lhs, rhs, sizes = NONCONTRACTING[0].draw(rng, "f32")
    with jax.enable_x64(True):
        arguments = jnp.asarray(lhs.astype(DTYPES[left])), jnp.asarray(rhs.astype(DTYPES[right])), jnp.asarray(sizes)
        options = {"preferred_element_type": DTYPES[preferred]} if preferred else {}
        call = jax.jit(partial(jax.lax.ragged_dot, **options))
        assert calls_of(call, *arguments) == {Op.MM: 1}
        y = call(*arguments)
    assert y.dtype == DTYPES[preferred or "f32"]
    assert_close(y, NONCONTRACTING[0].pair(*arguments), EXTENT["k"])


@pytest.mark.parametrize(("kind", "preferred"), [("f32", "bf16"), ("bf16", "f16"), ("f64", "f32")])
def test_narrower_results(rng, kind, preferred) -> None:
    """The sums, rounded as JAX rounds a sum that it was told to store so."""
    with jax.enable_x64(True):
        lhs, rhs, sizes = map(jnp.asarray, NONCONTRACTING[0].draw(rng, kind))
        wide = "f64" if kind == "f64" else "f32"
        sums = jax.lax.ragged_dot(lhs, rhs, sizes, preferred_element_type=DTYPES[wide])
        y = jax.lax.ragged_dot(lhs, rhs, sizes, preferred_element_type=DTYPES[preferred])
    assert_bits(y, np.asarray(sums).astype(DTYPES[preferred]))


def objective(weights, sizes, function=jax.lax.ragged_dot):
    return lambda lhs, rhs: jnp.vdot(weights, function(lhs, rhs, sizes) ** 2)


@pytest.mark.parametrize("derivative", ["forward", "forward_over_reverse", "reverse_over_reverse"])
def test_derivatives(rng, derivative) -> None:
    """Those of second order that JAX has: products with the Hessian, and twice in reverse by the rows."""
    case = NONCONTRACTING[0]
    take = {
        "forward": lambda f, a, b: jax.jvp(f, (a, b), (2 * a, 3 * b))[1],
        "forward_over_reverse": lambda f, a, b: jax.jvp(jax.grad(f, (0, 1)), (a, b), (2 * a, 3 * b))[1],
        "reverse_over_reverse": lambda f, a, b: jax.grad(lambda c: jnp.vdot(jax.grad(f)(c, b), 2 * a))(a),
    }[derivative]
    with jax.enable_x64(True):
        lhs, rhs, sizes = map(jnp.asarray, case.draw(rng, "f64"))
        weights = jnp.asarray(np.abs(rng.standard_normal([EXTENT[c] for c in case.result])))
        own, truth = objective(weights, sizes), objective(weights, sizes, case.truth)
        assert calls_of(jax.jit(partial(take, own)), lhs, rhs) != {}
        found, expected, scale = take(own, lhs, rhs), take(truth, lhs, rhs), take(truth, abs(lhs), abs(rhs))
    for a, b, s in zip(*map(jax.tree.leaves, (found, expected, scale)), strict=True):
        assert_close(a, (np.asarray(b), np.asarray(s)), EXTENT["k"] * EXTENT["m"] * EXTENT["n"])


def test_hessian_is_refused_as_before(rng) -> None:
    """JAX's own vmap rule does not take what hessian asks for; jax_grouped.ragged_dot has it."""
    lhs, rhs, sizes = map(jnp.asarray, NONCONTRACTING[0].draw(rng, "f32"))
    with pytest.raises(NotImplementedError, match="vmap over any dim but 0"):
        jax.hessian(objective(1.0 + jnp.zeros((13, 7)), sizes))(lhs, rhs)


def test_vmap(rng) -> None:
    """Of the one kind that JAX has: every operand batched at dimension 0. A batch of gradients likewise."""
    problems = [linear_problem(rng, HARD, "f32", bias=False, row_scale=False) for _ in range(3)]
    problems = [replace(p, sizes=np.roll(p.sizes, i)) for i, p in enumerate(problems)]
    stacked = [jnp.stack(a) for a in zip(*((p.x, p.weight, p.sizes, p.dy) for p in problems), strict=True)]
    call = jax.jit(jax.vmap(partial(value_and_cotangents, jax.lax.ragged_dot)))
    assert calls_of(call, *stacked) == {Op.MM: 2, Op.WGRAD: 1}
    found = call(*stacked)
    for i, p in enumerate(problems):
        for a, b in zip(found, run(jax.lax.ragged_dot, p), strict=True):
            assert_bits(a[i], b)


@pytest.mark.parametrize("how", ["scan", "checkpoint", "cond"])
def test_control_flow(rng, how) -> None:
    p = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)
    lhs, rhs, sizes, dy = map(jnp.asarray, (p.x, p.weight, p.sizes, p.dy))
    wrapped = {
        "scan": lambda a, b: jax.lax.scan(lambda c, s: (c, jax.lax.ragged_dot(a, b, s)), 0, sizes[None])[1][0],
        "checkpoint": jax.checkpoint(lambda a, b: jax.lax.ragged_dot(a, b, sizes)),
        "cond": lambda a, b: jax.lax.cond(
            sizes[0] > 0, lambda: jax.lax.ragged_dot(a, b, sizes), lambda: jnp.zeros(dy.shape)
        ),
    }[how]

    def step(a, b, dy):
        y, pull = jax.vjp(wrapped, a, b)
        return y, *pull(dy)

    assert calls_of(jax.jit(step), lhs, rhs, dy)[Op.WGRAD] == 1
    for a, b in zip(jax.jit(step)(lhs, rhs, dy), run(jax.lax.ragged_dot, p), strict=True):
        assert_bits(a, b)


def test_symbolic_shapes(rng) -> None:
    """Exported once for any number of rows."""
    p = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)
    (rows,) = jax.export.symbolic_shape("rows")
    types = [
        jax.ShapeDtypeStruct((rows, HARD.K), jnp.float32),
        *(jax.typeof(jnp.asarray(a)) for a in (p.weight, p.sizes)),
    ]
    types = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in types]
    exported = jax.export.export(jax.jit(jax.lax.ragged_dot), disabled_checks=EXPORT_CHECKS)(*types)
    y = exported.call(*map(jnp.asarray, (p.x, p.weight, p.sizes)))
    assert_bits(y, run(jax.lax.ragged_dot, p)[0])


def test_sizes_that_do_not_fit_are_an_error(rng) -> None:
    """On CPU, where JAX's own computes something: the one thing that becomes stricter."""
    p = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)
    sizes = jnp.asarray([HARD.T, 1, 0, 0], jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"group_sizes\[1\] = 1 does not fit"):
        jax.block_until_ready(jax.jit(jax.lax.ragged_dot)(p.x, p.weight, sizes))
