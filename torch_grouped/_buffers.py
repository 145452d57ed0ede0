# SPDX-License-Identifier: Apache-2.0
"""The caller's buffers on their way into autograd and back."""

from __future__ import annotations

import torch
from torch import Tensor


def detached(buffer: Tensor | None) -> Tensor | None:
    """The same memory, so that the caller's own tensor never starts requiring grad.

    A tensor that does already is kept as it is, for the core to refuse.
    """
    return buffer if buffer is None or buffer.requires_grad else buffer.detach()


def apart_from(buffer: Tensor | None, y: Tensor) -> Tensor:
    """y, which lies in `buffer`, as a tensor that a compiler cannot rebuild from it.

    Compiled, a view of y would be rebuilt from the caller's tensor, which requires no grad, and lose its gradient
    without a word. So there y becomes a tensor of its own over the same memory.
    """
    if buffer is None or not torch.compiler.is_compiling():
        return y
    return torch.ops.aten._unsafe_view.default(y, list(y.shape))
