# SPDX-License-Identifier: Apache-2.0
"""The plot, the table, and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # draws without a screen
import matplotlib.pyplot as plt

COMPARED_STEPS = 50
LARGEST_DIFFERENCE = 1e-3
LOWEST_ACCURACY = 0.95
_STYLES = (  # wide below, thin and dashed above: curves that coincide stay visible
    {"color": "#f2b134", "linewidth": 5.0, "linestyle": "-", "zorder": 1},
    {"color": "#1f6fb4", "linewidth": 2.2, "linestyle": "-", "zorder": 2},
    {"color": "#111111", "linewidth": 1.1, "linestyle": (0, (4, 4)), "zorder": 3},
)


class Results(NamedTuple):
    """What one run found; arrays run over the models, in the order of `labels`."""

    labels: list[str]
    losses: np.ndarray  # [models, steps]
    accuracy: list[float]
    expert_rows: list[np.ndarray]
    moved: list[int | None]  # buffers seen away from their address; None where there are none
    copies: list[str]
    aliased_kernels: int
    seconds: float


def differences(losses: np.ndarray) -> np.ndarray:
    """The spread of the curves at each step."""
    return losses.max(axis=0) - losses.min(axis=0)


def draw(results: Results, path: Path) -> None:
    """Writes the loss curves and, below, how far they are apart."""
    steps = np.arange(1, results.losses.shape[1] + 1)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 6.4), sharex=True, height_ratios=(2.6, 1), layout="constrained"
    )
    # Drawn from the last to the first, so that the widest line is the plain model's.
    order = reversed(range(len(results.labels)))
    for style, i in zip(_STYLES, order, strict=True):
        label = f"{results.labels[i]}  (test accuracy {results.accuracy[i]:.1%})"
        above.plot(steps, results.losses[i], label=label, **style)
    above.set_yscale("log")
    above.set_ylabel("training loss, load balance included")
    above.set_title("One mixture of experts trained three times: same weights, same batches")
    above.legend(frameon=False)

    floor = 1e-8  # a difference of exactly zero has no place on a logarithmic axis
    reference = results.losses[-1]
    for color, line, i in (("#1f6fb4", "-", 1), ("#111111", (0, (4, 4)), 0)):
        apart = np.maximum(np.abs(results.losses[i] - reference), floor)
        below.plot(steps, apart, color=color, linestyle=line, linewidth=1.1, label=f"{results.labels[i]} − plain")
    limit = {"xmin": 0, "xmax": COMPARED_STEPS, "color": "#c0392b", "linewidth": 1.6}
    below.hlines(LARGEST_DIFFERENCE, **limit, label="limit")
    below.set_yscale("log")
    below.set_ylim(floor / 2, 1e-2)
    below.set_ylabel("|difference of loss|\n(0 drawn at 1e-8)")
    below.set_xlabel("step")
    below.legend(frameon=False, ncols=3, loc="upper right", fontsize="small")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    above.set_xlim(0, len(steps))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def table(results: Results) -> str:
    """What the run found, for people."""
    lines = [f"{'':14}  test accuracy  rows per expert (test)   buffers that moved"]
    for label, accuracy, rows, moved in zip(
        results.labels, results.accuracy, results.expert_rows, results.moved, strict=True
    ):
        share = rows / rows.sum()
        away = "has none" if moved is None else f"{moved} in {results.losses.shape[1]} steps"
        lines.append(f"{label:14}  {accuracy:13.1%}  {share.min():8.1%} to {share.max():.1%}       {away}")
    gap = differences(results.losses)[:COMPARED_STEPS].max()
    lines += [
        "",
        f"largest difference of the loss curves, first {COMPARED_STEPS} steps: {gap:.1e} "
        f"(must be below {LARGEST_DIFFERENCE:.0e})",
        f"copies of a buffer in the compiled JAX step: {len(results.copies)}; "
        f"kernels that write into a donated buffer: {results.aliased_kernels}",
        f"seconds: {results.seconds:.0f}",
    ]
    return "\n".join(lines)


def broken_claims(results: Results, buffers: int) -> list[str]:
    """A sentence for each claim that this run did not bear out."""
    found = []
    for label, accuracy, rows, moved in zip(
        results.labels, results.accuracy, results.expert_rows, results.moved, strict=True
    ):
        if not accuracy >= LOWEST_ACCURACY:
            found.append(f"{label} reached {accuracy:.1%} on the test images; {LOWEST_ACCURACY:.0%} is claimed.")
        if rows.min() == 0:
            found.append(f"{label} gave expert {rows.argmin()} no row at all.")
        if moved:
            found.append(f"{label} returned {moved} arrays that were not the caller's buffers.")
    gap = differences(results.losses)[:COMPARED_STEPS].max()
    if not gap < LARGEST_DIFFERENCE:
        found.append(
            f"The loss curves are {gap:.1e} apart; less than {LARGEST_DIFFERENCE:.0e} is claimed. With a seed other "
            f"than the default the cause can be a tie between two experts, see examples/README.md."
        )
    if results.copies:
        found.append("The compiled JAX step makes copies of buffers:\n  " + "\n  ".join(results.copies))
    if results.aliased_kernels < buffers:
        found.append(
            f"Only {results.aliased_kernels} kernels of the compiled JAX step write into a donated buffer; "
            f"{buffers} were donated."
        )
    return found
