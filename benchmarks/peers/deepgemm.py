# SPDX-License-Identifier: Apache-2.0

"""DeepGEMM (sgl-deep-gemm 0.1.5): groups padded to 128 rows with zeros beforehand; only useful rows count.

The copy that pads is timed apart, as a part: whoever does not receive rows padded pays it in each call. Its weight
gradient adds to an fp32 target and takes the sizes from the host.
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from benchmarks.operations import DGRAD, WGRAD
from benchmarks.peers.base import PART, Call, Peer
from benchmarks.problem import Case, Problem

_ALIGNMENT = 128


class _Padding:
    """Where each row of a problem lies when every group begins at a multiple of 128."""

    def __init__(self, p: Problem) -> None:
        self.sizes = [-(-n // _ALIGNMENT) * _ALIGNMENT for n in p.sizes_host]
        self.rows = sum(self.sizes)
        sizes = p.sizes.long()
        padded = torch.tensor(self.sizes, device=p.device)
        group = torch.repeat_interleave(torch.arange(p.G, device=p.device), sizes)
        shift = (torch.cumsum(padded, 0) - padded) - (torch.cumsum(sizes, 0) - sizes)
        self.target = torch.arange(p.T, device=p.device) + shift[group]
        self.group_of_row = torch.full((self.rows,), -1, dtype=torch.int32, device=p.device)  # -1: padding
        self.group_of_row[self.target] = group.int()

    def pad(self, rows: Tensor) -> Tensor:
        """A copy with zeros between the groups."""
        return rows.new_zeros(self.rows, rows.shape[1]).index_copy_(0, self.target, rows)

    def unpad(self, rows: Tensor) -> Tensor:
        return rows.index_select(0, self.target)


def _padded_bytes(p: Problem, columns: str) -> int:
    rows = p.T + p.G * _ALIGNMENT  # at most
    return rows * sum(p.nbytes(c) for c in columns)


class DeepGemm(Peer):
    """The contiguous m-grouped and k-grouped bf16 kernels."""

    name = family = "DeepGEMM"
    module = "deep_gemm"
    devices = ("cuda",)
    builds = True

    def build_key(self, case: Case) -> tuple:
        # A kernel for each K and N, in tiles that depend on the rows; both weight gradients share one.
        return case.op.partition("_")[0], case.shape

    def declines(self, case: Case, device: torch.device) -> str | None:
        return super().declines(case, device) or (None if case.dtype == "bf16" else "bf16 only")

    def memory(self, problem: Problem) -> int:
        p, sets = problem, len(problem.sets)
        if p.case.op.startswith("wgrad"):
            fp32 = 4 * p.G * p.N * p.K if p.case.op == WGRAD else 0
            return fp32 + sets * _padded_bytes(p, "KN")
        return sets * _padded_bytes(p, "N" if p.case.op == DGRAD else "K") + _padded_bytes(p, "KN")

    def fwd(self, p: Problem) -> Call:
        return self._rows(p, import_module("deep_gemm").m_grouped_bf16_gemm_nt_contiguous, "x", p.N)

    host = fwd

    def dgrad(self, p: Problem) -> Call:
        return self._rows(p, import_module("deep_gemm").m_grouped_bf16_gemm_nn_contiguous, "dy", p.K)

    def _rows(self, p: Problem, gemm, rows: str, columns: int) -> Call:
        padding = _Padding(p)
        padded = [padding.pad(getattr(s, rows)) for s in p.sets]
        out = p.output("padded", padding.rows, columns)

        def run(i: int) -> Tensor:
            gemm(padded[i % len(padded)], p.set(i).w, out, padding.group_of_row)
            return out

        note = f"rows padded beforehand: {padding.rows / p.T:.3f} times as many"
        return Call(run, outputs=lambda y: [padding.unpad(y)], buffers=[out], note=note)

    def wgrad(self, p: Problem) -> Call:
        call = self._wgrad(p)
        call.zeroed = True
        call.note += "; adds to an fp32 target"
        return call

    def wgrad_acc(self, p: Problem) -> Call:
        call = self._wgrad(p)
        call.initial = p.initial
        return call

    def _wgrad(self, p: Problem) -> Call:
        gemm = import_module("deep_gemm").k_grouped_bf16_gemm_tn_contiguous
        padding = _Padding(p)
        padded = [(padding.pad(s.dy), padding.pad(s.x)) for s in p.sets]
        sizes = torch.tensor(padding.sizes, dtype=torch.int32, device=p.device)
        out = p.dw(torch.float32)

        def run(i: int) -> Tensor:
            dy, x = padded[i % len(padded)]
            gemm(dy, x, out, padding.sizes, sizes, out)
            return out

        note = f"rows padded beforehand: {padding.rows / p.T:.3f} times as many; sizes on the host"
        return Call(run, buffers=[out], note=note)


class DeepGemmPadding(Peer):
    """The copy alone: zeros, then every row to its place, into a buffer that exists."""

    name = "DeepGEMM padding copy"
    family = "DeepGEMM"
    role = PART
    module = "deep_gemm"
    devices = ("cuda",)

    def memory(self, problem: Problem) -> int:
        return _padded_bytes(problem, "KN")

    def fwd(self, p: Problem) -> Call:
        return self._copy(p, "x")

    def dgrad(self, p: Problem) -> Call:
        return self._copy(p, "dy")

    def _copy(self, p: Problem, rows: str) -> Call:
        padding = _Padding(p)
        target = padding.pad(getattr(p.set(0), rows))

        def run(i: int) -> Tensor:
            return target.zero_().index_copy_(0, padding.target, getattr(p.set(i), rows))

        return Call(run, checked=False)

    def wgrad(self, p: Problem) -> Call:
        padding = _Padding(p)
        targets = [padding.pad(p.set(0).x), padding.pad(p.set(0).dy)]

        def run(i: int) -> None:
            for target, rows in zip(targets, (p.set(i).x, p.set(i).dy), strict=True):
                target.zero_().index_copy_(0, padding.target, rows)

        return Call(run, checked=False)
