# SPDX-License-Identifier: Apache-2.0
"""Problems of problems.py through jax_grouped under jit: numpy in, numpy out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from problems import ActivationProblem, LinearProblem

from jax_grouped import grouped_activation, grouped_linear


def wide_enough(*arrays: NDArray | None) -> AbstractContextManager:
    """The 64-bit mode of JAX, where one of the arrays needs it."""
    return jax.enable_x64(any(a is not None and a.dtype.itemsize == 8 for a in arrays))


@partial(jax.jit, static_argnames=("accumulate_wgrad", "weight_layout"))
def _linear(inputs, sizes, dy, out, dgrad_out, wgrad_out, accumulate_wgrad, weight_layout):
    given = {"dgrad_out": dgrad_out, "wgrad_out": wgrad_out}
    differentiated = {**inputs, **{name: b for name, b in given.items() if b is not None}}

    def layer(arguments):
        return grouped_linear(
            group_sizes=sizes,
            out=out,
            accumulate_wgrad=accumulate_wgrad,
            weight_layout=weight_layout,
            **arguments,
        )

    y, pull_back = jax.vjp(layer, differentiated)
    return {"y": y, **pull_back(dy)[0]}


def linear(
    problem: LinearProblem,
    out: NDArray | None = None,
    dgrad_out: NDArray | None = None,
    wgrad_out: NDArray | None = None,
    accumulate_wgrad: bool = False,
) -> dict[str, NDArray]:
    """y under "y", and every cotangent under the name of its argument."""
    with wide_enough(problem.x, problem.sizes):
        buffers = [None if b is None else jnp.asarray(b) for b in (out, dgrad_out, wgrad_out)]
        inputs = {name: jnp.asarray(a) for name, a in problem.inputs.items()}
        sizes, dy = jnp.asarray(problem.sizes), jnp.asarray(problem.dy)
        found = _linear(inputs, sizes, dy, *buffers, accumulate_wgrad, problem.layout)
    return {name: np.asarray(a) for name, a in found.items()}


@partial(jax.jit, static_argnames="options")
def _activation(inputs, sizes, dy, out, dgrad_out, options):
    differentiated = {**inputs, **({} if dgrad_out is None else {"dgrad_out": dgrad_out})}
    y, pull_back = jax.vjp(
        lambda arguments: grouped_activation(group_sizes=sizes, out=out, **dict(options), **arguments),
        differentiated,
    )
    return {"y": y, **pull_back(dy)[0]}


def activation(
    problem: ActivationProblem, out: NDArray | None = None, dgrad_out: NDArray | None = None
) -> dict[str, NDArray]:
    """y under "y", and every cotangent under the name of its argument."""
    with wide_enough(problem.h, problem.sizes):
        buffers = [None if b is None else jnp.asarray(b) for b in (out, dgrad_out)]
        inputs = {name: jnp.asarray(a) for name, a in problem.inputs.items()}
        options = tuple(problem.options.items())
        found = _activation(inputs, jnp.asarray(problem.sizes), jnp.asarray(problem.dy), *buffers, options)
    return {name: np.asarray(a) for name, a in found.items()}
