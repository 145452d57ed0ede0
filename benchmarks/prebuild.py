# SPDX-License-Identifier: Apache-2.0
"""Peers that compile a kernel for each shape do so here, in several processes, into their caches on disk.

One after another in the timed process that takes minutes of GPU time. A build that fails only means that the run
compiles it itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from benchmarks import machine, plan
from benchmarks.peers import registry
from benchmarks.peers.base import Peer
from benchmarks.problem import Case, Problem


def _items(arguments: argparse.Namespace, device: torch.device) -> list[tuple[Peer, Case]]:
    """One for each kernel, as far as a peer's own key tells kernels apart."""
    peers = [p for p in registry.select(arguments.peers, device) if p.builds and p.missing(device) is None]
    a = arguments
    found: dict[tuple, tuple[Peer, Case]] = {}
    for case in plan.cases(a.shapes, a.ops, a.draws, a.dtype, device.type, a.seed):
        for peer in peers:
            if peer.declines(case, device) is None:
                found.setdefault((peer.name, *peer.build_key(case)), (peer, case))
    return list(found.values())


@torch.no_grad()
def _work(items: list[tuple[Peer, Case]], device: torch.device) -> None:
    for peer, case in items:
        begin = time.perf_counter()
        try:
            call = peer.prepare(Problem(case, device, 0))
            call.reset()
            call.run(0)
            torch.cuda.synchronize()
            outcome = f"{time.perf_counter() - begin:.1f} s"
        except Exception as error:  # the run will say what it means
            outcome = f"{type(error).__name__}: {str(error)[:120]}"
        torch.cuda.empty_cache()
        print(f"  {peer.name} {case.id}: {outcome}", flush=True)


def prebuild(arguments: argparse.Namespace) -> int:
    """0 always: what is not built here is built later."""
    device = torch.device(arguments.device)
    items = _items(arguments, device)
    if arguments.part is not None:
        index, count = (int(n) for n in arguments.part.split("/"))
        _work(items[index::count], device)
        return 0
    begin = time.perf_counter()
    workers = min(arguments.workers, len(items))
    print(f"{len(items)} kernels to build in {workers} processes, {machine.commit()[:9]}", flush=True)
    command = [sys.executable, "-m", "benchmarks", *sys.argv[1:], "--part"]
    children = [subprocess.Popen([*command, f"{i}/{workers}"], cwd=machine.ROOT) for i in range(workers)]
    for child in children:
        try:
            child.wait(timeout=max(1.0, arguments.budget - (time.perf_counter() - begin)))
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()
    print(f"prebuilt in {time.perf_counter() - begin:.0f} s", flush=True)
    return 0
