# SPDX-License-Identifier: Apache-2.0
"""The numbers of the performance page, from the committed results files. None is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import targets
from benchmarks.operations import ACTIVATIONS, HOST_COSTS, LINEAR, MLP, OPERATIONS, PRODUCTS
from benchmarks.peers.base import PEER
from benchmarks.ratios import JAX_OURS, JAX_PEER, Row, means, median_us, rows
from benchmarks.readme_table import step_time
from benchmarks.results import FOLDER, load
from benchmarks.shapes import DRAWS, EVEN
from benchmarks.stats import geometric_mean

OURS = "torch_grouped"
_NOTHING = "*Not in this results file.*"


def _table(head: Iterable[str], lines: list[list[str]]) -> str:
    if not lines:
        return _NOTHING
    head = list(head)
    text = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)])


def machine(data: dict[str, Any]) -> str:
    """Which card, which sources, which versions."""
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items() if name != "python")
    dense = data.get("dense_flops_per_second")
    roofs = f"copies at {data['copy_bytes_per_second'] * 1e-9:.0f} GB/s"
    if dense:
        roofs += f", multiplies a large dense product at {dense * 1e-12:.0f} TFLOP/s"
    driver = data.get("gpu", {}).get("driver_version", "unknown")
    lines = [
        f"- {data['name']}, driver {driver}, {data['date'][:10]}; {roofs}, measured in the same run.",
        f"- Commit `{data['commit'][:9]}`, hash of the CUDA sources `{data['source_hash']}`.",
        f"- {versions}.",
    ]
    return "\n".join(lines)


def against_peers(data: dict[str, Any]) -> str:
    """Geometric means of best peer over ours, by operation and draw."""
    table = [row for row in rows(data, OURS) if row.op in PRODUCTS or row.op == MLP]
    lines = []
    for (op, draw), (mean, count) in means(table).items():
        of_group = [r for r in table if (r.op, r.draw) == (op, draw)]
        low, high = (pick(of_group, key=lambda r: r.ratio) for pick in (min, max))
        lines.append([op, draw, f"{mean:.3f}", str(count), _case(low), _case(high)])
    return _table(("operation", "sizes", "geometric mean", "cases", "lowest", "highest"), sorted(lines))


def _case(row: Row) -> str:
    return f"{row.ratio:.2f} ({row.case_id.partition('/')[0]}, {row.best_name})"


def second_sitting(_: dict[str, Any]) -> str:
    """TFLOP/s beside peers that want other libraries around them, from the file of their own sitting."""
    cases = load(FOLDER / "h100_second.json")["cases"]
    names = sorted({n for case in cases.values() for n, e in case["peers"].items() if e["role"] == PEER})
    lines = []
    for case_id, case in cases.items():
        cells = [_rate(case, case["peers"].get(name, {})) for name in (OURS, *names)]
        lines.append(["/".join(case_id.split("/")[:3]), *cells])
    return _table(("case", "ours", *names), lines)


def _rate(case: dict[str, Any], entry: dict[str, Any]) -> str:
    us = median_us(entry)
    return f"{case['flops'] / us * 1e-6:.0f}" if us else entry.get("status", "not run")


def against_bounds(data: dict[str, Any]) -> str:
    """For each even forward case: what limits it and how much of that we reach."""
    lines = []
    for case in data["cases"].values():
        us, dense = (median_us(case["peers"].get(name)) for name in (OURS, "dense"))
        if us is None or case["op"] != "fwd" or case["draw"] != EVEN:
            continue
        shape = case["shape"]
        moved = case["bytes_bound_us"]
        limit = "bytes" if moved > (dense or 0.0) else "matrix unit"
        lines.append(
            [
                shape["name"],
                str(shape["T"] // shape["G"]),
                f"{case['flops'] / case['bytes']:.0f}",
                limit,
                f"{max(moved, dense or 0.0) / us:.0%}",
                f"{case['flops'] / us * 1e-6:.0f}",
                f"{case['bytes'] / us * 1e-3:.0f}",
            ]
        )
    lines.sort(key=lambda line: -int(line[1]))
    head = ("shape", "rows an expert", "FLOPs a byte", "the bound", "share of it reached", "TFLOP/s", "GB/s")
    return _table(head, lines)


def in_jax(data: dict[str, Any]) -> str:
    """jax_grouped against JAX's own, where that runs."""
    table = rows(data, JAX_OURS, [JAX_PEER])
    lines = []
    for (op, draw), (mean, count) in sorted(means(table).items()):
        lines.append([op, draw, f"{mean:.1f}", str(count)])
    return _table(("operation", "sizes", f"times as fast as `{JAX_PEER}`", "cases that it survives"), lines)


def doors(data: dict[str, Any]) -> str:
    """What a framework adds: the JAX door's time over the torch door's, on the same kernels."""
    groups: dict[str, list[float]] = {}
    for case in data["cases"].values():
        torch, jax = (median_us(case["peers"].get(name)) for name in (OURS, JAX_OURS))
        if torch and jax and case["op"] in (*PRODUCTS, MLP):
            groups.setdefault(case["op"], []).append(jax / torch)
    lines = [[op, f"{geometric_mean(found):.3f}", str(len(found))] for op, found in groups.items()]
    return _table(("operation", "jax_grouped's time over torch_grouped's", "cases"), lines)


def jax_step(_: dict[str, Any]) -> str:
    """Whole training steps of `benchmarks.jax_step`, from its own file."""
    lines = []
    for case in load(FOLDER / "jax_step.json")["cases"].values():
        shape = case["shape"]
        title = f"{shape['tokens']} tokens to {shape['top_k']} of {shape['experts']} experts"
        for name, peer in case["peers"].items():
            lines.append([title, name, step_time(peer, 2)])
    return _table(("a step of", "experts by", "time"), lines)


def host_calls(_: dict[str, Any]) -> str:
    """Calls from PyTorch as `benchmarks.host_cost` measures them, from its own file."""
    path = FOLDER / "host_cost_h100.json"
    cases = json.loads(path.read_text())["cases"] if path.exists() else {}
    lines = [[name, f"{case['median_us']:.1f}", f"{case['least_us']:.1f}"] for name, case in cases.items()]
    return _table(("call", "median, microseconds", "least"), lines)


def host(data: dict[str, Any]) -> str:
    """Microseconds of host time."""
    lines = []
    for case in data["cases"].values():
        if case["op"] in HOST_COSTS:
            timed = [(us, name) for name, e in case["peers"].items() if (us := median_us(e)) and e["role"] != "bound"]
            lines += [[OPERATIONS[case["op"]], name, f"{us:.1f}"] for us, name in sorted(timed)]
    return _table(("what", "who", "microseconds a call"), lines)


def layers(data: dict[str, Any]) -> str:
    """Activations and whole layers: ours and the best peer."""
    lines = []
    for row in rows(data, OURS):
        if row.op in (*ACTIVATIONS, LINEAR, MLP):
            name, _, rest = row.case_id.partition("/")
            lines.append(
                [rest.partition("/")[0], name, row.draw, f"{row.ours:.0f}", f"{row.ratio:.2f} ({row.best_name})"]
            )
    return _table(("operation", "shape", "sizes", "ours, microseconds", "best peer / ours"), sorted(lines))


def verdicts(data: dict[str, Any]) -> str:
    """The project's targets and whether they are met."""
    found = targets.verdicts(data, OURS, list(targets.TARGETS))
    return _table(("target", "found", ""), [[v.target, v.found, "met" if v.met else "missed"] for v in found])


def of_h200(make: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    """The same table of the other card's file."""
    return lambda _: make(load(FOLDER / "h200.json"))


def draws(data: dict[str, Any]) -> str:
    """What the draws are called and what they are."""
    return _table(("sizes", "what they are"), [[name, words] for name, words in DRAWS.items()])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": machine,
    "against-peers": against_peers,
    "second-sitting": second_sitting,
    "against-bounds": against_bounds,
    "in-jax": in_jax,
    "doors": doors,
    "jax-step": jax_step,
    "host": host,
    "host-calls": host_calls,
    "layers": layers,
    "verdicts": verdicts,
    "machine-h200": of_h200(machine),
    "against-peers-h200": of_h200(against_peers),
    "verdicts-h200": of_h200(verdicts),
    "draws": draws,
}
