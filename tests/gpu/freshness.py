# SPDX-License-Identifier: Apache-2.0
"""Says whether tests/gpu/record.json speaks of these sources. Never fails: machines without a GPU run it too."""

from __future__ import annotations

import json

from source_hash import ROOT, source_hash

path = ROOT / "tests" / "gpu" / "record.json"
if not path.exists():
    print("GPU record: MISSING. Run `make gpu-test` on a GPU machine.")
else:
    record = json.loads(path.read_text())
    state = "fresh" if record["source_hash"] == source_hash() else "STALE: run `make gpu-test` on a GPU machine"
    print(f"GPU record: {state} ({record['date']}, {record['gpu']}, passed {record['passed']})")
