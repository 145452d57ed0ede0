# SPDX-License-Identifier: Apache-2.0
"""The operations that are timed: what they compute, the useful arithmetic in them and the fewest bytes they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.shapes import Shape

FWD, DGRAD, WGRAD, WGRAD_ACC, LINEAR = "fwd", "dgrad", "wgrad", "wgrad_acc", "linear"
ACT, ACT_GRAD, MLP, HOST, HOST_LINEAR = "act", "act_grad", "mlp", "host", "host_linear"

OPERATIONS = {
    FWD: "y = x W^T",
    DGRAD: "dx = dy W",
    WGRAD: "dW = dy^T x, stored in the inputs' dtype",
    WGRAD_ACC: "main_grad += dy^T x, fp32",
    LINEAR: "forward and backward through the framework's autograd: y, dx, dW",
    ACT: "SwiGLU of [T, N] into [T, N/2]",
    ACT_GRAD: "its gradient, [T, N]",
    MLP: "fc1, SwiGLU, fc2, forward and backward: y, dx, dW1, dW2",
    HOST: "host time of a forward call on a tiny problem",
    HOST_LINEAR: "host time of forward and backward on a tiny problem",
}
PRODUCTS = (FWD, DGRAD, WGRAD, WGRAD_ACC, LINEAR)
ACTIVATIONS = (ACT, ACT_GRAD)
BEHIND_UP = (*ACTIVATIONS, MLP)  # a gated activation follows up projections alone
HOST_COSTS = (HOST, HOST_LINEAR)


@dataclass(frozen=True)
class Work:
    """Useful floating-point operations, and bytes with each input read once and each result written once."""

    flops: int
    bytes: int


def applies(op: str, shape: Shape) -> bool:
    """Whether the operation makes sense on the shape."""
    host_shape = "host" in shape.tags or "host-cpu" in shape.tags
    if op in HOST_COSTS or host_shape:
        return op in HOST_COSTS and host_shape
    return op not in BEHIND_UP or shape.is_up


def work(op: str, shape: Shape, sizes: Sequence[int], itemsize: int) -> Work:
    """Padding is never counted, and the weights of empty groups are not read.

    The MLP counts what its six products and two activations move one after another: that is how all peers run it.
    """
    if op == MLP:
        down = replace(shape, K=shape.N // 2, N=shape.K)
        parts = [work(LINEAR, shape, sizes, itemsize), work(LINEAR, down, sizes, itemsize)]
        parts += [work(step, shape, sizes, itemsize) for step in ACTIVATIONS]
        return Work(sum(p.flops for p in parts), sum(p.bytes for p in parts))
    T, K, N = sum(sizes), shape.K, shape.N  # a tail is nobody's work
    busy = sum(1 for size in sizes if size > 0)
    product = 2 * T * K * N
    rows, weights = T * (K + N), busy * K * N
    forward = Work(product, itemsize * (rows + weights))
    # Gradients of empty groups are written too: as zeros.
    wgrad = Work(product, itemsize * (rows + len(sizes) * K * N))
    if op in (FWD, DGRAD, HOST):
        return forward
    if op == WGRAD:
        return wgrad
    if op == WGRAD_ACC:
        return Work(product, itemsize * rows + 2 * 4 * weights)
    if op in (LINEAR, HOST_LINEAR):
        return Work(3 * product, 2 * forward.bytes + wgrad.bytes)
    if op == ACT:
        return Work(0, itemsize * T * (N + N // 2))
    if op == ACT_GRAD:
        return Work(0, itemsize * T * (2 * N + N // 2))
    raise ValueError(f"op must be one of {', '.join(OPERATIONS)}; got {op!r}.")
