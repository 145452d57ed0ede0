# SPDX-License-Identifier: Apache-2.0
"""JAX: `scan` over the layers of a model, all of them on the same two buffers.

`out` goes from layer to layer in the carry, stopped, because what it holds is no input of the next layer.
`dgrad_out` is a `jax.Ref`: backward runs the scan in reverse, where no carry of ours reaches.
"""

import jax
import jax.numpy as jnp

from jax_grouped import grouped_mlp

LAYERS, TOKENS, TOP, FEATURES, HIDDEN, EXPERTS = 3, 24, 2, 8, 12, 4


def loss(params, out, dgrad_out, tokens, target):
    def block(carry, layer):
        x, out = carry
        probability, expert = jax.lax.top_k(jax.nn.softmax(x @ layer["router"]), TOP)
        order = jnp.argsort(expert.ravel(), stable=True)
        with jax.named_scope("dispatch"):
            rows = x[order // TOP]
        y = grouped_mlp(
            rows,
            layer["fc1"],
            layer["fc2"],
            jnp.bincount(expert.ravel(), length=EXPERTS),
            row_scale=probability.ravel()[order],
            out=out,
            dgrad_out=dgrad_out,
        )
        with jax.named_scope("combine"):
            x = x + jnp.zeros_like(x).at[order // TOP].add(y)
        return (x, jax.lax.stop_gradient(y)), None

    (x, out), _ = jax.lax.scan(block, (tokens, out), params)
    return jnp.mean((x - target) ** 2), out


@jax.jit(donate_argnames=("params", "out"))
def step(params, out, dgrad_out, tokens, target):
    (value, out), grads = jax.value_and_grad(loss, has_aux=True)(params, out, dgrad_out, tokens, target)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), out, value


def start():
    shapes = {"router": (FEATURES, EXPERTS), "fc1": (EXPERTS, FEATURES, 2 * HIDDEN), "fc2": (EXPERTS, HIDDEN, FEATURES)}
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    params = {
        name: jax.random.normal(key, (LAYERS, *shape)) / shape[-2] ** 0.5
        for (name, shape), key in zip(shapes.items(), keys, strict=False)
    }
    out, dgrad_out = (jnp.full((TOKENS * TOP, FEATURES), jnp.nan) for _ in range(2))
    tokens, target = (jax.random.normal(key, (TOKENS, FEATURES)) for key in keys[-2:])
    return params, out, jax.new_ref(dgrad_out), tokens, target


if __name__ == "__main__":
    params, out, dgrad_out, tokens, target = start()
    before, values = (out.unsafe_buffer_pointer(), dgrad_out.unsafe_buffer_pointer()), []
    for _ in range(30):
        params, out, value = step(params, out, dgrad_out, tokens, target)
        values.append(float(value))
    print("same memory:", (out.unsafe_buffer_pointer(), dgrad_out.unsafe_buffer_pointer()) == before)
    print("backward wrote dgrad_out:", bool(jnp.isfinite(dgrad_out[...]).all()))
    print("it learns:", values[-1] < 0.8 * values[0])
