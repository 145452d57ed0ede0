# SPDX-License-Identifier: Apache-2.0
"""Random operands for the four products of torch's grouped_mm, in numpy, and what fp64 says of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import reference
from cases import Case, draw
from numpy.typing import NDArray

KINDS = ("rows", "contraction", "columns", "batch")


@dataclass(frozen=True)
class Product:
    """a @ b in groups, NaN past the last one; offs is None for "batch", where `sizes` says how many there are."""

    kind: str
    a: NDArray
    b: NDArray
    sizes: NDArray

    @property
    def offs(self) -> NDArray | None:
        return None if self.kind == "batch" else np.cumsum(self.sizes).astype(np.int32)

    @property
    def S(self) -> int:
        return int(self.sizes.sum())

    def expected(self) -> tuple[reference.Pair, int]:
        a, b, sizes = self.a, self.b, self.sizes
        if self.kind == "rows":
            return reference.grouped_mm(a, b, sizes, layout="gkn"), a.shape[1]
        if self.kind == "contraction":
            return reference.grouped_wgrad(a.T, b, sizes, layout="gkn"), int(sizes.max(initial=0))
        if self.kind == "columns":
            value, scale = reference.grouped_mm(b.T, a, sizes, layout="gnk")
            return (value.T, scale.T), b.shape[0]
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        return (a64 @ b64, np.abs(a64) @ np.abs(b64)), a.shape[2]

    def gradients(self, dy: NDArray) -> tuple[Product, Product]:
        """Those of a and of b: products again."""
        kind_a = {"contraction": "columns", "columns": "contraction"}.get(self.kind, self.kind)
        kind_b = {"contraction": "rows", "rows": "contraction"}.get(self.kind, self.kind)
        of_a = Product(kind_a, dy, np.swapaxes(self.b, -1, -2), self.sizes)
        return of_a, Product(kind_b, np.swapaxes(self.a, -1, -2), dy, self.sizes)

    def defined(self, y):
        """The part of a result that groups reach."""
        return {"rows": y[: self.S], "columns": y[:, : self.S]}.get(self.kind, y)

    def tail(self, y):
        return {"rows": y[self.S :], "columns": y[:, self.S :]}.get(self.kind, y[:0])


def draw_product(rng: np.random.Generator, case: Case, dtype: str, kind: str) -> Product:
    T, K, N, G, S = case.T, case.K, case.N, case.G, case.S
    shapes = {
        "rows": ((T, K), (G, K, N)),
        "contraction": ((K, T), (T, N)),
        "columns": ((G, N, K), (K, T)),
        "batch": ((G, T, K), (G, K, N)),
    }
    a, b = (draw(rng, shape, dtype) for shape in shapes[kind])
    if kind == "rows":
        a[S:] = np.nan
    if kind == "contraction":
        a[:, S:], b[S:] = np.nan, np.nan
    if kind == "columns":
        b[:, S:] = np.nan
    return Product(kind, a, b, np.array(case.sizes, np.int32))
