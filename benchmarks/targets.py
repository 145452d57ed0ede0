# SPDX-License-Identifier: Apache-2.0
"""What the project wants of its kernels, each as a line that a results file fulfils or not.

Ratios are the best peer's time over ours. A target about which the file has nothing is not met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.operations import DGRAD, FWD, HOST, HOST_LINEAR, WGRAD, WGRAD_ACC
from benchmarks.ratios import JAX_OURS, JAX_PEER, Row, means, median_us, rows
from benchmarks.shapes import EVEN, PRIMARY, SHAPES, TAIL, ZIPF
from benchmarks.stats import geometric_mean

LEAST_GEOMEAN = {
    (FWD, EVEN): 1.02,
    (FWD, ZIPF): 1.08,
    (DGRAD, EVEN): 1.02,
    (DGRAD, ZIPF): 1.08,
    (WGRAD, EVEN): 1.07,
    (WGRAD, ZIPF): 1.15,
}
LEAST_CASE = 0.95
LEAST_OF_ROOF = 0.85  # of a gradient added to an fp32 target
FEW_ROWS, LEAST_OF_COPY = (32, 64), 0.92  # rows an expert, and the share of the copy bandwidth
LEAST_WITH_TAIL = 0.98  # of the speed without one; without a buffer, beside the time that filling it with zeros takes
LEAST_OVER_RAGGED_DOT = 25.0
WITHOUT_TAIL, WITHOUT_BUFFER = "torch_grouped without the tail", "torch_grouped without a buffer"
MOST_HOST_US = {HOST: 15.0, HOST_LINEAR: 60.0}


@dataclass(frozen=True)
class Verdict:
    """One target: what was wanted and what was found."""

    met: bool
    target: str
    found: str

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'} {self.target}: {self.found}"


def _nothing(target: str) -> Verdict:
    return Verdict(False, target, "no case was measured")


def _least(target: str, values: dict[str, float], least: float, form: Callable[[float], str]) -> Verdict:
    """Every value is at least so much; the lowest is named, and how many miss."""
    if not values:
        return _nothing(target)
    lowest = min(values, key=values.__getitem__)
    missed = sum(1 for value in values.values() if not value >= least)
    found = f"lowest {form(values[lowest])} ({lowest}), {missed} of {len(values)} cases miss"
    return Verdict(not missed, target, found)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _three_places(value: float) -> str:
    return f"{value:.3f}"


def _roof_share(case: dict[str, Any], ours: float) -> float | None:
    """The longer of the dense product's time and the bytes' time, over ours."""
    dense = median_us(case["peers"].get("dense"))
    return None if dense is None else max(dense, case["bytes_bound_us"]) / ours


def _rows_an_expert(case: dict[str, Any]) -> float:
    return case["shape"]["T"] / case["shape"]["G"]


def kernels(data: dict[str, Any], ours: str) -> list[Verdict]:
    """The products against the peers and against the roofs."""
    judged = [r for r in rows(data, ours) if (r.op, r.draw) in LEAST_GEOMEAN and r.is_primary]
    by_group = means(judged)
    wanted = len(LEAST_GEOMEAN) * sum(1 for shape in SHAPES if PRIMARY in shape.tags)
    target = "every shape of the default table measured"
    found = [Verdict(len(judged) >= wanted, target, f"{len(judged)} of {wanted} cases beside a peer")]
    for (op, draw), least in LEAST_GEOMEAN.items():
        target = f"{op}, {draw} sizes, geometric mean of best peer / ours >= {least}"
        mean, count = by_group.get((op, draw), (0.0, 0))
        found.append(Verdict(mean >= least, target, f"{mean:.3f} of {count} cases") if count else _nothing(target))
    ratios = {r.case_id: r.ratio for r in judged}
    found.append(_least(f"no case of these below {LEAST_CASE} of its best peer", ratios, LEAST_CASE, _three_places))

    shares, copies = {}, {}
    for case_id, case in data["cases"].items():
        us = median_us(case["peers"].get(ours))
        if us is None:
            continue
        if case["op"] == WGRAD_ACC and (share := _roof_share(case, us)) is not None:
            shares[case_id] = share
        few = FEW_ROWS[0] <= _rows_an_expert(case) <= FEW_ROWS[1]
        if case["op"] in (FWD, DGRAD, WGRAD) and case["draw"] == EVEN and few:
            copies[case_id] = case["bytes_bound_us"] / us
    target = f"{WGRAD_ACC} >= {LEAST_OF_ROOF:.0%} of the lower of the dense product's rate and the bytes'"
    found.append(_least(target, shares, LEAST_OF_ROOF, _percent))
    target = f"{FEW_ROWS[0]} to {FEW_ROWS[1]} rows an expert >= {LEAST_OF_COPY:.0%} of the copy bandwidth"
    return [*found, _least(target, copies, LEAST_OF_COPY, _percent), *_tails(data, ours)]


def _tails(data: dict[str, Any], ours: str) -> list[Verdict]:
    """Half of the rows belong to no group: what that costs."""
    with_buffer, without = {}, {}
    for case_id, case in data["cases"].items():
        if case["draw"] != TAIL:
            continue
        names = (ours, WITHOUT_TAIL, WITHOUT_BUFFER)
        us, short, allocating = (median_us(case["peers"].get(name)) for name in names)
        if us and short:
            with_buffer[case_id] = short / us
        if allocating and short:
            shape = case["shape"]
            zeros = 2 * (shape["T"] - case["rows"]["sum"]) * shape["N"]  # bytes of a 16-bit result
            without[case_id] = (short + 1e6 * zeros / data["copy_bytes_per_second"]) / allocating
    target = f"with a buffer half of the rows as tail cost nothing: >= {LEAST_WITH_TAIL:.0%} of the speed without them"
    of_zeros = f"without a buffer a tail costs its zeros: >= {LEAST_WITH_TAIL:.0%} of the speed with that time added"
    return [
        _least(target, with_buffer, LEAST_WITH_TAIL, _percent),
        _least(of_zeros, without, LEAST_WITH_TAIL, _percent),
    ]


def frameworks(data: dict[str, Any], ours: str) -> list[Verdict]:
    """JAX against its own operation, and what a call costs the host."""
    in_jax: list[Row] = rows(data, JAX_OURS, [JAX_PEER])
    found = []
    for op in (FWD, DGRAD, WGRAD):
        target = f"JAX {op} >= {LEAST_OVER_RAGGED_DOT:.0f} times {JAX_PEER}"
        ratios = [r.ratio for r in in_jax if r.op == op]
        text = f"{geometric_mean(ratios):.1f} of {len(ratios)} cases that it survives"
        met = bool(ratios) and geometric_mean(ratios) >= LEAST_OVER_RAGGED_DOT
        found.append(Verdict(met, target, text) if ratios else _nothing(target))
    for op, most in MOST_HOST_US.items():
        target = f"{op} <= {most:.0f} us of host time"
        times = [us for c in data["cases"].values() if c["op"] == op and (us := median_us(c["peers"].get(ours)))]
        found.append(Verdict(max(times) <= most, target, f"{max(times):.1f} us") if times else _nothing(target))
    return found


TARGETS = {"kernels": kernels, "frameworks": frameworks}


def verdicts(data: dict[str, Any], ours: str, names: list[str]) -> list[Verdict]:
    """All lines of these groups of targets.

    Raises:
      ValueError: a group that does not exist.
    """
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise ValueError(f"targets must be of {', '.join(TARGETS)}; got {', '.join(unknown)}.")
    return [verdict for name in names for verdict in TARGETS[name](data, ours)]
