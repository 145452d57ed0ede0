# SPDX-License-Identifier: Apache-2.0
"""The parts that numbers pass through: size draws, statistics, counted work, the check before timing, the stopwatch."""

from __future__ import annotations

import math
from collections import Counter
from itertools import cycle, pairwise

import numpy as np
import pytest
import torch

from benchmarks import checking, operations, plan, shapes, stats, timing
from benchmarks.peers.base import BOUND, EVENTS, EVENTS_BEHIND, HOST_CLOCK, OURS, PART, Call
from benchmarks.problem import Case, Problem
from benchmarks.shapes import BY_NAME, DRAWS, SHAPES, Shape, draw_sizes
from benchmarks.timing import Plan, Stopwatch, Timed, host_cost

CPU = torch.device("cpu")
SMALL = Shape("small-up", 5, 37, 16, 24)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes_sum_to_the_rows(shape, draw):
    sizes = draw_sizes(shape, draw)
    assert sizes.dtype == np.int32
    assert sizes.shape == (shape.G,)
    assert sizes.min() >= 0
    assert int(sizes.sum(dtype=np.int64)) == (shape.T // 2 if draw == shapes.TAIL else shape.T)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_seed_draws_the_same_sizes_again(draw):
    shape = BY_NAME["qwen3-30b-up"]
    np.testing.assert_array_equal(draw_sizes(shape, draw, 3), draw_sizes(shape, draw, 3))
    if draw not in (shapes.EVEN, shapes.TAIL):
        assert (draw_sizes(shape, draw, 3) != draw_sizes(shape, draw, 4)).any()


def test_draws_have_the_skew_that_they_are_named_after():
    shape = BY_NAME["qwen3-30b-up"]
    even, one, empty, zipf = (draw_sizes(shape, d) for d in (shapes.EVEN, shapes.ONE, shapes.EMPTY, shapes.ZIPF))
    assert even.max() - even.min() <= 1
    assert (one > 0).sum() == 1
    assert (empty == 0).sum() == round(0.2 * shape.G)
    expected = shape.T / sum(i**-shapes.ZIPF_EXPONENT for i in range(1, shape.G + 1))
    assert zipf.max() == pytest.approx(expected, rel=0.1)
    assert np.argmax(zipf) != 0 or np.argmin(zipf) != shape.G - 1, "experts are shuffled"


def test_an_unknown_draw_is_refused():
    with pytest.raises(ValueError, match="draw must be one of even"):
        draw_sizes(SMALL, "zopf")


def test_names_are_unique_and_shapes_fit_the_fast_kernels():
    assert len(BY_NAME) == len(SHAPES)
    assert not [s for s in SHAPES if s.K % 8 or s.N % 8 or s.G < 1 or s.T < s.G]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["dsv3-ep32-up"], ["dsv3-ep32-up"]),
        (["dsv3-ep32"], ["dsv3-ep32-up", "dsv3-ep32-down"]),
        (["tiny"], ["tiny-up", "tiny-down", "tiny-8x16"]),
        (["rows"], ["qwen3-30b-32rows-up", "qwen3-30b-64rows-up", "qwen3-30b-128rows-up"]),
    ],
)
def test_shapes_are_selected_by_name_part_or_tag(patterns, expected):
    assert [s.name for s in shapes.select(patterns)] == expected


def test_a_pattern_without_a_shape_is_refused():
    with pytest.raises(ValueError, match="'dsv9'"):
        shapes.select(["tiny-up", "dsv9"])


def test_default_plan_measures_the_primary_shapes_first_and_each_case_once():
    cases = plan.cases([], [], [], None, "cuda", 0)
    assert len({case.id for case in cases}) == len(cases)
    assert {c.dtype for c in cases} == {"bf16"}
    even = [c for c in cases if c.draw == "even" and c.op == "fwd"]
    assert {c.shape for c in even} == {s for s in SHAPES if {shapes.PRIMARY, shapes.ROWS} & set(s.tags)}
    assert shapes.PRIMARY in even[0].shape.tags
    first_zipf = next(i for i, c in enumerate(cases) if c.draw == "zipf")
    assert all(c.draw == "even" for c in cases[:first_zipf])
    assert {c.op for c in cases} == set(operations.OPERATIONS)
    assert {c.draw for c in cases} == set(DRAWS)


def test_summary_of_known_samples():
    found = stats.summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found["median"], found["p25"], found["p75"]) == (3.0, 2.0, 4.0)
    assert (found["min"], found["max"], found["n"]) == (1.0, 5.0, 5)
    assert found["spread"] == pytest.approx(2 / 3)
    assert stats.summary([1.0, 2.0])["median"] == 1.5
    assert stats.summary([7.0])["p75"] == 7.0


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_quantiles_are_those_of_numpy(rng, q):
    samples = rng.standard_normal(23)
    assert stats.quantile(sorted(samples), q) == pytest.approx(np.quantile(samples, q))


def test_geometric_mean():
    assert stats.geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert stats.geometric_mean([1.0, 8.0, 1.0]) == pytest.approx(2.0)
    assert math.isnan(stats.geometric_mean([]))


def test_work_counts_no_padding_and_no_weight_of_an_empty_group():
    T, K, N = SMALL.T, SMALL.K, SMALL.N
    sizes = [37, 0, 0, 0, 0]
    forward = operations.work("fwd", SMALL, sizes, 2)
    assert forward.flops == 2 * T * K * N
    assert forward.bytes == 2 * (T * K + K * N + T * N)
    assert operations.work("wgrad", SMALL, sizes, 2).bytes == 2 * (T * K + T * N + 5 * K * N)
    assert operations.work("wgrad_acc", SMALL, sizes, 2).bytes == 2 * (T * K + T * N) + 8 * K * N
    assert operations.work("linear", SMALL, sizes, 2).flops == 3 * forward.flops
    assert operations.work("act", SMALL, sizes, 2).bytes == 2 * T * (N + N // 2)


def _problem(op: str, dtype: str = "f32") -> Problem:
    return Problem(Case(SMALL, op, shapes.EMPTY, dtype), CPU, cache_bytes=0)


def test_reference_is_the_product_of_each_row_with_its_groups_weight():
    p = _problem("fwd")
    (y,) = checking.reference(p)
    group = np.repeat(np.arange(5), p.sizes_host)
    for t in range(p.T):
        expected = p.set(0).w[group[t]].double() @ p.set(0).x[t].double()
        torch.testing.assert_close(y[t], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_rounded_reference_lies_within_the_bound(dtype):
    p = _problem("fwd", dtype)
    expected = checking.reference(p)
    times, relative = checking.times_bound(p, [expected[0].to(p.dtype)], expected)
    assert 0 < times <= 1
    assert relative < times  # a norm over everything is smaller than that of the worst row over its bound


def test_an_element_handed_on_may_round_the_other_way():
    p = _problem("mlp", "bf16")
    expected = checking.reference(p)

    def times_where_a_row_differs_by(ulps: int) -> float:
        y = expected[0].clone()
        y[0] *= 1 + ulps * 2.0**-7  # as if it were made of one element of the activation
        return checking.times_bound(p, [t.to(p.dtype) for t in (y, *expected[1:])], expected)[0]

    assert 0.5 < times_where_a_row_differs_by(1) <= 1
    assert times_where_a_row_differs_by(4) > 2


def _spoil_one_row(y):
    y[-1] *= 1.02


def _leave_one_unwritten(y):
    y[3, 5] = math.nan


def _swap_rows(y):
    y[[0, 1]] = y[[1, 0]]


@pytest.mark.parametrize("spoil", [_spoil_one_row, _leave_one_unwritten, _swap_rows])
def test_a_wrong_row_is_not_hidden_by_the_right_ones(spoil):
    p = _problem("fwd", "bf16")
    expected = checking.reference(p)
    y = expected[0].to(p.dtype)
    spoil(y)
    assert checking.times_bound(p, [y], expected)[0] > 3


def test_an_empty_groups_gradient_must_be_zero():
    p = _problem("wgrad")
    (dw,) = checking.reference(p)
    empty = p.sizes_host.index(0)
    assert not dw[empty].any()
    wrong = dw.float()
    wrong[empty, 0, 0] = 1e-30
    assert checking.times_bound(p, [wrong], [dw])[0] == math.inf


def test_a_wrong_shape_or_number_of_results_is_refused():
    p = _problem("fwd")
    (y,) = checking.reference(p)
    with pytest.raises(ValueError, match="expected"):
        checking.times_bound(p, [y[:-1]], [y])
    with pytest.raises(ValueError, match="2 results"):
        checking.times_bound(p, [y, y], [y])


def test_inputs_rotate_until_they_outgrow_the_cache():
    one = _problem("fwd")
    size = one.set(0).nbytes()
    several = Problem(one.case, CPU, cache_bytes=size)
    assert len(one.sets) == 1
    assert len(several.sets) == 4
    assert not torch.equal(several.set(0).x, several.set(1).x)
    assert several.set(4) is several.set(0)
    torch.testing.assert_close(several.set(0).x, one.set(0).x, rtol=0, atol=0)  # the seed is the case's


def test_stopwatch_takes_turns_and_rotates():
    calls = []

    def peer(name):
        return Timed(name, Call(lambda i: calls.append((name, i))), EVENTS)

    a, b = peer("a"), peer("b")
    Stopwatch(CPU, Plan(rounds=6, enough=6, sample=0.0, share=10.0)).measure([a, b])
    assert len(a.samples) == len(b.samples) == 6
    assert all(s > 0 for s in a.samples)
    assert [i for name, i in calls if name == "a"] == list(range(len(calls) // 2)), "every call on the next set"
    rounds = [tuple(name for name, _ in calls[i : i + 2]) for i in range(len(calls) - 12, len(calls), 2)]
    assert all(set(r) == {"a", "b"} for r in rounds)
    assert len(set(rounds)) == 2, "the order changes"


def test_a_slow_peer_gives_fewer_samples_and_a_fast_one_more_calls_each():
    def slow(i):
        end = stopwatch_end(0.01)
        while not end():
            pass

    timed = [Timed("slow", Call(slow), EVENTS), Timed("fast", Call(lambda i: None), EVENTS)]
    Stopwatch(CPU, Plan(rounds=8, least=3, sample=1e-3, share=0.03)).measure(timed)
    assert len(timed[0].samples) == 3
    assert timed[0].inner == 1
    assert len(timed[1].samples) == 8
    assert timed[1].inner > 1
    assert stats.summary(timed[0].samples)["min"] >= 0.01


def stopwatch_end(seconds):
    import time

    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


class _Event:
    """A CUDA event on the host's clock."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        import time

        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


def test_on_a_gpu_samples_lie_between_events_behind_a_backlog(monkeypatch):
    slept, log = [], []
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)

    def busy_host(i):
        end = stopwatch_end(2e-3)
        while not end():
            pass

    queued, waited = Timed("torch", Call(busy_host), EVENTS), []
    own_stream = Timed("jax", Call(lambda i: i, wait=waited.append), HOST_CLOCK)
    Stopwatch(torch.device("cuda"), Plan(rounds=4, least=4, sample=1e-3)).measure(
        [queued, own_stream], lambda: log.append("load")
    )
    assert len(queued.samples) == len(own_stream.samples) == 4
    assert min(queued.samples) >= 2e-3
    assert len(slept) == 4, "one backlog for each sample whose launch takes long"
    assert slept[0] >= 1.5e9 * 2e-3
    assert log.count("load") == 1
    assert log[log.index("load") + 1] == "synchronize", "read while the device works"
    assert waited[-1] == own_stream.next_set - 1, "the last result is waited for"


@pytest.mark.parametrize(("launching", "before"), [(1e-4, 3), (0.0, 0)])
def test_streams_of_their_own_are_timed_between_results(monkeypatch, launching, before):
    """Behind calls that are not timed, unless the host's share is nothing. That the host wakes late does not count."""
    device = _Device(launching, lasting=1e-3, waking=1e-4)
    monkeypatch.setattr("time.perf_counter", lambda: device.now)
    monkeypatch.setattr(torch.cuda, "synchronize", device.wait)
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    t = Timed("jax", Call(device.run, wait=device.wait, follow=device.follow), EVENTS_BEHIND)
    Stopwatch(torch.device("cuda"), Plan(rounds=4, least=4, sample=2e-3, burn=3.3e-3)).measure([t])
    assert t.inner == 2
    assert t.samples == pytest.approx([1e-3] * 4)
    assert device.followed == ([before, 2] if before else [2]) * 4


class _Device:
    """Calls that take the host `launching` and the device `lasting` seconds, and a host that wakes up late."""

    def __init__(self, launching: float, lasting: float, waking: float) -> None:
        self.launching, self.lasting, self.waking = launching, lasting, waking
        self.now = self.done = self.followed_until = 0.0
        self.calls = 0
        self.followed: list[int] = []

    def run(self, i: int) -> int:
        self.now += self.launching
        self.done = max(self.done, self.now) + self.lasting
        self.calls += 1
        return i

    def wait(self, result: object = None) -> None:
        self.now = max(self.now, self.done) + self.waking
        self.calls = 0

    def follow(self, result: object) -> None:
        self.followed.append(self.calls)
        self.followed_until, self.calls = self.done, 0

    def event(self, enable_timing: bool) -> _Event:
        """On the stream that follows."""
        event = _Event(enable_timing)
        event.record = lambda: setattr(event, "at", max(self.now, self.followed_until))
        return event


@pytest.mark.parametrize("count", range(1, 12))
def test_turns_are_balanced(count):
    """Everyone in each place, and behind each other, equally often."""
    rounds = [timing.balanced_order(count, i) for i in range(count * (1 + count % 2))]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    for place in range(count):
        assert len(set(Counter(order[place] for order in rounds).values())) == 1
    pairs = Counter(pair for order in rounds for pair in pairwise(order))
    assert len(pairs) == count * (count - 1)
    assert len(set(pairs.values())) <= 1


def test_bounds_and_parts_do_not_decide_who_contends():
    """A dense product is faster than any peer, a part is no peer: neither ends the others' samples."""
    clock = _Clock()
    ours, bound, part = clock.timed("a", [2e-3, 3e-3]), clock.timed("dense", [1e-3]), clock.timed("copy", [0.5e-3])
    ours.role, bound.role, part.role = OURS, BOUND, PART
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: clock.now)
        Stopwatch(CPU, Plan(rounds=20, share=10.0, enough=7)).measure([ours, bound, part])
    assert (len(ours.samples), len(bound.samples), len(part.samples)) == (20, 20, 7)


class _Clock:
    """The host's clock, which goes on only where a call of `timed` says so."""

    now = 0.0

    def timed(self, name: str, seconds: list[float]) -> Timed:
        """A call that takes these times, over and over."""
        turns = cycle(seconds)

        def run(i: int) -> None:
            self.now += next(turns)

        return Timed(name, Call(run), EVENTS)


@pytest.mark.parametrize(("spread", "samples"), [([2e-3], 7), ([2e-3, 3e-3, 2.5e-3], 20)])
def test_samples_end_when_more_of_them_would_change_nothing(monkeypatch, spread, samples):
    clock = _Clock()
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    steady, unsteady, far = clock.timed("a", [2.1e-3]), clock.timed("b", spread), clock.timed("far", [20e-3])
    Stopwatch(CPU, Plan(rounds=20, share=10.0, enough=7)).measure([steady, unsteady, far])
    assert (len(steady.samples), len(unsteady.samples)) == (samples, samples), "all that contend, or none"
    assert len(far.samples) == 7, "who cannot be the best peer takes no more time than that"


def test_host_cost_is_of_one_call():
    t = Timed("a", Call(lambda i: None), EVENTS)
    host_cost([t], CPU, calls=7, repeats=3)
    assert len(t.samples) == 3
    assert t.next_set == 7 * 5  # two runs warm up
