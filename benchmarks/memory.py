# SPDX-License-Identifier: Apache-2.0
"""What a case occupies on the GPU, and which peers fit beside each other.

Torch and XLA keep a pool each. XLA's is taken whole at the start (`--xla-share`), because one that grows never gives
back what a single call once asked for; the rest is torch's, and what a peer needs of it is counted here beforehand.
"""

from __future__ import annotations

import torch

from benchmarks import checking
from benchmarks.operations import WGRAD_ACC
from benchmarks.peers.base import OURS, Peer
from benchmarks.problem import Problem

# Of what is free: the rest goes to fragments, library workspaces and temporaries of a check.
_USABLE = 0.85


def shared_bytes(problem: Problem) -> int:
    """The result that peers write to in turns: inputs and the reference are there already when this is asked."""
    wide = checking.wide_dtype(problem).itemsize
    item = 4 if problem.case.op == WGRAD_ACC else problem.dtype.itemsize
    return checking.result_bytes(problem) // wide * item


def free_bytes(device: torch.device) -> float:
    """What torch can still take, its empty pool included."""
    if device.type != "cuda":
        return float("inf")
    torch.cuda.empty_cache()
    return _USABLE * torch.cuda.mem_get_info()[0]


def subsets(peers: list[Peer], needs: dict[str, int], room: float) -> list[list[Peer]]:
    """Peers in their order, as few subsets as their needs allow, each with ours: ratios stay side by side.

    One that fits beside ours nowhere gets a subset with ours all the same, and fails there for lack of memory.
    """
    ours = [p for p in peers if p.role == OURS]
    others = [p for p in peers if p.role != OURS]
    base = sum(needs[p.name] for p in ours)
    found, used = [list(ours)], base
    for peer in others:
        if used + needs[peer.name] > room and len(found[-1]) > len(ours):
            found.append(list(ours))
            used = base
        found[-1].append(peer)
        used += needs[peer.name]
    return found


def is_exhausted(error: BaseException) -> bool:
    """Whether a call failed for lack of torch's memory. XLA's pool is the same size however few peers are about."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
        return False
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text.lower()
