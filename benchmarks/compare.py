# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks compare`: ratios to the best peer, geometric means, and a verdict for a script.

A ratio is the peer's time over ours: above 1 we are faster.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from benchmarks.results import load
from benchmarks.stats import geometric_mean

JAX_PEER, JAX_OURS = "jax.lax.ragged_dot", "jax_grouped"
_HOST_OPS = ("host", "host_linear")


@dataclass(frozen=True)
class Row:
    """One case: our time and that of the best peer, in microseconds."""

    case_id: str
    op: str
    draw: str
    ours: float
    best: float
    best_name: str
    spread: float  # of ours: interquartile range over median
    tflops: float
    dense: float | None  # time of the dense product
    bytes_bound: float

    @property
    def ratio(self) -> float:
        """Above 1 we are faster."""
        return self.best / self.ours


def _median(entry: dict[str, Any] | None) -> float | None:
    return entry["us"]["median"] if entry and "us" in entry else None


def _matches(name: str, entry: dict[str, Any], against: list[str]) -> bool:
    words = (name.lower(), entry["family"].lower())
    return not against or any(a.lower() in word for a in against for word in words)


def rows(data: dict[str, Any], ours: str, against: list[str] | None = None) -> list[Row]:
    """Every case that ours and at least one peer were timed on."""
    found = []
    for case_id, case in data["cases"].items():
        peers = case["peers"]
        mine = _median(peers.get(ours))
        rivals = {
            name: us
            for name, entry in peers.items()
            if entry["role"] == "peer" and (us := _median(entry)) is not None and _matches(name, entry, against or [])
        }
        if mine is None or not rivals:
            continue
        best = min(rivals, key=rivals.__getitem__)
        host = case["op"] in _HOST_OPS
        found.append(
            Row(
                case_id=case_id,
                op=case["op"],
                draw=case["draw"],
                ours=mine,
                best=rivals[best],
                best_name=best + ("~" if peers[best]["status"] == "loose" else ""),
                spread=peers[ours]["us"].get("spread", 0.0),
                tflops=0.0 if host else case["flops"] / mine * 1e-6,
                dense=_median(peers.get("dense")),
                bytes_bound=0.0 if host else case["bytes_bound_us"],
            )
        )
    return found


def means(table: list[Row]) -> dict[tuple[str, str], tuple[float, int]]:
    """Geometric mean of the ratios and number of cases, by operation and draw."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in table:
        groups.setdefault((row.op, row.draw), []).append(row.ratio)
    return {key: (geometric_mean(ratios), len(ratios)) for key, ratios in groups.items()}


def missed(table: list[Row], min_geomean: list[str], min_case: float) -> list[str]:
    """The thresholds that do not hold, in words. One that speaks of no case at all does not hold.

    Raises:
      ValueError: a threshold that is not OP:DRAW=RATIO.
    """
    found = []
    by_group = means(table)
    for threshold in min_geomean:
        pattern, equals, least = threshold.rpartition("=")
        op, colon, draw = pattern.partition(":")
        if not (equals and colon):
            raise ValueError(f"a threshold must be OP:DRAW=RATIO; got {threshold!r}.")
        matching = {k: v for k, v in by_group.items() if fnmatchcase(k[0], op) and fnmatchcase(k[1], draw)}
        if not matching:
            found.append(f"{pattern}: no case was measured")
        for (case_op, case_draw), (mean, count) in matching.items():
            if not mean >= float(least):
                found.append(f"{case_op}:{case_draw}: geometric mean {mean:.3f} of {count} cases is below {least}")
    if min_case and not table:
        found.append("no case was measured")
    found += [
        f"{row.case_id}: {row.ratio:.3f} of {row.best_name} is below {min_case}"
        for row in table
        if not row.ratio >= min_case
    ]
    return found


def unsound(data: dict[str, Any]) -> list[str]:
    """Results of ours that were wrong, or calls that failed."""
    return [
        f"{case_id}: {name} {entry['status']}: {entry['reason']}"
        for case_id, case in data["cases"].items()
        for name, entry in case["peers"].items()
        if entry["role"] == "ours" and entry["status"] in ("wrong", "failed")
    ]


def _table(table: list[Row]) -> None:
    width = max(len(row.case_id) for row in table)
    head = ("ours us", "spread", "TF/s", "ratio", "dense", "bytes")
    print(f"{'case':{width}}  " + " ".join(f"{title:>8}" for title in head) + "  best peer")
    for row in table:
        columns = (
            f"{row.ours:.2f}",
            f"{row.spread:.1%}",
            f"{row.tflops:.3g}" if row.tflops else "",
            f"{row.ratio:.3f}",
            f"{row.dense / row.ours:.0%}" if row.dense else "",
            f"{row.bytes_bound / row.ours:.0%}" if row.bytes_bound else "",
        )
        print(f"{row.case_id:{width}}  " + " ".join(f"{c:>8}" for c in columns), f" {row.best_name} {row.best:.4g} us")


def _print_means(title: str, table: list[Row]) -> None:
    print(f"\n{title}")
    for (op, draw), (mean, count) in sorted(means(table).items()):
        worst = min((r for r in table if (r.op, r.draw) == (op, draw)), key=lambda r: r.ratio)
        shape = worst.case_id.partition("/")[0]
        print(f"  {op:12}{draw:12} {mean:6.3f}   {count:3} cases, lowest {worst.ratio:.3f} ({shape})")


def compare(arguments: argparse.Namespace) -> int:
    """Prints; 1 where a threshold does not hold or a result of ours is wrong."""
    data = load(arguments.results)
    print(f"{data['name']}, {data['date']}, commit {data['commit'][:9]}, sources {data['source_hash']}")
    table = rows(data, arguments.ours, arguments.against)
    if table:
        _table(table)
        print("\ndense and bytes: time of the bound over ours, 100 % is the bound; ~: rounds more than once")
        _print_means(f"best peer's time over {arguments.ours}'s, geometric mean", table)
    jax = rows(data, JAX_OURS, [JAX_PEER])
    if jax and not arguments.against:
        _print_means(f"{JAX_PEER}'s time over {JAX_OURS}'s, geometric mean", jax)
    if arguments.baseline:
        _print_means(f"{arguments.baseline.name}'s time over this file's", against_baseline(data, arguments))
    problems = missed(table, arguments.min_geomean, arguments.min_case) + unsound(data)
    for line in problems:
        print(f"MISSED {line}")
    if arguments.min_geomean or arguments.min_case:
        print("thresholds missed" if problems else "all thresholds hold")
    return 1 if problems else 0


def against_baseline(data: dict[str, Any], arguments: argparse.Namespace) -> list[Row]:
    """Ours now against ours then, on the cases of both files."""
    old = load(arguments.baseline)["cases"]
    merged = {}
    for case_id, case in data["cases"].items():
        then = old.get(case_id, {}).get("peers", {}).get(arguments.ours)
        if then is not None:
            now = {arguments.ours: case["peers"].get(arguments.ours, {}), "baseline": {**then, "role": "peer"}}
            merged[case_id] = {**case, "peers": now}
    return rows({"cases": merged}, arguments.ours, ["baseline"])
