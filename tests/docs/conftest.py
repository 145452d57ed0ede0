# SPDX-License-Identifier: Apache-2.0
"""The site's generator and the benchmarks lie beside the tests; neither is installed."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "docs" / "site", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
