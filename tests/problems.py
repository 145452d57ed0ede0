# SPDX-License-Identifier: Apache-2.0
"""Random problems in numpy, tails poisoned, and what fp64 says of each of their results and gradients.

Framework-free: the JAX and the parity suites both draw from here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import reference
from cases import Case, draw, poison_tail
from numpy.typing import NDArray
from tolerances import DTYPES, name_of

Expected = dict[str, tuple[reference.Pair, int]]  # by name: (value, scale) and the number of terms


def is_narrow(dtype: str) -> bool:
    return dtype in ("f16", "bf16")


def rounded_product(a: NDArray, row_scale: NDArray) -> NDArray:
    """a * row_scale, row by row, as the core rounds it: one product in the accumulator, one rounding to a's dtype."""
    wide = np.float64 if name_of(a.dtype) == "f64" else np.float32
    with np.errstate(invalid="ignore", over="ignore"):
        return (a.astype(wide) * row_scale.astype(wide)[:, None]).astype(a.dtype)


@dataclass(frozen=True)
class LinearProblem:
    """One grouped linear layer and the gradient of its result. weight is [G,K,N] for "gkn", else [G,N,K]."""

    x: NDArray
    weight: NDArray
    sizes: NDArray
    dy: NDArray
    bias: NDArray | None = None
    row_scale: NDArray | None = None
    layout: str = "gkn"

    @property
    def S(self) -> int:
        return int(self.sizes.sum())

    @property
    def inputs(self) -> dict[str, NDArray]:
        """Those that get a gradient and are there."""
        every = {"x": self.x, "weight": self.weight, "bias": self.bias, "row_scale": self.row_scale}
        return {name: a for name, a in every.items() if a is not None}

    def in_layout(self, layout: str) -> LinearProblem:
        """The same problem with its weight stored the other way."""
        if layout == self.layout:
            return self
        return replace(self, weight=np.ascontiguousarray(self.weight.transpose(0, 2, 1)), layout=layout)

    def expected(self, old_wgrad: NDArray | None = None) -> Expected:
        """y and the gradients, under the names of what they are gradients of."""
        x, w, sizes, dy, layout = self.x, self.weight, self.sizes, self.dy, self.layout
        other = {"gkn": "gnk", "gnk": "gkn"}[layout]
        K, N = x.shape[1], dy.shape[1]
        longest = int(sizes.max(initial=0))
        # By contract the gradients of weight and bias are those of the rounded product.
        dz = dy if self.row_scale is None else rounded_product(dy, self.row_scale)
        found: Expected = {
            "y": (reference.grouped_mm(x, w, sizes, self.bias, self.row_scale, layout=layout), K + 2),
            "x": (reference.grouped_mm(dy, w, sizes, None, self.row_scale, layout=other), N + 1),
            "weight": (reference.grouped_wgrad(x, dz, sizes, layout=layout, old=old_wgrad), longest + 1),
        }
        if self.bias is not None:
            found["bias"] = (reference.grouped_bias_grad(dz, sizes), longest)
        if self.row_scale is not None:
            found["row_scale"] = (self._row_scale_gradient(other), K + N + 1)
        return found

    def _row_scale_gradient(self, other: str) -> reference.Pair:
        # x . (dy W^T) + dy . bias; the inner product is itself a sum, so its scale enters, not its value.
        S = self.S
        unscaled, unscaled_scale = reference.grouped_mm(self.dy, self.weight, self.sizes, layout=other)
        value, scale = reference.grouped_row_dot(self.x, unscaled, self.sizes, self.dy, self.bias)
        x = np.abs(self.x[:S].astype(np.float64))
        scale[:S] += (x * (unscaled_scale - np.abs(unscaled))[:S]).sum(1)
        return value, scale


def linear_problem(
    rng: np.random.Generator,
    case: Case,
    dtype: str,
    *,
    bias: bool = True,
    row_scale: bool = True,
    vector_dtype: str | None = None,
    sizes_dtype: type = np.int32,
    layout: str = "gkn",
) -> LinearProblem:
    """Fresh data for a case; the tails of everything that has rows are NaN. vector_dtype: of bias and row_scale."""
    vectors = vector_dtype or dtype
    return LinearProblem(
        x=poison_tail(draw(rng, (case.T, case.K), dtype), case.S),
        weight=draw(rng, (case.G, case.K, case.N), dtype),
        sizes=np.array(case.sizes, sizes_dtype),
        dy=poison_tail(draw(rng, (case.T, case.N), dtype), case.S),
        bias=draw(rng, (case.G, case.N), vectors) if bias else None,
        row_scale=poison_tail(draw(rng, (case.T,), vectors), case.S) if row_scale else None,
    ).in_layout(layout)


ACTIVATION_KINDS = ("swiglu", "clamped_swiglu", "geglu", "squared_relu")
GATE_LAYOUTS = ("concatenated", "interleaved")
# Other than the defaults, so that a constant left in the code shows.
CLAMP = {"alpha": 1.25, "limit": 1.5, "offset": 0.75}


@dataclass(frozen=True)
class ActivationProblem:
    """One activation and the gradient of its result."""

    h: NDArray
    sizes: NDArray
    dy: NDArray
    row_scale: NDArray | None
    kind: str
    gate_layout: str

    @property
    def S(self) -> int:
        return int(self.sizes.sum())

    @property
    def options(self) -> dict:
        """The keyword arguments, the kind among them."""
        return {"kind": self.kind, "gate_layout": self.gate_layout, **CLAMP}

    @property
    def inputs(self) -> dict[str, NDArray]:
        every = {"h": self.h, "row_scale": self.row_scale}
        return {name: a for name, a in every.items() if a is not None}

    def expected(self) -> Expected:
        """y and the gradients, under the names of what they are gradients of."""
        value = reference.grouped_activation(self.h, self.sizes, row_scale=self.row_scale, **self.options)
        dh, dscale = reference.grouped_activation_grad(
            self.h, self.dy, self.sizes, row_scale=self.row_scale, **self.options
        )
        # A value is a handful of operations, each of the core's own exp within a few units in the last place.
        found: Expected = {"y": (value, ACTIVATION_TERMS), "h": (dh, ACTIVATION_TERMS)}
        if self.row_scale is not None:
            found["row_scale"] = (dscale, ACTIVATION_TERMS + self.dy.shape[1])
        return found


ACTIVATION_TERMS = 16


def activation_problem(
    rng: np.random.Generator,
    case: Case,
    dtype: str,
    kind: str,
    gate_layout: str = "concatenated",
    *,
    row_scale: bool = True,
    vector_dtype: str | None = None,
    sizes_dtype: type = np.int32,
) -> ActivationProblem:
    """Fresh data for a case, its N the width of the result; tails are NaN."""
    columns = case.N * (1 if kind == "squared_relu" else 2)
    return ActivationProblem(
        h=poison_tail(draw(rng, (case.T, columns), dtype, 2.0), case.S),
        sizes=np.array(case.sizes, sizes_dtype),
        dy=poison_tail(draw(rng, (case.T, case.N), dtype), case.S),
        row_scale=poison_tail(draw(rng, (case.T,), vector_dtype or dtype), case.S) if row_scale else None,
        kind=kind,
        gate_layout=gate_layout,
    )


def poisoned_buffer(shape, dtype: str, S: int, sentinel: float) -> NDArray:
    """A buffer to write [0, S) of: NaN where results go, the sentinel in the tail."""
    a = np.full(shape, np.nan, DTYPES[dtype])
    a[S:] = sentinel
    return a
