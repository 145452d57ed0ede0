# SPDX-License-Identifier: Apache-2.0
"""Inputs of any number of dimensions as the rows that the core takes, and results back in the input's form."""

from __future__ import annotations

import math

from torch import Tensor


def _is_rows(inp: Tensor) -> bool:
    return inp.dim() in (0, 2)  # no dimension at all is for the core to refuse


def as_rows(inp: Tensor) -> Tensor:
    """``[..., K]`` as ``[T, K]``."""
    return inp if _is_rows(inp) else inp.reshape(math.prod(inp.shape[:-1]), inp.shape[-1])


def in_form_of(inp: Tensor, y: Tensor) -> Tensor:
    """``[T, N]``, made of inp's rows, with the leading dimensions of inp."""
    return y if _is_rows(inp) else y.view(*inp.shape[:-1], y.shape[-1])
