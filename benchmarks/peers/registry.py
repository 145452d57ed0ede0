# SPDX-License-Identifier: Apache-2.0
"""All adapters, and how a user names them."""

from __future__ import annotations

from benchmarks.peers.base import Peer
from benchmarks.peers.bounds import Dense
from benchmarks.peers.deepgemm import DeepGemm, DeepGemmPadding
from benchmarks.peers.jax_native import RaggedDot, XlaActivation
from benchmarks.peers.ours_jax import JaxGrouped
from benchmarks.peers.ours_torch import TorchGrouped
from benchmarks.peers.quack_gemm import CONFIGS, Quack, QuackDefault
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
        XlaActivation(),
        Dense(),
    ]


def select(patterns: list[str]) -> list[Peer]:
    """Peers whose name, family or role has one of the patterns in it, case ignored; all for none."""
    peers = all_peers()
    if not patterns:
        return peers
    chosen = []
    for peer in peers:
        words = (peer.name.lower(), peer.family.lower(), peer.role)
        if any(pattern.lower() in word for pattern in patterns for word in words):
            chosen.append(peer)
    for pattern in patterns:
        if not any(pattern.lower() in word for p in peers for word in (p.name.lower(), p.family.lower(), p.role)):
            raise ValueError(f"no peer has {pattern!r} in its name, family or role.")
    return chosen
