# SPDX-License-Identifier: Apache-2.0
"""Random grouped MLPs in numpy, tails poisoned. Framework-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cases import SENTINEL, Case, draw, poison_tail
from numpy.typing import NDArray
from problems import CLAMP, poisoned_buffer

BUFFERS = ("out", "dgrad_out", "fc1_wgrad_out", "fc2_wgrad_out")


@dataclass(frozen=True)
class MLPProblem:
    """A grouped MLP and the gradient of its result. Weights are [G, out, in] for "gnk", [G, in, out] for "gkn"."""

    inputs: dict[str, NDArray]
    sizes: NDArray
    dy: NDArray
    kind: str
    gate_layout: str
    layout: str

    @property
    def S(self) -> int:
        return int(self.sizes.sum())

    @property
    def activation_options(self) -> dict:
        return {"gate_layout": self.gate_layout, **CLAMP}

    @property
    def options(self) -> dict:
        """The keyword arguments of grouped_mlp."""
        return {"activation": self.kind, "weight_layout": self.layout, **self.activation_options}

    def buffers(self, dtype: str) -> dict[str, NDArray]:
        """One for each of BUFFERS, NaN where results go and the sentinel in tails."""
        like = (self.dy, self.inputs["x"], self.inputs["fc1_weight"], self.inputs["fc2_weight"])
        return {
            name: poisoned_buffer(a.shape, dtype, a.shape[0] if "wgrad" in name else self.S, SENTINEL)
            for name, a in zip(BUFFERS, like, strict=True)
        }


def mlp_problem(
    rng: np.random.Generator,
    case: Case,
    dtype: str,
    kind: str = "swiglu",
    gate_layout: str = "concatenated",
    *,
    bias: bool = True,
    row_scale: bool = True,
    vector_dtype: str | None = None,
    layout: str = "gnk",
) -> MLPProblem:
    """Fresh data for a case: its K is the input's width, its N the activation's; the result has three more than K."""
    K, F, N = case.K, case.N, case.K + 3
    columns = F if kind == "squared_relu" else 2 * F
    vectors = vector_dtype or dtype

    def weight(outs: int, ins: int) -> NDArray:
        return draw(rng, (case.G, outs, ins) if layout == "gnk" else (case.G, ins, outs), dtype, 0.5)

    inputs = {
        "x": poison_tail(draw(rng, (case.T, K), dtype), case.S),
        "fc1_weight": weight(columns, K),
        "fc2_weight": weight(N, F),
    }
    if bias:
        inputs |= {"fc1_bias": draw(rng, (case.G, columns), vectors), "fc2_bias": draw(rng, (case.G, N), vectors)}
    if row_scale:
        inputs["row_scale"] = poison_tail(draw(rng, (case.T,), vectors), case.S)
    return MLPProblem(
        inputs=inputs,
        sizes=np.array(case.sizes, np.int32),
        dy=poison_tail(draw(rng, (case.T, N), dtype), case.S),
        kind=kind,
        gate_layout=gate_layout,
        layout=layout,
    )
