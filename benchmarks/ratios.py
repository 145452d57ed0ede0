# SPDX-License-Identifier: Apache-2.0
"""Ours against the best peer of each case. A ratio is the peer's time over ours: above 1 we are faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.operations import HOST_COSTS
from benchmarks.shapes import BY_NAME, PRIMARY
from benchmarks.stats import geometric_mean

JAX_PEER, JAX_OURS = "jax.lax.ragged_dot", "jax_grouped"


@dataclass(frozen=True)
class Row:
    """One case: our time and that of the best peer, in microseconds."""

    case_id: str
    op: str
    draw: str
    ours: float
    best: float
    best_name: str
    ratio: float  # of times that were taken side by side, so not always best / ours
    spread: float  # of ours: interquartile range over median
    tflops: float
    dense: float | None  # time of the dense product
    bytes_bound: float

    @property
    def is_primary(self) -> bool:
        """Whether the shape is one of the default table; one that the registry no longer has is taken to be."""
        shape = BY_NAME.get(self.case_id.partition("/")[0])
        return shape is None or PRIMARY in shape.tags


def median_us(entry: dict[str, Any] | None) -> float | None:
    """Of a peer's entry, if it was timed."""
    return entry["us"]["median"] if entry and "us" in entry else None


def _matches(name: str, entry: dict[str, Any], against: list[str]) -> bool:
    words = (name.lower(), entry["family"].lower())
    return not against or any(a.lower() in word for a in against for word in words)


def rows(data: dict[str, Any], ours: str, against: list[str] | None = None) -> list[Row]:
    """Every case that ours and at least one peer were timed on; others of ours are peers where `against` names them."""
    found = []
    roles = ("peer", "ours") if against else ("peer",)
    for case_id, case in data["cases"].items():
        peers = case["peers"]
        mine = median_us(peers.get(ours))
        if mine is None:
            continue
        ratios = {
            name: us / entry.get("beside", {}).get(ours, mine)
            for name, entry in peers.items()
            if name != ours
            and entry["role"] in roles
            and (us := median_us(entry)) is not None
            and _matches(name, entry, against or [])
        }
        if not ratios:
            continue
        best = min(ratios, key=ratios.__getitem__)
        host = case["op"] in HOST_COSTS
        found.append(
            Row(
                case_id=case_id,
                op=case["op"],
                draw=case["draw"],
                ours=mine,
                best=peers[best]["us"]["median"],
                best_name=best + ("~" if peers[best]["status"] == "loose" else ""),
                ratio=ratios[best],
                spread=peers[ours]["us"].get("spread", 0.0),
                tflops=0.0 if host else case["flops"] / mine * 1e-6,
                dense=median_us(peers.get("dense")),
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
