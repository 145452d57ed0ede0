# SPDX-License-Identifier: Apache-2.0
"""`make gpu-test`: the contract suite and the sanitizers on this machine's GPU, and the record of it.

Writes tests/gpu/record.json: what was tested, on what, and how it ended. Nothing else writes that file.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path

import package
from source_hash import ROOT, source_hash

SITE = package.FOLDER / "site"
LOGS = Path(os.environ.get("GROUPED_GPU_LOGS", package.FOLDER / "logs"))
# The tools of compute-sanitizer, and the kernels that they watch.
SANITIZERS = (
    ("memcheck", ""),
    ("racecheck", ""),
    ("racecheck", "turns"),
    ("racecheck", "buffers"),
    ("racecheck", "share"),
    ("racecheck", "lines"),
    ("synccheck", "turns"),
)
# Each configuration of the Hopper kernels in turn, and what serves other shapes and GPUs.
# With what GROUPED_LOG=1 says of it.
FORCED = {
    "turns": "multipliers take turns",
    "buffers": "large buffers",
    "share": "multipliers share",
    "lines": "lines sent whole",
    "portable": ": portable",
}
MODES = tuple(f"tests/torch/test_works_under_{name}.py" for name in ("compile", "modes", "transforms"))
CAPTURED = tuple(f"tests/gpu/test_{name}.py" for name in ("capture", "jax_graphs", "torch_graphs", "short_sums"))


def require_frameworks() -> None:
    """Said before minutes are spent on a build."""
    absent = [name for name in ("torch", "jax", "pytest", "xdist") if importlib.util.find_spec(name) is None]
    if absent:
        raise SystemExit(
            f"The GPU tests need torch, jax, pytest and pytest-xdist; {sys.executable} lacks {', '.join(absent)}. "
            f"docs/running.md says what to install."
        )


def install() -> None:
    if not package.is_fresh():
        package.build()
    shutil.rmtree(SITE, ignore_errors=True)
    (wheel,) = package.FOLDER.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(SITE)]
    subprocess.run([*command, str(wheel)], check=True)


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT / "tests")]),
        # Two frameworks share one GPU.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def run_pytest(paths: tuple[str, ...] = ("tests/gpu",), **switches: str) -> dict:
    """`switches`: kernels=... for GROUPED_TEST_KERNELS and so on."""
    report = LOGS / f"{'-'.join(['pytest', *switches.values()])}.xml"
    command = [sys.executable, "-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    # Most of the time is XLA compiling on the host, so several processes share the GPU. Warnings of frameworks in
    # other versions than the CPU suite's are not ours to fail on.
    workers = str(min(8, os.cpu_count() or 1))
    code = subprocess.run(
        [*command, "-n", workers, "-W", "default"],
        cwd=ROOT,
        env={**environment(), **{f"GROUPED_TEST_{name.upper()}": value for name, value in switches.items()}},
    ).returncode
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skips = sorted({s.get("message", "") for s in suite.iter("skipped")})
    passed = int(suite.get("tests", 0)) - failed - len(list(suite.iter("skipped")))
    return {"passed": passed, "failed": failed, "skips": skips, "exit_code": code}


def executable_log(tool: str | None, kernels: str) -> Path:
    return LOGS / f"sanitize-{tool or 'plain'}{kernels and '-'}{kernels}.log"


def run_executable(tool: str | None, kernels: str = "") -> dict:
    """The C++ executable, alone or under one of compute-sanitizer's tools. `kernels`: for GROUPED_TEST_KERNELS."""
    command = [str(package.FOLDER / package.EXECUTABLE)]
    if tool is not None:
        if shutil.which("compute-sanitizer") is None:
            return {"passed": 0, "failed": 0, "skips": ["compute-sanitizer is not on PATH"], "exit_code": 0}
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *command, "--quick"]
    environment = {**os.environ, "GROUPED_TEST_KERNELS": kernels, "GROUPED_LOG": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    text = result.stdout + result.stderr
    executable_log(tool, kernels).write_text(text)
    counts = re.findall(r"^(\d+) passed, (\d+) failed", text, re.MULTILINE)
    passed, failed = (int(n) for n in counts[-1]) if counts else (0, 1)
    verdict = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*|digest of all results: .*", text)
    return {"passed": passed, "failed": failed, "skips": [], "exit_code": result.returncode, "verdict": verdict}


def same_bits(executables: dict[str, dict]) -> dict:
    """Whether runs whose kernels may not differ in a bit, by name, ended with one digest of all results."""
    digests = {name: [line for line in suite["verdict"] if "digest" in line] for name, suite in executables.items()}
    first = next(iter(digests.values()))
    differing = [name for name, digest in digests.items() if not digest or digest != first]
    passed = len(digests) - len(differing)
    verdict = [f"other bits: {name}" for name in differing]
    return {"passed": passed, "failed": len(differing), "skips": [], "exit_code": 0, "verdict": verdict}


def forced_kernels(logs: dict[str, str]) -> dict:
    """Whether the kernels that runs were to take, by name, are in their logs: a switch without effect fails nothing."""
    absent = [kernels for kernels, log in logs.items() if FORCED[kernels] not in log]
    verdict = [f"never taken: {kernels}" for kernels in absent]
    return {
        "passed": len(logs) - len(absent),
        "failed": len(absent),
        "skips": [],
        "exit_code": 0,
        "verdict": verdict,
    }


def machine() -> dict:
    probe = (
        "import json, torch, jax, grouped_core;"
        "p = torch.cuda.get_device_properties(0);"
        "print(json.dumps({'gpu': p.name, 'compute_capability': f'{p.major}.{p.minor}', 'torch': torch.__version__,"
        " 'jax': jax.__version__, 'cuda': torch.version.cuda, 'grouped': grouped_core.__version__}))"
    )
    found = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, env=environment())
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    driver = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    return {**json.loads(found.stdout), "driver": driver, "python": sys.version.split()[0]}


def main() -> int:
    if "--install-only" in sys.argv[1:]:
        install()
        return 0
    require_frameworks()
    install()
    LOGS.mkdir(parents=True, exist_ok=True)
    suites, seconds = {}, {}

    def run(name: str, suite: Callable[[], dict]) -> None:
        print(f"==> {name}", flush=True)
        begin = time.monotonic()
        found = suite()
        suites[name], seconds[name] = found, round(time.monotonic() - begin, 1)

    # Each is one thread and leaves most of the GPU idle, so they run side by side, and beside pytest, which leaves it
    # idle while XLA compiles.
    executables = [
        ("executable", None, ""),
        *((f"executable, {kernels}", None, kernels) for kernels in FORCED),
        *((f"{tool}{kernels and ', '}{kernels}", tool, kernels) for tool, kernels in SANITIZERS),
    ]
    with concurrent.futures.ThreadPoolExecutor(len(executables)) as pool:
        waiting = [
            pool.submit(run, name, partial(run_executable, tool, kernels)) for name, tool, kernels in executables
        ]
        run("contract (pytest)", run_pytest)
        # What is launched besides for large problems, in small ones that are captured.
        run("captured, turns", lambda: run_pytest(CAPTURED, kernels="turns"))
        run("torch's modes", lambda: run_pytest(MODES, device="cuda"))
    for future in waiting:
        future.result()
    # The portable kernels are another family.
    hopper = {name: suites[name] for name, tool, kernels in executables if tool is None and kernels != "portable"}
    suites["same bits"], seconds["same bits"] = same_bits(hopper), 0.0
    about = machine()
    if about["compute_capability"] == "9.0":
        logs = {kernels: executable_log(None, kernels).read_text() for kernels in FORCED}
        suites["forced kernels"], seconds["forced kernels"] = forced_kernels(logs), 0.0
    ok = all(s["exit_code"] == 0 and s["failed"] == 0 for s in suites.values())
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "source_hash": source_hash(),
        **about,
        "passed": ok,
        "suites": suites,
        "seconds": seconds,
    }
    (ROOT / "tests" / "gpu" / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    for name, suite in suites.items():
        verdict = "; ".join(suite.get("verdict", []))
        print(f"{name:20} passed {suite['passed']:5} failed {suite['failed']:3} {seconds[name]:6} s  {verdict}")
    print("GPU tests passed" if ok else "GPU tests FAILED")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
