# SPDX-License-Identifier: Apache-2.0
"""Peers that do not fit together are timed in subsets, each beside ours, and keep what ours took beside them."""

from __future__ import annotations

import pytest
import torch

from benchmarks import checking, memory
from benchmarks.measure import Bench, merge
from benchmarks.operations import OPERATIONS, applies
from benchmarks.peers import registry
from benchmarks.peers.base import OURS, PEER, Call, Peer
from benchmarks.problem import Case, Problem
from benchmarks.shapes import BY_NAME, EVEN
from benchmarks.timing import Plan

CPU = torch.device("cpu")
TINY = BY_NAME["tiny-up"]


class _Sized(Peer):
    """Forward, by a peer that needs so many bytes; one that breaks does so where more than `alone` are about."""

    alive = 0

    def __init__(self, name: str, role: str, needs: int, exhausted_among: int = 99) -> None:
        self.name = self.family = name
        self.role, self.needs, self.exhausted_among = role, needs, exhausted_among
        self.times_prepared = 0

    def memory(self, problem: Problem) -> int:
        return self.needs

    def fwd(self, p: Problem) -> Call:
        _Sized.alive += 1
        self.times_prepared += 1
        if _Sized.alive >= self.exhausted_among:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.96 GiB.")
        out = p.y()

        def run(i: int) -> torch.Tensor:
            for g, (a, b) in enumerate(p.spans()):
                torch.mm(p.set(i).x[a:b], p.set(i).w[g].t(), out=out[a:b])
            return out

        return Call(run, buffers=[out])


def _names(subsets: list[list[Peer]]) -> list[str]:
    return ["".join(p.name for p in subset) for subset in subsets]


@pytest.mark.parametrize(
    ("room", "expected"),
    [(100, ["oabc"]), (11, ["oab", "oc"]), (8, ["oa", "ob", "oc"]), (1, ["oa", "ob", "oc"])],
)
def test_subsets_are_few_keep_the_order_and_have_ours_in_each(room, expected):
    peers = [_Sized("o", OURS, 2), _Sized("a", PEER, 5), _Sized("b", PEER, 4), _Sized("c", PEER, 6)]
    assert _names(memory.subsets(peers, {p.name: p.memory(None) for p in peers}, room)) == expected  # type: ignore


def test_ours_alone_is_one_subset():
    peers: list[Peer] = [_Sized("o", OURS, 2)]
    assert _names(memory.subsets(peers, {"o": 2}, 1)) == ["o"]


def _measure(monkeypatch, peers: list[Peer], room: float) -> dict:
    monkeypatch.setattr(memory, "free_bytes", lambda device: room)
    monkeypatch.setattr(memory, "shared_bytes", lambda problem: 0)
    bench = Bench(CPU, Plan(rounds=3, enough=3, sample=1e-5, share=0.01), (2, 2))

    def release():
        _Sized.alive = 0

    monkeypatch.setattr(bench, "release", release)
    _Sized.alive = 0
    return bench.side_by_side(Problem(Case(TINY, "fwd", EVEN, "f32"), CPU, 0), peers)


def test_a_peer_of_a_later_subset_keeps_what_ours_took_beside_it(monkeypatch):
    ours = _Sized("o", OURS, 2)
    entries = _measure(monkeypatch, [ours, _Sized("a", PEER, 5), _Sized("b", PEER, 5)], room=8)
    assert [e["status"] for e in entries.values()] == ["ok"] * 3
    assert "beside" not in entries["a"]
    assert set(entries["b"]["beside"]) == {"o"}
    assert "beside" not in entries["o"]
    assert ours.times_prepared == 2, "timed anew; two times that were measured may be equal"


def test_a_peer_that_runs_out_of_memory_is_tried_again_beside_ours_alone(monkeypatch):
    peers: list[Peer] = [_Sized("o", OURS, 0), _Sized("a", PEER, 0), _Sized("b", PEER, 0, exhausted_among=3)]
    entries = _measure(monkeypatch, peers, room=100)
    assert entries["b"]["status"] == "ok"
    assert set(entries["b"]["beside"]) == {"o"}


def test_a_peer_that_fits_nowhere_says_so(monkeypatch):
    peers: list[Peer] = [_Sized("o", OURS, 0), _Sized("a", PEER, 0), _Sized("b", PEER, 0, exhausted_among=1)]
    entries = _measure(monkeypatch, peers, room=100)
    assert entries["a"]["status"] == "ok"
    assert entries["b"]["status"] == "failed"
    assert "out of memory" in entries["b"]["reason"]


def test_ours_that_runs_out_of_memory_is_tried_alone(monkeypatch):
    peers: list[Peer] = [_Sized("p", OURS, 0), _Sized("o", OURS, 0, exhausted_among=2), _Sized("a", PEER, 0)]
    assert _measure(monkeypatch, peers, room=100)["o"]["status"] == "ok"


def test_merging_keeps_the_first_timing_of_ours_and_replaces_what_failed():
    first = {"o": {"role": OURS, "us": {"median": 1.0}}, "a": {"role": PEER, "status": "failed"}}
    merge(first, {"o": {"role": OURS, "us": {"median": 2.0}}, "a": {"role": PEER, "us": {"median": 3.0}}})
    assert first["o"]["us"]["median"] == 1.0
    assert first["a"] == {"role": PEER, "us": {"median": 3.0}, "beside": {"o": 2.0}}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.96 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 48 GiB"), False),
        (RuntimeError("no such kernel"), False),
    ],
)
def test_only_torchs_memory_is_worth_another_try(error, expected):
    assert memory.is_exhausted(error) == expected


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_reference_is_as_large_as_it_is_counted(op):
    shape = TINY if applies(op, TINY) else BY_NAME["tiny-8x16"]
    problem = Problem(Case(shape, op, EVEN, "bf16"), CPU, 0)
    found = sum(t.numel() * t.element_size() for t in checking.reference(problem))
    assert found == checking.result_bytes(problem)


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_peer_says_what_it_needs(op):
    shape = TINY if applies(op, TINY) else BY_NAME["tiny-8x16"]
    problem = Problem(Case(shape, op, EVEN, "bf16"), CPU, 0)
    for peer in registry.all_peers():
        if peer.declines(problem.case, CPU) is None:
            assert peer.memory(problem) >= 0
            assert getattr(peer, "pool", lambda p: 0)(problem) >= 0
