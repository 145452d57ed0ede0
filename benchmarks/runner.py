# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks run`: checks and times every peer on every case, and writes the results file."""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import torch

from benchmarks import checking, machine, plan, stats, timing
from benchmarks.operations import HOST_COSTS, Work
from benchmarks.peers import registry
from benchmarks.peers.base import OURS, PART, Peer, Skip
from benchmarks.problem import Case, Problem
from benchmarks.results import Results, default_path

_QUICK = timing.Plan(rounds=5, least=3, sample=2e-4, jax_sample=5e-4, share=0.02)


class DeviceLost(Exception):
    """A CUDA error that this process does not recover from."""


class Runner:
    """The state of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.begin = time.perf_counter()
        self.sensors = machine.Sensors(self.device)
        self.plan = _QUICK if arguments.quick else timing.Plan(rounds=arguments.rounds)
        self.wrong: list[str] = []
        self.peers: list[Peer] = []

    @torch.no_grad()
    def run(self) -> int:
        """0 unless one of ours is wrong or fails."""
        torch.set_float32_matmul_precision("highest")  # of the reference: an image may have chosen TF32
        head = machine.describe(self.device)
        path = self.arguments.out or default_path(head)
        results = Results.open(path, head, self.arguments.fresh)
        print(f"{head['name']}, commit {head['commit'][:9]}, sources {head['source_hash']} -> {path}", flush=True)
        self._find_peers(results)
        todo = self._cases()
        if "copy_bytes_per_second" not in results.data:
            timing.warm_up(self.device, self.arguments.warm_up)
            results.data["copy_bytes_per_second"] = timing.copy_bandwidth(self.device)
        print(f"copy bandwidth {results.data['copy_bytes_per_second'] / 1e9:.0f} GB/s", flush=True)
        longest, names = 0.0, [peer.name for peer in self.peers]
        for number, case in enumerate(todo, 1):
            if results.has(case.id, names):
                continue
            spent = time.perf_counter() - self.begin
            if self.arguments.budget and spent + longest > self.arguments.budget:
                left = len(todo) - number + 1
                print(f"budget of {self.arguments.budget:.0f} s used: {left} cases left; the same command goes on")
                break
            begin = time.perf_counter()
            try:
                record = self._case(case, results.data["copy_bytes_per_second"])
            except DeviceLost:
                self.wrong.append(f"{case.id}: the device no longer answers; run again to go on")
                break
            except Exception as error:  # the case is left out, and the exit code says so
                print(f"  {case.id}: {_short(error)}", flush=True)
                self.wrong.append(f"{case.id}: {_short(error)}")
                self._free()
                continue
            results.add(case.id, record)
            # One case that compiles must not end a run early, so what lasts is remembered but fades.
            longest = max(0.7 * longest, time.perf_counter() - begin)
            self._progress(number, len(todo), case, record)
        for line in self.wrong:
            print(f"WRONG: {line}", flush=True)
        print(f"{len(results.cases)} cases in {path}, {time.perf_counter() - self.begin:.0f} s", flush=True)
        return 1 if self.wrong else 0

    def _cases(self) -> list[Case]:
        a = self.arguments
        found = plan.cases(a.shapes, a.ops, a.draws, a.dtype, self.device.type, a.seed)
        print(f"{len(found)} cases, seed {a.seed}", flush=True)
        return found

    def _find_peers(self, results: Results) -> None:
        missing = results.data.setdefault("missing_peers", {})
        for peer in registry.select(self.arguments.peers):
            reason = peer.missing(self.device)
            if reason is None:
                self.peers.append(peer)
                missing.pop(peer.name, None)
            else:
                missing[peer.name] = reason
                print(f"  without {peer.name}: {reason}", flush=True)

    def _case(self, case: Case, bandwidth: float) -> dict[str, Any]:
        begin = time.perf_counter()
        problem = Problem(case, self.device, machine.cache_bytes(self.device))
        expected = checking.reference(problem)
        peers: dict[str, dict[str, Any]] = {}
        timed = []
        for peer in self.peers:
            entry, ready = self._prepare(peer, problem, expected)
            peers[peer.name] = entry
            if ready is not None:
                timed.append(ready)
        del expected
        power: dict[str, float] = {}
        self._time(case, timed, power)
        work = problem.work
        for t in timed:
            peers[t.name].update(_numbers(t, case.op, work))
        record = {
            "shape": {"name": case.shape.name, "G": problem.G, "T": problem.T, "K": problem.K, "N": problem.N},
            "op": case.op,
            "draw": case.draw,
            "dtype": case.dtype,
            "seed": case.seed,
            "rows": {"max": max(problem.sizes_host), "min": min(problem.sizes_host)},
            "empty_groups": problem.sizes_host.count(0),
            "input_sets": len(problem.sets),
            "flops": work.flops,
            "bytes": work.bytes,
            "bytes_bound_us": 1e6 * work.bytes / bandwidth,
            "under_load": power,
            "peers": peers,
        }
        del problem, timed
        self._free()
        record["seconds"] = round(time.perf_counter() - begin, 3)
        return record

    def _time(self, case: Case, timed: list[timing.Timed], power: dict[str, float]) -> None:
        if case.op in HOST_COSTS:
            calls, repeats = (5, 5) if self.arguments.quick else (50, 15)
            timing.host_cost(timed, self.device, calls, repeats)
            return
        timing.warm_up(self.device, 0.1)
        watch = timing.Stopwatch(self.device, self.plan, case.seed)
        watch.measure(timed, lambda: power.update(self.sensors.read()))

    def _prepare(self, peer: Peer, problem: Problem, expected: list) -> tuple[dict[str, Any], timing.Timed | None]:
        """The peer's record as far as it goes, and what to time if its result is right."""
        entry: dict[str, Any] = {"role": peer.role, "family": peer.family, "clock": peer.clock}
        begin = time.perf_counter()
        try:
            call = peer.prepare(problem)
            call.reset()
            result = call.run(0)
            if call.wait is not None:
                call.wait(result)
            outputs = call.outputs(result) if call.checked else []
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times = relative = 0.0
            if call.checked:
                times, relative = checking.times_bound(problem, outputs, expected, call.through)
                del outputs
        except Skip as reason:
            return {**entry, "status": "skipped", "reason": str(reason)}, None
        except Exception as error:  # a peer that breaks must not end the run
            return self._failed(peer, problem, {**entry, "status": "failed", "reason": _short(error)}), None
        entry["first_call_seconds"] = round(time.perf_counter() - begin, 3)
        entry["note"] = call.note
        if call.checked:
            entry.update(error=relative, error_over_bound=times)
        strict = peer.role == OURS
        if not times <= (1.0 if strict else checking.LOOSE):
            reason = f"{times:.3g} times the error that rounding explains"
            return self._failed(peer, problem, {**entry, "status": "wrong", "reason": reason}), None
        entry["status"] = "ok" if times <= 1 else "loose"
        return entry, timing.Timed(peer.name, call, peer.clock)

    def _require_device(self) -> None:
        """After a kernel that went astray every later call fails, and would be blamed on whoever made it."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except Exception as error:
                raise DeviceLost from error

    def _failed(self, peer: Peer, problem: Problem, entry: dict[str, Any]) -> dict[str, Any]:
        self._require_device()
        line = f"{problem.case.id} {peer.name} {entry['status']}: {entry['reason']}"
        print(f"  {line}", flush=True)
        if peer.role == OURS:
            self.wrong.append(line)
        return entry

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _progress(self, number: int, total: int, case: Case, record: dict[str, Any]) -> None:
        parts = []
        for name, entry in record["peers"].items():
            if "us" in entry and entry["role"] != PART:
                text = f"{entry['tflops']:.4g}" if entry["tflops"] else f"{entry['us']['median']:.4g} us"
                parts.append(f"{name} {text}" + ("~" if entry["status"] == "loose" else ""))
        spent = time.perf_counter() - self.begin
        unit = "host time" if case.op in HOST_COSTS else "TF/s" if record["flops"] else "time"
        print(f"[{number}/{total} {spent:.0f} s] {case.id} ({unit}): {', '.join(parts)}", flush=True)


def _numbers(t: timing.Timed, op: str, work: Work) -> dict[str, Any]:
    us = stats.summary(1e6 * s for s in t.samples)
    flops, nbytes = (0, 0) if op in HOST_COSTS else (work.flops, work.bytes)
    return {
        "us": {key: round(value, 4) for key, value in us.items()},
        "samples_us": [round(1e6 * s, 3) for s in t.samples],
        "inner": t.inner,
        "launch_us": round(1e6 * t.host_seconds, 2),
        "tflops": round(flops / us["median"] * 1e-6, 5),
        "gbps": round(nbytes / us["median"] * 1e-3, 3),
    }


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
