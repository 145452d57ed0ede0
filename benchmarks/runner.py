# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks run`: goes through the cases, has every peer measured, and writes the results file."""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import torch

from benchmarks import machine, plan, timing
from benchmarks.measure import Bench, DeviceLost, merge, short
from benchmarks.operations import HOST_COSTS
from benchmarks.peers import registry
from benchmarks.peers.base import BOUND, OURS, PART, PEER, Peer
from benchmarks.problem import Case, Problem
from benchmarks.results import Results, default_path

_QUICK = timing.Plan(rounds=5, enough=5, least=3, sample=2e-4, host_sample=5e-4, share=0.02)


class Runner:
    """The state of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.begin = time.perf_counter()
        self.sensors = machine.Sensors(self.device)
        self.under_load: dict[str, float] = {}
        rounds = arguments.rounds
        self.bench = Bench(
            self.device,
            _QUICK if arguments.quick else timing.Plan(rounds=rounds, enough=min(rounds, timing.Plan.enough)),
            (5, 5) if arguments.quick else (50, 15),
            lambda: self.under_load.update(self.sensors.read()),
        )
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
        self._measure_roofs(results)
        gc.freeze()  # else each case searches what the imports made, for longer than most cases are timed
        longest = 0.0
        for number, case in enumerate(todo, 1):
            peers = self._still_to_measure(case, results)
            if not peers:
                continue
            spent = time.perf_counter() - self.begin
            if self.arguments.budget and spent + longest > self.arguments.budget:
                left = len(todo) - number + 1
                print(f"budget of {self.arguments.budget:.0f} s used: {left} cases left; the same command goes on")
                break
            begin = time.perf_counter()
            try:
                record = self._case(case, peers, results)
            except DeviceLost:
                self.wrong.append(f"{case.id}: the device no longer answers; run again to go on")
                break
            except Exception as error:  # the case is left out, and the exit code says so
                self.wrong.append(f"{case.id}: {short(error)}")
                print(f"  {self.wrong[-1]}", flush=True)
                self.bench.release()
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
        for peer in registry.select(self.arguments.peers, self.device, self.arguments.build):
            reason = peer.missing(self.device)
            if reason is None:
                self.peers.append(peer)
                missing.pop(peer.name, None)
            else:
                missing[peer.name] = reason
                print(f"  without {peer.name}: {reason}", flush=True)

    def _measure_roofs(self, results: Results) -> None:
        """What this card moves and multiplies at most, measured and not read from a data sheet."""
        if "dense_flops_per_second" not in results.data:
            timing.warm_up(self.device, self.arguments.warm_up)
            results.data["copy_bytes_per_second"] = timing.copy_bandwidth(self.device)
            results.data["dense_flops_per_second"] = timing.dense_rate(self.device)
            self.bench.release()
        roofs = results.data["copy_bytes_per_second"] * 1e-9, results.data["dense_flops_per_second"] * 1e-12
        print("copy {:.0f} GB/s, dense {:.4g} TF/s".format(*roofs), flush=True)

    def _still_to_measure(self, case: Case, results: Results) -> list[Peer]:
        """The peers that the file lacks, and ours beside them; none where all that is lacking would decline."""
        there = results.cases.get(case.id, {}).get("peers", {})
        lacking = [p for p in self.peers if p.name not in there]
        if any(p.role == OURS for p in lacking):
            lacking = self.peers  # anew: without ours nothing there has a ratio
        if not any(p.declines(case, self.device) is None and p.role in (OURS, PEER, BOUND) for p in lacking):
            return []
        # The native peers and those of a second sitting bring ours along only where they run at all.
        runs = {p.role for p in self.peers if p.declines(case, self.device) is None}
        if not there and not runs & {PEER, BOUND} and any(p.role == PEER for p in self.peers):
            return []
        return [p for p in self.peers if p.role == OURS or p in lacking]

    def _case(self, case: Case, peers: list[Peer], results: Results) -> dict[str, Any]:
        begin = time.perf_counter()
        problem = Problem(case, self.device, machine.cache_bytes(self.device))
        self.under_load = {}
        entries = self.bench.side_by_side(problem, peers)
        self._complain(case, entries)
        work = problem.work
        record = {
            "shape": {"name": case.shape.name, "G": problem.G, "T": problem.T, "K": problem.K, "N": problem.N},
            "op": case.op,
            "draw": case.draw,
            "dtype": case.dtype,
            "seed": case.seed,
            "rows": {"max": max(problem.sizes_host), "min": min(problem.sizes_host), "sum": problem.S},
            "empty_groups": problem.sizes_host.count(0),
            "input_sets": len(problem.sets),
            "flops": work.flops,
            "bytes": work.bytes,
            "bytes_bound_us": 1e6 * work.bytes / results.data["copy_bytes_per_second"],
            "under_load": self.under_load,
            "peers": entries,
        }
        del problem
        self.bench.release()
        old = results.cases.get(case.id)
        if old is not None and all(p.name in old["peers"] for p in peers if p.role == OURS):
            merge(old["peers"], entries)
            record = {**record, "peers": old["peers"], "under_load": old["under_load"]}
        record["seconds"] = round(time.perf_counter() - begin, 3)
        return record

    def _complain(self, case: Case, entries: dict[str, dict[str, Any]]) -> None:
        for name, entry in entries.items():
            if entry["status"] in ("failed", "wrong"):
                line = f"{case.id} {name} {entry['status']}: {entry['reason']}"
                print(f"  {line}", flush=True)
                if entry["role"] == OURS:
                    self.wrong.append(line)

    def _progress(self, number: int, total: int, case: Case, record: dict[str, Any]) -> None:
        parts = []
        for name, entry in record["peers"].items():
            if "us" in entry and entry["role"] != PART:
                text = f"{entry['tflops']:.4g}" if entry["tflops"] else f"{entry['us']['median']:.4g} us"
                parts.append(f"{name} {text}" + ("~" if entry["status"] == "loose" else ""))
        spent = time.perf_counter() - self.begin
        unit = "host time" if case.op in HOST_COSTS else "TF/s" if record["flops"] else "time"
        print(f"[{number}/{total} {spent:.0f} s] {case.id} ({unit}): {', '.join(parts)}", flush=True)
