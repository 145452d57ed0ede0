# SPDX-License-Identifier: Apache-2.0
"""JAX: buffers that are a `jax.Ref`. Nothing is donated and nothing handed back: the step writes where they are.

The weight's gradient is in a Ref too, so the optimizer reads it there. The grouped layer is not the first.
"""

import jax
import jax.numpy as jnp

from jax_grouped import grouped_linear

TOKENS, PIXELS, FEATURES, OUT, EXPERTS = 40, 6, 8, 10, 4


def loss(embed, weight, refs, tokens, expert, target):
    order = jnp.argsort(expert, stable=True)
    with jax.named_scope("dispatch"):
        rows = (tokens @ embed)[order]
    y = grouped_linear(rows, weight, jnp.bincount(expert, length=EXPERTS), **refs)
    with jax.named_scope("combine"):
        return jnp.mean((y - target[order]) ** 2)


@jax.jit(donate_argnames=("embed", "weight"))
def step(embed, weight, refs, tokens, expert, target):
    # Not differentiated by weight: its gradient comes in the Ref.
    value, d_embed = jax.value_and_grad(loss)(embed, weight, refs, tokens, expert, target)
    # All of backward before any update, or XLA would keep a copy of the donated weight for a reader still to come.
    d_embed, d_weight = jax.lax.optimization_barrier((d_embed, refs["wgrad_out"][...]))
    return embed - 2.0 * d_embed, weight - 2.0 * d_weight, value


def start():
    keys = jax.random.split(jax.random.key(0), 5)
    embed = jax.random.normal(keys[0], (PIXELS, FEATURES)) / PIXELS**0.5
    weight = jax.random.normal(keys[1], (EXPERTS, FEATURES, OUT)) / FEATURES**0.5
    shapes = {"out": (TOKENS, OUT), "dgrad_out": (TOKENS, FEATURES), "wgrad_out": weight.shape}
    refs = {name: jax.new_ref(jnp.full(shape, jnp.nan)) for name, shape in shapes.items()}
    tokens, target = jax.random.normal(keys[2], (TOKENS, PIXELS)), jax.random.normal(keys[3], (TOKENS, OUT))
    return embed, weight, refs, tokens, jax.random.randint(keys[4], (TOKENS,), 0, EXPERTS), target


if __name__ == "__main__":
    embed, weight, refs, tokens, expert, target = start()
    before, values = {name: ref.unsafe_buffer_pointer() for name, ref in refs.items()}, []
    for _ in range(30):
        embed, weight, value = step(embed, weight, refs, tokens, expert, target)
        values.append(float(value))
    print("same memory:", {name: ref.unsafe_buffer_pointer() for name, ref in refs.items()} == before)
    print("all written:", all(bool(jnp.isfinite(ref[...]).all()) for ref in refs.values()))
    print("it learns:", values[-1] < 0.5 * values[0])
