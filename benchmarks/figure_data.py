# SPDX-License-Identifier: Apache-2.0
"""What the figures read out of a results file."""

from __future__ import annotations

from typing import Any

from benchmarks.figure_style import name_ticks

PEERS = ("QuACK", "torch grouped_mm", "DeepGEMM", "tokamax", "cuDNN moe_grouped_matmul", "torch.mm loop")


def fastest(case: dict[str, Any], family: str) -> float | None:
    """Microseconds of the best configuration of a family."""
    found = [e["us"]["median"] for e in case["peers"].values() if e["family"] == family and counts(e)]
    return min(found, default=None)


def counts(entry: dict[str, Any]) -> bool:
    return "us" in entry and entry["role"] != "part"


def rate(case: dict[str, Any], microseconds: float | None) -> float | None:
    return None if not microseconds else case["flops"] / microseconds * 1e-6


def cases_of(data: dict[str, Any], op: str, draw: str | None = None) -> list[dict[str, Any]]:
    return [c for c in data["cases"].values() if c["op"] == op and draw in (None, c["draw"])]


def shape_name(case: dict[str, Any]) -> str:
    return case["shape"]["name"]


def families_of(cases: list[dict[str, Any]], order: tuple[str, ...]) -> list[str]:
    return [f for f in order if any(fastest(c, f) is not None for c in cases)]


def name_shapes(axes: Any, cases: list[dict[str, Any]], last: bool) -> None:
    """The shapes below the bars, of the last panel alone where all panels show the same."""
    names = [shape_name(c) for c in cases] if last else [""] * len(cases)
    name_ticks(axes, [float(i) for i in range(len(cases))], names)
