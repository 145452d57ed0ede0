# SPDX-License-Identifier: Apache-2.0
"""ragged_dot_general in letters: every mode and order of dimensions, and its truth as an einsum with a mask.

The einsum is plain jnp, so it has derivatives of any order: what JAX's own primitive cannot give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import draw
from numpy.typing import NDArray

import grouped_core
from grouped_core import Op

# m: the ragged dimension. Its sizes and those of the others, odd and apart from each other.
EXTENT = {"m": 13, "k": 5, "n": 7, "j": 3, "p": 2, "a": 3, "b": 2, "c": 3, "x": 2, "g": 4}
SIZES = ((3, 0, 6, 2), (0, 13, 0, 0), (0, 0, 0, 0), (1, 2, 3, 4), (5, 0, 0, 8), (2, 2, 2, 2))  # the first has a tail


@dataclass(frozen=True)
class Ragged:
    """lhs, rhs and result by letters: g groups, m ragged. sizes: the letters before g in group_sizes."""

    name: str
    lhs: str
    rhs: str
    result: str
    sizes: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def mode(self) -> str:
        if "g" in self.rhs:
            return "noncontracting"
        return "contracting" if "g" in self.result else "batch"

    @property
    def numbers(self) -> Any:
        shared = [c for c in self.lhs if c in self.rhs]
        batch = [c for c in shared if c in self.result]
        contract = [c for c in shared if c not in self.result]
        return jax.lax.RaggedDotDimensionNumbers(
            dot_dimension_numbers=tuple(
                ([self.lhs.index(c) for c in letters], [self.rhs.index(c) for c in letters])
                for letters in (contract, batch)
            ),
            lhs_ragged_dimensions=[self.lhs.index("m")],
            rhs_group_dimensions=[self.rhs.index("g")] if "g" in self.rhs else [],
        )

    @property
    def terms(self) -> int:
        """How many products make one element."""
        return int(np.prod([EXTENT[c] for c in self.lhs if c not in self.result] or [1]))

    def draw(self, rng: np.random.Generator, dtype: str) -> tuple[NDArray, NDArray, NDArray]:
        lhs, rhs = (draw(rng, [EXTENT[c] for c in letters], dtype) for letters in (self.lhs, self.rhs))
        lead = [EXTENT[c] for c in self.sizes]
        others = 1 + rng.permutation(len(SIZES) - 1)
        rows = rng.permutation(np.append(0, others[: int(np.prod(lead)) - 1]))  # the first is always among them
        return lhs, rhs, np.array(SIZES, np.int32)[rows].reshape(*lead, EXTENT["g"])

    def truth(self, lhs: Any, rhs: Any, sizes: Any) -> jax.Array:
        """By einsum, in the operands' dtype."""
        if self.mode == "batch":
            return jnp.einsum(f"{self.lhs},{self.rhs}->{self.result}", lhs, rhs)
        ends = jnp.cumsum(sizes, -1)[..., None]
        row = jnp.arange(EXTENT["m"])
        mask = ((row < ends) & (row >= ends - sizes[..., None])).astype(lhs.dtype)
        return jnp.einsum(f"{self.sizes}gm,{self.lhs},{self.rhs}->{self.result}", mask, lhs, rhs, precision="highest")

    def pair(self, lhs: Any, rhs: Any, sizes: Any) -> tuple[NDArray, NDArray]:
        """Value and scale, as tolerances.assert_close takes them."""
        with jax.enable_x64(True):
            lhs, rhs = (jnp.asarray(np.asarray(a).astype(np.float64)) for a in (lhs, rhs))
            value, scale = self.truth(lhs, rhs, sizes), self.truth(abs(lhs), abs(rhs), sizes)
            return np.asarray(value), np.asarray(scale)


NONCONTRACTING = (
    Ragged("plain", "mk", "gkn", "mn"),
    Ragged("rhs_transposed", "mk", "gnk", "mn"),
    Ragged("group_last", "mk", "kng", "mn"),
    Ragged("lhs_transposed", "km", "gkn", "mn"),
    Ragged("batch", "bmk", "bgkn", "bmn", "b"),
    Ragged("batch_behind_group", "bmk", "gbkn", "bmn", "b"),
    Ragged("batch_of_one_size", "bmk", "bgkn", "bmn"),
    Ragged("two_batches", "bcmk", "bcgnk", "bcmn", "bc"),
    Ragged("outer", "xmk", "gkn", "xmn", "x"),
    Ragged("outer_of_one_size", "xmk", "gkn", "xmn"),
    Ragged("inner", "mak", "gkn", "man"),
    Ragged("two_contracted", "mkj", "gkjn", "mn"),
    Ragged("two_contracted_crosswise", "mjk", "gkjn", "mn"),
    Ragged("two_free", "mk", "gkpn", "mpn"),
    Ragged("nothing_contracted", "m", "gn", "mn"),
    Ragged("nothing_free", "mk", "gk", "m"),
    Ragged("all_at_once", "bxmak", "gbkn", "bxman", "bx"),
)
CONTRACTING = (
    Ragged("wgrad", "mk", "mn", "gkn"),
    Ragged("wgrad_transposed", "km", "nm", "gkn"),
    Ragged("wgrad_batch", "bmk", "bmn", "gbkn", "b"),
    Ragged("wgrad_batch_of_one_size", "bmk", "bmn", "gbkn"),
    Ragged("wgrad_outer", "xmk", "xmn", "gkn", "x"),
    Ragged("wgrad_inner", "mak", "man", "gkn"),
    Ragged("wgrad_two_free", "mkj", "mn", "gkjn"),
    Ragged("wgrad_all_at_once", "bxmak", "bxman", "gbkn", "bx"),
)
BATCH = (Ragged("ragged_batch", "mbk", "mkn", "mbn"),)
EVERY = NONCONTRACTING + CONTRACTING + BATCH


def calls_of(function: Any, *arguments: Any) -> dict[Op, int]:
    """Launches of the core while the function runs."""
    before = [grouped_core.call_count(op) for op in Op]
    jax.block_until_ready(function(*arguments))
    return {op: n for op, b in zip(Op, before, strict=True) if (n := grouped_core.call_count(op) - b)}
