# SPDX-License-Identifier: Apache-2.0
"""Figures over all cases at once: the roofline, and what skewed sizes cost."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.figure_data import PEERS, cases_of, families_of, fastest, rate, shape_name
from benchmarks.figure_style import COLORS, DRAW_TITLES, INK, OURS, top_legend

_OPS = ("fwd", "dgrad", "wgrad", "wgrad_acc")
_PEER_INK = "#C77700"


def _points(data: dict[str, Any], op: str) -> list[tuple[float, float, float | None, str]]:
    """FLOPs a byte, our rate, the best peer's, and the draw."""
    found = []
    for case in cases_of(data, op):
        ours = rate(case, fastest(case, OURS))
        rivals = [r for family in PEERS if (r := rate(case, fastest(case, family)))]
        if ours:
            found.append((case["flops"] / case["bytes"], ours, max(rivals, default=None), case["draw"]))
    return found


def _plain_log(axis: Any, ticks: tuple[float, ...]) -> None:
    axis.set_major_locator(LogLocator(base=10, subs=ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def roofline(data: dict[str, Any]) -> Figure | None:
    """Rate over arithmetic intensity under the measured roofs, one panel an operation."""
    by_op = {op: points for op in _OPS if (points := _points(data, op))}
    if not by_op:
        return None
    every = [point for points in by_op.values() for point in points]
    dense = [r for op in by_op for c in cases_of(data, op) if (r := rate(c, fastest(c, "dense")))]
    bandwidth = data["copy_bytes_per_second"]
    top = max(dense, default=max(point[1] for point in every))
    low, high = 0.7 * min(p[0] for p in every), 1.4 * max(p[0] for p in every)
    ridge = top * 1e12 / bandwidth
    roof = [low, *([ridge] if low < ridge < high else []), high]

    size = (max(5.0, 3.3 * len(by_op) + 0.6), 4.0)
    figure, panels = plt.subplots(1, len(by_op), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axes, (op, points) in zip(panels[0], by_op.items(), strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(roof, [min(top, x * bandwidth * 1e-12) for x in roof], color=INK, lw=1.5)
        for intensity, ours, rival, draw in points:
            if rival:
                axes.plot([intensity] * 2, [ours, rival], color="#BBBBBB", lw=0.8, zorder=1)
                axes.plot(intensity, rival, "_", ms=9, mew=1.8, color=_PEER_INK, zorder=2)
            face = COLORS[OURS] if draw == "even" else "white"
            axes.plot(intensity, ours, "o", ms=5, mfc=face, mec=COLORS[OURS], mew=1.3, zorder=3)
        _plain_log(axes.xaxis, (1.0, 3.0))
        _plain_log(axes.yaxis, (1.0, 2.0, 5.0))
        axes.grid(True, axis="both", which="major")
        axes.set_title(op)
        axes.set_xlabel("useful FLOPs per byte moved once")
    panels[0, 0].set_ylabel("TFLOP/s")
    handles = [
        Line2D([], [], ls="", marker="o", color=COLORS[OURS], label=f"{OURS}, even sizes"),
        Line2D([], [], ls="", marker="o", mfc="white", mec=COLORS[OURS], mew=1.3, label=f"{OURS}, other sizes"),
        Line2D([], [], ls="", marker="_", ms=9, mew=1.8, color=_PEER_INK, label="best peer"),
        Line2D([], [], color=INK, lw=1.5, label=f"copy {bandwidth * 1e-9:.0f} GB/s, dense {top:.3g} TFLOP/s"),
    ]
    top_legend(figure, handles)
    return figure


def skew(data: dict[str, Any]) -> Figure | None:
    """How the rate changes with the sizes, for the shapes that were timed under at least three draws."""
    by_panel: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for op in _OPS[:3]:
        for case in cases_of(data, op):
            by_panel.setdefault((shape_name(case), op), {})[case["draw"]] = case
    by_panel = {key: found for key, found in by_panel.items() if len(found) >= 3}
    if not by_panel:
        return None
    shapes = list(dict.fromkeys(shape for shape, _ in by_panel))
    ops = list(dict.fromkeys(op for _, op in by_panel))
    families = families_of([case for found in by_panel.values() for case in found.values()], (OURS, *PEERS))
    size = (max(6.5, 3.5 * len(ops)), 0.8 + 2.6 * len(shapes))
    figure, panels = plt.subplots(len(shapes), len(ops), figsize=size, squeeze=False, layout="constrained")
    for row, shape in enumerate(shapes):
        top = 0.0
        for column, op in enumerate(ops):
            axes, found = panels[row, column], by_panel.get((shape, op), {})
            top = max(top, _skew_panel(axes, found, families))
            axes.set_title(f"{shape} · {op}")
        for axes in panels[row]:
            axes.set_ylim(0, 1.08 * top or 1)
        panels[row, 0].set_ylabel("TFLOP/s of useful work")
    handles = [Line2D([], [], color=COLORS[f], marker="o", lw=1.8, label=f) for f in families]
    top_legend(figure, handles)
    return figure


def _skew_panel(axes: Any, found: dict[str, dict[str, Any]], families: list[str]) -> float:
    """The highest rate drawn."""
    draws = [draw for draw in DRAW_TITLES if draw in found]
    top = 0.0
    for family in reversed(families):  # ours last, on top
        rates = [rate(found[d], fastest(found[d], family)) for d in draws]
        top = max(top, *(r or 0.0 for r in rates), 0.0)
        style = {"lw": 2.2, "ms": 6} if family == OURS else {"lw": 1.3, "ms": 4}
        heights = [float("nan") if r is None else r for r in rates]
        axes.plot(range(len(draws)), heights, "o-", color=COLORS[family], **style)
    axes.set_xticks(range(len(draws)))
    axes.set_xticklabels([DRAW_TITLES[d] for d in draws], fontsize=8)
    axes.set_xlim(-0.4, len(DRAW_TITLES) - 0.6)
    return top
