# SPDX-License-Identifier: Apache-2.0
"""GroupedLinear on a GPU as TransformerEngine's users know it, and calls that go past torch's dispatcher there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frameworks import DEVICE, Guarded, from_torch, grad_of
from tolerances import assert_bits

from torch_grouped import GroupedLinear, _direct, _ops, functional

BF16 = torch.bfloat16


def new(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE)


def layer(groups: int, K: int, N: int, **options) -> GroupedLinear:
    return GroupedLinear(groups, K, N, bias=False, params_dtype=BF16, device="cuda", **options)


# What their own test of caller-provided buffers asserts: aliasing, the bits of an internal allocation, a tail that
# keeps its content, and an error for another shape. Their sizes, and a tail behind them.
@pytest.mark.parametrize("provided", [("out",), ("dgrad_out",), ("out", "dgrad_out")], ids="-".join)
@pytest.mark.parametrize("groups", [[64, 96, 80], [240]], ids=["three_groups", "one_group"])
def test_caller_provided_buffers(provided, groups):
    S, T, K, N = 240, 320, 128, 128
    module = layer(len(groups), K, N)
    m_splits = torch.tensor(groups, device=DEVICE)
    x, dy = new(T, K), new(T, N)
    x[S:], dy[S:] = float("nan"), float("nan")

    def step(**buffers):
        leaf = x.clone().requires_grad_()
        inner = leaf.view_as(leaf)
        seen: list[int] = []
        inner.register_hook(lambda g: seen.append(g.data_ptr()))
        y = module(inner, m_splits, **buffers)
        y.backward(dy)
        return y, grad_of(leaf), seen

    expected_y, expected_dx, _ = step()
    guarded = {n: Guarded((T, K if n == "dgrad_out" else N), BF16) for n in provided}
    buffers = {n: g.tensor.fill_(7) for n, g in guarded.items()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, dx, seen = step(**buffers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for g in guarded.values():
        g.check()
        assert bool((g.tensor[S:] == 7).all())
    if "out" in buffers:
        assert y.data_ptr() == buffers["out"].data_ptr()
    if "dgrad_out" in buffers:
        assert seen == [buffers["dgrad_out"].data_ptr()]
        assert_bits(from_torch(buffers["dgrad_out"][:S]), from_torch(expected_dx[:S]))
    assert_bits(from_torch(y[:S]), from_torch(expected_y[:S]))
    assert_bits(from_torch(dx[:S]), from_torch(expected_dx[:S]))
    for name, buffer in buffers.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            step(**{name: torch.empty(T + 1, buffer.shape[1], dtype=BF16, device=DEVICE)})


@pytest.mark.parametrize("delayed", [False, True], ids=["", "delayed"])
def test_accumulation_into_fp32(delayed):
    """Three microbatches into main_grad have the bits of three accumulating calls of the operation."""
    T, K, N, groups = 300, 64, 72, [100, 0, 150]
    module = layer(3, K, N, fuse_wgrad_accumulation=True, delay_wgrad_compute=delayed)
    weight: Any = module.weight  # with the attributes that a training loop adds
    weight.main_grad = torch.zeros(3, N, K, device=DEVICE)
    weight.grad_added_to_main_grad = False
    sizes = torch.tensor(groups, device=DEVICE)
    expected = torch.zeros(3, N, K, device=DEVICE)
    for first in (True, False, False):
        x, dy = new(T, K), new(T, N)
        module(x, sizes, is_first_microbatch=first).backward(dy)
        if delayed:
            module.backward_dw()
        _ops.wgrad(x, dy, sizes, expected, 0, not first)
    assert_bits(from_torch(weight.main_grad), from_torch(expected))
    assert weight.grad_added_to_main_grad is True


def test_delayed_gradient_has_the_bits_of_the_other():
    T, K, N = 200, 64, 136
    plain, delayed = layer(2, K, N), layer(2, K, N, delay_wgrad_compute=True)
    delayed.load_state_dict(plain.export_te_state_dict())
    x, dy, sizes = new(T, K), new(T, N), torch.tensor([90, 100], device=DEVICE)
    plain(x, sizes).backward(dy)
    delayed(x, sizes).backward(dy)
    assert delayed.weight.grad is None
    delayed.backward_dw()
    assert_bits(from_torch(grad_of(delayed.weight)), from_torch(grad_of(plain.weight)))


# --- past the dispatcher ---------------------------------------------------------------------------------------------


def test_direct_calls_are_served_with_the_bits_of_the_operator():
    assert _direct.calls is not None, "this torch offers no DLPack exchange interface"
    x, weight, sizes = new(100, 64), new(3, 72, 64), torch.tensor([50, 0, 40], device=DEVICE)
    direct, dispatched = new(100, 72), new(100, 72)
    options = _ops._options(0, True)
    assert _direct.calls.run(_ops.Op.MM, (x, weight, sizes, None, None, direct), options, 1)
    torch.ops.grouped_ffi.linear.default(x, weight, sizes, None, None, dispatched, None, None, 0, True)
    assert_bits(from_torch(direct), from_torch(dispatched))


@pytest.mark.parametrize("T", [100, 8192])
def test_calls_run_on_the_current_stream(T):
    """x is written on a side stream after a long wait there: a call on another stream would read what it was before."""
    x, weight = torch.zeros(T, 64, dtype=BF16, device=DEVICE), new(2, 72, 64)
    late, sizes = new(T, 64), torch.tensor([T // 2, T // 2], device=DEVICE)
    expected = functional.grouped_linear(late, weight, sizes)
    functional.grouped_linear(x, weight, sizes)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.copy_(late)
        y = functional.grouped_linear(x, weight, sizes)
    side.synchronize()
    assert_bits(from_torch(y), from_torch(expected))


def test_a_call_leaves_no_memory_behind():
    x, weight, sizes = new(512, 64), new(4, 64, 64), torch.tensor([128] * 4, device=DEVICE)
    out = torch.empty(512, 64, dtype=BF16, device=DEVICE)
    functional.grouped_linear(x, weight, sizes, out=out)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        functional.grouped_linear(x, weight, sizes, out=out)
    assert torch.cuda.memory_allocated() == before
