# SPDX-License-Identifier: Apache-2.0
"""How every figure looks: colours that the colour-blind tell apart, the same for a peer everywhere, and its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

OURS = "torch_grouped"
# Families in the order of the bars; ours first and alone in a strong colour.
COLORS = {
    "torch_grouped": "#0072B2",
    "jax_grouped": "#56B4E9",
    "QuACK": "#E69F00",
    "torch grouped_mm": "#CC79A7",
    "DeepGEMM": "#009E73",
    "torch.mm loop": "#BBBBBB",
    "jax.lax.ragged_dot": "#D55E00",
    "Pallas ragged_dot_mgpu": "#F0C27B",
    "tokamax": "#8C6D31",
    "cuDNN moe_grouped_matmul": "#76B900",
    "torch.compile": "#E69F00",
    "torch eager": "#BBBBBB",
    "XLA": "#D55E00",
}
INK, FAINT = "#222222", "#DDDDDD"
DRAW_TITLES = {
    "even": "even\nsizes",
    "multinomial": "multi-\nnomial",
    "zipf": "Zipf\n0.8",
    "one": "one takes\nall",
    "empty": "20 %\nempty",
}


def apply_style() -> None:
    """For all figures of a run."""
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 160,
            "font.size": 9,
            "svg.hashsalt": "grouped",  # the same file for the same numbers
            "svg.fonttype": "none",  # text stays text: half the size
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#888888",
            "axes.labelcolor": INK,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": FAINT,
            "grid.linewidth": 0.7,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.bottom": False,
            "legend.frameon": False,
        }
    )


def save(figure: Figure, path: Path, data: dict[str, Any]) -> Path:
    """With the source of the numbers in the lower corner."""
    strip = 0.2 / figure.get_figheight()
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, strip, 1, 1 - strip))  # pyright: ignore[reportCallIssue]
    text = source_of(data)
    figure.text(0.995, 0.2 * strip, text, ha="right", va="bottom", fontsize=7, color="#777777")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A test reads the source back: figures and numbers on a page are of one file.
    metadata = {"Date": None, "Source": text} if path.suffix == ".svg" else {"Software": None, "Source": text}
    figure.savefig(path, metadata=metadata)
    plt.close(figure)
    return path


def source_of(data: dict[str, Any]) -> str:
    """Whose numbers a figure shows."""
    return f"{data['name']} · commit {data['commit'][:9]} · {data['date'][:10]}"


def top_legend(figure: Figure, handles: list[Any]) -> None:
    """Above all panels, in as many rows as it takes."""
    inches = [0.45 + 0.075 * len(str(handle.get_label())) for handle in handles]
    columns = len(handles)
    while columns > 1 and columns * max(inches) > figure.get_figwidth() and sum(inches) > figure.get_figwidth() - 0.3:
        columns -= 1
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.2)


def draw_title(draw: str) -> str:
    """On one line."""
    return DRAW_TITLES[draw].replace("-\n", "").replace("\n", " ")


def name_ticks(axes: Any, positions: list[float], labels: list[str]) -> None:
    """Names of shapes below the bars, at an angle once they would touch."""
    many = sum(len(label) for label in labels) > 55
    axes.set_xticks(positions)
    axes.set_xticklabels(labels, rotation=28 if many else 0, ha="right" if many else "center", rotation_mode="anchor")
