# SPDX-License-Identifier: Apache-2.0
"""jax_grouped.ragged_dot against jax.lax.ragged_dot and fp64."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import BY_NAME, CASES, SENTINEL
from hlo import assert_refs_in_place
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax_calls import wide_enough
from problems import linear_problem, poisoned_buffer
from ragged_cases import calls_of
from tolerances import DTYPES, assert_bits, assert_close

from grouped_core import Op
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


def on_device(problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.asarray(problem.x), jnp.asarray(problem.weight), jnp.asarray(problem.sizes)


def batched(rng, count, in_axes):
    """Operands of a vmap, and those of each of its calls; sizes differ from call to call where they are batched."""
    problems = [problem_of(rng, HARD, "f32") for _ in range(count)]
    problems = [replace(p, sizes=np.roll(p.sizes, i)) for i, p in enumerate(problems)]
    columns = list(zip(*((p.x, p.weight, p.sizes) for p in problems), strict=True))
    whole = [jnp.asarray(c[0] if a is None else np.stack(c, a)) for c, a in zip(columns, in_axes, strict=True)]
    single = [[c[0] if a is None else c[i] for c, a in zip(columns, in_axes, strict=True)] for i in range(count)]
    return whole, single


IN_AXES = [axes for axes in itertools.product([None, 0, -1], repeat=3) if any(a is not None for a in axes)]


@pytest.mark.parametrize("in_axes", IN_AXES, ids=str)
def test_vmap_over_any_operands(rng, in_axes) -> None:
    """The bits of separate calls, forward and backward."""
    whole, single = batched(rng, 3, in_axes)
    dy = jnp.asarray(rng.standard_normal((HARD.T, HARD.N)), jnp.float32)

    def step(lhs, rhs, sizes):
        y, pull = jax.vjp(lambda a, b: ragged_dot(a, b, sizes), lhs, rhs)
        return y, *pull(dy)

    found = jax.jit(jax.vmap(step, in_axes))(*whole)
    for i, arguments in enumerate(single):
        for name, a, b in zip(("y", "dlhs", "drhs"), found, jax.jit(step)(*arguments), strict=True):
            assert_bits(a[i], b, f"{name} of {i}")


@pytest.mark.parametrize("in_axes", [(0, None, None), (1, 0, None), (0, 0, 0)], ids=str)
def test_gradient_of_a_vmap(rng, in_axes) -> None:
    """What is shared gets the sum of its gradients: the vmap lies inside and is differentiated, twice over too."""
    whole, _ = batched(rng, 2, in_axes)
    with jax.enable_x64(True):
        lhs, rhs = (jnp.nan_to_num(a).astype(jnp.float64) for a in whole[:2])
        sizes, S = whole[2], HARD.S

        def total(lhs, rhs):
            return jnp.sum(jax.vmap(ragged_dot, in_axes)(lhs, rhs, sizes)[:, :S] ** 2)

        def one_by_one(lhs, rhs):
            def element(i):
                return [a if x is None else jnp.take(a, i, x) for a, x in zip((lhs, rhs, sizes), in_axes, strict=True)]

            return sum(jnp.sum(ragged_dot(*element(i))[:S] ** 2) for i in range(2))

        def hessian_product(f, a, b):
            return jax.jit(lambda a, b: jax.jvp(jax.grad(f, (0, 1)), (a, b), (a, b))[1])(a, b)

        found, expected = hessian_product(total, lhs, rhs), hessian_product(one_by_one, lhs, rhs)
        # A polynomial with positive coefficients: at absolute values every term is positive.
        scale = hessian_product(one_by_one, abs(lhs), abs(rhs))
    for a, b, s in zip(found, expected, scale, strict=True):
        assert_close(a, (np.asarray(b), np.asarray(s)), HARD.T * HARD.K * HARD.N)


def test_one_call_serves_a_batch_of_rows(rng) -> None:
    """Weights and sizes shared: the rows are folded; from axis 1 without moving any of them."""
    whole, _ = batched(rng, 3, (1, None, None))
    call = jax.jit(jax.vmap(ragged_dot, (1, None, None), 1))
    assert calls_of(call, *whole) == {Op.MM: 1}
    assert " transpose(" not in str(call.lower(*whole).as_text("hlo"))


def test_batches_of_batches_are_one_call(rng) -> None:
    """Every operand has both batches; forward and both gradients."""
    whole, _ = batched(rng, 6, (0, 0, 0))
    lhs, rhs, sizes = (a.reshape(2, 3, *a.shape[1:]) for a in whole)
    dy = jnp.asarray(rng.standard_normal((2, 3, HARD.T, HARD.N)), jnp.float32)

    def step(lhs, rhs, sizes, dy):
        y, pull = jax.vjp(lambda a, b: ragged_dot(a, b, sizes), lhs, rhs)
        return y, *pull(dy)

    twice, once = jax.jit(jax.vmap(jax.vmap(step))), jax.jit(step)
    assert calls_of(twice, lhs, rhs, sizes, dy) == {Op.MM: 2, Op.WGRAD: 1}
    found = twice(lhs, rhs, sizes, dy)
    for i, j in itertools.product(range(2), range(3)):
        for a, b in zip(found, once(lhs[i, j], rhs[i, j], sizes[i, j], dy[i, j]), strict=True):
            assert_bits(a[i, j], b)


def test_nested_vmap(rng) -> None:
    whole, _ = batched(rng, 3, (0, None, 0))
    lhs, rhs, sizes = whole
    nested = jax.jit(jax.vmap(jax.vmap(ragged_dot, (0, None, None)), (0, None, 0)))
    found = nested(jnp.stack([lhs, 2 * lhs], 1), rhs, sizes)
    for i, j in itertools.product(range(3), range(2)):
        assert_bits(found[i, j], ragged_dot((j + 1) * lhs[i], rhs, sizes[i]))


def test_hessian(rng) -> None:
    """All four blocks in fp64, NaN in the tail of lhs, against a dense product without that tail."""
    problem = problem_of(rng, HARD, "f64")
    with jax.enable_x64(True):
        lhs, rhs, sizes = map(jnp.asarray, (problem.x, problem.weight, problem.sizes))
        group = np.repeat(np.arange(HARD.G), HARD.sizes)

        def dense(a, b):
            return jnp.einsum("tk,tkn->tn", a[: HARD.S], b[group])

        def take(f, a, b):
            return jax.jit(jax.hessian(lambda a, b: jnp.sum(f(a, b) ** 2), (0, 1)))(a, b)

        found = take(lambda a, b: ragged_dot(a, b, sizes)[: HARD.S], lhs[:, :3], rhs[:, :3])
        expected, scale = (take(dense, f(lhs[:, :3]), f(rhs[:, :3])) for f in (lambda a: a, abs))
    for a, b, s in zip(*map(jax.tree.leaves, (found, expected, scale)), strict=True):
        a, b, s = (np.nan_to_num(np.asarray(v), nan=0.0) for v in (a, b, s))
        assert_close(a, (b, s), 1000)


def test_with_a_buffer_reverse_mode_only(rng) -> None:
    problem = problem_of(rng, HARD, "f32")
    arguments = on_device(problem)
    out = jnp.zeros((HARD.T, HARD.N), jnp.float32)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda a: ragged_dot(a, arguments[1], arguments[2], out=out), arguments[:1], arguments[:1])


MIXED = [
    ("bf16", "f32", None),
    ("f32", "f16", None),
    ("f32", "f32", "f64"),
    ("bf16", "f16", "f32"),
    ("f16", "f16", "f64"),
]


@pytest.mark.parametrize(("left", "right", "preferred"), MIXED)
def test_dtypes_that_need_a_cast(rng, left, right, preferred) -> None:
    """The dtype that JAX returns, within the bounds of the wider; gradients in the dtypes of the operands."""
    problem = problem_of(rng, HARD, "f32")
    problem = replace(problem, x=problem.x.astype(DTYPES[left]), weight=problem.weight.astype(DTYPES[right]))
    with jax.enable_x64(True):
        lhs, rhs, sizes = map(jnp.asarray, (problem.x, problem.weight, problem.sizes))
        options = {"preferred_element_type": DTYPES[preferred]} if preferred else {}
        y, pull = jax.vjp(lambda a, b: ragged_dot(a, b, sizes, **options), lhs, rhs)
        assert y.dtype == jax.eval_shape(partial(jax.lax.ragged_dot, **options), lhs, rhs, sizes).dtype
        gradients = pull(jnp.asarray(problem.dy.astype(y.dtype)))
    expected = problem.expected()
    for name, value, kind in zip(("y", "x", "weight"), (y, *gradients), (None, left, right), strict=True):
        assert kind is None or value.dtype == DTYPES[kind]
        assert_close(value, *expected[name], what=name, accumulator="f32")


def test_group_offset_is_refused(rng) -> None:
    problem = problem_of(rng, HARD, "f32")
    with pytest.raises(NotImplementedError, match=r"^group_offset must be None; got .* Neither JAX nor jax_grouped"):
        ragged_dot(*on_device(problem), group_offset=jnp.array([1]))


def test_unknown_precision(rng) -> None:
    problem = problem_of(rng, HARD, "f32")
    with pytest.raises(ValueError, match="Precision argument must be one of"):
        ragged_dot(*on_device(problem), precision="more")


def test_what_is_no_array(rng) -> None:
    problem = problem_of(rng, HARD, "f32")
    with pytest.raises(TypeError, match="list"):
        ragged_dot(cast(Any, [[1.0]]), *on_device(problem)[1:])


def test_explicit_axes(rng) -> None:
    """On a mesh of explicit axes, where JAX's own asks for an out_sharding: what every device has is computed there."""
    arguments = on_device(problem_of(rng, HARD, "f32"))
    expected = jax.jit(ragged_dot)(*arguments)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        everywhere = [jax.device_put(a, NamedSharding(mesh, P())) for a in arguments]
        assert_bits(jax.jit(ragged_dot)(*everywhere), expected)
        divided = jax.device_put(arguments[0], NamedSharding(mesh, P("rows")))
        with pytest.raises(ValueError, match=r"cannot be divided automatically: .* Call it inside jax\.shard_map"):
            jax.jit(ragged_dot)(divided, *everywhere[1:])


def test_a_ref_is_written_in_place(rng) -> None:
    """Inside jit, its tail kept; a result that is not returned costs no copy."""
    lhs, rhs, sizes = on_device(problem_of(rng, HARD, "f32"))
    out = jax.new_ref(jnp.full((HARD.T, HARD.N), SENTINEL, jnp.float32))

    def step(out, lhs, rhs, sizes):
        ragged_dot(lhs, rhs, sizes, out=out)

    assert_refs_in_place(step, [out], lhs, rhs, sizes)
    assert_bits(out[: HARD.S], jax.jit(ragged_dot)(lhs, rhs, sizes)[: HARD.S])
    assert_bits(out[HARD.S :], jnp.full((HARD.T - HARD.S, HARD.N), SENTINEL, jnp.float32))
    with pytest.raises(TypeError, match=r"^out must be a whole jax\.Ref"):
        jax.jit(lambda out: ragged_dot(lhs, rhs, sizes, out=out.at[:]))(out)


@pytest.mark.parametrize("names", [("ragged_dot",), ()])
def test_checkpoint_policies_know_its_name(rng, names) -> None:
    """Saved by name it is not computed again for a cos after it."""
    problem = problem_of(rng, HARD, "f32")
    lhs, rhs, sizes = on_device(replace(problem, x=np.nan_to_num(problem.x)))
    policy = jax.checkpoint_policies.save_only_these_names(*names)

    def layer(lhs, rhs):
        return jnp.cos(ragged_dot(jnp.cos(ragged_dot(lhs, rhs, sizes)), rhs.mT, sizes))

    def loss(lhs, rhs):
        return jax.checkpoint(layer, policy=policy)(lhs, rhs).sum()

    # In the program as traced, because XLA may find that what is computed again is what it still has.
    program = str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(lhs, rhs))
    assert program.count("= grouped_mm[") == 2 + 2 + (0 if names else 2)
