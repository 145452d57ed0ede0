# SPDX-License-Identifier: Apache-2.0
"""Weight gradients of thousands of rows a group, added to what a buffer holds: the shapes for which accumulating takes
turns unforced, and what the result held comes through the buffers of its pieces."""

from __future__ import annotations

import pytest
import reference
import torch
from cases import draw
from frameworks import DEVICE, Guarded, from_torch, to_torch
from tolerances import assert_bits, assert_close

from torch_grouped.functional import grouped_linear

SIZES = (2049, 0, 1500, 4500)
K, N = 328, 200  # of each side a whole tile and one that is not
LAUNCHES = 20


@pytest.mark.parametrize("layout", ["gnk", "gkn"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_long_sums(rng, layout, dtype):
    shape = (len(SIZES), N, K) if layout == "gnk" else (len(SIZES), K, N)
    x, dy = draw(rng, (sum(SIZES), K), "bf16"), draw(rng, (sum(SIZES), N), "bf16")
    sizes, old = torch.tensor(SIZES, dtype=torch.int32, device=DEVICE), draw(rng, shape, dtype)
    weight = torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    gradient, held = to_torch(dy), to_torch(old)
    out = Guarded(shape, held.dtype)
    y = grouped_linear(to_torch(x), weight, sizes, wgrad_out=out.tensor, accumulate_wgrad=True, weight_layout=layout)

    def launch() -> torch.Tensor:
        out.tensor.copy_(held)
        torch.autograd.grad(y, [weight], gradient, allow_unused=True, retain_graph=True)
        return out.tensor

    first = launch().clone()
    for _ in range(LAUNCHES):
        assert torch.equal(launch(), first)
    out.check()
    result = from_torch(first)
    expected = reference.grouped_wgrad(x, dy, SIZES, layout=layout, old=old)
    assert_close(result, expected, max(SIZES) + 1)
    assert_bits(result[1], old[1], "the empty group")
