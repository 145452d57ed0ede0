# SPDX-License-Identifier: Apache-2.0
"""The shapes at which grouped kernels break: which groups are empty, tails, one row, sizes that divide nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tolerances import DTYPES

SENTINEL = 7.0  # exact in every dtype


@dataclass(frozen=True)
class Case:
    """T rows of K in and N out features; the rows past sum(sizes) are the tail."""

    name: str
    T: int
    K: int
    N: int
    sizes: tuple[int, ...]

    @property
    def G(self) -> int:
        return len(self.sizes)

    @property
    def S(self) -> int:
        return sum(self.sizes)

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("even", 64, 32, 48, (16, 16, 16, 16)),
    Case("odd_everything", 37, 19, 23, (5, 13, 1, 18)),
    Case("tail", 50, 24, 40, (11, 7, 13)),
    Case("empty_first", 33, 17, 16, (0, 20, 13)),
    Case("empty_middle", 40, 16, 33, (9, 0, 0, 22)),
    Case("empty_last", 31, 40, 7, (15, 16, 0)),
    Case("all_empty", 9, 8, 8, (0, 0, 0)),
    Case("one_row", 1, 65, 31, (0, 1, 0)),
    Case("one_group", 70, 33, 65, (61,)),
    Case("no_rows", 0, 12, 10, (0, 0)),
    Case("no_groups", 5, 6, 7, ()),
    Case("no_k", 12, 0, 9, (5, 4)),
    Case("no_n", 12, 9, 0, (5, 4)),
    Case("k_one", 21, 1, 35, (8, 8, 5)),
    Case("n_one", 21, 35, 1, (3, 0, 18)),
    Case("crosses_tiles", 400, 70, 270, (193, 1, 130, 0, 65)),
    Case("long_k", 20, 777, 33, (7, 12)),
    Case("many_groups", 300, 16, 24, tuple([0, 1, 2, 3] * 33)),
)
BY_NAME = {c.name: c for c in CASES}
EDGE_NAMES = [c.name for c in CASES]


def draw(rng: np.random.Generator, shape, dtype: str, magnitude: float = 1.0):
    """Normal data in dtype."""
    return (rng.standard_normal(shape) * magnitude).astype(DTYPES[dtype])


def poison_tail(a, S: int):
    """A copy whose rows from S on are NaN."""
    a = a.copy()
    a[S:] = np.nan
    return a
