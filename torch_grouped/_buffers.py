# SPDX-License-Identifier: Apache-2.0
"""The caller's buffers on their way into autograd and back."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_grouped._autograd import needs_graph


def detached(buffer: Tensor | None) -> Tensor | None:
    """The same memory, so that the caller's own tensor never starts requiring grad.

    A tensor that does already is kept as it is, for the core to refuse.
    """
    return buffer if buffer is None or buffer.requires_grad else buffer.detach()


def detached_out(out: Tensor | None, *inputs: Tensor | None) -> Tensor | None:
    """`detached`, for the buffer of a result that depends on these inputs.

    Raises:
      ValueError: autograd has to record the result and would not: it ignores what is made of an inference tensor, so
        the gradients would be lost without a word.
    """
    if out is not None and not torch.compiler.is_compiling() and out.is_inference() and needs_graph(*inputs):
        raise ValueError(
            "out must be an ordinary tensor where gradients are wanted; got one that was made in inference mode, of "
            "which autograd records nothing. Make it outside of torch.inference_mode()."
        )
    return detached(out)


def apart_from(buffer: Tensor | None, y: Tensor) -> Tensor:
    """y, which lies in `buffer`, as a tensor that a compiler cannot rebuild from it.

    Compiled, a view of y would be rebuilt from the caller's tensor, which requires no grad, and lose its gradient
    without a word. So there y becomes a tensor of its own over the same memory.
    """
    if buffer is None or not torch.compiler.is_compiling():
        return y
    return torch.ops.aten._unsafe_view.default(y, list(y.shape))
