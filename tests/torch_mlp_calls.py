# SPDX-License-Identifier: Apache-2.0
"""Problems of mlp_problems.py through torch_grouped: in one step, and part by part."""

from __future__ import annotations

from typing import Any

import torch
from mlp_problems import MLPProblem
from numpy.typing import NDArray
from torch_calls import gradients, leaves, to_numpy, to_torch

from torch_grouped.functional import grouped_activation, grouped_linear, grouped_mlp


def composed(
    x: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc2_weight: torch.Tensor,
    group_sizes: torch.Tensor,
    fc1_bias: torch.Tensor | None = None,
    fc2_bias: torch.Tensor | None = None,
    *,
    row_scale: torch.Tensor | None = None,
    activation: str = "swiglu",
    weight_layout: str = "gnk",
    out: torch.Tensor | None = None,
    dgrad_out: torch.Tensor | None = None,
    fc1_wgrad_out: torch.Tensor | None = None,
    fc2_wgrad_out: torch.Tensor | None = None,
    accumulate_wgrad: bool = False,
    **options: Any,
) -> torch.Tensor:
    """What grouped_mlp stands for."""
    wgrad: dict[str, Any] = {"accumulate_wgrad": accumulate_wgrad, "weight_layout": weight_layout}
    h = grouped_linear(x, fc1_weight, group_sizes, fc1_bias, dgrad_out=dgrad_out, wgrad_out=fc1_wgrad_out, **wgrad)
    a = grouped_activation(h, group_sizes, activation, row_scale=row_scale, **options)
    return grouped_linear(a, fc2_weight, group_sizes, fc2_bias, out=out, wgrad_out=fc2_wgrad_out, **wgrad)


def mlp(
    problem: MLPProblem,
    function: Any = grouped_mlp,
    *,
    without_grad: tuple[str, ...] = (),
    sizes: Any = None,
    **buffers: Any,
) -> dict[str, NDArray]:
    """y under "y", and every gradient that autograd got under the name of its argument."""
    inputs = leaves(problem.inputs, without_grad)
    sizes = to_torch(problem.sizes) if sizes is None else sizes
    y = function(group_sizes=sizes, **inputs, **problem.options, **buffers)
    return {"y": to_numpy(y), **gradients(y, inputs, problem.dy)}
