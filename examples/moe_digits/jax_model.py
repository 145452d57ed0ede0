# SPDX-License-Identifier: Apache-2.0
"""The mixture of experts in JAX, on `grouped_linear` and `grouped_activation`.

Every expert output and every gradient of an expert input lands in an array that the caller donated. The train step
returns those same arrays, and they are donated again in the next step.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_grouped import grouped_activation, grouped_linear
from moe_digits import config as c

Array = jax.Array
Arrays = dict[str, Array]
NO_BUFFERS = dict.fromkeys(c.OUT_SHAPES)


def route(logits: Array) -> tuple[Array, Array]:
    """The TOP_K experts of each token and their probabilities; of equal logits the lower expert comes first."""
    top, experts = jax.lax.top_k(logits, c.TOP_K)
    return jax.nn.softmax(top, axis=-1), experts


def mixture(params: Arrays, x: Array, outs: dict, dgrads: dict) -> tuple[Array, Arrays, Array, Array]:
    """Tokens ``[T, D]`` through their experts.

    Returns:
      The tokens' new features, the filled `outs`, the rows of each expert, and the load-balance loss.
    """
    logits = x @ params["router"]
    probability, experts = route(logits)

    # One row for each (token, expert) pair, sorted by expert: pair p is token p // TOP_K. The sizes stay on the
    # device, so the host never waits to learn where an expert's rows begin.
    expert = experts.reshape(-1)
    order = jnp.argsort(expert, stable=True)
    token = order // c.TOP_K
    sizes = jnp.bincount(expert, length=c.EXPERTS)
    row_scale = probability.reshape(-1)[order]
    # checks.py searches the compiled step for copies of buffers; it tells these two arrays from one by their scopes.
    with jax.named_scope("dispatch"):
        rows = x[token]

    h = grouped_linear(rows, params["fc1"], sizes, out=outs["fc1"], dgrad_out=dgrads["fc1"])
    a = grouped_activation(h, sizes, "swiglu", row_scale=row_scale, out=outs["swiglu"], dgrad_out=dgrads["swiglu"])
    y = grouped_linear(a, params["fc2"], sizes, out=outs["fc2"], dgrad_out=dgrads["fc2"])
    with jax.named_scope("combine"):
        mixed = jnp.zeros_like(x).at[token].add(y)

    # Switch Transformer: experts x sum over experts of (share of rows) x (mean probability); 1 when balanced.
    share = sizes / expert.size
    balance = c.EXPERTS * jnp.sum(share * jax.nn.softmax(logits, axis=-1).mean(axis=0))
    return mixed, {"fc1": h, "swiglu": a, "fc2": y}, sizes, balance


def forward(params: Arrays, images: Array, outs: dict, dgrads: dict) -> tuple[Array, Arrays, Array, Array]:
    """Class logits, and what `mixture` returns beside its features."""
    x = images @ params["embed"]
    mixed, outs, sizes, balance = mixture(params, x, outs, dgrads)
    return (x + mixed) @ params["head"], outs, sizes, balance


def loss_and_outs(params: Arrays, dgrads: dict, outs: dict, images: Array, labels: Array) -> tuple[Array, Arrays]:
    """Cross-entropy plus the load-balance loss; the filled `outs` ride along as the auxiliary result."""
    logits, outs, _, balance = forward(params, images, outs, dgrads)
    log_probability = jax.nn.log_softmax(logits)
    cross_entropy = -jnp.take_along_axis(log_probability, labels[:, None], axis=1).mean()
    return cross_entropy + c.BALANCE_WEIGHT * balance, outs


class State(NamedTuple):
    """Parameters and Adam's moments."""

    params: Arrays
    mean: Arrays
    square: Arrays
    steps: Array


def adam(state: State, grads: Arrays) -> State:
    """One step of Adam."""
    steps = state.steps + 1
    # 1 - beta ** steps, which in fp32 would lose half its digits in the first steps.
    correct1 = -jnp.expm1(steps * math.log(c.BETA1))
    correct2 = -jnp.expm1(steps * math.log(c.BETA2))
    mean = jax.tree.map(lambda m, g: m + (1 - c.BETA1) * (g - m), state.mean, grads)
    square = jax.tree.map(lambda v, g: c.BETA2 * v + (1 - c.BETA2) * g * g, state.square, grads)

    def update(p: Array, m: Array, v: Array) -> Array:
        return p - c.LEARNING_RATE * (m / correct1) / (jnp.sqrt(v / correct2) + c.EPSILON)

    return State(jax.tree.map(update, state.params, mean, square), mean, square, steps)


# JAX pairs a donated array with the first result of its shape. Buffers that come back in the order in which they
# went in are therefore paired with themselves, and nothing is copied.
@partial(jax.jit, donate_argnames=("state", "outs", "dgrads"))
def train_step(
    state: State, outs: Arrays, dgrads: Arrays, images: Array, labels: Array
) -> tuple[State, Arrays, Arrays, Array]:
    """One step. `dgrads` comes back as its own cotangent, which is how a gradient buffer is returned."""
    gradients = jax.value_and_grad(loss_and_outs, argnums=(0, 1), has_aux=True)
    (loss, outs), (grads, dgrads) = gradients(state.params, dgrads, outs, images, labels)
    return adam(state, grads), outs, dgrads, loss


@jax.jit
def evaluate(params: Arrays, images: Array) -> tuple[Array, Array]:
    """Class logits and rows of each expert; without buffers the same calls allocate their results."""
    logits, _, sizes, _ = forward(params, images, NO_BUFFERS, NO_BUFFERS)
    return logits, sizes


class JaxModel:
    """Owns the state and the buffers between steps."""

    label = "jax_grouped"

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        params = jax.tree.map(jnp.array, weights)
        zeros = partial(jax.tree.map, jnp.zeros_like)
        self.state = State(params, zeros(params), zeros(params), jnp.int32(0))
        # NaN, so that a row which is read before it is written cannot pass unnoticed.
        self.outs = {name: jnp.full(shape, jnp.nan) for name, shape in c.OUT_SHAPES.items()}
        self.dgrads = {name: jnp.full(shape, jnp.nan) for name, shape in c.DGRAD_SHAPES.items()}

    def step(self, images: np.ndarray, labels: np.ndarray) -> Any:
        """Trains on one batch; returns its loss, still on the device."""
        self.state, self.outs, self.dgrads, loss = train_step(self.state, self.outs, self.dgrads, images, labels)
        return loss

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The class of each image and the rows of each expert."""
        logits, sizes = evaluate(self.state.params, images)
        return np.asarray(logits.argmax(axis=-1)), np.asarray(sizes)
