# SPDX-License-Identifier: Apache-2.0
"""Two devices and several streams from one process: calls go where their tensors are."""

from __future__ import annotations

import copy
import functools
import threading

import pytest
import torch

from torch_grouped import GroupedLinear, GroupedMLP

SIZES = [100, 0, 73, 27]
G, K, F, T = 4, 256, 128, 224


@functools.cache
def _problem() -> tuple[GroupedMLP, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Drawn once, on the host: threads share torch's generator."""
    torch.manual_seed(0)
    module = GroupedMLP(G, K, F, params_dtype=torch.bfloat16)
    return module, torch.randn(T, K).bfloat16(), torch.rand(T).bfloat16(), torch.randn(T, K).bfloat16()


def step(device: int) -> list[torch.Tensor]:
    """One forward and backward of the same numbers on a device; the results on the host."""
    module, *tensors = _problem()
    module = copy.deepcopy(module).to(f"cuda:{device}")
    x, probs, dy = (t.to(f"cuda:{device}") for t in tensors)
    sizes = torch.tensor(SIZES, device=f"cuda:{device}")
    x.requires_grad_()
    out, dgrad_out = (torch.full((T, K), 7.0, dtype=torch.bfloat16, device=x.device) for _ in range(2))
    y = module(x * 1, sizes, probs, out=out, dgrad_out=dgrad_out)
    assert y.device == x.device
    y.backward(dy)
    results = [out, dgrad_out, *(p.grad for p in module.parameters() if p.grad is not None)]
    assert len(results) == 6
    return [t.detach().cpu() for t in results]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("device", [0, 1])
def test_the_tensors_device_counts_not_the_current_one(current, device):
    expected = step(0)
    with torch.cuda.device(current):
        assert_same(step(device), expected)
        assert torch.cuda.current_device() == current


@pytest.mark.parametrize("current", [0, 1])
def test_nothing_runs_on_the_other_devices_stream(current):
    """The first device sleeps; the second one's results do not wait for it."""
    for device in (0, 1):
        step(device)  # so that nothing is loaded below
    module = GroupedLinear(G, K, K, params_dtype=torch.bfloat16, device="cuda:1")
    x, sizes = torch.randn(T, K, device="cuda:1").bfloat16(), torch.tensor(SIZES, device="cuda:1")
    module(x, sizes)
    torch.cuda.synchronize(0)
    torch.cuda.synchronize(1)
    asleep = torch.cuda.Event()
    with torch.cuda.device(0):
        torch.cuda._sleep(2_000_000_000)  # about a second
        asleep.record()
    with torch.cuda.device(current):
        module(x, sizes)
    torch.cuda.synchronize(1)
    assert not asleep.query(), "the call waited for a device that it does not use"
    torch.cuda.synchronize(0)


def test_mixed_devices_are_refused_in_the_cores_words():
    module = GroupedLinear(G, K, K, device="cuda:0")
    x = torch.randn(T, K, device="cuda:0")
    with pytest.raises(ValueError, match="group_sizes must be on cuda:0, as x is; got cuda:1"):
        module(x, torch.tensor(SIZES, device="cuda:1"))
    with pytest.raises(ValueError, match="out must be on cuda:0, as x is; got cuda:1"):
        module(x, torch.tensor(SIZES, device="cuda:0"), out=torch.empty(T, K, device="cuda:1"))
    with pytest.raises(ValueError, match="dgrad_out must be on cuda:0, as x is; got cuda:1"):
        module(x, torch.tensor(SIZES, device="cuda:0"), dgrad_out=torch.empty(T, K, device="cuda:1"))
    with pytest.raises(ValueError, match="dgrad_out must be on cuda:0, as x is; got cuda:1"):
        GroupedMLP(G, K, F, device="cuda:0")(
            x, torch.tensor(SIZES, device="cuda:0"), dgrad_out=torch.empty(T, K, device="cuda:1")
        )


def test_a_stream_of_each_device_at_once():
    expected, found = step(0), {}
    streams = [torch.cuda.Stream(device=d) for d in (0, 1, 0, 1)]

    def work(i: int) -> None:
        device = i % 2
        with torch.cuda.device(device), torch.cuda.stream(streams[i]):
            found[i] = [step(device) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(streams))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3]
    for runs in found.values():
        for run in runs:
            assert_same(run, expected)
