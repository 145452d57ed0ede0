# SPDX-License-Identifier: Apache-2.0
"""Group sizes where the computation is."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import torch

GroupSizes = torch.Tensor | Sequence[int]


def _integers(group_sizes: Sequence[int]) -> list[int]:
    try:
        return [index(size) for size in group_sizes]  # it refuses a float, which torch.tensor would cut
    except TypeError as error:
        raise TypeError(
            f"group_sizes must be integers, one for each group; got {group_sizes!r}. Pass a list of ints, or an int32 "
            f"or int64 tensor."
        ) from error


def on_device(group_sizes: GroupSizes, like: torch.Tensor) -> torch.Tensor:
    """Sizes as a tensor where `like` is: as given if they are there, else through a pinned, asynchronous upload.

    Raises:
      TypeError: sizes that are neither a tensor nor integers.
      RuntimeError: host sizes while a CUDA graph is being captured; the graph would replay these sizes for ever.
    """
    if isinstance(group_sizes, torch.Tensor):
        if group_sizes.is_cuda:  # asked first, because a tensor makes a new object of its device
            return group_sizes
        if group_sizes.device == like.device or group_sizes.device.type != "cpu":
            return group_sizes
    else:
        group_sizes = torch.tensor(_integers(group_sizes), dtype=torch.int64)
    if not like.is_cuda:
        return group_sizes
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "group_sizes must be on the device while a CUDA graph is captured; got sizes in host memory, which the "
            "graph would not read again. Pass a CUDA tensor and write new sizes into it before each replay."
        )
    if group_sizes.is_pinned():  # the caller may write it again before the copy has run
        group_sizes = group_sizes.clone()  # into pageable memory
    return group_sizes.pin_memory().to(like.device, non_blocking=True)
