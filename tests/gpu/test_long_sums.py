# SPDX-License-Identifier: Apache-2.0
"""Weight gradients of thousands of rows a group, added to what a buffer holds: the shapes for which accumulating takes
turns unforced, and what the result held comes through the buffers of its pieces."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cases import draw
from repeated_wgrad import repeated_wgrad
from tolerances import assert_bits, assert_close

SIZES = np.array([2049, 0, 1500, 4500])
K, N = 328, 200  # of each side a whole tile and one that is not


@pytest.mark.parametrize("layout", ["gnk", "gkn"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_long_sums(rng, layout, dtype):
    x, dy = draw(rng, (SIZES.sum(), K), "bf16"), draw(rng, (SIZES.sum(), N), "bf16")
    old = draw(rng, (len(SIZES), N, K) if layout == "gnk" else (len(SIZES), K, N), dtype)
    result = repeated_wgrad(x, dy, SIZES, old, accumulate=True, launches=20, layout=layout)
    assert_close(result, reference.grouped_wgrad(x, dy, SIZES, layout=layout, old=old), SIZES.max() + 1)
    assert_bits(result[1], old[1], "the empty group")
