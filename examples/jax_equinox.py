# SPDX-License-Identifier: Apache-2.0
"""Equinox: `GroupedLinear` and `GroupedMLP` as modules, to be copied, and a mixture that trains with them."""

import equinox as eqx  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

from jax_grouped import grouped_linear, grouped_mlp

TOKENS, TOP, FEATURES, HIDDEN, EXPERTS = 64, 2, 8, 12, 4


class GroupedLinear(eqx.Module):
    """One linear layer for each group of rows. Keywords of a call, buffers among them, are `grouped_linear`'s."""

    weight: jax.Array
    bias: jax.Array | None

    def __init__(self, groups, in_features, out_features, *, use_bias=True, dtype=jnp.float32, key):
        self.weight = jax.random.normal(key, (groups, in_features, out_features), dtype) * in_features**-0.5
        self.bias = jnp.zeros((groups, out_features), dtype) if use_bias else None

    def __call__(self, x, group_sizes, **given):
        """Rows sorted by group, ``[T, in]``, to ``[T, out]``."""
        return grouped_linear(x, self.weight, group_sizes, self.bias, **given)


class GroupedMLP(eqx.Module):
    """The experts of a mixture. Keywords of a call are `grouped_mlp`'s."""

    fc1: GroupedLinear
    fc2: GroupedLinear
    activation: str = eqx.field(static=True)

    def __init__(self, groups, features, hidden, *, activation="swiglu", dtype=jnp.float32, key):
        keys, gates = jax.random.split(key), 1 if activation == "squared_relu" else 2
        self.fc1 = GroupedLinear(groups, features, gates * hidden, use_bias=False, dtype=dtype, key=keys[0])
        self.fc2 = GroupedLinear(groups, hidden, features, use_bias=False, dtype=dtype, key=keys[1])
        self.activation = activation

    def __call__(self, x, group_sizes, **given):
        """Rows sorted by expert, ``[T, features]``, to their results."""
        fc1, fc2 = self.fc1.weight, self.fc2.weight
        return grouped_mlp(x, fc1, fc2, group_sizes, activation=self.activation, **given)


class Mixture(eqx.Module):
    """Router, experts, and a grouped layer that says how each expert's rows are read out."""

    router: jax.Array
    experts: GroupedMLP
    head: GroupedLinear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.router = jax.random.normal(keys[0], (FEATURES, EXPERTS)) * FEATURES**-0.5
        self.experts = GroupedMLP(EXPERTS, FEATURES, HIDDEN, key=keys[1])
        self.head = GroupedLinear(EXPERTS, FEATURES, FEATURES, key=keys[2])

    def __call__(self, x, out=None):
        """New features of the tokens, and the experts' rows, which are `out` if it is given."""
        probability, expert = jax.lax.top_k(jax.nn.softmax(x @ self.router), TOP)
        order = jnp.argsort(expert.ravel(), stable=True)
        sizes = jnp.bincount(expert.ravel(), length=EXPERTS)
        y = self.experts(x[order // TOP], sizes, row_scale=probability.ravel()[order], out=out)
        return jnp.zeros_like(x).at[order // TOP].add(self.head(y, sizes)), y


@eqx.filter_value_and_grad(has_aux=True)
def loss_and_grads(model, out, x, target):
    found, y = model(x, out)
    return jnp.mean((found - target) ** 2), y


@eqx.filter_jit(donate="all-except-first")
def step(data, model, out):
    (value, out), grads = loss_and_grads(model, out, *data)
    return eqx.apply_updates(model, jax.tree.map(lambda g: -0.5 * g, grads)), out, value


if __name__ == "__main__":
    model = Mixture(jax.random.key(0))
    data = tuple(jax.random.normal(jax.random.key(1), (2, TOKENS, FEATURES)))
    out = jnp.zeros((TOKENS * TOP, FEATURES))
    before, values = out.unsafe_buffer_pointer(), []
    for _ in range(60):
        model, out, value = step(data, model, out)
        values.append(float(value))
    print("same memory:", out.unsafe_buffer_pointer() == before)
    print("it learns:", values[-1] < 0.8 * values[0])
