# SPDX-License-Identifier: Apache-2.0
"""All adapters, and how a user names them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.peers.base import FIRST, OURS, SITTINGS, Peer
from benchmarks.peers.bounds import Dense
from benchmarks.peers.cudnn_moe import CudnnMoe
from benchmarks.peers.deepgemm import DeepGemm, DeepGemmPadding
from benchmarks.peers.jax_native import RaggedDot, XlaActivation
from benchmarks.peers.other_builds import OtherBuild
from benchmarks.peers.ours_jax import JaxGrouped
from benchmarks.peers.ours_torch import OwnMemory, TorchGrouped, WithoutTail
from benchmarks.peers.pallas_mgpu import TILES, RaggedDotMgpu
from benchmarks.peers.quack_gemm import CONFIGS, Quack, QuackDefault
from benchmarks.peers.tokamax_ops import Tokamax
from benchmarks.peers.torch_native import MmLoop, TorchActivation, TorchGroupedMm


def all_peers() -> list[Peer]:
    """In the order in which tables show them."""
    return [
        TorchGrouped(),
        JaxGrouped(),
        TorchGroupedMm(),
        *(Quack(config) for config in CONFIGS),
        QuackDefault(),
        DeepGemm(),
        DeepGemmPadding(),
        MmLoop(1),
        MmLoop(4),
        TorchActivation(compiled=False),
        TorchActivation(compiled=True),
        RaggedDot(),
        *(RaggedDotMgpu(tile) for tile in TILES),
        XlaActivation(),
        Tokamax(),
        CudnnMoe(),
        Dense(),
        WithoutTail(),
        OwnMemory(),
    ]


def select(patterns: list[str], device: torch.device, builds: Sequence[str] = ()) -> list[Peer]:
    """Peers by sitting, or by a part of their name, family or role, case ignored; ours beside them if none was named.

    Without a pattern it is the first sitting; on a CPU, where no pool is in the way, all. `builds`: NAME=PATH of other
    builds of the core.
    """
    peers = all_peers() + [OtherBuild(build) for build in builds]
    patterns = [pattern.lower() for pattern in patterns] or ([FIRST] if device.type == "cuda" else list(SITTINGS))
    for pattern in patterns:
        if not any(_matches(peer, pattern) for peer in peers):
            raise ValueError(f"no peer has {pattern!r} in its name, family or role, and no sitting is called so.")
    chosen = [peer for peer in peers if any(_matches(peer, pattern) for pattern in patterns)]
    if any(peer.role == OURS for peer in chosen):
        return chosen
    return [peer for peer in peers if peer.role == OURS or peer in chosen]


def _matches(peer: Peer, pattern: str) -> bool:
    if pattern in SITTINGS:
        return peer.sitting == pattern
    return any(pattern in word for word in (peer.name.lower(), peer.family.lower(), peer.role))
