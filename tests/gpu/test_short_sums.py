# SPDX-License-Identifier: Apache-2.0
"""Weight gradients of many groups of at most one block of rows, again and again.

The warps that multiply then hand their turns over after one step, which is when one of them could miss its turn. One of
the runs of `make gpu-test` forces turns and work on demand.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import draw
from repeated_wgrad import repeated_wgrad
from tolerances import assert_bits, assert_close

G = 96
# Several tiles a group, some of them not whole, of a number of pieces that 3 does not divide; and multiples of 64, of
# which results are sent in whole lines where memory is fast.
SHAPES = [(296, 776), (320, 832)]


def _sizes(rng: np.random.Generator) -> np.ndarray:
    """At most one block of 64 rows each; some are empty, some exactly whole."""
    sizes = rng.integers(0, 65, G)
    sizes[rng.integers(0, G, 9)] = 64
    return sizes


@pytest.mark.parametrize(("K", "N"), SHAPES)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["overwrite", "accumulate"])
def test_short_sums(rng, accumulate, dtype, K, N):
    sizes = _sizes(rng)
    T = int(sizes.sum()) + 5
    x, dy = draw(rng, (T, K), "bf16"), draw(rng, (T, N), "bf16")
    old = draw(rng, (G, N, K), dtype)
    result = repeated_wgrad(x, dy, sizes, old, accumulate=accumulate, launches=100)
    assert_close(result, reference.grouped_wgrad(x, dy, sizes, old=old if accumulate else None), 64 + accumulate)
    if accumulate:
        empty = sizes == 0
        assert_bits(result[empty], old[empty])
