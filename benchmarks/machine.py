# SPDX-License-Identifier: Apache-2.0
"""What a result is a result of: the sources, the machine, the versions, and the state that the GPU is in."""

from __future__ import annotations

import datetime
import hashlib
import importlib
import importlib.util
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "torch",
    "jax",
    "jaxlib",
    "triton",
    "quack-kernels",
    "sgl-deep-gemm",
    "tokamax",
    "nvidia-cudnn-frontend",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
)
_CPU_CACHE = 32 << 20


def source_hash() -> str:
    """The hash that the record of the GPU tests carries: over all sources but the CPU backend's."""
    path = ROOT / "tests" / "gpu" / "source_hash.py"
    spec = importlib.util.spec_from_file_location("grouped_source_hash", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is missing.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.source_hash()


def binary_hash() -> str:
    """Of the native module that is measured: a stale build cannot pass for its sources."""
    spec = importlib.util.find_spec("grouped_core._core")
    if spec is None or spec.origin is None:
        return "not installed"
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


def commit() -> str:
    """The commit, "+" behind it if files differ; GROUPED_COMMIT where the sources come without their history."""
    given = os.environ.get("GROUPED_COMMIT")
    if given:
        return given
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        head = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        command = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cache_bytes(device: torch.device) -> int:
    """Of the last-level cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return _CPU_CACHE


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, Any]:
    """The record's head."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "source_hash": source_hash(),
        "binary_hash": binary_hash(),
        "device": device.type,
        "versions": _versions(),
        "cache_bytes": cache_bytes(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["name"] = properties.name
        found["compute_capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
        found["cuda"] = torch.version.cuda
        found["gpu"] = _smi("driver_version,power.limit,clocks.max.sm,clocks.max.mem,persistence_mode,compute_mode")
    else:
        found["name"] = _processor()
        found["threads"] = torch.get_num_threads()
    return found


def _smi(fields: str) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"]
    try:
        line = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia-smi": str(error)}
    return dict(zip(fields.split(","), (v.strip() for v in line.split(",")), strict=False))


class Sensors:
    """Clocks, power and temperature, read in microseconds through NVML where its Python binding is there."""

    def __init__(self, device: torch.device) -> None:
        self._nvml = self._handle = None
        if device.type != "cuda":
            return
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByIndex(0)
            self._nvml = nvml
        except Exception as error:  # no binding, or a driver that does not answer: the run goes on without
            print(f"clocks and power are not recorded: {error}", flush=True)

    def read(self) -> dict[str, float]:
        """Now; empty where nothing can be read."""
        nvml, handle = self._nvml, self._handle
        if nvml is None:
            return {}
        readings = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        found = {}
        for name, reading in readings.items():
            try:
                found[name] = reading()
            except Exception:  # one that this driver or binding does not know leaves the others
                continue
        return found
