# SPDX-License-Identifier: Apache-2.0
"""Horizontal bars, one a peer: the bandwidth of activations, and the host time of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.figure_data import cases_of, counts, shape_name
from benchmarks.figure_style import COLORS, INK
from benchmarks.operations import ACT, ACTIVATIONS, HOST, HOST_COSTS

_Groups = list[tuple[str, dict[str, Any]]]


def activation(data: dict[str, Any]) -> Figure | None:
    """Bytes a second of the activations, beside a plain copy."""
    words = {ACT: "forward"}
    groups = [(f"{shape_name(c)}, {words.get(op, 'gradient')}", c) for op in ACTIVATIONS for c in cases_of(data, op)]
    title = "SwiGLU: GB/s, each byte counted once"
    figure = _bars(groups, lambda case, us: case["bytes"] / us * 1e-3, "GB/s", title)
    if figure is not None:
        axes, bandwidth = figure.axes[0], data["copy_bytes_per_second"] * 1e-9
        axes.axvline(bandwidth, color=INK, lw=1.2, ls=(0, (2, 1.5)), zorder=0)
        axes.set_xlim(right=max(axes.get_xlim()[1], 1.15 * bandwidth))
        here = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8}
        axes.annotate(f"copy {bandwidth:.0f}", (bandwidth, 1), (3, -2), ha="left", va="top", **here)
    return figure


def host(data: dict[str, Any]) -> Figure | None:
    """Host time of one call; shorter is better."""
    words = {HOST: "forward"}
    groups = [(words.get(op, "forward and backward"), c) for op in HOST_COSTS for c in cases_of(data, op)]
    shape = groups[0][1]["shape"] if groups else {}
    title = f"Host time of one call: {shape.get('G')} groups, {shape.get('K')} x {shape.get('N')} (less is better)"
    return _bars(groups, lambda case, us: us, "microseconds", title)


def _bars(groups: _Groups, value: Callable[[dict, float], float], label: str, title: str) -> Figure | None:
    groups = [(name, case) for name, case in groups if any(counts(e) for e in case["peers"].values())]
    if not groups:
        return None
    count = sum(1 + sum(counts(e) for e in case["peers"].values()) for _, case in groups)
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.25 * count), layout="constrained")
    place, ticks = 0.0, []
    for group, case in groups:
        axes.annotate(
            group,
            (0, place),
            (3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            weight="bold",
            fontsize=9,
        )
        for name, entry in case["peers"].items():
            if not counts(entry):
                continue
            place += 1.0
            length = value(case, entry["us"]["median"])
            axes.barh(place, length, color=COLORS.get(entry["family"], "#BBBBBB"), height=0.82)
            # On white, so that the line of a bound does not go through the digits.
            here = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axes.annotate(f"{length:.4g}", (length, place), (3, 0), bbox=white, **here)
            ticks.append((place, name))
        place += 1.2
    axes.set_yticks([tick[0] for tick in ticks])
    axes.set_yticklabels([tick[1] for tick in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.5, -0.7)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.set_title(title)
    return figure
