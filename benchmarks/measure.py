# SPDX-License-Identifier: Apache-2.0
"""Peers of one case, side by side: each is prepared, its result checked, and what is right is timed in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import checking, memory, stats, timing
from benchmarks.operations import HOST_COSTS, Work
from benchmarks.peers.base import OURS, Peer, Skip
from benchmarks.problem import Problem

Entries = dict[str, dict[str, Any]]


class DeviceLost(Exception):
    """A CUDA error that this process does not recover from."""


class Bench:
    """How to measure on one device. `under_load` is called once a subset, while the device works."""

    def __init__(
        self,
        device: torch.device,
        plan: timing.Plan,
        host_calls: tuple[int, int],
        under_load: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = device
        self.plan = plan
        self.host_calls = host_calls  # in a run, and runs
        self.under_load = under_load

    def side_by_side(self, problem: Problem, peers: list[Peer]) -> Entries:
        """The entries of all peers: from one subset, or from several with ours in each, if they do not fit together."""
        expected = checking.reference(problem)
        room = memory.free_bytes(self.device) - memory.shared_bytes(problem)
        subsets = memory.subsets(peers, {peer.name: peer.memory(problem) for peer in peers}, room)
        entries: Entries = {}
        again: list[Peer] = []
        for subset in subsets:
            exhausted = self._subset(problem, expected, subset, entries)
            again += [p for p in exhausted if len(subset) > 1]
        for peer in again:  # what was estimated too low gets the card for itself and ours
            beside = [p for p in peers if p.role == OURS and p not in again and peer.role != OURS]
            self._subset(problem, expected, [*beside, peer], entries)
        return entries

    def _subset(self, problem: Problem, expected: list[Tensor], peers: list[Peer], entries: Entries) -> list[Peer]:
        """Adds to the entries; the peers that ran out of memory."""
        found: Entries = {}
        timed: list[timing.Timed] = []
        exhausted = []
        for peer in peers:
            entry, ready, no_memory = self._prepare(peer, problem, expected)
            found[peer.name] = entry
            if ready is not None:
                timed.append(ready)
            if no_memory:
                exhausted.append(peer)
                self.release()
        self._time(problem, timed)
        for t in timed:
            found[t.name].update(_numbers(t, problem.case.op, problem.work))
        merge(entries, found)
        del timed
        self.release()
        return exhausted

    def _time(self, problem: Problem, timed: list[timing.Timed]) -> None:
        if problem.case.op in HOST_COSTS:
            timing.host_cost(timed, self.device, *self.host_calls)
            return
        timing.warm_up(self.device, 0.05)
        timing.Stopwatch(self.device, self.plan, problem.case.seed).measure(timed, self.under_load)

    def _prepare(
        self, peer: Peer, problem: Problem, expected: list[Tensor]
    ) -> tuple[dict[str, Any], timing.Timed | None, bool]:
        """The peer's entry as far as it goes, what to time if its result is right, and whether memory ran out."""
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
            return {**entry, "status": "skipped", "reason": str(reason)}, None, False
        except Exception as error:  # a peer that breaks must not end the run
            no_memory = memory.is_exhausted(error)
            if not no_memory:
                self._require_device()
            return {**entry, "status": "failed", "reason": short(error)}, None, no_memory
        entry["first_call_seconds"] = round(time.perf_counter() - begin, 3)
        entry["memory"] = peer.memory(problem)
        entry["note"] = call.note
        if call.checked:
            entry.update(error=relative, error_over_bound=times)
        if not times <= (1.0 if peer.role == OURS else checking.LOOSE):
            self._require_device()
            reason = f"{times:.3g} times the error that rounding explains"
            return {**entry, "status": "wrong", "reason": reason}, None, False
        entry["status"] = "ok" if times <= 1 else "loose"
        return entry, timing.Timed(peer.name, call, peer.clock, peer.role), False

    def _require_device(self) -> None:
        """After a kernel that went astray every later call fails, and would be blamed on whoever made it."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except Exception as error:
                raise DeviceLost from error

    def release(self) -> None:
        """Gives back what nothing holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def merge(entries: Entries, found: Entries) -> None:
    """Adds a subset to those before it.

    Ours stays as it was timed first. A peer of a later subset keeps what ours took beside it, for its ratio.
    """
    if entries:
        beside = {name: e["us"]["median"] for name, e in found.items() if e["role"] == OURS and "us" in e}
        found = {n: e if e["role"] == OURS else {**e, "beside": beside} for n, e in found.items()}
    for name, entry in found.items():
        if "us" not in entries.get(name, {}):
            entries[name] = entry


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


def short(error: Exception) -> str:
    """An error on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
