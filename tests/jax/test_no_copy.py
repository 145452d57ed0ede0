# SPDX-License-Identifier: Apache-2.0
"""Donated buffers are never copied: the patterns in which training code uses them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax_calls
import numpy as np
import pytest
from cases import SENTINEL, Case
from hlo import assert_in_place
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import LinearProblem, activation_problem, linear_problem, poisoned_buffer
from tolerances import DTYPES, assert_bits, assert_close

from jax_grouped import grouped_activation, grouped_linear, ragged_dot

CASE = Case("donated", 96, 40, 56, (30, 0, 50))


@dataclass
class Setting:
    """A problem on the device, buffers poisoned, and what the call without buffers gives."""

    problem: LinearProblem
    dtype: str

    def __post_init__(self) -> None:
        p = self.problem
        self.arguments = [jnp.asarray(a) for a in (p.x, p.weight, p.sizes)]
        self.target = jnp.asarray(p.dy.ravel())
        self.plain = jax_calls.linear(p)

    def buffers(self, wgrad_dtype: str | None = None) -> list[jax.Array]:
        """out, dgrad_out, wgrad_out: memory of JAX's own, because donation skips memory that numpy can see."""
        p = self.problem
        rows = [poisoned_buffer(a.shape, self.dtype, p.S, SENTINEL) for a in (p.dy, p.x)]
        wgrad = np.full(p.weight.shape, np.nan, DTYPES[wgrad_dtype or self.dtype])
        return [jnp.array(b, copy=True) for b in (*rows, wgrad)]

    def assert_written(self, name: str, buffer: jax.Array | np.ndarray) -> None:
        """The bits of the call without buffers, and the tail as the caller left it."""
        value, S = np.asarray(buffer), self.problem.S
        if name == "weight":
            assert_bits(value, self.plain[name], name)
            return
        assert_bits(value[:S], self.plain[name][:S], name)
        assert_bits(value[S:], np.full_like(value[S:], SENTINEL), f"the tail of {name}")


def setting(rng, dtype: str = "f32") -> Setting:
    return Setting(linear_problem(rng, CASE, dtype, bias=False, row_scale=False), dtype)


def train_step(out, dgrad_out, wgrad_out, x, weight, sizes, target):
    """y through aux; the gradient buffers as their own cotangents."""

    def loss(dgrad_out, wgrad_out):
        y = grouped_linear(x, weight, sizes, out=out, dgrad_out=dgrad_out, wgrad_out=wgrad_out)
        return jnp.vdot(y.ravel(), target), y

    (value, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(dgrad_out, wgrad_out)
    return y, *gradients, value


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_forward(rng, dtype) -> None:
    s = setting(rng, dtype)

    def step(out, x, weight, sizes):
        return (grouped_linear(x, weight, sizes, out=out),)

    (y,) = assert_in_place(step, s.buffers()[:1], *s.arguments)
    s.assert_written("y", y)


def test_ragged_dot(rng) -> None:
    s = setting(rng)

    def step(out, lhs, rhs, sizes):
        return (ragged_dot(lhs, rhs, sizes, out=out),)

    (y,) = assert_in_place(step, s.buffers()[:1], *s.arguments)
    s.assert_written("y", y)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_train_step(rng, dtype) -> None:
    s = setting(rng, dtype)
    results = assert_in_place(train_step, s.buffers(), *s.arguments, s.target)
    for name, buffer in zip(("y", "x", "weight"), results, strict=False):
        s.assert_written(name, buffer)


def test_train_step_with_fp32_wgrad(rng) -> None:
    s = setting(rng, "bf16")
    *_, wgrad, _ = assert_in_place(train_step, s.buffers("f32"), *s.arguments, s.target)
    pair, terms = s.problem.expected()["weight"]
    assert_close(wgrad, pair, terms, what="wgrad_out")


def test_activation_train_step(rng) -> None:
    problem = activation_problem(rng, CASE, "f32", "swiglu", row_scale=False)

    def step(out, dgrad_out, h, sizes, target):
        def loss(dgrad_out):
            y = grouped_activation(h, sizes, out=out, dgrad_out=dgrad_out)
            return jnp.vdot(y.ravel(), target), y

        (value, y), dh = jax.value_and_grad(loss, has_aux=True)(dgrad_out)
        return y, dh, value

    shapes = (problem.dy.shape, problem.h.shape)
    buffers = [jnp.array(poisoned_buffer(s, "f32", problem.S, SENTINEL), copy=True) for s in shapes]
    y, dh, _ = assert_in_place(step, buffers, problem.h, problem.sizes, jnp.asarray(problem.dy.ravel()))
    expected = problem.expected()
    for name, value in (("y", y), ("h", dh)):
        pair, terms = expected[name]
        assert_close(value[: CASE.S], tuple(a[: CASE.S] for a in pair), terms, what=name)
        assert_bits(value[CASE.S :], np.full_like(value[CASE.S :], SENTINEL), f"the tail of {name}")


def test_scan_carries_the_buffers(rng) -> None:
    """Microbatches with sizes of their own; what the last one wrote is there at the end."""
    s = setting(rng)
    x, weight, sizes = s.arguments
    every = jnp.stack([sizes[::-1], jnp.zeros_like(sizes), sizes])

    def step(out, dgrad_out, wgrad_out, x, weight, every, target):
        def body(carry: tuple[Any, Any, Any], sizes):
            *written, value = train_step(*carry, x, weight, sizes, target)
            return tuple(written), value

        carry, values = jax.lax.scan(body, (out, dgrad_out, wgrad_out), every)
        return *carry, values

    results = assert_in_place(step, s.buffers(), x, weight, every, s.target)
    for name, buffer in zip(("y", "x", "weight"), results, strict=False):
        s.assert_written(name, buffer)


def test_while_loop_carries_the_buffer(rng) -> None:
    s = setting(rng)

    def step(out, x, weight, sizes):
        def body(carry):
            i, out = carry
            return i + 1, grouped_linear(x, weight, jnp.roll(sizes, i), out=out)

        return (jax.lax.while_loop(lambda carry: carry[0] <= 3, body, (jnp.int32(0), out))[1],)

    (y,) = assert_in_place(step, s.buffers()[:1], *s.arguments)
    s.assert_written("y", y)


def test_microbatches_accumulate_into_one_fp32_buffer(rng) -> None:
    """Every step of five adds three microbatches to the one buffer."""
    case = Case("microbatch", 24, 64, 96, (7, 0, 10, 5))
    problems = [linear_problem(rng, case, "bf16", bias=False, row_scale=False) for _ in range(3)]
    weight, sizes = jnp.asarray(problems[0].weight), jnp.asarray(problems[0].sizes)
    xs = jnp.stack([jnp.asarray(p.x) for p in problems])
    dys = jnp.stack([jnp.asarray(p.dy.ravel()) for p in problems])

    def step(wgrad_out, weight, sizes, xs, dys):
        def body(wgrad_out, microbatch):
            x, dy = microbatch

            def loss(wgrad_out):
                y = grouped_linear(x, weight, sizes, wgrad_out=wgrad_out, accumulate_wgrad=True)
                return jnp.vdot(y.ravel(), dy)

            return jax.grad(loss)(wgrad_out), None

        return (jax.lax.scan(body, wgrad_out, (xs, dys))[0],)

    (found,) = assert_in_place(step, [jnp.zeros(weight.shape, jnp.float32)], weight, sizes, xs, dys)
    pairs = [p.expected()["weight"][0] for p in problems]
    total = tuple(5 * sum(pair[i] for pair in pairs) for i in (0, 1))
    assert_close(found, total, 15 * max(case.sizes), what="wgrad_out")


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(rng, check_vma) -> None:
    """Four devices, each with rows and buffers of its own; every shard keeps its memory."""
    problems = [linear_problem(rng, CASE, "f32", bias=False, row_scale=False) for _ in range(4)]
    weight = problems[0].weight
    settings = [Setting(replace(p, weight=weight), "f32") for p in problems]
    mesh = Mesh(np.array(jax.devices()[:4]), ("rows",))
    sharded, whole = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P("rows"),) * 4 + (P(), P("rows"), P("rows")),
        out_specs=(P("rows"),) * 4,
        check_vma=check_vma,
    )
    def step(*arguments):
        *buffers, value = train_step(*arguments)
        return *buffers, value[None]

    def gather(arrays):
        return jax.device_put(np.concatenate([np.asarray(a) for a in arrays]), sharded)

    # Copied, because device_put may share numpy's memory, which XLA does not take.
    buffers = [jnp.copy(gather(b)) for b in zip(*(s.buffers() for s in settings), strict=True)]
    x, sizes, target = (gather(a) for a in zip(*((*s.arguments[::2], s.target) for s in settings), strict=True))
    results = assert_in_place(step, buffers, x, jax.device_put(weight, whole), sizes, target)
    for name, buffer in zip(("y", "x", "weight"), results, strict=False):
        for s, shard in zip(settings, np.split(np.asarray(buffer), 4), strict=True):
            s.assert_written(name, shard)
