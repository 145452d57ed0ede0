# SPDX-License-Identifier: Apache-2.0
"""`make gpu-test-two`: what needs two GPUs of one host, and the record of it.

Installs the carried wheel as run.py does and writes tests/gpu/record_two.json. Nothing else writes that file.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import run
from source_hash import ROOT, source_hash

RECORD = ROOT / "tests" / "gpu" / "record_two.json"
FOLDER = "tests/gpu/two"


def environment() -> dict[str, str]:
    return {
        **run.environment(),
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NCCL_NVLS_ENABLE": "0",
        "NVSHMEM_DISABLE_NVLS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def number_of_gpus() -> int:
    probe = "import torch; print(torch.cuda.device_count())"
    found = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    return int(found.stdout)


def run_pytest(paths: list[str]) -> dict:
    """One process: tests that take both GPUs cannot share them. By file: passed, failed, skips, seconds."""
    report = run.LOGS / "pytest_two.xml"
    command = [sys.executable, "-m", "pytest", *paths, "-v", "-rA", "-p", "no:cacheprovider", f"--junitxml={report}"]
    log = run.LOGS / "pytest_two.log"
    with log.open("w") as file:
        code = subprocess.run(
            [*command, "-W", "default"], cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT
        ).returncode
    files: dict[str, dict] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = case.get("classname", "").rpartition(".")[2]
        entry = files.setdefault(name, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
        outcomes = {child.tag for child in case}
        state = "failed" if outcomes & {"failure", "error"} else "skipped" if "skipped" in outcomes else "passed"
        entry[state] += 1
        entry["seconds"] = round(entry["seconds"] + float(case.get("time", 0)), 1)
    if code != 0:
        print(log.read_text()[-6000:])
    return {"exit_code": code, "files": files}


def main() -> int:
    run.require_frameworks()
    gpus = number_of_gpus()
    if gpus < 2:
        print(f"needs two GPUs, found {gpus}; nothing was run and nothing recorded")
        return 1
    run.install()
    run.LOGS.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    found = run_pytest([FOLDER])
    ok = found["exit_code"] == 0
    machine = run.machine()
    nccl = subprocess.run(
        [sys.executable, "-c", "import torch; print('.'.join(map(str, torch.cuda.nccl.version())))"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
    ).stdout.strip()
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "source_hash": source_hash(),
        "device_kind": machine["gpu"],
        "gpus": gpus,
        **machine,
        "nccl": nccl,
        "passed": ok,
        "files": found["files"],
        "seconds": round(time.monotonic() - begin, 1),
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for name, entry in found["files"].items():
        print(
            f"{name:32} passed {entry['passed']:3} failed {entry['failed']:3} skipped {entry['skipped']:3} "
            f"{entry['seconds']:6} s"
        )
    print(f"two-GPU tests {'passed' if ok else 'FAILED'} on {gpus} x {machine['gpu']}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
