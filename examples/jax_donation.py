# SPDX-License-Identifier: Apache-2.0
"""JAX: the result and the input gradient in arrays that the caller donated. The buffers come back as results."""

import jax
import jax.numpy as jnp

from jax_grouped import grouped_linear


def loss(x, weight, sizes, out, dgrad_out):
    y = grouped_linear(x, weight, sizes, out=out, dgrad_out=dgrad_out)
    return jnp.sum(y[:6] ** 2), y  # six rows belong to a group, two are the tail


@jax.jit(donate_argnames=("out", "dgrad_out"))
def step(x, weight, sizes, out, dgrad_out):
    (dweight, dx), y = jax.grad(loss, argnums=(1, 4), has_aux=True)(x, weight, sizes, out, dgrad_out)
    return dweight, y, dx  # dgrad_out, filled, is its own cotangent: donate y and dx again in the next step


out, dgrad_out = jnp.full((8, 5), -1.0), jnp.full((8, 4), -1.0)
before = out.unsafe_buffer_pointer(), dgrad_out.unsafe_buffer_pointer()
dweight, y, dx = step(jnp.ones((8, 4)), jnp.ones((3, 4, 5)), jnp.array([4, 0, 2]), out, dgrad_out)
print("same memory:", (y.unsafe_buffer_pointer(), dx.unsafe_buffer_pointer()) == before)
print("tail untouched:", bool((y[6:] == -1).all() and (dx[6:] == -1).all()))
