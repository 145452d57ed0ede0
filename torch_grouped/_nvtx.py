# SPDX-License-Identifier: Apache-2.0
"""Names for profilers around each operation, behind ``GROUPED_NVTX=1`` (read once, at import)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch

# A torch without CUDA has no NVTX to call.
ENABLED = os.environ.get("GROUPED_NVTX", "") not in ("", "0") and torch.backends.cuda.is_built()


def with_range(name: str, function: Callable[..., None], enabled: bool = ENABLED) -> Callable[..., None]:
    """`function` inside an NVTX range ``grouped.<name>``; `function` itself where the switch is off."""
    if not enabled:
        return function

    @functools.wraps(function)
    def ranged(*args: object, **kwargs: object) -> None:
        with torch.cuda.nvtx.range(f"grouped.{name}"):
            function(*args, **kwargs)

    return ranged
