# SPDX-License-Identifier: Apache-2.0
"""Bars by shape. Each takes the content of a results file and returns a figure, or None without data for it."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.figure_data import PEERS, cases_of, families_of, fastest, name_shapes, rate, shape_name
from benchmarks.figure_style import COLORS, INK, OURS, draw_title, top_legend
from benchmarks.operations import LINEAR, MLP, OPERATIONS

_RAGGED, _MGPU, _OURS_IN_JAX = "jax.lax.ragged_dot", "Pallas ragged_dot_mgpu", "jax_grouped"


def bars(data: dict[str, Any], op: str) -> Figure | None:
    """Throughput by shape, one panel a draw; ticks across a group of bars are bounds."""
    draws = [d for d in ("even", "zipf") if cases_of(data, op, d)]
    if not draws:
        return None
    widest = max(len(cases_of(data, op, d)) for d in draws)
    size = (min(14.0, max(7.0, 2.2 + 0.95 * widest)), 0.9 + 3.1 * len(draws))
    figure, panels = plt.subplots(len(draws), 1, figsize=size, squeeze=False, layout="constrained")
    order = (OURS, *((_OURS_IN_JAX,) if op in (LINEAR, MLP) else ()), *PEERS)
    families = families_of([c for d in draws for c in cases_of(data, op, d)], order)
    same = len({tuple(shape_name(c) for c in cases_of(data, op, d)) for d in draws}) == 1
    for axes, draw in zip(panels[:, 0], draws, strict=True):
        cases = cases_of(data, op, draw)
        width = 0.82 / max(1, len(families))
        for n, family in enumerate(families):
            heights = [rate(c, fastest(c, family)) or 0.0 for c in cases]
            places = [i + (n - (len(families) - 1) / 2) * width for i in range(len(cases))]
            axes.bar(places, heights, width=0.94 * width, color=COLORS[family])
        for i, case in enumerate(cases):
            _bound_ticks(axes, i, case)
        best = max((rate(c, fastest(c, f)) or 0.0 for c in cases for f in (*families, "dense")), default=1.0)
        axes.set_ylim(0, 1.08 * best)
        axes.set_xlim(-0.6, len(cases) - 0.4)
        axes.set_ylabel("TFLOP/s of useful work")
        axes.set_title(f"{op} · {OPERATIONS[op]} · {draw_title(draw)}")
        name_shapes(axes, cases, last=axes is panels[-1, 0] or not same)
    handles: list[Any] = [Patch(color=COLORS[f], label=f) for f in families]
    handles += [
        Line2D([], [], color=INK, lw=1.6, label="one dense GEMM"),
        Line2D([], [], color=INK, lw=1.2, ls=(0, (2, 1.5)), label="every byte moved once"),
    ]
    top_legend(figure, handles)
    return figure


def _bound_ticks(axes: Any, i: int, case: dict[str, Any]) -> None:
    dense = rate(case, fastest(case, "dense"))
    if dense:
        axes.plot([i - 0.45, i + 0.45], [dense, dense], color=INK, lw=1.6)
    moved = rate(case, case["bytes_bound_us"])
    # A memory bound far above the dense rate says nothing.
    if moved and (not dense or moved < 1.3 * dense):
        axes.plot([i - 0.45, i + 0.45], [moved, moved], color=INK, lw=1.2, ls=(0, (2, 1.5)))


def jax_before_after(data: dict[str, Any]) -> Figure | None:
    """What JAX ships and jax_grouped, on the cases that both were meant to run, with the factor between them."""
    by_op = {op: found for op in ("fwd", "dgrad", "wgrad") if (found := _tried_in_jax(data, op))}
    if not by_op:
        return None
    every = [case for found in by_op.values() for case in found]
    families = families_of(every, (_RAGGED, _MGPU, _OURS_IN_JAX))
    widest = max(len(found) for found in by_op.values())
    size = (min(12.0, max(6.5, 2.0 + 0.8 * widest)), 0.9 + 2.4 * len(by_op))
    figure, panels = plt.subplots(len(by_op), 1, figsize=size, squeeze=False, layout="constrained")
    same = len({tuple(shape_name(c) for c in found) for found in by_op.values()}) == 1
    width = 0.82 / len(families)
    for axes, (op, cases) in zip(panels[:, 0], by_op.items(), strict=True):
        top = max(rate(c, fastest(c, f)) or 0.0 for c in cases for f in families)
        for n, family in enumerate(families):
            places = [i + (n - (len(families) - 1) / 2) * width for i in range(len(cases))]
            heights = [rate(c, fastest(c, family)) or 0.0 for c in cases]
            axes.bar(places, heights, width=0.94 * width, color=COLORS[family])
            for place, height, case in zip(places, heights, cases, strict=True):
                text, style = _jax_note(family, case)
                axes.annotate(
                    text, (place, height), (0, 2), textcoords="offset points", ha="center", va="bottom", **style
                )
        axes.set_ylim(0, 1.15 * top)
        axes.set_xlim(-0.6, len(cases) - 0.4)
        axes.set_ylabel("TFLOP/s")
        axes.set_title(f"JAX {op} · {OPERATIONS[op]} · even sizes")
        name_shapes(axes, cases, last=axes is panels[-1, 0] or not same)
    handles: list[Any] = [Patch(color=COLORS[f], label=f) for f in families]
    top_legend(figure, handles)
    return figure


def _tried_in_jax(data: dict[str, Any], op: str) -> list[dict[str, Any]]:
    """The even cases on which ragged_dot ran or was stopped by memory, and ours ran."""
    return [
        case
        for case in cases_of(data, op, "even")
        if fastest(case, _OURS_IN_JAX) and (fastest(case, _RAGGED) or _out_of_memory(case))
    ]


def _out_of_memory(case: dict[str, Any]) -> bool:
    reason = case["peers"].get(_RAGGED, {}).get("reason", "")
    return any(word in reason for word in ("temporaries", "XLA's pool", "RESOURCE_EXHAUSTED", "out of memory"))


def _jax_note(family: str, case: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Above a bar: how many times as fast as ragged_dot ours is, or why ragged_dot has none."""
    before, after = fastest(case, _RAGGED), fastest(case, _OURS_IN_JAX)
    if family == _OURS_IN_JAX and before and after:
        return f"{before / after:.0f}x", {"fontsize": 9, "weight": "bold", "color": INK}
    if family == _RAGGED and before is None:
        return "out of memory", {"fontsize": 7, "rotation": 90, "color": COLORS[_RAGGED]}
    return "", {}
