# SPDX-License-Identifier: Apache-2.0
"""What is made of samples: medians with their spread, and means of ratios. Needs the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between the two nearest of `ordered`."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summary(samples: Iterable[float]) -> dict[str, float]:
    """Median, quartiles, extremes, and the spread: the interquartile range over the median."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no samples.")
    low, middle, high = (quantile(ordered, q) for q in (0.25, 0.5, 0.75))
    return {
        "median": middle,
        "p25": low,
        "p75": high,
        "min": ordered[0],
        "max": ordered[-1],
        "spread": (high - low) / middle if middle else 0.0,
        "n": len(ordered),
    }


def geometric_mean(ratios: Iterable[float]) -> float:
    """NaN for none."""
    logs = [math.log(r) for r in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
