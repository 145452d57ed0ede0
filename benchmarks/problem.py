# SPDX-License-Identifier: Apache-2.0
"""One case and its data: fresh normal numbers on the device, in as many sets as it takes to outgrow the caches."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from benchmarks.operations import ACT, ACT_GRAD, DGRAD, FWD, HOST, HOST_COSTS, MLP, WGRAD, WGRAD_ACC, Work, work
from benchmarks.shapes import Shape, draw_sizes, seed_of

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
MAX_SETS = 8
_ABSENT = torch.empty(0)


@dataclass(frozen=True)
class Case:
    """What is computed, on which shape, with which sizes."""

    shape: Shape
    op: str
    draw: str
    dtype: str
    seed: int = 0

    @property
    def id(self) -> str:
        """Its name in a results file."""
        return f"{self.shape.name}/{self.op}/{self.draw}/{self.dtype}"


@dataclass
class InputSet:
    """Tensors of one set; those that the operation does not read are empty."""

    x: Tensor = _ABSENT  # [T, K], or h [T, N] of an activation
    w: Tensor = _ABSENT  # [G, N, K]
    dy: Tensor = _ABSENT  # [T, N], or [T, N/2] of an activation, or [T, K] of an MLP
    w2: Tensor = _ABSENT  # [G, K, N/2], the second weight of an MLP
    views: dict[str, Any] = field(default_factory=dict)  # the same memory as other frameworks see it

    @cached_property
    def wk(self) -> Tensor:
        """[G, K, N]: how JAX stores the weight."""
        return self.w.transpose(1, 2).contiguous()

    @cached_property
    def wk2(self) -> Tensor:
        """[G, N/2, K]."""
        return self.w2.transpose(1, 2).contiguous()

    def nbytes(self) -> int:
        """Of the tensors that are there."""
        return sum(t.numel() * t.element_size() for t in (self.x, self.w, self.dy, self.w2))


class Problem:
    """The data of a case on a device."""

    def __init__(self, case: Case, device: torch.device, cache_bytes: int) -> None:
        shape = case.shape
        self.case, self.device = case, device
        self.dtype = DTYPES[case.dtype]
        self.T, self.K, self.N, self.G = shape.T, shape.K, shape.N, shape.G
        self.sizes_host = [int(n) for n in draw_sizes(shape, case.draw, case.seed)]
        self.S = sum(self.sizes_host)  # rows from here on are the tail
        self.sizes = torch.tensor(self.sizes_host, dtype=torch.int32, device=device)
        self.ends = torch.cumsum(self.sizes, 0, dtype=torch.int32)
        self.starts = torch.cat([torch.zeros_like(self.ends[:1]), self.ends])  # [G + 1]
        self._outputs: dict[tuple, Tensor] = {}
        self._generator = torch.Generator(device).manual_seed(seed_of(shape, f"data/{case.op}", case.seed))
        self.sets = [self._new_set()]
        # Several sets only where one could stay in the last-level cache from one call to the next.
        wanted = 1 if case.op in HOST_COSTS else -(-4 * cache_bytes // max(1, self.sets[0].nbytes()))
        self.sets += [self._new_set() for _ in range(min(MAX_SETS, wanted) - 1)]
        # Kept in the inputs' dtype, of half the size; what is added to it is fp32.
        self.initial = self._normal(self.G, self.N, self.K) if case.op == WGRAD_ACC else None

    @property
    def work(self) -> Work:
        """Arithmetic and bytes of one call."""
        return work(self.case.op, self.case.shape, self.sizes_host, self.dtype.itemsize)

    def set(self, i: int) -> InputSet:
        """The set of the i-th call."""
        return self.sets[i % len(self.sets)]

    def without_tail(self) -> Problem:
        """The same problem in the same memory, as long as its groups reach; results are in memory of its own."""
        short = copy(self)
        short.T = self.S
        short.sets = [replace(s, x=s.x[: self.S], dy=s.dy[: self.S], views={}) for s in self.sets]
        short._outputs = {}
        return short

    def spans(self) -> list[tuple[int, int]]:
        """First row and end of each group."""
        return list(pairwise(accumulate(self.sizes_host, initial=0)))

    def output(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for the result of that name. All peers write to the same: ten of them would not fit otherwise."""
        key = (name, shape, dtype or self.dtype)
        if key not in self._outputs:
            self._outputs[key] = torch.empty(shape, dtype=key[2], device=self.device)
        return self._outputs[key]

    def nbytes(self, dims: str) -> int:
        """Of an array in the case's dtype, by the letters of its dimensions; F is half of N."""
        lengths = {"T": self.T, "K": self.K, "N": self.N, "G": self.G, "F": self.N // 2}
        return prod(lengths[letter] for letter in dims) * self.dtype.itemsize

    def y(self) -> Tensor:
        """[T, N]."""
        return self.output("y", self.T, self.N)

    def dx(self) -> Tensor:
        """[T, K]."""
        return self.output("dx", self.T, self.K)

    def dw(self, dtype: torch.dtype | None = None) -> Tensor:
        """[G, N, K]."""
        return self.output("dw", self.G, self.N, self.K, dtype=dtype)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device, generator=self._generator)

    def _new_set(self) -> InputSet:
        op, T, K, N, G = self.case.op, self.T, self.K, self.N, self.G
        if op == MLP:  # scaled, so that no 16-bit value overflows between the layers
            return InputSet(
                x=self._normal(T, K),
                w=self._normal(G, N, K).mul_(K**-0.5),
                w2=self._normal(G, K, N // 2).mul_((N // 2) ** -0.5),
                dy=self._normal(T, K),
            )
        if op == ACT:
            return InputSet(x=self._normal(T, N))
        if op == ACT_GRAD:
            return InputSet(x=self._normal(T, N), dy=self._normal(T, N // 2))
        return InputSet(
            x=_ABSENT if op == DGRAD else self._normal(T, K),
            w=_ABSENT if op in (WGRAD, WGRAD_ACC) else self._normal(G, N, K),
            dy=_ABSENT if op in (FWD, HOST) else self._normal(T, N),
        )
