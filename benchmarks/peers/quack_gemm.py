# SPDX-License-Identifier: Apache-2.0

"""QuACK (quack-kernels 0.4): three fixed configurations, because its tuner takes minutes over many shapes."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from benchmarks.peers.base import Call, Peer
from benchmarks.problem import Case, Problem

# tile_m, tile_n, ping-pong; clusters of 2x1, and the static scheduler that the library takes on Hopper.
CONFIGS = {"coop 128x256": (128, 256, False), "coop 256x128": (256, 128, False), "ping-pong 128x192": (128, 192, True)}


class Quack(Peer):
    """quack.gemm_interface in one configuration."""

    family = "QuACK"
    module = "quack"
    devices = ("cuda",)
    builds = True

    def build_key(self, case: Case) -> tuple:
        return case.op, case.dtype

    def __init__(self, config: str) -> None:
        self.config = config
        self.name = f"QuACK {config}"

    def fwd(self, p: Problem) -> Call:
        out, gemm = p.y(), self._gemm()

        def run(i: int) -> Tensor:
            s = p.set(i)
            gemm(s.x, s.w.transpose(1, 2), out, cu_seqlens_m=p.starts)
            return out

        return Call(run, buffers=[out])

    def dgrad(self, p: Problem) -> Call:
        out, gemm = p.dx(), self._gemm()

        def run(i: int) -> Tensor:
            s = p.set(i)
            gemm(s.dy, s.w, out, cu_seqlens_m=p.starts)
            return out

        return Call(run, buffers=[out])

    def wgrad(self, p: Problem) -> Call:
        out, gemm = p.dw(), self._gemm()

        def run(i: int) -> Tensor:
            s = p.set(i)
            gemm(s.dy.t(), s.x, out, cu_seqlens_k=p.starts)
            return out

        return Call(run, buffers=[out])

    def wgrad_acc(self, p: Problem) -> Call:
        out, gemm = p.dw(torch.float32), self._gemm()

        def run(i: int) -> Tensor:
            s = p.set(i)
            gemm(s.dy.t(), s.x, out, cu_seqlens_k=p.starts, add_to_output=True)
            return out

        return Call(run, buffers=[out], initial=p.initial)

    def _gemm(self):
        tile_m, tile_n, pingpong = CONFIGS[self.config]
        config = import_module("quack.gemm_config").GemmConfig(
            tile_m=tile_m, tile_n=tile_n, pingpong=pingpong, cluster_m=2, cluster_n=1, is_dynamic_persistent=False
        )
        function = import_module("quack.gemm_interface").gemm_tuned.fn  # beneath the tuner

        def gemm(a: Tensor, b: Tensor, out: Tensor, **options: object) -> None:
            function(a, b, out, config=config, **options)

        return gemm


class QuackDefault(Peer):
    """The call that a user writes, with its default configuration: for its host time."""

    name = "QuACK gemm(tuned=False)"
    family = "QuACK"
    module = "quack"
    devices = ("cuda",)

    def host(self, p: Problem) -> Call:
        gemm = import_module("quack.gemm_interface").gemm
        out, s = p.y(), p.set(0)
        weight = s.w.transpose(1, 2)

        def run(i: int) -> Tensor:
            return gemm(s.x, weight, out=out, cu_seqlens_m=p.starts, tuned=False)

        return Call(run, buffers=[out])
