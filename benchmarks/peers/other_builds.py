# SPDX-License-Identifier: Apache-2.0
"""Other builds of this project's core beside the one that is installed: a change measured against what was before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers.base import OURS, Call, Peer
from benchmarks.peers.core_library import GKN, GNK, CoreLibrary
from benchmarks.problem import InputSet, Problem


class OtherBuild(Peer):
    """The core of `NAME=PATH`, a wheel or its shared library. The same path twice is a control."""

    role = OURS
    takes_tail = True

    def __init__(self, text: str) -> None:
        """Raises ValueError if `text` has another form."""
        label, _, path = text.partition("=")
        if not label or not path:
            raise ValueError(f"--build takes NAME=PATH, and {text!r} is not that")
        self.name = self.family = f"build {label}"
        self._path = Path(path)

    def missing(self, device: torch.device) -> str | None:
        reason = super().missing(device)
        if reason is None and device.type == "cuda" and not self._core.has_cuda():
            return f"{self._path} was built without CUDA"
        return reason

    def load(self) -> None:
        self._core = CoreLibrary(self._path)

    def fwd(self, p: Problem) -> Call:
        return _into(p, p.y(), lambda s, out: self._core.mm(s.x, s.w, p.sizes, out, GNK))

    def dgrad(self, p: Problem) -> Call:
        return _into(p, p.dx(), lambda s, out: self._core.mm(s.dy, s.w, p.sizes, out, GKN))

    def wgrad(self, p: Problem) -> Call:
        return _into(p, p.dw(), lambda s, out: self._core.wgrad(s.x, s.dy, p.sizes, out, False))

    def wgrad_acc(self, p: Problem) -> Call:
        call = _into(p, p.dw(torch.float32), lambda s, out: self._core.wgrad(s.x, s.dy, p.sizes, out, True))
        call.initial = p.initial
        return call


def _into(p: Problem, out: Tensor, launch: Callable[[InputSet, Tensor], None]) -> Call:
    def run(i: int) -> Tensor:
        launch(p.set(i), out)
        return out

    return Call(run, buffers=[out])
