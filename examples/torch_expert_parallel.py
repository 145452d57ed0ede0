# SPDX-License-Identifier: Apache-2.0
"""PyTorch: a mixture-of-experts layer whose experts live on two ranks, without a copy before combine or dispatch.

Each rank holds half of the experts. The experts' output and the gradient of their input are written straight into
memory that the other rank can read (``out`` and ``dgrad_out`` of `GroupedMLP`), so whoever owns a token fetches its
rows from there: on two GPUs through torch's symmetric memory, elsewhere on CPU with gloo, which has to copy. No size
leaves the device. At the end every number is compared, bit for bit, with one process that holds all experts.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from torch_grouped import GroupedMLP

RANKS, EXPERTS, TOP_K = 2, 8, 2
TOKENS, HIDDEN, FFN = 96, 64, 32  # tokens of each rank
LOCAL = EXPERTS // RANKS
PAIRS = TOKENS * TOP_K  # (token, expert) pairs of each rank
CAPACITY = RANKS * PAIRS  # rows that a rank gets at most


class Window:
    """Rows of this rank that every rank can read."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self._handle = None
        shape = (rows, HIDDEN)
        if like.is_cuda:
            import torch.distributed._symmetric_memory as symmetric_memory

            group = dist.distributed_c10d._get_default_group()
            self.mine = symmetric_memory.empty(*shape, dtype=like.dtype, device=like.device)
            self._handle = symmetric_memory.rendezvous(self.mine, group)
            self._all = [self._handle.get_buffer(rank, shape, like.dtype) for rank in range(RANKS)]
        else:
            self.mine = like.new_empty(shape)

    @contextlib.contextmanager
    def of_all(self) -> Iterator[list[Tensor]]:
        """The window of each rank, while no rank writes: all have written before, none goes on before all have read."""
        if self._handle is None:
            copies = [torch.empty_like(self.mine) for _ in range(RANKS)]
            dist.all_gather(copies, self.mine)
            yield copies
            return
        self._handle.barrier()
        yield self._all
        self._handle.barrier()


class Place(NamedTuple):
    """For each row, the rank that has it and where in that rank's window; rows past the last are on no rank."""

    rank: Tensor
    row: Tensor

    def fetch(self, window: Window) -> Tensor:
        """The rows from wherever they are; zeros for those on no rank."""
        with window.of_all() as windows:
            found = windows[0].new_zeros(len(self.row), HIDDEN)
            for rank, rows in enumerate(windows):
                there = (self.rank == rank)[:, None]
                found = torch.where(there, rows[self.row.clamp(0, len(rows) - 1)], found)
        return found


def before(counts: Tensor) -> Tensor:
    """How many come before each, along the last dimension."""
    return counts.cumsum(-1) - counts


class Route:
    """Where the rows of one batch go and come from, worked out on the device from the routers' choices."""

    def __init__(self, experts: Tensor, rank: int) -> None:
        device, chosen = experts.device, experts.reshape(-1)
        self.order = chosen.argsort(stable=True)
        mine = torch.zeros(EXPERTS, dtype=torch.int64, device=device).scatter_add_(0, chosen, torch.ones_like(chosen))
        gathered = [torch.empty_like(mine) for _ in range(RANKS)]
        dist.all_gather(gathered, mine)
        counts = torch.stack(gathered)  # [rank of the token, expert]
        # A rank's rows lie by expert, and within an expert by the rank that they come from.
        blocks = counts.view(RANKS, RANKS, LOCAL).permute(1, 2, 0)  # [rank of the expert, expert there, rank of token]
        begins = before(blocks.flatten(1))  # [rank of the expert, block]
        self.m_splits = blocks[rank].sum(-1)

        # Rows that this rank's experts get: from which rank, and where its sorted pairs have them.
        row = torch.arange(CAPACITY, device=device)
        ends = blocks[rank].flatten().cumsum(0)
        block = torch.searchsorted(ends, row, right=True).clamp(max=LOCAL * RANKS - 1)
        source, expert = block % RANKS, rank * LOCAL + block // RANKS
        in_use = row < ends[-1]
        offset = row - begins[rank][block]
        self.arriving = Place(torch.where(in_use, source, -1), before(counts)[source, expert] + offset)

        # This rank's sorted pairs: at which rank their expert is, and where it has them.
        pair = torch.arange(PAIRS, device=device)
        expert = chosen[self.order]
        owner, block = expert // LOCAL, expert % LOCAL * RANKS + rank
        self.returning = Place(owner, begins[owner, block] + pair - before(mine)[expert])

    def sort(self, pairs: Tensor) -> Tensor:
        """[tokens, k, hidden] as rows ordered by expert."""
        return pairs.reshape(PAIRS, HIDDEN)[self.order]

    def unsort(self, rows: Tensor) -> Tensor:
        """Back again."""
        pairs = torch.empty_like(rows)
        pairs[self.order] = rows
        return pairs.view(TOKENS, TOP_K, HIDDEN)


class Windows(NamedTuple):
    """Buffers for the whole run: layers and steps may share them, because nothing saves them."""

    sent: Window
    out: Window
    dgrad: Window


class Dispatch(torch.autograd.Function):
    """Rows to the experts; gradients of those rows back to the tokens, fetched from where fc1's backward put them."""

    @staticmethod
    def forward(x: Tensor, route: Route, windows: Windows) -> Tensor:
        windows.sent.mine[:PAIRS] = route.sort(x[:, None].expand(-1, TOP_K, -1))
        return route.arriving.fetch(windows.sent)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.route, ctx.windows = inputs

    @staticmethod
    def backward(ctx, d_rows: Tensor) -> tuple:
        in_window(d_rows, ctx.windows.dgrad)
        return ctx.route.unsort(ctx.route.returning.fetch(ctx.windows.dgrad)).sum(1), None, None


class Combine(torch.autograd.Function):
    """Expert outputs to the tokens, fetched from where fc2 put them; their gradients to the experts."""

    @staticmethod
    def forward(y: Tensor, route: Route, windows: Windows) -> Tensor:
        in_window(y, windows.out)
        return route.unsort(route.returning.fetch(windows.out))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.route, ctx.windows = inputs

    @staticmethod
    def backward(ctx, d_pairs: Tensor) -> tuple:
        ctx.windows.sent.mine[:PAIRS] = ctx.route.sort(d_pairs)
        return ctx.route.arriving.fetch(ctx.windows.sent), None, None


def in_window(tensor: Tensor, window: Window) -> None:
    """There must have been no copy on the way."""
    if tensor.data_ptr() != window.mine.data_ptr():
        raise RuntimeError("the rows are not in the window: something copied them")


def expert_parallel(x: Tensor, experts: Tensor, probs: Tensor, mlp: GroupedMLP, windows: Windows, rank: int) -> Tensor:
    """The layer: x [tokens, hidden] through each token's experts, weighted by probs [tokens, k]."""
    route = Route(experts, rank)
    rows = Dispatch.apply(x, route, windows)
    y = mlp(rows, route.m_splits, out=windows.out.mine, dgrad_out=windows.dgrad.mine)
    return (Combine.apply(y, route, windows) * probs[:, :, None]).sum(1)


def in_one_process(x: Tensor, experts: Tensor, probs: Tensor, mlp: GroupedMLP) -> Tensor:
    """The same layer where all tokens and all experts are at hand."""
    chosen = experts.reshape(-1)
    order = chosen.argsort(stable=True)
    sizes = torch.bincount(chosen, minlength=EXPERTS)
    rows = mlp(x.repeat_interleave(TOP_K, 0)[order], sizes)
    pairs = torch.zeros_like(rows).index_copy(0, order, rows).view(len(x), TOP_K, HIDDEN)
    return (pairs * probs[:, :, None]).sum(1)


def gathered(tensor: Tensor) -> Tensor:
    """Every rank's rows, one after another."""
    found = [torch.empty_like(tensor) for _ in range(RANKS)]
    dist.all_gather(found, tensor.contiguous())
    return torch.cat(found)


def gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise RuntimeError("backward left no gradient")
    return tensor.grad


def run(rank: int, device_type: str, rendezvous: str) -> None:
    """One rank: two steps, each compared with one process."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    backend = "nccl" if device_type == "cuda" else "gloo"
    if device_type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    dtype = torch.bfloat16 if device_type == "cuda" else torch.float32
    torch.manual_seed(0)  # the same experts everywhere; each rank then keeps its own
    whole = GroupedMLP(EXPERTS, HIDDEN, FFN, bias=False, params_dtype=dtype, device=device)
    mlp = GroupedMLP(LOCAL, HIDDEN, FFN, bias=False, params_dtype=dtype, device=device)
    here = slice(rank * LOCAL, (rank + 1) * LOCAL)
    mlp.load_state_dict({name: weight[here] for name, weight in copy.deepcopy(whole.state_dict()).items()})
    like = torch.empty(0, dtype=dtype, device=device)
    windows = Windows(Window(PAIRS, like), Window(CAPACITY, like), Window(CAPACITY, like))

    same = torch.ones(3, dtype=torch.int64, device=device)
    for step in range(2):
        torch.manual_seed(10 * step + rank + 1)
        x = torch.randn(TOKENS, HIDDEN, device=device, dtype=dtype, requires_grad=True)
        probs, experts = torch.randn(TOKENS, EXPERTS, device=device).softmax(-1).topk(TOP_K)
        probs = probs.to(dtype)
        y = expert_parallel(x, experts, probs, mlp, windows, rank)
        y.backward(torch.ones_like(y))

        x_all = gathered(x.detach()).requires_grad_()
        y_all = in_one_process(x_all, gathered(experts), gathered(probs), whole)
        y_all.backward(torch.ones_like(y_all))
        tokens = slice(rank * TOKENS, (rank + 1) * TOKENS)
        pairs = [(y, y_all[tokens]), (gradient(x), gradient(x_all)[tokens])]
        for mine, every in zip(mlp.parameters(), whole.parameters(), strict=True):
            pairs.append((gradient(mine), gradient(every)[here]))
        equal = [torch.equal(a, b) for a, b in pairs]
        same *= torch.tensor([equal[0], equal[1], all(equal[2:])], device=device)
        mlp.zero_grad()
        whole.zero_grad()

    dist.all_reduce(same, dist.ReduceOp.MIN)
    found = [bool(value) for value in same.tolist()]
    if rank == 0:
        transport = "symmetric memory, read in place" if device_type == "cuda" else "gloo on CPU, with copies"
        print(f"ranks: {RANKS}, transport: {transport}")
        for what, value in zip(("output", "input gradient", "weight gradients"), found, strict=True):
            print(f"{what} the same bits as in one process: {value}")
    dist.destroy_process_group()
    if not all(found):
        sys.exit(1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        device_type = "cuda" if torch.cuda.device_count() >= RANKS else "cpu"
        mp.spawn(run, args=(device_type, str(Path(folder) / "rendezvous")), nprocs=RANKS)  # pyright: ignore[reportPrivateImportUsage]
