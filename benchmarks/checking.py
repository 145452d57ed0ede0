# SPDX-License-Identifier: Apache-2.0
"""Whether a result is right: a reference in higher precision, and the error that rounding explains.

The reference is a loop over the groups in fp64 on a CPU and in fp32 (never TF32) on a GPU. Errors are norms, over the
whole result and over each row of it, so that one wrong tile cannot hide in a large matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.operations import ACT, ACT_GRAD, DGRAD, FWD, HOST, HOST_LINEAR, LINEAR, WGRAD, WGRAD_ACC
from benchmarks.problem import Problem

# How many times the bound a peer may miss it and still be timed, with a mark. Splitting K in 16 bits, or rounding
# between two operations, costs such factors; a wrong result costs hundreds. Ours may not miss it at all.
LOOSE = 8.0
_CHUNK = 1 << 26  # elements compared at a time
_PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


def reference(problem: Problem) -> list[Tensor]:
    """The results of the case on its first set of inputs: those of LINEAR are y, dx, dW."""
    op, first = problem.case.op, problem.set(0)
    wide = torch.float32 if problem.device.type == "cuda" else torch.float64
    if op in (ACT, ACT_GRAD):
        return [_activation(problem, wide)]
    steps = (FWD, DGRAD, WGRAD) if op in (LINEAR, HOST_LINEAR) else (FWD,) if op == HOST else (op,)
    return [_product(problem, step, first, wide) for step in steps]


def _product(problem: Problem, step: str, first, wide: torch.dtype) -> Tensor:
    shape = {FWD: (problem.T, problem.N), DGRAD: (problem.T, problem.K)}
    result = torch.zeros(shape.get(step, (problem.G, problem.N, problem.K)), dtype=wide, device=problem.device)
    for g, (begin, end) in enumerate(problem.spans()):
        if begin == end:
            continue
        rows = slice(begin, end)
        if step == FWD:
            torch.mm(first.x[rows].to(wide), first.w[g].to(wide).t(), out=result[rows])
        elif step == DGRAD:
            torch.mm(first.dy[rows].to(wide), first.w[g].to(wide), out=result[rows])
        else:
            torch.mm(first.dy[rows].to(wide).t(), first.x[rows].to(wide), out=result[g])
    return result if problem.initial is None else result.add_(problem.initial)


def _activation(problem: Problem, wide: torch.dtype) -> Tensor:
    first = problem.set(0)
    gate, up = first.x.to(wide).chunk(2, dim=1)
    sigmoid = torch.sigmoid(gate)
    if problem.case.op == ACT:
        return gate * sigmoid * up
    dy = first.dy.to(wide)
    return torch.cat([dy * up * sigmoid * (1 + gate * (1 - sigmoid)), dy * gate * sigmoid], dim=1)


def terms(problem: Problem) -> int:
    """How many products are summed into one element at most."""
    rows = max(problem.sizes_host, default=0)
    by_op = {FWD: problem.K, HOST: problem.K, DGRAD: problem.N, WGRAD: rows, WGRAD_ACC: rows, ACT: 1, ACT_GRAD: 8}
    return by_op.get(problem.case.op, max(problem.K, problem.N, rows))


def bound(stored: torch.dtype, inputs: torch.dtype, count: int) -> float:
    """The relative error, of a norm, that one rounding of the result and an fp32 sum of `count` products explain.

    Half an ulp of the stored dtype is at most 2^-precision of each element, so of any norm. A sum of n products errs
    like sqrt(n) u; tensor cores cut off instead of rounding, once for every 16 products of a 16-bit input.
    """
    u = 2.0**-24
    summed = u * (4 * math.sqrt(count) + (count / 16 if inputs.itemsize == 2 else 0))
    return 2.0 ** -_PRECISION[stored] + summed


def error(result: Tensor, expected: Tensor) -> tuple[float, float]:
    """Relative error of the whole and of its worst row. Infinite for NaN, or where zeros are expected and not there."""
    if tuple(result.shape) != tuple(expected.shape):
        raise ValueError(f"the result has shape {list(result.shape)}, expected {list(expected.shape)}.")
    if not expected.numel():
        return 0.0, 0.0
    a, b = result.reshape(-1, result.shape[-1]), expected.reshape(-1, expected.shape[-1])
    wrong = right = worst = 0.0
    step = max(1, _CHUNK // a.shape[1])
    for begin in range(0, a.shape[0], step):
        want = b[begin : begin + step]
        difference = (a[begin : begin + step].to(want.dtype) - want).norm(dim=1).double()
        size = want.norm(dim=1).double()
        ratio = torch.where(size > 0, difference / size, torch.where(difference == 0, 0.0, math.inf))
        worst = max(worst, float(ratio.nan_to_num(nan=math.inf).max()))
        wrong += float(difference.square().sum())
        right += float(size.square().sum())
    if math.isnan(wrong) or (right == 0 and wrong > 0):
        return math.inf, math.inf
    return (math.sqrt(wrong / right) if right else 0.0), worst


def times_bound(
    problem: Problem, results: Sequence[Tensor], expected: Sequence[Tensor], through: torch.dtype | None = None
) -> tuple[float, float]:
    """The largest error of any result as a multiple of its bound, and as a relative norm.

    `through` is a dtype that results are rounded to before they are stored.
    """
    if len(results) != len(expected):
        raise ValueError(f"{len(results)} results, expected {len(expected)}.")
    multiple = relative = 0.0
    for result, want in zip(results, expected, strict=True):
        whole, row = error(result, want)
        multiple = max(multiple, row / bound(through or result.dtype, problem.dtype, terms(problem)))
        relative = max(relative, whole)
    return multiple, relative
