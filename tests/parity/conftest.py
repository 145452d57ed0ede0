# SPDX-License-Identifier: Apache-2.0
"""Collected only where both frameworks are. tests/jax and tests/torch can pass for packages: ask for a file."""

from __future__ import annotations

from importlib.util import find_spec


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


collect_ignore_glob = [] if _is_installed("jax") and _is_installed("torch") else ["test_*.py"]
