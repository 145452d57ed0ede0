# SPDX-License-Identifier: Apache-2.0

"""The grouped products that JAX ships as Pallas kernels for Hopper: `ragged_dot_mgpu` and its transposed sibling.

They take fixed tiles, unroll the search over the groups, and have no derivative: each gradient is a call of its own.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch

from benchmarks.operations import DGRAD, FWD, WGRAD
from benchmarks.peers.base import NATIVE, Call
from benchmarks.peers.jax_common import JaxPeer, too_many_compilations
from benchmarks.problem import Case, Problem
from benchmarks.shapes import SKEW

_MODULE = "jax.experimental.pallas.ops.gpu"
# Rows and columns of a tile; the depth is 64, in four steps ahead.
TILES = {"128x128": (128, 128), "64x256": (64, 256)}
_EVERYWHERE = "128x128"
_DEPTH, _STEPS = 64, 4
_MOST_GROUPS = 128  # compile time grows with them


class RaggedDotMgpu(JaxPeer):
    """One tile configuration."""

    family = "Pallas ragged_dot_mgpu"
    devices = ("cuda",)
    sitting = NATIVE

    def __init__(self, tile: str) -> None:
        self.tile = tile
        self.name = f"{self.family} {tile}"

    def load(self) -> None:
        # In a corner of JAX that changes, and wants absl.
        import_module(f"{_MODULE}.ragged_dot_mgpu")
        import_module(f"{_MODULE}.transposed_ragged_dot_mgpu")

    def declines(self, case: Case, device: torch.device) -> str | None:
        rows, columns = TILES[self.tile]
        shape = case.shape
        width = {FWD: shape.N, DGRAD: shape.K, WGRAD: shape.N}.get(case.op, columns)
        depth = {FWD: shape.K, DGRAD: shape.N}.get(case.op, _DEPTH)
        reason = super().declines(case, device)
        if reason is None and shape.G > _MOST_GROUPS:
            return f"unrolls over the groups, of which there are {shape.G}"
        if reason is None and self.tile != _EVERYWHERE and SKEW not in shape.tags:
            return f"seconds to compile: timed on shapes tagged {SKEW}; {_EVERYWHERE} on all"
        if reason is None and (width % columns or depth % _DEPTH or (case.op == WGRAD and shape.K % rows)):
            return f"tiles of {self.tile} do not divide {shape.K} x {shape.N}"
        return reason or too_many_compilations(case)

    def pool(self, problem: Problem) -> int:
        p = problem
        return 2 * p.nbytes({FWD: "TN", DGRAD: "TK"}.get(p.case.op, "GNK"))

    def fwd(self, p: Problem) -> Call:
        return self.call(p, _FUNCTIONS[self.tile, FWD], ("x", "wk", "sizes"))

    def dgrad(self, p: Problem) -> Call:
        return self.call(p, _FUNCTIONS[self.tile, DGRAD], ("dy", "wk", "sizes"))

    def wgrad(self, p: Problem) -> Call:
        return self.call(p, _FUNCTIONS[self.tile, WGRAD], ("x", "dy", "sizes"))


def _options(tile: str, columns: int) -> dict[str, int]:
    rows, width = TILES[tile]
    # Column tiles that are walked together; they must divide what there is.
    band = next(b for b in (8, 4, 2, 1) if columns // width % b == 0)
    return {
        "block_m": rows,
        "block_n": width,
        "block_k": _DEPTH,
        "max_concurrent_steps": _STEPS,
        "grid_block_n": band,
    }


def _rows(x: Any, w: Any, sizes: Any, tile: str, transposed: bool) -> Any:
    function = import_module(f"{_MODULE}.ragged_dot_mgpu").ragged_dot
    options = _options(tile, w.shape[1] if transposed else w.shape[2])
    return function(x, w, group_sizes=sizes, transpose_rhs=transposed, **options)


def _gradient(x: Any, dy: Any, sizes: Any, tile: str) -> Any:
    function = import_module(f"{_MODULE}.transposed_ragged_dot_mgpu").transposed_ragged_dot
    return function(x, dy, group_sizes=sizes, **_options(tile, dy.shape[1]))


# Made once: one compiled function for each of them lives as long as the process.
_FUNCTIONS = {
    **{(tile, FWD): partial(_rows, tile=tile, transposed=False) for tile in TILES},
    **{(tile, DGRAD): partial(_rows, tile=tile, transposed=True) for tile in TILES},
    **{(tile, WGRAD): partial(_gradient, tile=tile) for tile in TILES},
}
