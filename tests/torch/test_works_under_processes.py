# SPDX-License-Identifier: Apache-2.0
"""Two processes on CPU: FSDP2 and DTensor parameters. The same work runs on two GPUs in tests/gpu/two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
import two_ranks

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")


def test_fsdp_and_dtensors():
    """In one pair of processes, whose start takes longer than the work."""
    two_ranks.spawn("cpu", two_ranks.fsdp_trains_as_one_process, two_ranks.dtensor_parameters_through_local_tensors)


def test_the_expert_parallel_example_on_cpu():
    program = Path(__file__).resolve().parents[2] / "examples" / "torch_expert_parallel.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "ranks: 2, transport: gloo on CPU, with copies",
        "output the same bits as in one process: True",
        "input gradient the same bits as in one process: True",
        "weight gradients the same bits as in one process: True",
    ]
