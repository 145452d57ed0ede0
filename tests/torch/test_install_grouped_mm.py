# SPDX-License-Identifier: Apache-2.0
"""install(): torch's own grouped_mm runs on the core where it can, torch's kernel elsewhere, and all is given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import BY_NAME
from products import Product, draw_product
from test_grouped_mm import DTYPES, every_kind, offs_of, stored
from tolerances import assert_bits, assert_close
from torch_calls import to_numpy, to_torch

import torch_grouped
from grouped_core import Op, call_count
from torch_grouped import functional

EVEN, TAIL = BY_NAME["even"], BY_NAME["tail"]


@pytest.fixture(autouse=True)
def give_back():
    yield
    torch_grouped.uninstall()


def calls() -> int:
    return sum(call_count(op) for op in Op)


def operands(problem: Product, *, of_a="rows", of_b="rows"):
    return stored(problem.a, of_a), stored(problem.b, of_b), offs_of(problem)


def test_the_state_is_told_and_given_back():
    assert torch_grouped.installed() == ()
    torch_grouped.install("cpu")
    assert torch_grouped.installed() == ("cpu",)
    torch_grouped.install()
    assert torch_grouped.installed() == ("cpu", "cuda")
    torch_grouped.install("cuda", "cpu")
    assert torch_grouped.installed() == ("cpu", "cuda")
    torch_grouped.uninstall()
    torch_grouped.uninstall()
    assert torch_grouped.installed() == ()


def test_as_a_context(rng):
    a, b, offs = operands(draw_product(rng, EVEN, "bf16", "rows"))
    before = calls()
    with torch_grouped.install("cpu"):
        F.grouped_mm(a, b, offs=offs)
        assert calls() == before + 1
    F.grouped_mm(a, b, offs=offs)
    assert calls() == before + 1
    with pytest.raises(ZeroDivisionError), torch_grouped.install("cpu"):
        _ = 1 // 0
    assert torch_grouped.installed() == ()


def test_a_block_takes_back_what_it_did_and_no_more(rng):
    a, b, offs = operands(draw_product(rng, EVEN, "bf16", "rows"))

    def on_the_core() -> bool:
        before = calls()
        F.grouped_mm(a, b, offs=offs)
        return calls() > before

    with torch_grouped.install("cpu"):
        with torch_grouped.install("cpu", "cuda"):
            assert torch_grouped.installed() == ("cpu", "cuda")
        assert torch_grouped.installed() == ("cpu",)
        assert on_the_core()
        with pytest.raises(ZeroDivisionError), torch_grouped.install():
            _ = 1 // 0
        assert on_the_core()
    assert not on_the_core()
    with torch_grouped.install("cpu"):
        torch_grouped.uninstall()  # ends it all
        assert not on_the_core()
        torch_grouped.install("cpu")
    assert on_the_core()  # of the second one, which no block ends


def test_cuda_alone_leaves_the_cpu_to_torch(rng):
    a, b, offs = operands(draw_product(rng, EVEN, "bf16", "rows"))
    before = calls()
    with torch_grouped.install():
        F.grouped_mm(a, b, offs=offs)
    assert calls() == before


def test_unknown_device():
    with pytest.raises(ValueError, match='device must be one of "cpu", "cuda"; got \'tpu\''):
        torch_grouped.install("tpu")
    assert torch_grouped.installed() == ()


@every_kind
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("of_b", ["rows", "columns"])
@pytest.mark.parametrize("entry", ["functional", "private", "aten"])
def test_every_entry_reaches_the_core(rng, dtype, kind, of_b, entry):
    private = torch._grouped_mm  # pyright: ignore[reportPrivateImportUsage]
    function = {"functional": F.grouped_mm, "private": private, "aten": torch.ops.aten._grouped_mm}[entry]
    problem = draw_product(rng, EVEN, dtype, kind)
    a, b, offs = operands(problem, of_b=of_b)
    theirs = function(a, b, offs=offs)
    before = calls()
    with torch_grouped.install("cpu"):
        y = function(a, b, offs=offs)
    assert calls() == before + 1
    assert (y.dtype, y.shape, y.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    assert_bits(to_numpy(y), to_numpy(functional.grouped_mm(a, b, offs=offs)))
    expected, terms = problem.expected()
    assert_close(to_numpy(y), expected, terms)


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_the_tail_is_zero(rng, kind):
    problem = draw_product(rng, TAIL, "f32", kind)
    b = problem.b if kind == "rows" else np.pad(problem.b, ((0, 0), (0, 2)))  # torch wants rows of 16 bytes
    problem = Product(kind, problem.a, b, problem.sizes)
    a, b, offs = operands(problem)
    with torch_grouped.install("cpu"):
        y = F.grouped_mm(a, b, offs=offs)
    assert not problem.tail(y).any()
    assert torch.isfinite(y).all()


def test_rows_that_are_no_multiple_of_16_bytes_are_stored_as_torch_does(rng):
    a, w = torch.randn(32, 16).bfloat16(), torch.randn(2, 7, 16).bfloat16()
    offs = torch.tensor([8, 32], dtype=torch.int32)
    theirs = F.grouped_mm(a, w.mT, offs=offs)
    with torch_grouped.install("cpu"):
        y = F.grouped_mm(a, w.mT, offs=offs)
    assert y.stride() == theirs.stride() == (8, 1)
    assert_bits(to_numpy(y), to_numpy(functional.grouped_mm(a, w.mT, offs=offs)))


@every_kind
def test_gradients_are_torchs_formulas_on_the_core(rng, kind):
    problem = draw_product(rng, EVEN, "bf16", kind)
    a, b, offs = operands(problem)
    a.requires_grad_()
    b.requires_grad_()
    before = calls()
    with torch_grouped.install("cpu"):
        y = F.grouped_mm(a, b, offs=offs)
        dy = torch.randn_like(y)
        found = torch.autograd.grad(y, (a, b), dy)
    assert calls() == before + 3
    expected = torch.autograd.grad(functional.grouped_mm(a, b, offs=offs), (a, b), dy)
    for f, e in zip(found, expected, strict=True):
        assert_bits(to_numpy(f), to_numpy(e))


def test_expanded_gradient_that_torchs_own_refuses(rng):
    problem = draw_product(rng, EVEN, "bf16", "rows")
    a, b, offs = operands(problem)
    a.requires_grad_()
    b.requires_grad_()
    with pytest.raises(RuntimeError, match="Invalid strides"):
        F.grouped_mm(a, b, offs=offs).sum().backward()
    with torch_grouped.install("cpu"):
        F.grouped_mm(a, b, offs=offs).sum().backward()
    expected = torch.autograd.grad(functional.grouped_mm(a, b, offs=offs).sum(), (a, b))
    for t, e in zip((a, b), expected, strict=True):
        assert_bits(to_numpy(t.grad), to_numpy(e))


T, K, N, G = 32, 16, 24, 2
OFFS = torch.tensor([8, 32], dtype=torch.int32)
NOT_SERVED = {
    "bias": {"bias": torch.ones(G, N)},
    "out_dtype": {"out_dtype": torch.float64},
    "f64": {"a": torch.ones(T, K).double(), "b": torch.ones(G, K, N).double()},
    "two_dtypes": {"b": torch.ones(G, K, N).bfloat16()},
    "no_offs": {"offs": None},
    "too_many_offs": {"offs": torch.tensor([1, 2, 3], dtype=torch.int32)},
    "int64_offs": {"offs": OFFS.long()},
    "k": {"b": torch.ones(G, N, K)},
    "rank": {"a": torch.ones(K)},
    "batch": {"a": torch.ones(3, T, K), "offs": None},
}


@pytest.mark.parametrize("changes", NOT_SERVED.values(), ids=NOT_SERVED.keys())
def test_what_is_not_served_is_torchs_business(changes):
    arguments = {"a": torch.ones(T, K), "b": torch.ones(G, K, N), "offs": OFFS, **changes}

    def outcome():
        a, b, others = arguments["a"], arguments["b"], {n: v for n, v in arguments.items() if n not in "ab"}
        try:
            return to_numpy(F.grouped_mm(a, b, **others)).tobytes()
        except RuntimeError as error:
            return str(error)

    expected, before = outcome(), calls()
    with torch_grouped.install("cpu"):
        assert outcome() == expected
    assert calls() == before


def test_a_call_that_torch_serves_falls_back_to_its_kernel(monkeypatch):
    # Not only refusals: a result of torch's own kernel comes back through the exchanged one.
    from torch_grouped import _install

    monkeypatch.setattr(_install, "_fits", lambda *operands: False)
    a, b = torch.randn(T, K), torch.randn(G, K, N)
    expected, before = F.grouped_mm(a, b, offs=OFFS), calls()
    with torch_grouped.install("cpu"):
        assert torch.equal(F.grouped_mm(a, b, offs=OFFS), expected)
    assert calls() == before


# What torch says of itself: see test_compile.py.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("N", [24, 7])
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_compiled_models_run_on_the_core(rng, backend, N):
    torch._dynamo.reset()
    a, w = torch.randn(T, K).bfloat16(), torch.randn(G, N, K).bfloat16()

    def step(a, w, offs):
        y = F.grouped_mm(a * 2, w.mT, offs=offs)
        return (y * 0.5).sum(), y

    def outcome(function):
        # torch traces no derivative with rows of 14 bytes
        leaves = [t.clone().requires_grad_(N == 24) for t in (a, w)]
        _, y = function(*leaves, OFFS)
        if N == 24:
            y.backward(torch.ones_like(y))
        return [to_numpy(t) for t in (y, *(t.grad for t in leaves if t.grad is not None))]

    with torch_grouped.install("cpu"):
        expected, before = outcome(step), calls()
        found = outcome(torch.compile(step, fullgraph=True, backend=backend))
    assert calls() == before + (3 if N == 24 else 1)
    for f, e in zip(found, expected, strict=True):
        assert_bits(f, e)
    torch._dynamo.reset()


def test_a_tracer_sees_torchs_operator(rng):
    from torch.fx.experimental.proxy_tensor import make_fx

    a, b, offs = operands(draw_product(rng, EVEN, "bf16", "rows"))
    with torch_grouped.install("cpu"):
        traced = make_fx(lambda a, b, offs: F.grouped_mm(a, b, offs=offs))(a, b, offs)
    assert torch.ops.aten._grouped_mm.default in {node.target for node in traced.graph.nodes}


def test_the_operands_may_hold_nan_past_the_last_group(rng):
    problem = draw_product(rng, EVEN, "bf16", "contraction")
    a, b = to_torch(problem.a), to_torch(problem.b)
    a[:, 40:], b[40:] = torch.nan, torch.nan
    offs = torch.tensor([16, 40], dtype=torch.int32)
    with torch_grouped.install("cpu"):
        assert torch.isfinite(F.grouped_mm(a, b, offs=offs)).all()


def test_the_example_runs():
    program = Path(__file__).resolve().parents[2] / "examples" / "torch_install.py"
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    assert result.stdout == "tail is zero: True\ngradient of the group without rows is zero: True\n", result.stderr
