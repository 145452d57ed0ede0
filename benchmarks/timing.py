# SPDX-License-Identifier: Apache-2.0
"""Times prepared calls side by side: in rounds, every peer once a round, in a balanced order.

A GPU at its power limit changes its clock within milliseconds, so what ran before a call and where in a round it stands
decide some percent. Over the rounds every peer stands in every place and behind every other.

A sample is the mean of `inner` calls one after another, each on the next set of inputs. On a GPU it lies between two
CUDA events. JAX has streams of its own: there the events lie on torch's stream, each behind a result of JAX's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

from benchmarks.peers.base import BOUND, EVENTS, EVENTS_BEHIND, OURS, PEER, Call
from benchmarks.stats import summary


@dataclass(frozen=True)
class Plan:
    """How long to measure, in seconds."""

    rounds: int = 40
    waiting_rounds: int = 12  # of a peer whose samples begin on an idle device
    least: int = 3  # samples of a peer that is slow
    enough: int = 7  # samples before it may end for want of spread
    settled: float = 0.005  # spread over the root of the samples at which more of them would change nothing
    contends: float = 1.3  # times the fastest: who is slower cannot be the best peer, and gives `enough` samples
    burn: float = 4e-3  # of work that is not timed before each round, because the device was idle
    sample: float = 2e-3  # shortest sample, so that launches and clocks weigh little
    host_sample: float = 6e-3  # the same where a sample contains a wait for the device
    share: float = 0.3  # of one peer in one case
    most_inner: int = 64


@dataclass(eq=False)
class Timed:
    """A call being timed."""

    name: str
    call: Call
    clock: str
    role: str = PEER
    inner: int = 1
    rounds: int = 0
    seconds: float = 0.0  # of one call, estimated
    host_seconds: float = 0.0  # of that, to launch it
    next_set: int = 0
    samples: list[float] = field(default_factory=list)

    def launch(self, count: int) -> object:
        """`count` calls, the result of the last."""
        result = None
        for _ in range(count):
            result = self.call.run(self.next_set)
            self.next_set += 1
        return result


class Stopwatch:
    """Rounds of samples on one device."""

    def __init__(self, device: torch.device, plan: Plan, seed: int = 0) -> None:
        self.cuda = device.type == "cuda"
        self.plan = plan
        self._order = random.Random(seed)
        # Cycles of the kernel that keeps the device busy while the host queues a sample.
        self._cycles_per_second = 1.5e9

    def measure(self, timed: list[Timed], under_load: Callable[[], None] | None = None) -> None:
        """Fills in the samples. `under_load` is called once while the device works."""
        for t in timed:
            self._estimate(t)
        shuffled = self._order.sample(timed, len(timed))
        for index in range(max((t.rounds for t in timed), default=0)):
            taking_part = [t for t in shuffled if index < t.rounds]
            if index >= self.plan.enough:
                taking_part = self._contenders(taking_part, timed)
                # All or none: whoever goes on alone meets other clocks.
                if all(self._is_settled(t) for t in taking_part):
                    break
            turns = [taking_part[i] for i in balanced_order(len(taking_part), index)]
            self._round(turns, under_load if index == self.plan.enough // 2 else None)

    def _contenders(self, taking_part: list[Timed], timed: list[Timed]) -> list[Timed]:
        """Ours, whoever may be the best peer, and the bounds."""
        fastest = min((median(t.samples) for t in timed if t.role in (OURS, PEER)), default=0.0)
        return [
            t
            for t in taking_part
            if t.role in (OURS, BOUND) or (t.role == PEER and median(t.samples) <= self.plan.contends * fastest)
        ]

    def _is_settled(self, t: Timed) -> bool:
        found = summary(t.samples)
        return found["spread"] <= self.plan.settled * len(t.samples) ** 0.5

    def _round(self, timed: list[Timed], under_load: Callable[[], None] | None) -> None:
        pending = []
        on_stream = [t for t in timed if self.cuda and t.clock == EVENTS]
        if on_stream:
            last = on_stream[-1]
            last.launch(max(1, min(self.plan.most_inner, round(self.plan.burn / last.seconds))))
        for t in timed:
            if t in on_stream:
                pending.append((t, *self._queue(t)))
        if under_load is not None:
            under_load()
        self._synchronize()
        for t, begin, end in pending:
            t.samples.append(begin.elapsed_time(end) * 1e-3 / t.inner)
        for t in timed:
            if t not in on_stream:
                t.samples.append(self._sample_behind(t) if self._is_behind(t) else self._host_sample(t, t.inner))

    def _queue(self, t: Timed):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # Two events around a starved stream time the host: keep the device busy until the sample is queued.
        backlog = 1.5 * t.inner * t.host_seconds
        if t.host_seconds > 0.3 * t.seconds:
            torch.cuda._sleep(int(min(backlog, 20e-3) * self._cycles_per_second))
        begin.record()
        t.launch(t.inner)
        end.record()
        return begin, end

    def _is_behind(self, t: Timed) -> bool:
        return self.cuda and t.clock == EVENTS_BEHIND

    def _sample_behind(self, t: Timed) -> float:
        """Calls on streams of a framework's own, behind some that are not timed.

        A host clock would add what it takes to wake up a host that waits: up to a millisecond on a virtual machine.
        """
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # Where the host's share is nothing there need be no call before, which would last long.
        if t.host_seconds > self.plan.settled * t.seconds:
            # Busy until the sample is queued, and no longer: each call may hold memory until it has run.
            untimed = max(self.plan.burn, 1.5 * t.inner * t.host_seconds) / t.seconds
            t.call.follow(t.launch(max(1, min(self.plan.most_inner, round(untimed)))))
        begin.record()
        t.call.follow(t.launch(t.inner))
        end.record()
        self._synchronize()
        return begin.elapsed_time(end) * 1e-3 / t.inner

    def _host_sample(self, t: Timed, count: int) -> float:
        begin = time.perf_counter()
        result = t.launch(count)
        if t.call.wait is not None:
            t.call.wait(result)
        elif self.cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count

    def _estimate(self, t: Timed) -> None:
        """Warms up, then decides how many calls make a sample and how many samples there are."""
        self._synchronize()
        self._host_sample(t, 1)
        launches = []
        for _ in range(2):  # the first may still make views of the inputs
            begin = time.perf_counter()
            result = t.launch(2)
            launches.append((time.perf_counter() - begin) / 2)
            if t.call.wait is not None:
                t.call.wait(result)
            self._synchronize()
        t.host_seconds = min(launches)
        seconds = max(min(self._host_sample(t, 1), self._host_sample(t, 1)), 1e-7)
        t.seconds = seconds
        contains_wait = t.call.wait is not None and not self._is_behind(t)
        target = self.plan.host_sample if contains_wait else self.plan.sample
        t.inner = max(1, min(self.plan.most_inner, round(target / seconds)))
        affordable = int(self.plan.share / (seconds * t.inner))
        most = self.plan.rounds if t.call.wait is None else min(self.plan.rounds, self.plan.waiting_rounds)
        t.rounds = max(self.plan.least, min(most, affordable))

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def balanced_order(count: int, index: int) -> list[int]:
    """The order of `count` turns in a round: a Williams square's row.

    Over `count` rounds (twice as many if odd) everyone stands equally often in each place and behind each other.
    """
    zigzag = [(-1) ** i * ((i + 1) // 2) for i in range(count)]
    row = [(place + index) % count for place in zigzag]
    return row[::-1] if count % 2 and (index // count) % 2 else row


def host_cost(timed: list[Timed], device: torch.device, calls: int, repeats: int) -> None:
    """Seconds of host time a call takes to return, on a device that is idle when each run of calls begins.

    Short runs, so that the queue of launches never fills and makes the host wait for the device.
    """
    for index in range(repeats + 2):
        for t in timed:
            begin = time.perf_counter()
            result = t.launch(calls)
            seconds = (time.perf_counter() - begin) / calls
            if t.call.wait is not None:
                t.call.wait(result)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if index >= 2:  # the first two warm up
                t.samples.append(seconds)


def warm_up(device: torch.device, seconds: float) -> None:
    """Dense products until the clocks have settled at the power limit."""
    if device.type != "cuda":
        return
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(8):
            torch.mm(a, a, out=out)
        torch.cuda.synchronize()


def copy_bandwidth(device: torch.device, repeats: int = 11) -> float:
    """Bytes per second of a large copy on the device, read plus written."""
    cuda = device.type == "cuda"
    source = torch.randn((1 << 29) if cuda else (1 << 23), device=device)
    target = torch.empty_like(source)
    seconds = _median_seconds(device, lambda i: target.copy_(source), repeats)
    return 2 * source.numel() * source.element_size() / seconds


def dense_rate(device: torch.device, repeats: int = 11) -> float:
    """FLOPs per second of one large dense product, bf16 on a GPU, through whatever torch.mm calls."""
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _median_seconds(device, lambda i: torch.mm(a, b, out=out), repeats)


def _median_seconds(device: torch.device, run: Callable[[int], object], repeats: int) -> float:
    timed = Timed("roof", Call(run), EVENTS)
    Stopwatch(device, Plan(rounds=repeats, enough=repeats, share=1.0)).measure([timed])
    return median(timed.samples)
