# SPDX-License-Identifier: Apache-2.0
"""Buffers that devices share where each writes its own, sizes that wrap around, and other things refused in words."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

from jax_grouped import grouped_linear, install, installed, ragged_dot, uninstall

SIZES = jnp.array([4, 0, 2])


def on_four_devices(body: str) -> str:
    program = textwrap.dedent("""
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
        import jax, jax.numpy as jnp
        from jax.sharding import PartitionSpec as P
        from jax_grouped import grouped_linear
        mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        x, w, s = jnp.ones((32, 4)), jnp.ones((3, 4, 5)), jnp.tile(jnp.array([4, 0, 2]), 4)
    """)
    result = subprocess.run([sys.executable, "-c", program + textwrap.dedent(body)], capture_output=True, text=True)
    return result.stdout + result.stderr


def test_a_gradient_buffer_that_devices_share_is_refused():
    said = on_four_devices("""
        def step(x, s, b):
            f = lambda b: grouped_linear(x, w, s, wgrad_out=b, accumulate_wgrad=True)[:6].sum()
            return jax.grad(f)(b)
        f = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P("d"), P("d"), P()), out_specs=P()))
        f(x, s, 100 * jnp.ones_like(w))
    """)
    assert "ValueError: wgrad_out must be every device's own over the mesh axes ['d']" in said


def test_a_gradient_buffer_of_its_own_is_taken():
    said = on_four_devices("""
        def step(x, s, b):
            f = lambda b: grouped_linear(x, w, s, wgrad_out=b[0], accumulate_wgrad=True)[:6].sum()
            return jax.grad(f)(b)
        f = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P("d"), P("d"), P("d")), out_specs=P("d")))
        print("found", f(x, s, 100 * jnp.ones((4, *w.shape)))[:, :, 0, 0].tolist())
    """)
    assert "found [[104.0, 100.0, 102.0], [104.0, 100.0, 102.0]" in said


def accumulated(total, result):
    """The cotangent of a buffer that holds `total`, where the loss is made by `result` of what the call returns."""

    def loss(total):
        return result(lambda: grouped_linear(X, WEIGHT, SIZES, wgrad_out=total, accumulate_wgrad=True).sum())

    return jax.jit(jax.grad(loss))(total)


X, WEIGHT = jnp.ones((8, 4)), jnp.ones((3, 4, 5))


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (lambda call: call(), True),
        (lambda call: 0.0 * call(), True),
        (lambda call: jax.lax.stop_gradient(call()), False),
        (lambda call: (call(), 0.0)[1], False),
        (lambda call: jax.lax.cond(SIZES[0] > 0, call, lambda: 0.0), True),
        (lambda call: jax.lax.cond(SIZES[0] < 0, call, lambda: 0.0), False),
    ],
    ids=["used", "times_zero", "stopped", "unused", "taken", "not_taken"],
)
def test_a_gradient_buffer_is_kept_by_backward_alone(result, kept):
    """As docs/jax.md warns: JAX gives zeros for what it does not differentiate, and knows nothing of the buffer."""
    assert bool((accumulated(100 * jnp.ones_like(WEIGHT), result) >= 100).all()) == kept


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_hands_the_buffer_on(taken):
    def loss(total):
        return grouped_linear(X, WEIGHT, SIZES, wgrad_out=total, accumulate_wgrad=True).sum()

    step = jax.jit(lambda taken, total: jax.lax.cond(taken, jax.grad(loss), lambda buffer: buffer, total))
    found = step(taken, 100 * jnp.ones_like(WEIGHT))
    assert found[:, 0, 0].tolist() == ([104.0, 100.0, 102.0] if taken else [100.0] * 3)


def test_sizes_that_wrap_around_are_no_fit():
    lhs, rhs = jnp.ones((4, 8, 4)), jnp.ones((3, 4, 5))
    sizes = jnp.array([2**30, 0, 0], jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="group_sizes"):
        jax.block_until_ready(jax.jit(jax.vmap(ragged_dot, (0, None, None)))(lhs, rhs, sizes))


def test_an_installation_takes_back_its_own_alone():
    first = install(("cpu",))
    uninstall()
    second = install(("cpu",))
    first.__exit__(None, None, None)
    assert installed() == ("cpu",)
    second.__exit__(None, None, None)
    assert installed() == ()


def test_second_derivatives_are_refused_in_words():
    w = jnp.ones((3, 4, 5))

    def loss(x):
        return grouped_linear(x, w, SIZES).sum() ** 2

    with pytest.raises(NotImplementedError, match="must be differentiated once"):
        jax.grad(lambda x: jax.grad(loss)(x).sum())(jnp.ones((8, 4)))


def test_a_list_is_no_array():
    sizes: object = [4, 0, 2]
    with pytest.raises(TypeError, match=r"^group_sizes must be an array; got list"):
        grouped_linear(jnp.ones((8, 4)), jnp.ones((3, 4, 5)), sizes)  # pyright: ignore[reportArgumentType]
