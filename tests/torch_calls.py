# SPDX-License-Identifier: Apache-2.0
"""Problems of problems.py through torch_grouped: numpy in, numpy out.

GROUPED_TEST_DEVICE=cuda sends them to a GPU, for the modules of tests/torch that ask for DEVICE.
"""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from problems import ActivationProblem, LinearProblem

from torch_grouped.functional import grouped_activation, grouped_linear

DEVICE = torch.device(os.environ.get("GROUPED_TEST_DEVICE", "cpu"))
_BF16 = np.dtype(ml_dtypes.bfloat16)


def to_torch(a: NDArray) -> torch.Tensor:
    """A copy; bf16 by its bits, because torch does not know numpy's."""
    a = np.array(a, order="C")
    t = torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == _BF16 else torch.from_numpy(a)
    return t.to(DEVICE)


def to_numpy(t: torch.Tensor | None) -> NDArray:
    """A copy, bit for bit. None is what .grad is where backward left nothing."""
    if t is None:
        raise AssertionError("there is no tensor, only None: did backward leave no gradient?")
    t = t.detach().clone().contiguous().cpu()
    return t.view(torch.int16).numpy().view(_BF16) if t.dtype == torch.bfloat16 else t.numpy()


def leaves(inputs: dict[str, NDArray], without_grad: tuple[str, ...] = ()) -> dict[str, Any]:
    """The inputs as tensors that require grad, but for those named. Any: they are spread into calls as keywords."""
    return {name: to_torch(a).requires_grad_(name not in without_grad) for name, a in inputs.items()}


def gradients(y: torch.Tensor, inputs: dict[str, torch.Tensor], dy: NDArray) -> dict[str, NDArray]:
    wanted = {name: t for name, t in inputs.items() if t.requires_grad}
    if not wanted:
        return {}
    found = torch.autograd.grad(y, list(wanted.values()), to_torch(dy), allow_unused=True)
    return {name: to_numpy(g) for name, g in zip(wanted, found, strict=True) if g is not None}


def linear(
    problem: LinearProblem, *, without_grad: tuple[str, ...] = (), sizes: Any = None, **buffers: Any
) -> dict[str, NDArray]:
    """y under "y", and every gradient that autograd got under the name of its argument."""
    inputs = leaves(problem.inputs, without_grad)
    sizes = to_torch(problem.sizes) if sizes is None else sizes
    y = grouped_linear(group_sizes=sizes, weight_layout=problem.layout, **inputs, **buffers)
    return {"y": to_numpy(y), **gradients(y, inputs, problem.dy)}


def activation(
    problem: ActivationProblem, *, without_grad: tuple[str, ...] = (), sizes: Any = None, **buffers: Any
) -> dict[str, NDArray]:
    """As `linear`."""
    inputs = leaves(problem.inputs, without_grad)
    sizes = to_torch(problem.sizes) if sizes is None else sizes
    y = grouped_activation(group_sizes=sizes, **problem.options, **inputs, **buffers)
    return {"y": to_numpy(y), **gradients(y, inputs, problem.dy)}


class Witness(torch.autograd.Function):
    """The identity; keeps the address of the gradient that reaches it."""

    @staticmethod
    def forward(x: torch.Tensor, seen: list) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.seen = inputs[1]

    @staticmethod
    def backward(ctx, dx: torch.Tensor) -> tuple:
        ctx.seen.append(dx.data_ptr())
        return dx, None
