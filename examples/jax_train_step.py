# SPDX-License-Identifier: Apache-2.0
"""JAX: a train step that donates its parameters and two buffers. The experts are not its first layer."""

import jax
import jax.numpy as jnp

from jax_grouped import grouped_mlp

TOKENS, TOP, PIXELS, FEATURES, HIDDEN, EXPERTS, CLASSES = 24, 2, 10, 8, 12, 4, 3


def model(params, tokens, out, dgrad_out):
    x = tokens @ params["embed"]
    probability, expert = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), TOP)
    order = jnp.argsort(expert.ravel(), stable=True)  # rows sorted by expert; row r is of token r // TOP
    # Scopes are names in a profile; the tests tell by them what the model makes from copies of a buffer.
    with jax.named_scope("dispatch"):
        rows = x[order // TOP]
    y = grouped_mlp(
        rows,
        params["fc1"],
        params["fc2"],
        jnp.bincount(expert.ravel(), length=EXPERTS),
        row_scale=probability.ravel()[order],
        out=out,
        dgrad_out=dgrad_out,
    )
    with jax.named_scope("combine"):
        x = x + jnp.zeros_like(x).at[order // TOP].add(y)
    return x @ params["head"], y


def loss(params, dgrad_out, out, tokens, labels):
    logits, y = model(params, tokens, out, dgrad_out)
    right = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -right.mean(), y


# Donated: out comes back as y, dgrad_out as its own cotangent. Both return in the order in which they came.
@jax.jit(donate_argnames=("params", "out", "dgrad_out"))
def step(params, out, dgrad_out, tokens, labels):
    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, out), (grads, dgrad_out) = differentiate(params, dgrad_out, out, tokens, labels)
    # Every gradient before any update: XLA then sees that nobody reads the old weights any more, and copies none.
    grads, dgrad_out = jax.lax.optimization_barrier((grads, dgrad_out))
    params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    return params, out, dgrad_out, value


def start():
    shapes = {"embed": (PIXELS, FEATURES), "router": (FEATURES, EXPERTS), "head": (FEATURES, CLASSES)}
    shapes |= {"fc1": (EXPERTS, FEATURES, 2 * HIDDEN), "fc2": (EXPERTS, HIDDEN, FEATURES)}
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    params = {n: jax.random.normal(k, s) / s[-2] ** 0.5 for (n, s), k in zip(shapes.items(), keys, strict=False)}
    out, dgrad_out = (jnp.full((TOKENS * TOP, FEATURES), jnp.nan) for _ in range(2))
    tokens = jax.random.normal(keys[-2], (TOKENS, PIXELS))
    return params, out, dgrad_out, tokens, jax.random.randint(keys[-1], (TOKENS,), 0, CLASSES)


if __name__ == "__main__":
    params, out, dgrad_out, tokens, labels = start()
    before, values = (out.unsafe_buffer_pointer(), dgrad_out.unsafe_buffer_pointer()), []
    for _ in range(20):
        params, out, dgrad_out, value = step(params, out, dgrad_out, tokens, labels)
        values.append(float(value))
    print("same memory:", (out.unsafe_buffer_pointer(), dgrad_out.unsafe_buffer_pointer()) == before)
    print("it learns:", values[-1] < 0.5 * values[0])
