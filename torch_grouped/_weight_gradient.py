# SPDX-License-Identifier: Apache-2.0
"""Where the gradient of a module's weight goes, where that is not simply ``.grad``: ``main_grad``, now or later.

The attributes of a parameter that are read and set here are those by which TransformerEngine's layers and Megatron's
data parallelism speak with each other.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_grouped import _ops


def main_grad_of(weight: nn.Parameter) -> Tensor:
    """``weight.main_grad``, or what ``weight.get_main_grad()`` gives, which is then kept under that name.

    Raises:
      ValueError: there is neither.
    """
    get = getattr(weight, "get_main_grad", None)
    found = getattr(weight, "main_grad", None) if get is None else get()
    if found is None:
        raise ValueError(
            "weight.main_grad must be a tensor of the weight's shape with fuse_wgrad_accumulation=True; "
            "got none. Set it before forward, or construct the module without."
        )
    if get is not None:
        weight.main_grad = found  # pyright: ignore[reportAttributeAccessIssue]
    return found


class _Pending(NamedTuple):
    x: Tensor
    dy: Tensor
    group_sizes: Tensor
    weight_layout: int
    versions: tuple[int, ...]
    weight: nn.Parameter
    fused: bool
    overwrite: bool

    def verify_unwritten(self) -> None:
        """RuntimeError if a buffer among them has been used again since."""
        for name, tensor, version in zip(("inp", "dy", "m_splits"), self[:3], self.versions, strict=True):
            if tensor._version != version:
                raise RuntimeError(
                    f"{name} must keep its content until backward_dw(); got one that was modified by an inplace "
                    "operation since backward. Give what wrote it a buffer of its own."
                )


class WeightGradient:
    """Takes the operands of the weight gradient in backward, in the place of autograd's own accumulation.

    One belongs to one module, whatever its weight is at the time; `for_call` makes what one call hands to its backward.
    """

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    def __reduce__(self) -> tuple:
        """A copy of a module owes nothing: what is pending is of the weight of the module that ran."""
        return WeightGradient, ()

    def for_call(self, weight: nn.Parameter, *, fused: bool, delayed: bool, overwrite: bool) -> Any:
        """A function of (x, dy, group_sizes, weight_layout) that returns what autograd is to accumulate, if anything.

        fused: whether main_grad takes the gradient. delayed: whether it waits for `compute_next`. overwrite: whether
        main_grad is to be written instead of added to.
        """

        def take(x: Tensor, dy: Tensor, group_sizes: Tensor, weight_layout: int) -> Tensor | None:
            versions = (x._version, dy._version, group_sizes._version)
            pending = _Pending(x, dy, group_sizes, weight_layout, versions, weight, fused, overwrite)
            if delayed:
                self._pending.append(pending)
                return None
            return self._into_main_grad(pending)

        return take

    def is_pending(self) -> bool:
        """Whether a backward has left something for `compute_next`."""
        return bool(self._pending)

    def compute_next(self) -> None:
        """The weight gradient of the oldest backward that has none, into ``main_grad`` or ``.grad``."""
        if not self._pending:
            raise RuntimeError(
                "backward_dw() needs a backward whose weight gradient is not computed; got none. "
                "Call it once after each backward."
            )
        pending = self._pending.popleft()
        pending.verify_unwritten()
        with torch.no_grad():
            if pending.fused:
                self._into_main_grad(pending)
            else:
                self._into_grad(pending)

    def _into_main_grad(self, pending: _Pending) -> Tensor | None:
        weight = pending.weight
        target = main_grad_of(weight)
        accumulate = not (pending.overwrite or getattr(weight, "overwrite_main_grad", False))
        _ops.wgrad(*pending[:3], target, pending.weight_layout, accumulate)
        if not hasattr(weight, "grad_added_to_main_grad"):
            return None
        # Data parallelism waits for a gradient to arrive at the parameter, and must not add it again.
        weight.grad_added_to_main_grad = True  # pyright: ignore[reportAttributeAccessIssue]
        return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)

    def _into_grad(self, pending: _Pending) -> None:
        weight = pending.weight
        target = torch.empty_like(weight) if weight.grad is None else weight.grad
        _ops.wgrad(*pending[:3], target, pending.weight_layout, weight.grad is not None)
        weight.grad = target
