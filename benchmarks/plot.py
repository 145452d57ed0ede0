# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks plot`: the figures of a results file, one image each, drawn from nothing but that file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from benchmarks import figures, figures_lists, figures_scatter
from benchmarks.figure_style import apply_style, save
from benchmarks.operations import MLP, OPERATIONS, PRODUCTS
from benchmarks.results import load


def plot(arguments: argparse.Namespace) -> int:
    """Draws what the file has data for; 1 if that is nothing."""
    data = load(arguments.results)
    apply_style()
    wanted: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        *((f"bars_{op}", lambda d, op=op: figures.bars(d, op)) for op in (*PRODUCTS, MLP)),
        ("roofline", figures_scatter.roofline),
        ("skew", figures_scatter.skew),
        ("jax", figures.jax_before_after),
        ("activation", figures_lists.activation),
        ("host", figures_lists.host),
    ]
    drawn = []
    for name, draw in wanted:
        figure = draw(data)
        if figure is not None:
            drawn.append(save(figure, Path(arguments.out) / f"{name}.{arguments.format}", data))
    for path in drawn:
        print(path)
    if not drawn:
        print(f"{arguments.results} has no case of {', '.join(OPERATIONS)}")
    return 0 if drawn else 1
