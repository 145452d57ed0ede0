# SPDX-License-Identifier: Apache-2.0
"""Builds what a GPU machine needs into .gpu/: the CUDA wheel and the sanitizer executable. Needs nvcc, no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from source_hash import ROOT, source_hash

FOLDER = ROOT / ".gpu"
EXECUTABLE = "grouped_sanitize"


def is_fresh() -> bool:
    stamp = FOLDER / "source_hash"
    return stamp.exists() and stamp.read_text() == source_hash() and any(FOLDER.glob("*.whl"))


def build() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    environment = {**os.environ, "GROUPED_CUDA": "ON", "GROUPED_SANITIZE": "ON"}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(FOLDER), str(ROOT)]
    subprocess.run(command, check=True, env=environment)
    built = max((ROOT / "build").glob(f"*/tests/gpu/sanitize/{EXECUTABLE}"), key=lambda p: p.stat().st_mtime)
    shutil.copy2(built, FOLDER / EXECUTABLE)
    (FOLDER / "source_hash").write_text(source_hash())


if __name__ == "__main__":
    if is_fresh():
        print(f"{FOLDER} is up to date")
    else:
        build()
        for path in sorted(FOLDER.iterdir()):
            print(f"{path.stat().st_size / 2**20:7.2f} MiB  {path.name}")
