# SPDX-License-Identifier: Apache-2.0
"""Skips where there are no two GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Peers are read by plain pointers. Multicast is left off: not every host has it, and nothing here needs it.
os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
os.environ["NCCL_NVLS_ENABLE"] = "0"
HERE = Path(__file__).parent


def _number_of_gpus() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _number_of_gpus() < 2:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no two CUDA devices"))
