# SPDX-License-Identifier: Apache-2.0
"""jax_grouped under vmap: one call where batches lie one after another, one for each elsewhere, right in both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import jax_calls
import jax_mlp
import numpy as np
import pytest
from cases import BY_NAME, CASES, SENTINEL
from jax_mlp import mlp_problem
from problems import activation_problem, linear_problem, poisoned_buffer
from tolerances import assert_bits

import grouped_core
from grouped_core import Op
from jax_grouped import grouped_activation, grouped_linear, grouped_mlp

HARD = BY_NAME["empty_middle"]
# Tails of every length, and NaN in all of them.
EVERY_SIZES = ((9, 0, 0, 22), (0, 40, 0, 0), (0, 0, 0, 0), (1, 2, 3, 4))
B = len(EVERY_SIZES)


def stack(arrays) -> Any:
    return jnp.stack([jnp.asarray(a) for a in arrays])


def every(rng, make, *arguments, **options) -> list[Any]:
    """A problem for each of the sizes, the tails of all rows poisoned anew."""
    return [make(rng, replace(HARD, sizes=sizes), *arguments, **options) for sizes in EVERY_SIZES]


def calls_while(run, *ops: Op) -> tuple[Any, list[int]]:
    before = [grouped_core.call_count(op) for op in ops]
    result = jax.block_until_ready(run())
    return result, [grouped_core.call_count(op) - n for op, n in zip(ops, before, strict=True)]


def linear_step(inputs, sizes, dy):
    y, pull_back = jax.vjp(lambda a: grouped_linear(**a, group_sizes=sizes), inputs)
    return {"y": y, **pull_back(dy)[0]}


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_linear_is_one_call_each(rng, dtype) -> None:
    """Forward and every gradient, bias and row_scale among them, with sizes of each batch's own."""
    problems = every(rng, linear_problem, dtype)
    inputs = {name: stack(p.inputs[name] for p in problems) for name in problems[0].inputs}
    arguments = inputs, stack(p.sizes for p in problems), stack(p.dy for p in problems)
    ops = (Op.MM, Op.WGRAD, Op.BIAS_GRAD, Op.ROW_SCALE, Op.ROW_DOT)
    found, counts = calls_while(lambda: jax.jit(jax.vmap(linear_step))(*arguments), *ops)
    assert counts == [2, 1, 1, 2, 1]
    for i, p in enumerate(problems):
        for name, value in jax_calls.linear(p).items():
            assert_bits(found[name][i], value, f"{name} of batch {i}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_shape(rng, case) -> None:
    problems: list[Any] = [linear_problem(rng, case, "f32", layout="gnk") for _ in range(2)]
    inputs = {name: stack(p.inputs[name] for p in problems) for name in problems[0].inputs}

    def step(inputs, dy):
        y, pull_back = jax.vjp(
            lambda a: grouped_linear(**a, group_sizes=problems[0].sizes, weight_layout="gnk"), inputs
        )
        return {"y": y, **pull_back(dy)[0]}

    found = jax.jit(jax.vmap(step))(inputs, stack(p.dy for p in problems))
    for i, p in enumerate(problems):
        for name, value in jax_calls.linear(p).items():
            assert_bits(found[name][i], value, f"{name} of batch {i}")


@pytest.mark.parametrize("batched", ["x", "weight", "sizes", "bias", "row_scale"])
def test_one_batched_argument(rng, batched) -> None:
    """Whatever is shared is read by every batch; the weight shared and not the sizes, it is a call for each."""
    problems = every(rng, linear_problem, "f32")
    p = problems[1]
    names = ("x", "weight", "sizes", "bias", "row_scale")
    given = {n: stack(getattr(q, n) for q in problems) if n == batched else jnp.asarray(getattr(p, n)) for n in names}

    def call(x, weight, sizes, bias, row_scale):
        return grouped_linear(x, weight, sizes, bias, row_scale=row_scale)

    axes = tuple(0 if n == batched else None for n in names)
    found, (count,) = calls_while(lambda: jax.jit(jax.vmap(call, in_axes=axes))(*given.values()), Op.MM)
    assert count == (B if batched in ("sizes", "bias") else 1)
    for i in range(B):
        alone = jax.jit(call)(*(a[i] if n == batched else a for n, a in given.items()))
        assert_bits(found[i], np.asarray(alone), f"batch {i}")


@pytest.mark.parametrize("kind", ["swiglu", "squared_relu"])
def test_activation_is_one_call_each(rng, kind) -> None:
    problems = every(rng, activation_problem, "bf16", kind)

    def step(h, sizes, row_scale, dy):
        y, pull_back = jax.vjp(
            lambda h, s: grouped_activation(h, sizes, row_scale=s, **problems[0].options), h, row_scale
        )
        return y, *pull_back(dy)

    arguments = [stack(getattr(p, n) for p in problems) for n in ("h", "sizes", "row_scale", "dy")]
    found, counts = calls_while(lambda: jax.jit(jax.vmap(step))(*arguments), Op.ACTIVATION, Op.ACTIVATION_GRAD)
    assert counts == [1, 1]
    for i, p in enumerate(problems):
        expected = jax_calls.activation(p)
        for name, value in zip(("y", "h", "row_scale"), found, strict=True):
            assert_bits(value[i], expected[name], f"{name} of batch {i}")


@pytest.mark.parametrize("recompute", [False, True])
def test_mlp_is_one_call_each(rng, recompute) -> None:
    problems = every(rng, mlp_problem, "f32")
    inputs = {name: stack(p.inputs[name] for p in problems) for name in problems[0].inputs}

    def step(inputs, sizes, dy):
        options = {**problems[0].options, "recompute_activation": recompute}
        y, pull_back = jax.vjp(lambda a: grouped_mlp(**a, group_sizes=sizes, **options), inputs)
        return {"y": y, **pull_back(dy)[0]}

    arguments = inputs, stack(p.sizes for p in problems), stack(p.dy for p in problems)
    found, counts = calls_while(lambda: jax.jit(jax.vmap(step))(*arguments), Op.MM, Op.WGRAD)
    assert counts == [4, 2]
    for i, p in enumerate(problems):
        for name, value in jax_mlp.mlp(p).items():
            assert_bits(found[name][i], value, f"{name} of batch {i}")


def test_vmap_of_vmap(rng) -> None:
    problems = every(rng, linear_problem, "f32", bias=False, row_scale=False)
    x, weight, sizes = (stack(getattr(p, n) for p in problems) for n in ("x", "weight", "sizes"))
    square = [a.reshape(2, 2, *a.shape[1:]) for a in (x, weight, sizes)]
    found, (count,) = calls_while(lambda: jax.jit(jax.vmap(jax.vmap(grouped_linear)))(*square), Op.MM)
    assert count == 1
    for i, p in enumerate(problems):
        assert_bits(found[i // 2, i % 2], jax_calls.linear(p)["y"], f"batch {i}")


@pytest.mark.parametrize("axis", [1, 2])
def test_batches_on_another_axis(rng, axis) -> None:
    problems = every(rng, linear_problem, "f32", bias=False, row_scale=False)
    x = jnp.stack([jnp.asarray(p.x) for p in problems], axis=axis)
    weight, sizes = (stack(getattr(p, n) for p in problems) for n in ("weight", "sizes"))
    found = jax.jit(jax.vmap(grouped_linear, in_axes=(axis, 0, 0), out_axes=axis))(x, weight, sizes)
    for i, p in enumerate(problems):
        assert_bits(np.moveaxis(np.asarray(found), axis, 0)[i], jax_calls.linear(p)["y"], f"batch {i}")


@pytest.mark.parametrize("bad", [(9, -1, 0, 22), (0, 0, 0, 41), (2**30, 0, 0, 0), (2**31 - 1, 0, 0, 0)], ids=str)
def test_bad_sizes_that_batches_share(rng, bad) -> None:
    """Four times 2^30 rows must not wrap around into none."""
    p: Any = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)
    xs, sizes = stack([p.x] * B), jnp.array(bad, jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"group_sizes\[\d+\] = "):
        jax.block_until_ready(jax.jit(jax.vmap(grouped_linear, in_axes=(0, None, None)))(xs, p.weight, sizes))


def test_the_one_call_copies_no_input(rng) -> None:
    """x and weight reach it as they lie in memory."""
    problems = every(rng, linear_problem, "f32", bias=False, row_scale=False)
    x, weight, sizes = (stack(getattr(p, n) for p in problems) for n in ("x", "weight", "sizes"))
    text = jax.jit(jax.vmap(grouped_linear)).lower(x, weight, sizes).compile().as_text() or ""
    K, N, T, G = HARD.K, HARD.N, HARD.T, HARD.G
    inputs = {f"f32[{dims}]" for dims in (f"{B},{T},{K}", f"{B * T},{K}", f"{B},{G},{K},{N}", f"{B * G},{K},{N}")}
    made = [i.text for i in hlo.instructions(text) if set(i.shapes) & inputs and i.opcode not in hlo.PLUMBING]
    assert made == []
    assert " while(" not in text


def test_shared_weight_and_batches_second_copy_nothing(rng) -> None:
    """Rows of all batches lie side by side already, and so does the result."""
    p: Any = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)
    x = jnp.stack([jnp.asarray(p.x)] * B, axis=1)
    call = jax.jit(jax.vmap(grouped_linear, in_axes=(1, None, None), out_axes=1))
    text = call.lower(x, jnp.asarray(p.weight), jnp.asarray(p.sizes)).compile().as_text() or ""
    rows = {f"f32[{dims},{width}]" for dims in (f"{HARD.T},{B}", f"{HARD.T * B}") for width in (HARD.K, HARD.N)}
    made = [i for i in hlo.instructions(text) if set(i.shapes) & rows and i.opcode not in hlo.PLUMBING]
    assert [i.opcode for i in made] == ["custom-call"]


def test_buffers_keep_every_tail(rng) -> None:
    """A call for each batch, because the tails between them are the caller's."""
    problems = every(rng, linear_problem, "f32", bias=False, row_scale=False)
    outs = [poisoned_buffer(p.dy.shape, "f32", p.S, SENTINEL) for p in problems]
    x, weight, sizes = (stack(getattr(p, n) for p in problems) for n in ("x", "weight", "sizes"))
    call = jax.jit(jax.vmap(lambda x, w, s, out: grouped_linear(x, w, s, out=out)))
    found, (count,) = calls_while(lambda: call(x, weight, sizes, stack(outs)), Op.MM)
    assert count == B
    for i, p in enumerate(problems):
        assert_bits(found[i][: p.S], jax_calls.linear(p)["y"][: p.S], f"batch {i}")
        assert_bits(found[i][p.S :], outs[i][p.S :], f"the tail of batch {i}")


@pytest.mark.parametrize("function", ["linear", "wgrad"])
@pytest.mark.parametrize("bad", [(9, -1, 0, 22), (9, 0, 0, -1), (0, 0, 0, 41), (30, 0, 30, 0)], ids=str)
def test_bad_sizes_of_one_batch(rng, bad, function) -> None:
    """The batches beside it must not make up for it."""
    problems = every(rng, linear_problem, "f32", bias=False, row_scale=False)
    x, weight, sizes, dy = (stack(getattr(p, n) for p in problems) for n in ("x", "weight", "sizes", "dy"))

    def wgrad(x, weight, sizes, dy):
        return jax.grad(lambda w: jnp.vdot(grouped_linear(x, w, sizes), dy))(weight)

    calls = {"linear": lambda *a: jax.vmap(grouped_linear)(*a[:3]), "wgrad": jax.vmap(wgrad)}
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"group_sizes\[\d+\] = "):
        jax.block_until_ready(jax.jit(calls[function])(x, weight, sizes.at[1].set(jnp.array(bad)), dy))
