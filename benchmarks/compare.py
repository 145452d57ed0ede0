# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks compare`: ratios to the best peer, geometric means, and a verdict for a script.

A ratio is the peer's time over ours: above 1 we are faster.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from typing import Any

from benchmarks import targets
from benchmarks.operations import HOST_COSTS
from benchmarks.ratios import JAX_OURS, JAX_PEER, Row, means, median_us, rows
from benchmarks.results import load
from benchmarks.stats import geometric_mean


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
    if not arguments.against:
        _print_bounds(data, arguments.ours)
    problems = missed(table, arguments.min_geomean, arguments.min_case) + unsound(data)
    for line in problems:
        print(f"MISSED {line}")
    if arguments.min_geomean or arguments.min_case:
        print("thresholds missed" if problems else "all thresholds hold")
    judged = targets.verdicts(data, arguments.ours, arguments.targets)
    if judged:
        print("\ntargets")
        print("\n".join(f"  {verdict}" for verdict in judged))
    return 1 if problems or not all(verdict.met for verdict in judged) else 0


def _print_bounds(data: dict[str, Any], ours: str) -> None:
    """How near we are to what the card can do: the nearer of both bounds, by operation and draw."""
    groups: dict[tuple[str, str], list[float]] = {}
    for case in data["cases"].values():
        us, dense = (median_us(case["peers"].get(name)) for name in (ours, "dense"))
        if us and case["op"] not in HOST_COSTS:
            groups.setdefault((case["op"], case["draw"]), []).append(max(dense or 0.0, case["bytes_bound_us"]) / us)
    if groups:
        print("\nshare of the bound (one dense product, or every byte once, whichever takes longer), geometric mean")
    for (op, draw), shares in sorted(groups.items()):
        print(f"  {op:12}{draw:12} {geometric_mean(shares):6.1%}   {len(shares):3} cases, lowest {min(shares):.1%}")


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
