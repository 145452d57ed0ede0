# SPDX-License-Identifier: Apache-2.0
"""One weight gradient, launched again and again: the same bits each time, and nothing written beside it."""

from __future__ import annotations

import numpy as np
import torch
from frameworks import DEVICE, Guarded, from_torch, to_torch

from torch_grouped.functional import grouped_linear


def repeated_wgrad(
    x: np.ndarray,
    dy: np.ndarray,
    sizes: np.ndarray,
    old: np.ndarray,
    *,
    accumulate: bool,
    launches: int,
    layout: str = "gnk",
) -> np.ndarray:
    """The gradient in `old`'s shape and dtype, where `old` lay before each launch."""
    weight = torch.zeros(old.shape, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    gradient, held = to_torch(dy), to_torch(old)
    out = Guarded(old.shape, held.dtype)
    y = grouped_linear(
        to_torch(x),
        weight,
        to_torch(sizes),
        wgrad_out=out.tensor,
        accumulate_wgrad=accumulate,
        weight_layout=layout,
    )

    def launch() -> torch.Tensor:
        out.tensor.copy_(held)
        torch.autograd.grad(y, [weight], gradient, allow_unused=True, retain_graph=True)
        return out.tensor

    first = launch().clone()
    for _ in range(launches):
        assert torch.equal(launch(), first)
    out.check()
    return from_torch(first)
