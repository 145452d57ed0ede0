# SPDX-License-Identifier: Apache-2.0
"""jax.export: every target through serialised bytes, and with a number of rows that is a symbol."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax_mlp
import numpy as np
import pytest
from cases import BY_NAME, SENTINEL
from jax import export
from jax_mlp import mlp_problem
from problems import LinearProblem, linear_problem, poisoned_buffer
from tolerances import assert_bits

import grouped_core
from jax_grouped import EXPORT_CHECKS, grouped_activation, grouped_linear, grouped_mlp, ragged_dot

TARGETS = sorted(grouped_core.xla_registrations(False, True))
ALLOWED = [export.DisabledSafetyCheck.custom_call(target) for target in TARGETS]
HARD = BY_NAME["empty_middle"]


def with_all_gradients(x, weight, sizes, bias, row_scale, dy):
    """Calls every target: the linear layer, then an activation of its result, and all gradients."""

    def model(x, weight, bias, row_scale):
        y = grouped_linear(x, weight, sizes, bias, row_scale=row_scale)
        return grouped_activation(y, sizes, "squared_relu", row_scale=row_scale)

    y, pull_back = jax.vjp(model, x, weight, bias, row_scale)
    return y, *pull_back(dy)


def arguments_of(p: LinearProblem) -> list[np.ndarray | None]:
    return [p.x, p.weight, p.sizes, p.bias, p.row_scale, p.dy]


def through_bytes(exported: export.Exported) -> export.Exported:
    pytest.importorskip("flatbuffers", reason="jax.export serialises with flatbuffers")
    return export.deserialize(exported.serialize())


def test_the_public_constant_names_every_target() -> None:
    assert sorted(map(str, EXPORT_CHECKS)) == sorted(map(str, ALLOWED))


def test_mlp_with_donated_buffers_through_bytes(rng) -> None:
    """The public constant, gradients and both buffers; donated again, nothing moves."""
    problem = mlp_problem(rng, HARD, "f32", bias=False, row_scale=False)
    x, w1, w2 = (jnp.asarray(problem.inputs[n]) for n in ("x", "fc1_weight", "fc2_weight"))
    sizes, dy = jnp.asarray(problem.sizes), jnp.asarray(problem.dy)

    def step(out, dgrad_out, x, w1, w2, sizes, dy):
        def call(w1, dgrad_out):
            return grouped_mlp(x, w1, w2, sizes, out=out, dgrad_out=dgrad_out, **problem.options)

        y, pull_back = jax.vjp(call, w1, dgrad_out)
        d_fc1, dgrad_out = pull_back(dy)
        return y, dgrad_out, d_fc1

    shapes = [jnp.full(a.shape, SENTINEL) for a in (dy, x)]
    exported = export.export(jax.jit(step, donate_argnums=(0, 1)), disabled_checks=EXPORT_CHECKS)(
        *shapes, x, w1, w2, sizes, dy
    )
    call = jax.jit(through_bytes(exported).call, donate_argnums=(0, 1))
    before = [b.unsafe_buffer_pointer() for b in shapes]
    out, dgrad_out, d_fc1 = call(*shapes, x, w1, w2, sizes, dy)
    assert [b.unsafe_buffer_pointer() for b in (out, dgrad_out)] == before
    expected = jax_mlp.mlp(problem)
    assert_bits(out[: HARD.S], expected["y"][: HARD.S], "out")
    assert_bits(dgrad_out[: HARD.S], expected["x"][: HARD.S], "dgrad_out")
    assert_bits(d_fc1, expected["fc1_weight"], "the gradient of fc1_weight")


def test_model_above_calls_every_target(rng) -> None:
    text = jax.jit(with_all_gradients).lower(*arguments_of(linear_problem(rng, HARD, "f32"))).as_text()
    assert [t for t in TARGETS if f"@{t}(" not in text] == []


@pytest.mark.parametrize("target", TARGETS)
def test_export_refuses_an_undeclared_target(rng, target) -> None:
    """JAX wants to be told of each: the names are part of what users write."""
    others = [check for name, check in zip(TARGETS, ALLOWED, strict=True) if name != target]
    arguments = arguments_of(linear_problem(rng, HARD, "f32"))
    with pytest.raises(ValueError, match=target):
        export.export(jax.jit(with_all_gradients), disabled_checks=others)(*arguments)


def test_round_trip(rng) -> None:
    arguments = arguments_of(linear_problem(rng, HARD, "f32"))
    exported = export.export(jax.jit(with_all_gradients), disabled_checks=ALLOWED)(*arguments)
    found = through_bytes(exported).call(*arguments)
    for n, (a, b) in enumerate(zip(found, jax.jit(with_all_gradients)(*arguments), strict=True)):
        assert_bits(a, b, f"result {n}")


def symbolic(arrays, names: list[str]):
    scope = export.SymbolicScope()
    shapes = [export.symbolic_shape(name, scope=scope) for name in names]
    return [jax.ShapeDtypeStruct(s, a.dtype) for s, a in zip(shapes, arrays, strict=True)]


@pytest.mark.parametrize("serialised", [False, True], ids=["called", "round_trip"])
def test_symbolic_rows(rng, serialised) -> None:
    """Exported once, right for several T."""
    problem = linear_problem(rng, HARD, "f32")
    names = [f"T, {HARD.K}", f"{HARD.G}, {HARD.K}, {HARD.N}", f"{HARD.G}", f"{HARD.G}, {HARD.N}", "T", f"T, {HARD.N}"]
    types = symbolic(arguments_of(problem), names)
    exported = export.export(jax.jit(with_all_gradients), disabled_checks=ALLOWED)(*types)
    exported = through_bytes(exported) if serialised else exported
    for T in (HARD.T, HARD.T + 3, 64):
        arguments = arguments_of(linear_problem(rng, replace(HARD, T=T), "f32"))
        found = exported.call(*arguments)
        for n, (a, b) in enumerate(zip(found, jax.jit(with_all_gradients)(*arguments), strict=True)):
            assert_bits(a, b, f"result {n} for T={T}")


def test_symbolic_buffer_is_written_in_place(rng) -> None:
    problem = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)

    def step(out, lhs, rhs, sizes):
        return ragged_dot(lhs, rhs, sizes, out=out)

    arrays = [problem.dy, problem.x, problem.weight, problem.sizes]
    names = [f"T, {HARD.N}", f"T, {HARD.K}", f"{HARD.G}, {HARD.K}, {HARD.N}", f"{HARD.G}"]
    exported = export.export(jax.jit(step, donate_argnums=0), disabled_checks=ALLOWED)(*symbolic(arrays, names))
    out = jnp.array(poisoned_buffer(problem.dy.shape, "f32", HARD.S, SENTINEL), copy=True)
    expected, pointer = jax.jit(ragged_dot)(*arrays[1:]), out.unsafe_buffer_pointer()
    y = jax.jit(exported.call, donate_argnums=0)(out, *arrays[1:])
    assert y.unsafe_buffer_pointer() == pointer
    assert_bits(y[: HARD.S], expected[: HARD.S], "y")
    assert_bits(y[HARD.S :], np.full_like(expected[HARD.S :], SENTINEL), "the tail of out")


@pytest.mark.parametrize("bad", ["out", "x"])
def test_symbols_that_do_not_fit(rng, bad) -> None:
    """A buffer with a symbol of its own, and a K that is no one's: the core's words, at trace time."""
    problem = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)
    arrays = [problem.dy, problem.x, problem.weight, problem.sizes]
    names = ["T, 33", "T, 16", "4, 16, 33", "4"]
    names[0 if bad == "out" else 1] = "U, 33" if bad == "out" else "T, K"
    words = {"out": r"out must be \[T=\d+, N=33\] f32", "x": r"weight must be \[G, K=\d+, N\] f32"}

    def step(out, x, weight, sizes):
        return grouped_linear(x, weight, sizes, out=out)

    with pytest.raises(ValueError, match=words[bad]):
        export.export(jax.jit(step), disabled_checks=ALLOWED)(*symbolic(arrays, names))
