# SPDX-License-Identifier: Apache-2.0
"""The benchmark runner on a GPU: every operation of ours is right and timed, in two sittings that share a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = "fwd,dgrad,wgrad,wgrad_acc,linear,mlp,act,act_grad,host,host_linear"


def _sit(path: Path, *options: str) -> None:
    command = [sys.executable, "-m", "benchmarks", "run", "--device", "cuda", "--quick", "--out", str(path)]
    command += ["--shapes", "tiny-up,tiny-8x16", "--draws", "empty,even", "--xla-share", "0.02", "--warm-up", "0.1"]
    result = subprocess.run(
        [*command, *options], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_two_sittings_time_every_operation_beside_ours(tmp_path):
    path = tmp_path / "results.json"
    _sit(path, "--ops", OPERATIONS, "--peers", "ours,torch grouped,torch.mm,torch eager,dense")
    data = json.loads(path.read_text())
    assert data["copy_bytes_per_second"] > 1e11
    assert data["dense_flops_per_second"] > 1e13
    assert {case["op"] for case in data["cases"].values()} == set(OPERATIONS.split(","))
    for case_id, case in data["cases"].items():
        for name in ("torch_grouped", "jax_grouped"):
            entry = case["peers"][name]
            assert entry["status"] == "ok", (case_id, entry)
            assert entry["us"]["median"] > 0
    _sit(path, "--ops", "fwd,wgrad", "--peers", "native")
    later = json.loads(path.read_text())["cases"]
    native = later["tiny-up/fwd/even/bf16"]["peers"]["jax.lax.ragged_dot"]
    assert native["status"] in ("ok", "loose"), native
    assert set(native["beside"]) == {"torch_grouped", "jax_grouped"}
    assert (
        later["tiny-up/fwd/even/bf16"]["peers"]["torch_grouped"]
        == (data["cases"]["tiny-up/fwd/even/bf16"]["peers"]["torch_grouped"])
    )
