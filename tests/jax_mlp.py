# SPDX-License-Identifier: Apache-2.0
"""Problems of a grouped MLP through jax_grouped under jit, fused into one call or composed of three."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import SENTINEL, Case, draw, poison_tail
from jax_calls import wide_enough
from numpy.typing import NDArray
from problems import CLAMP, poisoned_buffer

from jax_grouped import grouped_activation, grouped_linear, grouped_mlp

GRADIENTS = ("x", "fc1_weight", "fc2_weight", "fc1_bias", "fc2_bias", "row_scale")
BUFFERS = ("out", "dgrad_out", "fc1_wgrad_out", "fc2_wgrad_out")


@dataclass(frozen=True)
class MlpProblem:
    """One MLP of a case's shapes, hidden features F, and the gradient of its result."""

    inputs: dict[str, NDArray]
    sizes: NDArray
    dy: NDArray
    activation: str
    gate_layout: str
    layout: str

    @property
    def S(self) -> int:
        return int(self.sizes.sum())

    @property
    def options(self) -> dict[str, Any]:
        return {"activation": self.activation, "gate_layout": self.gate_layout, **CLAMP}

    def in_layout(self, layout: str) -> MlpProblem:
        """The same problem with both weights stored the other way."""
        if layout == self.layout:
            return self
        turned = {
            name: np.ascontiguousarray(a.transpose(0, 2, 1)) if name.endswith("weight") else a
            for name, a in self.inputs.items()
        }
        return replace(self, inputs=turned, layout=layout)

    def buffers(self, dtype: Any = None, wgrad_dtype: Any = None) -> dict[str, NDArray]:
        """One for each name, NaN where results go and the sentinel in tails."""
        shapes = {"out": self.dy, "dgrad_out": self.inputs["x"]}
        found = {name: poisoned_buffer(a.shape, dtype, self.S, SENTINEL) for name, a in shapes.items()}
        for name in ("fc1", "fc2"):
            shape = self.inputs[f"{name}_weight"].shape
            found[f"{name}_wgrad_out"] = poisoned_buffer(shape, wgrad_dtype or dtype, shape[0], SENTINEL)
        return found


def mlp_problem(
    rng: np.random.Generator,
    case: Case,
    dtype: str,
    activation: str = "swiglu",
    gate_layout: str = "concatenated",
    *,
    F: int = 11,
    bias: bool = True,
    row_scale: bool = True,
    vector_dtype: str | None = None,
) -> MlpProblem:
    """Fresh data for a case; tails are NaN. vector_dtype: of the biases and row_scale."""
    hidden, vectors = F * (1 if activation == "squared_relu" else 2), vector_dtype or dtype
    inputs = {
        "x": poison_tail(draw(rng, (case.T, case.K), dtype), case.S),
        "fc1_weight": draw(rng, (case.G, case.K, hidden), dtype),
        "fc2_weight": draw(rng, (case.G, F, case.N), dtype),
    }
    if bias:
        inputs["fc1_bias"], inputs["fc2_bias"] = (draw(rng, (case.G, n), vectors) for n in (hidden, case.N))
    if row_scale:
        inputs["row_scale"] = poison_tail(draw(rng, (case.T,), vectors), case.S)
    sizes, dy = np.array(case.sizes, np.int32), poison_tail(draw(rng, (case.T, case.N), dtype), case.S)
    return MlpProblem(inputs, sizes, dy, activation, gate_layout, "gkn")


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


def mlp(problem: MlpProblem, function: str = "mlp", **given: Any) -> dict[str, NDArray]:
    """y under "y", and every cotangent under the name of its argument. given: buffers, and options of the call."""
    buffers = {name: given.pop(name) for name in BUFFERS if name in given}
    options = tuple({**problem.options, "weight_layout": problem.layout, **given}.items())
    with wide_enough(*problem.inputs.values(), problem.sizes):
        arrays = {name: jnp.asarray(a) for name, a in {**problem.inputs, **buffers}.items()}
        rest = {"group_sizes": jnp.asarray(problem.sizes)}
        if "out" in arrays:
            rest["out"] = arrays.pop("out")
        found = _run(arrays, rest, jnp.asarray(problem.dy), function, options)
    return {name: np.asarray(a) for name, a in found.items()}
