# SPDX-License-Identifier: Apache-2.0
"""One hash over every source that can change what a GPU computes; the CPU backend is left out."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".txt"}


def source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "ffi").rglob("*")):
        relative = path.relative_to(ROOT).as_posix()
        if path.suffix in _SUFFIXES and not relative.startswith("ffi/cpu/"):
            digest.update(f"{relative}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
