# SPDX-License-Identifier: Apache-2.0
"""JAX: `scan` over microbatches in bfloat16, the experts' gradients summed into fp32 buffers by the kernels themselves.

The first microbatch overwrites the buffers, the others add to them, so that no pass over a gradient fills it with
zeros, rounds it or adds it to another. The experts are not the first layer.
"""

import jax
import jax.numpy as jnp

from jax_grouped import grouped_mlp

MICROBATCHES, TOKENS, FEATURES, HIDDEN, EXPERTS = 3, 32, 16, 24, 4
BUFFERS = ("out", "dgrad_out", "fc1_wgrad_out", "fc2_wgrad_out")


def loss(embed, gradient_buffers, out, experts, batch, accumulate):
    tokens, target = batch
    x = tokens @ embed
    expert = x[:, :EXPERTS].argmax(axis=-1)
    order = jnp.argsort(expert, stable=True)
    with jax.named_scope("dispatch"):
        rows = x[order].astype(jnp.bfloat16)
    sizes = jnp.bincount(expert, length=EXPERTS)
    fc1, fc2 = experts
    y = grouped_mlp(rows, fc1, fc2, sizes, out=out, accumulate_wgrad=accumulate, **gradient_buffers)
    with jax.named_scope("combine"):
        error = (x - target).at[order].add(y.astype(jnp.float32))
    return jnp.mean(error**2), y


def microbatch(buffers, batch, embed, experts, accumulate):
    out, gradient_buffers = buffers["out"], {name: buffers[name] for name in BUFFERS[1:]}
    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, out), (d_embed, filled) = differentiate(embed, gradient_buffers, out, experts, batch, accumulate)
    return {"out": out, **filled}, (value, d_embed)


@jax.jit(donate_argnames=("buffers", "experts"))
def step(buffers, experts, embed, tokens, target):
    def add(carry, batch):
        buffers, sums = carry
        buffers, new = microbatch(buffers, batch, embed, experts, accumulate=True)
        return (buffers, jax.tree.map(jnp.add, sums, new)), None

    # What is read of a buffer enters the loop with it: a reader that could come after the loop would cost a copy.
    first = microbatch(buffers, (tokens[0], target[0]), embed, experts, accumulate=False)
    (buffers, (value, d_embed)), _ = jax.lax.scan(add, first, (tokens[1:], target[1:]))
    gradients = buffers["fc1_wgrad_out"], buffers["fc2_wgrad_out"]
    experts = tuple((w - 3.0 * g).astype(w.dtype) for w, g in zip(experts, gradients, strict=True))
    return buffers, experts, embed - 0.3 * d_embed, value


def start():
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = (EXPERTS, FEATURES, 2 * HIDDEN), (EXPERTS, HIDDEN, FEATURES)
    experts = tuple(jax.random.normal(k, s, jnp.bfloat16) / s[1] ** 0.5 for k, s in zip(keys, shapes, strict=False))
    rows = jnp.full((TOKENS, FEATURES), jnp.nan, jnp.bfloat16)
    gradients = (jnp.full(shape, jnp.nan, jnp.float32) for shape in shapes)
    buffers = dict(zip(BUFFERS, (rows, rows.copy(), *gradients), strict=True))
    embed = jax.random.normal(keys[2], (FEATURES, FEATURES)) / FEATURES**0.5
    tokens, target = (jax.random.normal(k, (MICROBATCHES, TOKENS, FEATURES)) for k in keys[3:])
    return buffers, experts, embed, tokens, target


if __name__ == "__main__":
    buffers, experts, embed, tokens, target = start()
    before, values = [buffers[name].unsafe_buffer_pointer() for name in BUFFERS], []
    for _ in range(30):
        buffers, experts, embed, value = step(buffers, experts, embed, tokens, target)
        values.append(float(value))
    print("same memory:", [buffers[name].unsafe_buffer_pointer() for name in BUFFERS] == before)
    print("it learns:", values[-1] < 0.8 * values[0])
