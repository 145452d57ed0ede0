# SPDX-License-Identifier: Apache-2.0
"""install() on a GPU: torch's grouped_mm on the core, against fp64, in graphs, compiled, and never synchronising."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Case
from frameworks import DEVICE, from_torch, to_torch
from products import KINDS, Product, draw_product
from tolerances import assert_bits, assert_close

import torch_grouped
from grouped_core import Op, call_count
from torch_grouped import _install, functional

# Rows of 16 bytes, as torch wants them; an empty group, a tail, no multiple of a tile.
CASE = Case("gpu", 400, 72, 136, (150, 0, 3, 190))
BATCH = Case("gpu_batch", 40, 72, 136, (40, 40, 40))


@pytest.fixture(autouse=True)
def give_back():
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch_grouped.uninstall()


def operands(rng, kind: str, of_b: str = "rows") -> tuple[Product, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    problem = draw_product(rng, BATCH if kind == "batch" else CASE, "bf16", kind)
    a, b = to_torch(problem.a), to_torch(problem.b)
    if kind == "contraction":  # as a gradient of a weight has it
        a = a.mT.contiguous().mT
    if of_b == "columns":
        b = b.mT.contiguous().mT
    offs = None if problem.offs is None else torch.from_numpy(problem.offs).to(DEVICE)
    return problem, a, b, offs


def calls() -> int:
    return sum(call_count(op) for op in Op)


def without_synchronisation(function):
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return function()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_b", ["rows", "columns"])
def test_torchs_grouped_mm_is_the_cores(rng, kind, of_b):
    problem, a, b, offs = operands(rng, kind, of_b)
    # Theirs stops the device at ends that are no multiples of 16 bytes where they cut rows.
    theirs = F.grouped_mm(a, b, offs=None if offs is None else (offs + 7) // 8 * 8)
    torch_grouped.install()
    before = calls()
    y = without_synchronisation(lambda: F.grouped_mm(a, b, offs=offs))
    assert calls() == before + 1
    assert (y.dtype, y.shape, y.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    expected, terms = problem.expected()
    assert_close(from_torch(y), expected, terms)
    assert not problem.tail(y).any()
    assert_bits(from_torch(y), from_torch(functional.grouped_mm(a, b, offs=offs)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_b", ["rows", "columns"])
def test_gradients_are_torchs_formulas_on_the_core(rng, kind, of_b):
    problem, a, b, offs = operands(rng, kind, of_b)
    a.requires_grad_()
    b.requires_grad_()
    torch_grouped.install()
    before = calls()

    def step():
        y = F.grouped_mm(a, b, offs=offs)
        dy = torch.randn_like(y)
        return dy, torch.autograd.grad(y, (a, b), dy)

    dy, found = without_synchronisation(step)
    assert calls() == before + 3
    for f, gradient in zip(found, problem.gradients(from_torch(dy)), strict=True):
        expected, terms = gradient.expected()
        assert_close(from_torch(f), expected, terms)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
def test_functional_grouped_mm(rng, kind, dtype):
    """Odd sizes too, which torch's own refuses; with a buffer the same bits."""
    problem = draw_product(rng, Case("odd", 61, 35, 23, (30, 0, 1, 20)), dtype, kind)
    a, b = to_torch(problem.a), to_torch(problem.b)
    offs = None if problem.offs is None else torch.from_numpy(problem.offs).to(DEVICE)
    y = without_synchronisation(lambda: functional.grouped_mm(a, b, offs=offs))
    expected, terms = problem.expected()
    assert_close(from_torch(y), expected, terms)
    assert not problem.tail(y).any()
    out = torch.full_like(y, 7)
    found = functional.grouped_mm(a, b, offs=offs, out=out)
    assert found.data_ptr() == out.data_ptr()
    assert_bits(from_torch(problem.defined(out)), from_torch(problem.defined(y)))
    assert bool((problem.tail(out) == 7).all())


def test_what_is_not_served_runs_on_torchs_kernel(rng, monkeypatch):
    _, a, b, offs = operands(rng, "rows", "columns")
    S = int(offs[-1]) if offs is not None else 0
    theirs = F.grouped_mm(a, b, offs=offs)[:S]
    monkeypatch.setattr(_install, "_fits", lambda *operands: False)
    torch_grouped.install()
    before = calls()
    assert torch.equal(F.grouped_mm(a, b, offs=offs)[:S], theirs)
    assert calls() == before


def test_the_other_device_is_left_alone(rng):
    _, a, b, offs = operands(rng, "rows")
    torch_grouped.install("cpu")
    before = calls()
    F.grouped_mm(a, b, offs=offs)
    assert calls() == before


def test_a_graph_replays_with_new_ends(rng):
    problem, a, b, offs = operands(rng, "rows", "columns")
    assert offs is not None
    torch_grouped.install()
    F.grouped_mm(a, b, offs=offs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = F.grouped_mm(a, b, offs=offs)
    a.copy_(torch.randn_like(a))
    for sizes in ([100, 100, 100, 100], [0, 0, 0, 400], [1, 2, 3, 4], [0, 0, 0, 0]):
        offs.copy_(torch.tensor(np.cumsum(sizes), dtype=torch.int32))
        y.fill_(float("nan"))
        graph.replay()
        again = Product("rows", from_torch(a), problem.b, np.array(sizes))
        expected, terms = again.expected()
        assert_close(from_torch(y), expected, terms)


def test_a_batch_captured_first_and_used_later(rng):
    """The ends of equal groups are kept between calls; not those made inside a graph, whose memory is the graph's."""
    a, b = (torch.randn(s, device=DEVICE, dtype=torch.bfloat16) for s in ((5, 33, 64), (5, 64, 72)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = functional.grouped_mm(a, b)
    graph.replay()
    captured = y.clone()
    del graph, y
    torch.empty(1 << 20, device=DEVICE).fill_(float("nan"))
    assert_bits(from_torch(functional.grouped_mm(a, b)), from_torch(captured))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = functional.grouped_mm(a, b)
    side.synchronize()
    assert_bits(from_torch(found), from_torch(captured))


def test_compiled_model(rng):
    _, a, b, offs = operands(rng, "rows", "columns")
    a, b = a.nan_to_num(), b.nan_to_num()

    def step(a, b, offs):
        return F.grouped_mm(a * 2, b, offs=offs) * 0.5

    torch_grouped.install()
    expected, compiled = step(a, b, offs), torch.compile(step, fullgraph=True)
    compiled(a, b, offs)
    before = calls()
    found = compiled(a, b, offs)
    assert calls() == before + 1
    assert_bits(from_torch(found), from_torch(expected))
