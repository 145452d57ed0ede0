# SPDX-License-Identifier: Apache-2.0
"""Says whether the records in tests/gpu speak of these sources. Never fails: machines without a GPU run it too."""

from __future__ import annotations

import json

from source_hash import ROOT, source_hash

for name, command in (("record.json", "make gpu-test"), ("record_two.json", "make gpu-test-two")):
    path = ROOT / "tests" / "gpu" / name
    if not path.exists():
        print(f"GPU record {name}: MISSING. Run `{command}` on a GPU machine.")
        continue
    record = json.loads(path.read_text())
    state = "fresh" if record["source_hash"] == source_hash() else f"STALE: run `{command}` on a GPU machine"
    print(f"GPU record {name}: {state} ({record['date']}, {record['gpu']}, passed {record['passed']})")
