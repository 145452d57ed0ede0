# SPDX-License-Identifier: Apache-2.0
"""Work for two processes of torch.distributed: gloo on CPU here, NCCL with a GPU each on a machine that has two.

Each worker asserts for itself; `spawn` fails with the traceback of the process that did.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from torch_grouped import GroupedLinear, GroupedMLP, ScaledSwiGLU, Sequential
from torch_grouped.functional import grouped_linear

RANKS = 2
G, K, F, T = 4, 16, 24, 40
SIZES = (9, 0, 20, 7)


def spawn(device: str, *workers: Callable[[int, torch.device], None]) -> None:
    """Runs each ``worker(rank, device)`` in the same two processes, which are one group."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rendezvous")
        mp.spawn(_enter, args=(workers, device, path), nprocs=RANKS)  # pyright: ignore[reportPrivateImportUsage]


def _enter(rank: int, workers: tuple[Callable[[int, torch.device], None], ...], device: str, path: str) -> None:
    here = torch.device(device, rank) if device == "cuda" else torch.device(device)
    options: dict[str, Any] = {}
    if device == "cuda":
        torch.cuda.set_device(here)
        options["device_id"] = here
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{path}", rank=rank, world_size=RANKS, **options)
    try:
        for worker in workers:
            worker(rank, here)
            dist.barrier()
    finally:
        dist.destroy_process_group()


def all_gather(tensor: Tensor) -> list[Tensor]:
    """Every rank's tensor, by copies."""
    found = [torch.empty_like(tensor) for _ in range(RANKS)]
    dist.all_gather(found, tensor.contiguous())
    return found


def assert_equal(found: Tensor, expected: Tensor, what: str) -> None:
    """Bit for bit."""
    if not torch.equal(found, expected):
        difference = (found.double() - expected.double()).abs().max().item()
        raise AssertionError(f"{what}: differs by up to {difference:.3g}")


def model(kind: str, device: torch.device) -> nn.Module:
    """The same weights in every process."""
    torch.manual_seed(1)
    made: nn.Module
    if kind == "linear":
        made = GroupedLinear(G, K, K)
    elif kind == "mlp":
        made = GroupedMLP(G, K, F)
    else:
        made = Sequential(GroupedLinear(G, K, 2 * F), ScaledSwiGLU(), GroupedLinear(G, F, K))
    return made.to(device)


def forward(kind: str, module: nn.Module, x: Tensor, sizes: Tensor, probs: Tensor, **buffers: Tensor) -> Tensor:
    """One call with the arguments that this kind takes."""
    if kind == "linear":
        return module(x, sizes, **buffers)
    if kind == "mlp":
        return module(x, sizes, probs, **buffers)
    return module(x, sizes, probs, sizes)


def batch(step: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x, sizes and probabilities, other in each step and on each rank."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(T, K, generator=generator).to(device)
    sizes = torch.tensor(SIZES if rank == 0 else SIZES[::-1], device=device)
    return x, sizes, torch.rand(T, generator=generator).to(device)


def fsdp_trains_as_one_process(rank: int, device: torch.device) -> None:
    """FSDP2 over two ranks takes the steps that one process takes on both batches. It hands modules plain tensors.

    Bit for bit: the mean of two gradients is exact but for one rounding, on whichever side of it they are halved.
    """
    for kind in ("linear", "mlp", "container"):
        _fsdp_trains_as_one_process(rank, device, kind)


def _fsdp_trains_as_one_process(rank: int, device: torch.device, kind: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    alone = model(kind, device)
    sharded = copy.deepcopy(alone)
    fully_shard(sharded, mesh=init_device_mesh(device.type, (RANKS,)))
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (alone, sharded)]
    for step in range(3):
        x, sizes, probs = batch(step, rank, device)
        y = forward(kind, sharded, x, sizes, probs)
        y.pow(2).mean().backward()
        with torch.no_grad():
            assert_equal(y.detach(), forward(kind, alone, x, sizes, probs), f"y of {kind} in step {step}")
        for other in range(RANKS):
            x, sizes, probs = batch(step, other, device)
            (forward(kind, alone, x, sizes, probs).pow(2).mean() / RANKS).backward()
        parameters = dict(sharded.named_parameters())
        for name, p in alone.named_parameters():
            gradient = parameters[name].grad
            assert isinstance(gradient, DTensor)
            assert p.grad is not None
            assert_equal(gradient.full_tensor(), p.grad, f"the gradient of {name} of {kind} in step {step}")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def dtensor_parameters_through_local_tensors(rank: int, device: torch.device) -> None:
    """Experts sharded over ranks (dimension 0): each computes its own, and the gradient is a DTensor again."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = init_device_mesh(device.type, (RANKS,))
    torch.manual_seed(2)
    weight = torch.randn(G, F, K, device=device)
    # Any: nn.Parameter of a DTensor is one.
    parameter: Any = nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
    x, sizes, _ = batch(0, 0, device)
    mine = slice(rank * G // RANKS, (rank + 1) * G // RANKS)
    begin = int(sizes[: mine.start].sum())
    rows = slice(begin, begin + int(sizes[mine].sum()))
    local = parameter.to_local()
    y = grouped_linear(x[rows].contiguous(), local, sizes[mine].contiguous())
    y.sum().backward()
    assert isinstance(parameter.grad, DTensor)

    whole = weight.clone().requires_grad_()
    expected = grouped_linear(x, whole, sizes)
    expected.sum().backward()
    assert whole.grad is not None
    assert_equal(y.detach(), expected.detach()[rows], "y")
    assert_equal(parameter.grad.to_local(), whole.grad[mine], "dW")
