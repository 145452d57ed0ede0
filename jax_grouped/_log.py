# SPDX-License-Identifier: Apache-2.0
"""What GROUPED_LOG prints from Python: a call that the core does not compute, once for each reason and shape."""

from __future__ import annotations

import os
import sys
import threading

_on = os.environ.get("GROUPED_LOG", "") not in ("", "0")  # read once, as the core reads it
_seen: set[str] = set()
_lock = threading.Lock()


def log_once(line: str) -> None:
    """Prints the line to stderr as the core prints its own, if GROUPED_LOG is on and it has not been printed."""
    if not _on:
        return
    with _lock:
        if line in _seen:
            return
        _seen.add(line)
    print(f"grouped: {line}", file=sys.stderr, flush=True)
