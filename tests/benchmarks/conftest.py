# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite is a package beside the tests, not an installed one."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
