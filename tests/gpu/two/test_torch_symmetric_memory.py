# SPDX-License-Identifier: Apache-2.0
"""`out` and `dgrad_out` in symmetric memory: a peer reads the same bits in place, and nothing copies in between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import two_ranks
from torch.profiler import ProfilerActivity, profile

from torch_grouped import GroupedLinear, GroupedMLP

G, K, F, T = 8, 1024, 512, 4096
SIZES = (900, 0, 700, 1, 300, 1024, 512, 400)  # 3837 rows, 259 in the tail
SENTINEL = 7.0


class Window:
    """Symmetric memory of this rank and the same memory of the other."""

    def __init__(self, device: torch.device) -> None:
        import torch.distributed as dist
        import torch.distributed._symmetric_memory as symmetric_memory

        self.mine = symmetric_memory.empty(T, K, dtype=torch.bfloat16, device=device)
        group = dist.distributed_c10d._get_default_group()
        self.handle = symmetric_memory.rendezvous(self.mine, group)
        other = 1 - dist.get_rank()
        self.others = self.handle.get_buffer(other, (T, K), torch.bfloat16)
        assert self.others.data_ptr() != self.mine.data_ptr()


def _module(kind: str, device: torch.device):
    torch.manual_seed(5)  # the same on both ranks
    if kind == "linear":
        return GroupedLinear(G, K, K, bias=False, params_dtype=torch.bfloat16, device=device)
    return GroupedMLP(G, K, F, bias=False, params_dtype=torch.bfloat16, device=device)


def _inputs(rank: int, device: torch.device):
    generator = torch.Generator("cpu").manual_seed(rank)
    x, dy = (torch.randn(T, K, generator=generator).bfloat16().to(device) for _ in range(2))
    sizes = torch.tensor(SIZES if rank == 0 else SIZES[::-1], device=device)
    return x, dy, sizes


def a_peer_reads_the_same_bits(rank: int, device: torch.device) -> None:
    out, dgrad_out = Window(device), Window(device)
    S = sum(SIZES)
    for kind in ("linear", "mlp"):
        module = _module(kind, device)
        for _ in range(2):  # the windows are used again
            x, dy, sizes = _inputs(rank, device)
            x.requires_grad_()
            for window in (out, dgrad_out):
                window.mine.fill_(SENTINEL)
            y = module(x * 1, sizes, out=out.mine, dgrad_out=dgrad_out.mine)
            assert y.data_ptr() == out.mine.data_ptr()
            y.backward(dy)
            for window in (out, dgrad_out):
                window.handle.barrier()

            # What the other rank computed, computed here without any buffer.
            x, dy, sizes = _inputs(1 - rank, device)
            x.requires_grad_()
            expected = module(x, sizes)
            expected.backward(dy)
            assert x.grad is not None
            two_ranks.assert_equal(out.others[:S], expected.detach()[:S], f"the peer's y of {kind}")
            two_ranks.assert_equal(dgrad_out.others[:S], x.grad[:S], f"the peer's dx of {kind}")
            for window in (out, dgrad_out):
                assert bool((window.others[S:] == SENTINEL).all()), "the tail was written"
                window.handle.barrier()


def the_gradient_handed_upstream_is_the_window(rank: int, device: torch.device) -> None:
    out, dgrad_out = Window(device), Window(device)
    x, dy, sizes = _inputs(rank, device)
    inner, seen = (x.requires_grad_() * 1), []
    inner.register_hook(lambda g: seen.append(g.data_ptr()))
    _module("mlp", device)(inner, sizes, out=out.mine, dgrad_out=dgrad_out.mine).backward(dy)
    assert seen == [dgrad_out.mine.data_ptr()]


def _on_device(trace: profile) -> list[str]:
    """The names of everything that ran on the device."""
    return [e.name for e in trace.events() or [] if e.device_type.name == "CUDA"]


def _copies(names: list[str]) -> list[str]:
    """Copies by the copy engine, or by a kernel that copies elements."""
    return [n for n in names if "memcpy" in n.lower() or "copy_kernel" in n.lower()]


def nothing_copies_between(rank: int, device: torch.device) -> None:
    """A trace of everything that runs on the device: products and activations, no copy of any size."""
    out, dgrad_out = Window(device), Window(device)
    for kind in ("linear", "mlp"):
        module = _module(kind, device)
        x, dy, sizes = _inputs(rank, device)
        inner = x.requires_grad_().view_as(x)  # no leaf, whose gradient autograd would copy

        def step(x=inner, dy=dy, sizes=sizes, module=module):
            y = module(x, sizes, out=out.mine, dgrad_out=dgrad_out.mine)
            torch.autograd.grad(y, (x, *module.parameters()), dy, retain_graph=False)

        step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
        names = _on_device(trace)
        assert names, "the trace shows nothing"
        if rank == 0:
            print(f"{kind}: {len(names)} on the device: {sorted({n[:60] for n in names})}")
        assert not _copies(names), names
        # The control: the same trace does show a copy where there is one.
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            torch.empty_like(out.mine).copy_(out.mine)
            torch.cuda.synchronize()
        assert _copies(_on_device(trace))


def test_symmetric_memory():
    two_ranks.spawn(
        "cuda", a_peer_reads_the_same_bits, the_gradient_handed_upstream_is_the_window, nothing_copies_between
    )


def test_the_example():
    """One expert-parallel layer forward and backward, against one process."""
    program = Path(__file__).resolve().parents[3] / "examples" / "torch_expert_parallel.py"
    environment = {**os.environ, "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NCCL_NVLS_ENABLE": "0"}
    result = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=240, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "symmetric memory, read in place" in result.stdout
    assert result.stdout.count("the same bits as in one process: True") == 3
