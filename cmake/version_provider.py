# SPDX-License-Identifier: Apache-2.0
"""The wheel's version: the number below, and what the build is for (+cu130, +cpu)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

NUMBER = "0.1.0"


def find_nvcc() -> str | None:
    """The compiler that cmake/cuda_choice.cmake finds, looked for in the same places."""
    if "CUDACXX" in os.environ:
        return os.environ["CUDACXX"]
    hints = [os.path.join(os.environ.get("CUDA_HOME", ""), "bin"), "/usr/local/cuda/bin"]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(hints))


def suffix() -> str:
    """What the build is for: "cpu", or "cu130" with CUDA 13.0."""
    choice = os.environ.get("GROUPED_CUDA", "AUTO")
    nvcc = None if choice == "OFF" else find_nvcc()
    if nvcc is None:
        return "cpu"
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        raise RuntimeError(f"{nvcc} --version names no release")
    return f"cu{found[1]}{found[2]}"


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, str]:
    """Called by scikit-build-core."""
    return {"version": f"{NUMBER}+{suffix()}"}
