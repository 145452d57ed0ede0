# SPDX-License-Identifier: Apache-2.0
"""What ``torch.autocast`` means for a grouped matrix product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_NARROW = (torch.float16, torch.bfloat16)


def _is_on(tensor: Tensor) -> bool:
    # Named, not asked of torch: torch 2.11's compiler cannot trace that question.
    device = tensor.device.type
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def autocast_probs(rows: Tensor, probs: Tensor | None) -> Tensor | None:
    """What multiplies rows that a layer before has cast: 16 bits become their 16 bits, as in the grouped MLP."""
    if probs is None or probs.dtype not in _NARROW or rows.dtype not in _NARROW or not _is_on(rows):
        return probs
    return probs.to(rows.dtype)


def autocast_operands(*operands: Tensor, vectors: tuple[Tensor | None, ...] = ()) -> tuple[Any, ...]:
    """Operands and vectors in autocast's dtype, as torch's own matrix products take them; as given outside of it.

    The casts are autograd's, so gradients come back in the dtype of what was given. fp64 stays what it is, as in
    torch. Buffers are never cast: they must have the dtype that the operands get.

    Args:
      operands: the factors of the product, the first on the device that counts.
      vectors: bias and row_scale, which may be fp32 beside 16-bit operands and then stay so.
    """
    if not _is_on(operands[0]):
        return (*operands, *vectors)
    target = torch.get_autocast_dtype(operands[0].device.type)

    def cast(tensor: Tensor | None, eligible: tuple[torch.dtype, ...]) -> Tensor | None:
        return tensor.to(target) if tensor is not None and tensor.dtype in eligible else tensor

    # Beside an fp64 operand nothing is cast: the core would meet two dtypes.
    if any(t.dtype not in (*_NARROW, torch.float32) for t in operands):
        return (*operands, *vectors)
    return (*(cast(t, (*_NARROW, torch.float32)) for t in operands), *(cast(v, _NARROW) for v in vectors))
