# SPDX-License-Identifier: Apache-2.0
"""Problems of mlp_problems.py through jax_grouped under jit, fused into one call or composed of three."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mlp_problems
import numpy as np
from jax_calls import wide_enough
from mlp_problems import BUFFERS, MLPProblem
from numpy.typing import NDArray

from jax_grouped import grouped_activation, grouped_linear, grouped_mlp

mlp_problem = partial(mlp_problems.mlp_problem, layout="gkn")  # grouped_mlp's default


def composed(
    x,
    fc1_weight,
    fc2_weight,
    group_sizes,
    fc1_bias=None,
    fc2_bias=None,
    *,
    activation,
    row_scale=None,
    out=None,
    dgrad_out=None,
    fc1_wgrad_out=None,
    fc2_wgrad_out=None,
    weight_layout="gkn",
    accumulate_wgrad=False,
    **options,
):
    """What grouped_mlp must equal bit for bit."""
    linear = partial(grouped_linear, weight_layout=weight_layout, accumulate_wgrad=accumulate_wgrad)
    h = linear(x, fc1_weight, group_sizes, fc1_bias, dgrad_out=dgrad_out, wgrad_out=fc1_wgrad_out)
    a = grouped_activation(h, group_sizes, activation, row_scale=row_scale, **options)
    return linear(a, fc2_weight, group_sizes, fc2_bias, out=out, wgrad_out=fc2_wgrad_out)


FUNCTIONS = {"mlp": grouped_mlp, "composed": composed}


@partial(jax.jit, static_argnames=("function", "options"))
def _run(differentiated, rest, dy, function, options):
    y, pull_back = jax.vjp(
        lambda arguments: FUNCTIONS[function](**arguments, **rest, **dict(options)),
        differentiated,
    )
    return {"y": y, **pull_back(dy)[0]}


def mlp(problem: MLPProblem, function: str = "mlp", **given: Any) -> dict[str, NDArray]:
    """y under "y", and every cotangent under the name of its argument. given: buffers, and options of the call."""
    buffers = {name: given.pop(name) for name in BUFFERS if name in given}
    options = tuple({**problem.options, **given}.items())
    with wide_enough(*problem.inputs.values(), problem.sizes):
        arrays = {name: jnp.asarray(a) for name, a in {**problem.inputs, **buffers}.items()}
        rest = {"group_sizes": jnp.asarray(problem.sizes)}
        if "out" in arrays:
            rest["out"] = arrays.pop("out")
        found = _run(arrays, rest, jnp.asarray(problem.dy), function, options)
    return {name: np.asarray(a) for name, a in found.items()}
