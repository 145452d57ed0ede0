# SPDX-License-Identifier: Apache-2.0
"""Programs of a few lines around the core's headers, for what can be asked of them without a GPU."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "ffi"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Callable[[str], str]]:
    """compiled(program)(what it reads) is what it writes."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    includes = [f"-I{SOURCES / part}" for part in ("", "include", "cuda")]

    def compile_it(program: str) -> Callable[[str], str]:
        folder = tmp_path_factory.mktemp("program")
        (folder / "program.cc").write_text(program)
        subprocess.run([compiler, "-std=c++17", *includes, "program.cc", "-o", "program"], cwd=folder, check=True)

        def run(words: str) -> str:
            return subprocess.run([folder / "program"], input=words, check=True, capture_output=True, text=True).stdout

        return run

    return compile_it
