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

from benchmarks.operations import ACT, ACT_GRAD, DGRAD, FWD, HOST, HOST_LINEAR, LINEAR, MLP, WGRAD, WGRAD_ACC
from benchmarks.problem import InputSet, Problem

# How many times the bound a peer may miss it and still be timed, with a mark. Splitting K in 16 bits, or rounding
# between two operations, costs such factors; a wrong result costs hundreds. Ours may not miss it at all.
LOOSE = 8.0
_CHUNK = 1 << 26  # elements compared at a time
_PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


def reference(problem: Problem) -> list[Tensor]:
    """The results of the case on its first set of inputs: those of LINEAR are y, dx, dW; of MLP y, dx, dW1, dW2."""
    op, first = problem.case.op, problem.set(0)
    wide = wide_dtype(problem)
    if op == ACT:
        return [_swiglu(first.x.to(wide))]
    if op == ACT_GRAD:
        return [_swiglu_gradient(first.x.to(wide), first.dy.to(wide))]
    if op == MLP:
        return _mlp(problem, first)
    spans, results = problem.spans(), []
    for step in (FWD, DGRAD, WGRAD) if op in (LINEAR, HOST_LINEAR) else (op,):
        if step in (FWD, HOST):
            results.append(_rows(spans, first.x, first.w.transpose(1, 2), wide))
        elif step == DGRAD:
            results.append(_rows(spans, first.dy, first.w, wide))
        else:
            results.append(_outer(spans, first.dy, first.x, wide))
    return results if problem.initial is None else [results[0].add_(problem.initial)]


def wide_dtype(problem: Problem) -> torch.dtype:
    """Of the reference."""
    return torch.float32 if problem.device.type == "cuda" else torch.float64


def result_bytes(problem: Problem) -> int:
    """What the reference occupies."""
    T, K, N, G, op = problem.T, problem.K, problem.N, problem.G, problem.case.op
    whole = {FWD: T * N, HOST: T * N, DGRAD: T * K, ACT: T * N // 2, ACT_GRAD: T * N}
    whole |= {LINEAR: T * (N + K) + G * N * K, HOST_LINEAR: T * (N + K) + G * N * K}
    whole |= {MLP: 2 * T * K + G * N * K * 3 // 2}
    return wide_dtype(problem).itemsize * whole.get(op, G * N * K)


def _rows(spans: list[tuple[int, int]], a: Tensor, weight: Tensor, wide: torch.dtype) -> Tensor:
    """Each row of a times its group's weight, which is [G, in, out]."""
    result = torch.zeros((a.shape[0], weight.shape[2]), dtype=wide, device=a.device)
    for g, (begin, end) in enumerate(spans):
        if begin < end:
            torch.mm(a[begin:end].to(wide), weight[g].to(wide), out=result[begin:end])
    return result


def _outer(spans: list[tuple[int, int]], a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """The sum over each group's rows of a's row times b's: [G, columns of a, columns of b]."""
    result = torch.zeros((len(spans), a.shape[1], b.shape[1]), dtype=wide, device=a.device)
    for g, (begin, end) in enumerate(spans):
        if begin < end:
            torch.mm(a[begin:end].to(wide).t(), b[begin:end].to(wide), out=result[g])
    return result


def _mlp(problem: Problem, first: InputSet) -> list[Tensor]:
    """Rounded where the operations hand 16 bits to each other: at fc1's result, the activation and their gradients."""
    wide, narrow, spans = wide_dtype(problem), problem.dtype, problem.spans()
    h = _rows(spans, first.x, first.w.transpose(1, 2), wide).to(narrow)
    a = _swiglu(h.to(wide)).to(narrow)
    y = _rows(spans, a, first.w2.transpose(1, 2), wide)
    da = _rows(spans, first.dy, first.w2, wide).to(narrow)
    dh = _swiglu_gradient(h.to(wide), da.to(wide)).to(narrow)
    dx = _rows(spans, dh, first.w, wide)
    return [y, dx, _outer(spans, dh, first.x, wide), _outer(spans, first.dy, a, wide)]


def _swiglu(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=1)
    return gate * torch.sigmoid(gate) * up


def _swiglu_gradient(h: Tensor, dy: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=1)
    sigmoid = torch.sigmoid(gate)
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
    # Of two results that are handed on, both right, one may lie just below the middle of two 16-bit numbers and the
    # other just above: a whole ulp of an element of which a row may nearly consist alone.
    handed_on = 2.0 ** (1 - _PRECISION[problem.dtype]) if problem.case.op == MLP else 0.0
    for result, want in zip(results, expected, strict=True):
        if want.dim() == 2:  # a caller's buffer keeps what it held in the tail
            result, want = result[: problem.S], want[: problem.S]
        whole, row = error(result, want)
        allowed = bound(through or result.dtype, problem.dtype, terms(problem)) + handed_on
        multiple = max(multiple, row / allowed)
        relative = max(relative, whole)
    return multiple, relative
