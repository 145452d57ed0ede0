# SPDX-License-Identifier: Apache-2.0
"""Flax NNX: `GroupedLinear` and `GroupedMLP` as modules, to be copied, and a mixture that trains with them."""

import jax
import jax.numpy as jnp
from flax import nnx  # pyright: ignore[reportMissingImports]

from jax_grouped import grouped_linear, grouped_mlp

TOKENS, TOP, FEATURES, HIDDEN, EXPERTS = 64, 2, 8, 12, 4


class GroupedLinear(nnx.Module):
    """One linear layer for each group of rows. Keywords of a call, buffers among them, are `grouped_linear`'s."""

    def __init__(self, groups, in_features, out_features, *, use_bias=True, dtype=jnp.float32, rngs):
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.weight = nnx.Param(init(rngs.params(), (groups, in_features, out_features), dtype))
        self.bias = nnx.Param(jnp.zeros((groups, out_features), dtype)) if use_bias else None

    def __call__(self, x, group_sizes, **given):
        """Rows sorted by group, ``[T, in]``, to ``[T, out]``."""
        bias = None if self.bias is None else self.bias[...]
        return grouped_linear(x, self.weight[...], group_sizes, bias, **given)


class GroupedMLP(nnx.Module):
    """The experts of a mixture. Keywords of a call are `grouped_mlp`'s."""

    def __init__(self, groups, features, hidden, *, activation="swiglu", dtype=jnp.float32, rngs):
        gates = 1 if activation == "squared_relu" else 2
        self.fc1 = GroupedLinear(groups, features, gates * hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.fc2 = GroupedLinear(groups, hidden, features, use_bias=False, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x, group_sizes, **given):
        """Rows sorted by expert, ``[T, features]``, to their results."""
        fc1, fc2 = self.fc1.weight[...], self.fc2.weight[...]
        return grouped_mlp(x, fc1, fc2, group_sizes, activation=self.activation, **given)


class Mixture(nnx.Module):
    """Router, experts, and a grouped layer that says how each expert's rows are read out."""

    def __init__(self, rngs):
        self.router = nnx.Linear(FEATURES, EXPERTS, use_bias=False, rngs=rngs)
        self.experts = GroupedMLP(EXPERTS, FEATURES, HIDDEN, rngs=rngs)
        self.head = GroupedLinear(EXPERTS, FEATURES, FEATURES, rngs=rngs)

    def __call__(self, x, out=None):
        """New features of the tokens, and the experts' rows, which are `out` if it is given."""
        probability, expert = jax.lax.top_k(jax.nn.softmax(self.router(x)), TOP)
        order = jnp.argsort(expert.ravel(), stable=True)
        sizes = jnp.bincount(expert.ravel(), length=EXPERTS)
        y = self.experts(x[order // TOP], sizes, row_scale=probability.ravel()[order], out=out)
        return jnp.zeros_like(x).at[order // TOP].add(self.head(y, sizes)), y


@nnx.jit(donate_argnames="out")
def step(model, out, x, target):
    def loss(model):
        found, y = model(x, out)
        return jnp.mean((found - target) ** 2), y

    (value, out), grads = nnx.value_and_grad(loss, has_aux=True)(model)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.5 * g, params, grads))
    return value, out


if __name__ == "__main__":
    model = Mixture(nnx.Rngs(0))
    x, target = jax.random.normal(jax.random.key(1), (2, TOKENS, FEATURES))
    out = jnp.zeros((TOKENS * TOP, FEATURES))
    before, values = out.unsafe_buffer_pointer(), []
    for _ in range(60):
        value, out = step(model, out, x, target)
        values.append(float(value))
    print("same memory:", out.unsafe_buffer_pointer() == before)
    print("it learns:", values[-1] < 0.8 * values[0])
