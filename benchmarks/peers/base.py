# SPDX-License-Identifier: Apache-2.0
"""What an adapter offers: a name, whether it can run here, and a call for each operation that it knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.problem import Case, Problem
from benchmarks.shapes import TAIL

OURS, PEER, BOUND, PART = "ours", "peer", "bound", "part"
# Which peers share a process. What would crowd out the others, or wants other libraries, has a sitting of its own;
# ours take part in each.
FIRST, NATIVE, SECOND = "first", "native", "second"
SITTINGS = (FIRST, NATIVE, SECOND)
EVENTS, EVENTS_BEHIND, HOST_CLOCK = "cuda events", "cuda events behind results", "host clock"


class Skip(Exception):
    """Why a peer does not run a case; not a failure."""


def _one(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple | list) else [result]


def _is_there(result: Any) -> None:
    """Torch's own results are on its stream."""


@dataclass
class Call:
    """A prepared operation.

    `run(i)` launches it on the i-th set of inputs and returns what it made. `outputs` turns that into torch tensors,
    the weight's gradients as [G, N, K]. `buffers` are outputs that it writes in place: filled with NaN before the
    check, with `initial` where it adds to what is there, or `zeroed`. For frameworks that have streams of their own
    `wait` blocks the host until a result is there, and `follow` torch's current stream.
    """

    run: Callable[[int], Any]
    outputs: Callable[[Any], list[Tensor]] = _one
    buffers: list[Tensor] = field(default_factory=list)
    initial: Tensor | None = None
    zeroed: bool = False
    wait: Callable[[Any], Any] | None = None
    follow: Callable[[Any], Any] = _is_there
    checked: bool = True
    through: torch.dtype | None = None  # a narrower dtype that the result is rounded to on its way
    note: str = ""

    def reset(self) -> None:
        """Poisons the outputs."""
        for buffer in self.buffers:
            if self.initial is not None:
                buffer.copy_(self.initial)
            elif buffer.is_floating_point():
                buffer.fill_(0.0 if self.zeroed else float("nan"))


class Peer:
    """One way to compute the operations. A subclass has a method for each that it knows, named after it."""

    name = ""
    family = ""  # of several configurations of one library the best counts
    role = PEER
    clock = EVENTS
    module = ""  # without which it cannot run
    devices: tuple[str, ...] = ("cuda", "cpu")
    builds = False  # compiles kernels at its first call and keeps them on disk
    sitting = FIRST
    takes_tail = False  # leaves rows past the last group alone

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot run on this machine, or None."""
        if device.type not in self.devices:
            return f"runs on {', '.join(self.devices)} only"
        if self.module and find_spec(self.module) is None:
            return f"{self.module} is not installed"
        try:
            self.load()
        except Exception as error:  # another version than the calls are written for, or something that it needs
            return f"{type(error).__name__}: {error}"
        return None

    def load(self) -> None:
        """Imports what the calls need where the module's presence alone does not tell that it works."""

    def build_key(self, case: Case) -> tuple:
        """What tells apart the kernels that it compiles."""
        return (case.id,)

    def declines(self, case: Case, device: torch.device) -> str | None:
        """Why it does not run a case, as far as can be said without its data; None if it does."""
        if case.draw == TAIL and not self.takes_tail:
            return "makes no promise about rows past the last group"
        return None if getattr(self, case.op, None) is not None else f"no {case.op}"

    def memory(self, problem: Problem) -> int:
        """Bytes that it takes from torch beside the inputs and the results that all peers share; about."""
        return 0

    def prepare(self, problem: Problem) -> Call:
        """The call for this case.

        Raises:
          Skip: where the library has no such operation, or does not take these sizes.
        """
        reason = self.declines(problem.case, problem.device)
        if reason is not None:
            raise Skip(reason)
        return getattr(self, problem.case.op)(problem)
