# SPDX-License-Identifier: Apache-2.0
"""jax_grouped under cond, while, value_and_grad and checkpoint policies, and from JAX's compilation cache."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import jax_calls
import jax_mlp
import numpy as np
import pytest
from cases import BY_NAME, SENTINEL, Case
from hlo import assert_in_place
from jax_mlp import mlp_problem
from problems import linear_problem, poisoned_buffer
from tolerances import assert_bits

from jax_grouped import grouped_activation, grouped_linear, grouped_mlp

HARD = BY_NAME["empty_middle"]
CASE = Case("control", 96, 40, 56, (30, 0, 50))
POLICIES = jax.checkpoint_policies


@pytest.fixture
def mlp(rng) -> Any:
    return mlp_problem(rng, HARD, "f32", bias=False, row_scale=False)


def loss_of(problem, policy=None):
    """An MLP under checkpoint, its result through a function that backward needs it for."""

    def block(x, w1, w2):
        return jnp.sin(grouped_mlp(x, w1, w2, problem.sizes, **problem.options))

    def loss(x, w1, w2):
        return (block if policy is None else jax.checkpoint(block, policy=policy))(x, w1, w2)[: problem.S].sum()

    return loss, [jnp.asarray(problem.inputs[n]) for n in ("x", "fc1_weight", "fc2_weight")]


# What is saved, and the calls of a step: products, activations. Forward has 2 and 1, backward's gradients 2 more.
SAVED = [
    (POLICIES.everything_saveable, 4, 1),
    (POLICIES.nothing_saveable, 6, 2),
    (POLICIES.save_only_these_names("grouped_mlp_hidden"), 5, 2),
    (POLICIES.save_only_these_names("grouped_mlp_hidden", "grouped_mlp"), 4, 2),
    (POLICIES.save_only_these_names("grouped_mlp_hidden", "grouped_mlp_activation", "grouped_mlp"), 4, 1),
]


@pytest.mark.parametrize(("policy", "products", "activations"), SAVED)
def test_checkpoint_policies(mlp, policy, products, activations) -> None:
    """The names are there to be saved, what is not is computed again, and the bits are the same."""
    loss, arguments = loss_of(mlp, policy)
    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    text = gradients.lower(*arguments).as_text()
    assert [text.count(f"@{t}(") for t in ("grouped_mm_v1", "grouped_activation_v1")] == [products, activations]
    plain = jax.jit(jax.grad(loss_of(mlp)[0], argnums=(0, 1, 2)))(*arguments)
    for name, a, b in zip(("x", "fc1", "fc2"), gradients(*arguments)[1], plain, strict=True):
        assert_bits(a, np.asarray(b), f"the gradient of {name}")


@pytest.mark.parametrize("name", ["grouped_linear", "grouped_activation"])
def test_names_of_the_other_results(rng, name) -> None:
    p: Any = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)
    h = jnp.asarray(p.x)
    call = {
        "grouped_linear": lambda h: grouped_linear(h, p.weight, p.sizes),
        "grouped_activation": lambda h: grouped_activation(h, p.sizes, "squared_relu"),
    }[name]
    target = {"grouped_linear": "@grouped_mm_v1(", "grouped_activation": "@grouped_activation_v1("}[name]

    def count(policy) -> int:
        block = jax.checkpoint(lambda h: jnp.sin(call(h)), policy=policy)
        return jax.jit(jax.value_and_grad(lambda h: block(h).sum())).lower(h).as_text().count(target)

    assert count(POLICIES.nothing_saveable) == count(POLICIES.save_only_these_names(name)) + 1


@pytest.mark.parametrize("recompute", [False, True])
def test_checkpoint_with_buffers(mlp, recompute) -> None:
    """out and dgrad_out in a checkpointed block: forward runs twice, what they hold is right."""
    expected = jax_mlp.mlp(mlp)
    out, dgrad = (jnp.asarray(mlp.buffers("f32")[n]) for n in ("out", "dgrad_out"))
    x, w1, w2 = (jnp.asarray(mlp.inputs[n]) for n in ("x", "fc1_weight", "fc2_weight"))

    @jax.jit
    def step(out, dgrad, x, dy):
        options = {**mlp.options, "recompute_activation": recompute}
        block = jax.checkpoint(lambda x, dgrad: grouped_mlp(x, w1, w2, mlp.sizes, out=out, dgrad_out=dgrad, **options))
        y, pull_back = jax.vjp(block, x, dgrad)
        return y, *pull_back(dy)

    y, dx, dgrad = step(out, dgrad, x, jnp.asarray(mlp.dy))
    for name, value, reference in (("y", y, "y"), ("dx", dx, "x"), ("dgrad_out", dgrad, "x")):
        assert_bits(value[: mlp.S], expected[reference][: mlp.S], name)
        assert_bits(value[mlp.S :], np.full_like(value[mlp.S :], SENTINEL), f"the tail of {name}")


def test_value_and_grad_is_grad(mlp) -> None:
    loss, arguments = loss_of(mlp)
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arguments)
    assert_bits(value, np.asarray(jax.jit(loss)(*arguments)))
    for a, b in zip(gradients, jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments), strict=True):
        assert_bits(a, np.asarray(b))


@pytest.fixture
def setting(rng) -> tuple:
    """A linear problem, its plain results, and out and dgrad_out of JAX's own memory."""
    p: Any = linear_problem(rng, CASE, "f32", bias=False, row_scale=False)
    buffers = [jnp.array(poisoned_buffer(a.shape, "f32", p.S, SENTINEL), copy=True) for a in (p.dy, p.x)]
    return p, jax_calls.linear(p), buffers, [jnp.asarray(a) for a in (p.x, p.weight, p.sizes, p.dy.ravel())]


def buffered(out, dgrad_out, x, weight, sizes, target):
    def loss(dgrad_out):
        y = grouped_linear(x, weight, sizes, out=out, dgrad_out=dgrad_out)
        return jnp.vdot(y.ravel(), target), y

    dgrad_out, y = jax.grad(loss, has_aux=True)(dgrad_out)
    return y, dgrad_out


def test_while_carries_both_buffers(setting) -> None:
    p, plain, buffers, inputs = setting

    def step(out, dgrad_out, *inputs):
        return jax.lax.while_loop(
            lambda carry: carry[2] < 3,
            lambda carry: (*buffered(*carry[:2], *inputs), carry[2] + 1),
            (out, dgrad_out, 0),
        )[:2]

    for name, value in zip(("y", "x"), assert_in_place(step, buffers, *inputs), strict=True):
        assert_bits(value[: p.S], plain[name][: p.S], name)


@pytest.mark.parametrize("taken", [True, False])
def test_cond_hands_buffers_through(setting, taken) -> None:
    """Written or handed on."""
    p, plain, buffers, inputs = setting
    before = [np.array(b) for b in buffers]  # a copy: a view would hinder donation

    def step(out, dgrad_out, taken, *inputs):
        return jax.lax.cond(taken, lambda: buffered(out, dgrad_out, *inputs), lambda: (out, dgrad_out))

    found = assert_in_place(step, buffers, jnp.array(taken), *inputs)
    for name, value, old in zip(("y", "x"), found, before, strict=True):
        assert_bits(value[: p.S], plain[name][: p.S] if taken else old[: p.S], name)
        assert_bits(value[p.S :], old[p.S :], f"the tail of {name}")


PROGRAM = """
    import jax, jax.numpy as jnp, numpy as np
    from jax_grouped import grouped_mlp

    jax.config.update("jax_compilation_cache_dir", {folder!r})
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))

    def step(out, x, w1, w2, sizes):
        return grouped_mlp(x, w1, w2, sizes, out=out)

    draw = np.random.default_rng(0).standard_normal
    x, w1, w2 = (jnp.asarray(draw(s), jnp.float32) for s in ((9, 4), (2, 4, 6), (2, 3, 5)))
    out = jnp.full((9, 5), 7.0)
    events.clear()
    compiled = jax.jit(step, donate_argnums=0)
    y = compiled(out, x, w1, w2, jnp.array([3, 4]))
    print(events.count("cache_hits"), events.count("cache_misses"), np.asarray(y).tobytes().hex())
"""


def test_persistent_compilation_cache(tmp_path) -> None:
    """The second process compiles nothing and computes the same."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM).replace("{folder!r}", repr(str(tmp_path)))]
    outputs = []
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))
        assert result.returncode == 0, result.stderr[-2000:]
        outputs.append(result.stdout.split())
    (first_hits, first_misses, first), (hits, misses, second) = outputs
    assert int(first_misses) > int(first_hits)
    assert int(hits) > 0
    assert int(misses) == 0
    assert first == second
