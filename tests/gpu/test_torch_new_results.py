# SPDX-License-Identifier: Apache-2.0
"""Results that one native call makes and fills, on a GPU: the bits of the operators, and no synchronisation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from frameworks import DEVICE, from_torch
from tolerances import assert_bits

from grouped_core import DirectCalls, Op
from torch_grouped import _direct, functional

T, G, K, N = 700, 3, 64, 72  # rows that both kernel families take, and a tail


class _Recorded:
    """In the place of `_direct.calls`: which operations made a new result."""

    def __init__(self, real) -> None:
        self.real, self.made = real, []
        self.check, self.run = real.check, real.run

    def create(self, op: int, *others):
        result = self.real.create(op, *others)
        assert result is not None, Op(op)
        self.made.append(op)
        return result


def _linear(x, weight, sizes):
    return functional.grouped_linear(x, weight, sizes)


def _product(x, weight, sizes):
    return functional.grouped_mm(x, weight.mT, offs=sizes.cumsum(0).int())


def _activation(x, weight, sizes):
    return functional.grouped_activation(x, sizes, "swiglu") + 0 * weight.sum()


def _mlp(x, weight, sizes):
    second = torch.ones(G, 40, N // 2, dtype=x.dtype, device=DEVICE) / 8
    return functional.grouped_mlp(x, weight, second, sizes)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"]
)  # Hopper's kernels, portable ones
@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (_linear, [Op.MM], [Op.MM, Op.WGRAD]),
        (_product, [Op.MM], [Op.MM, Op.WGRAD]),
        (_activation, [Op.ACTIVATION], []),
        (_mlp, [Op.MM, Op.ACTIVATION, Op.MM], []),
    ],
)
def test_new_results_have_the_bits_of_the_operators(monkeypatch, dtype, function: Callable, forward, backward):
    x = torch.randn(T, K, dtype=dtype, device=DEVICE)
    weight, sizes = torch.randn(G, N, K, dtype=dtype, device=DEVICE), torch.tensor([400, 0, 250], device=DEVICE)
    x[650:] = float("nan")
    recorded = _Recorded(_direct.calls)

    def results(calls) -> list[torch.Tensor]:
        monkeypatch.setattr(_direct, "calls", calls)
        leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
        with torch.no_grad():
            without_grad = function(*leaves, sizes)
        y = function(*leaves, sizes)
        # The tail of x is poison, so that of dy may be: it reaches no gradient of the linear ones.
        return [without_grad, y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, expected = results(recorded), results(None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert recorded.made == [*forward, *forward, *backward]
    for f, e in zip(found, expected, strict=True):
        assert_bits(from_torch(f), from_torch(e))
    assert not found[0][650:].any()


def test_memory_comes_from_where_compiled_code_takes_it(monkeypatch):
    on_cpu, on_cuda, current_device, dtypes = _direct._quick_memory()
    assert current_device() == torch.cuda.current_device()
    taken = []

    def recorded(*given):
        taken.append(given)
        return on_cuda(*given)

    exchange = torch.Tensor.__dlpack_c_exchange_api__  # pyright: ignore[reportAttributeAccessIssue]
    quick_memory = (on_cpu, recorded, current_device, dtypes)
    monkeypatch.setattr(_direct, "calls", DirectCalls(exchange, _direct._PLAIN, quick_memory))
    x = torch.randn(T, K, dtype=torch.bfloat16, device=DEVICE)
    weight, sizes = torch.randn(G, N, K, dtype=x.dtype, device=DEVICE), torch.tensor([400, 0, 250], device=DEVICE)
    y = functional.grouped_linear(x, weight, sizes)
    assert taken == [((T, N), (N, 1), torch.bfloat16)]
    assert y.device == DEVICE
    y.record_stream(torch.cuda.Stream(DEVICE))  # torch's own storage takes both
    assert y.resize_(2 * T, N).shape == (2 * T, N)
