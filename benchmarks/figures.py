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
from benchmarks.operations import LINEAR, OPERATIONS

_RAGGED = "jax.lax.ragged_dot"


def bars(data: dict[str, Any], op: str) -> Figure | None:
    """Throughput by shape, one panel a draw; ticks across a group of bars are bounds."""
    draws = [d for d in ("even", "zipf") if cases_of(data, op, d)]
    if not draws:
        return None
    widest = max(len(cases_of(data, op, d)) for d in draws)
    size = (min(14.0, max(7.0, 2.2 + 0.95 * widest)), 0.9 + 3.1 * len(draws))
    figure, panels = plt.subplots(len(draws), 1, figsize=size, squeeze=False, layout="constrained")
    order = (OURS, *(("jax_grouped",) if op == LINEAR else ()), *PEERS)
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
        axes.set_title(f"{op}: {OPERATIONS[op]} · {draw_title(draw)}")
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
    """jax.lax.ragged_dot and jax_grouped on the cases that both ran; a gap is what the former did not survive."""
    ops = [op for op in ("fwd", "dgrad", "wgrad") if any(fastest(c, _RAGGED) for c in cases_of(data, op, "even"))]
    if not ops:
        return None
    widest = max(len(cases_of(data, op, "even")) for op in ops)
    size = (min(14.0, max(6.5, 2.0 + 0.6 * widest * len(ops) ** 0.5)), 0.8 + 2.7 * len(ops))
    figure, panels = plt.subplots(len(ops), 1, figsize=size, squeeze=False, layout="constrained")
    same = len({tuple(shape_name(c) for c in cases_of(data, op, "even")) for op in ops}) == 1
    for axes, op in zip(panels[:, 0], ops, strict=True):
        cases = cases_of(data, op, "even")
        for n, family in enumerate((_RAGGED, "jax_grouped")):
            heights = [rate(c, fastest(c, family)) or 0.0 for c in cases]
            axes.bar([i + (n - 0.5) * 0.38 for i in range(len(cases))], heights, width=0.36, color=COLORS[family])
        for i, case in enumerate(cases):
            before, after = fastest(case, _RAGGED), fastest(case, "jax_grouped")
            text = f"{before / after:.3g}x" if before and after else _why_not(case)
            height = rate(case, after) or 0.0
            axes.annotate(text, (i + 0.19, height), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        axes.margins(y=0.15)
        axes.set_ylabel("TFLOP/s")
        axes.set_title(f"JAX {op}: {OPERATIONS[op]} · even sizes")
        name_shapes(axes, cases, last=axes is panels[-1, 0] or not same)
    handles: list[Any] = [Patch(color=COLORS[f], label=f) for f in (_RAGGED, "jax_grouped")]
    top_legend(figure, handles)
    return figure


def _why_not(case: dict[str, Any]) -> str:
    entry = case["peers"].get(_RAGGED, {})
    memory = any(word in entry.get("reason", "") for word in ("temporaries", "RESOURCE_EXHAUSTED", "memory"))
    return "out of\nmemory" if memory else ""
