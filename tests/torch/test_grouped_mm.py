# SPDX-License-Identifier: Apache-2.0
"""functional.grouped_mm: the four products of torch's grouped_mm, their storages, tails, buffers and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from cases import BY_NAME, CASES, SENTINEL, Case, draw
from numpy.typing import NDArray
from products import KINDS, Product, draw_product
from tolerances import assert_bits, assert_close
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch_calls import Witness, to_numpy, to_torch

from grouped_core import Op, call_count
from torch_grouped import functional

STORAGES = ("rows", "columns", "strided")
DTYPES = ("f16", "bf16", "f32", "f64")
HARD = BY_NAME["empty_middle"]


def stored(a: NDArray, storage: str) -> torch.Tensor:
    t = to_torch(a)
    if storage == "columns":
        return t.mT.contiguous().mT
    if storage == "strided":  # every second column of a wider one
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"))
        wide[..., ::2] = t
        return wide[..., ::2]
    return t


def offs_of(problem: Product) -> torch.Tensor | None:
    return None if problem.offs is None else torch.from_numpy(problem.offs)


def every_case(*names):
    return pytest.mark.parametrize("case", [BY_NAME[n] for n in names] if names else CASES, ids=str)


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@every_case()
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_against_fp64(rng, case, dtype, kind):
    problem = draw_product(rng, case, dtype, kind)
    y = functional.grouped_mm(to_torch(problem.a), to_torch(problem.b), offs=offs_of(problem))
    expected, terms = problem.expected()
    assert_close(to_numpy(y), expected, terms)
    assert not problem.tail(y).any()


@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_b", STORAGES)
@pytest.mark.parametrize("of_a", STORAGES)
def test_storages_of_the_operands_change_no_bit(rng, dtype, kind, of_a, of_b):
    problem = draw_product(rng, HARD, dtype, kind)
    expected, terms = problem.expected()
    plain = functional.grouped_mm(to_torch(problem.a), to_torch(problem.b), offs=offs_of(problem))
    assert_close(to_numpy(plain), expected, terms)
    found = functional.grouped_mm(stored(problem.a, of_a), stored(problem.b, of_b), offs=offs_of(problem))
    assert_bits(to_numpy(found), to_numpy(plain))


class Copies(TorchDispatchMode):
    """Operators that copy a tensor of more elements than an index has."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_, torch.ops.aten.contiguous):
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


# What costs no copy: the storages that the docstring promises.
@pytest.mark.parametrize(
    ("kind", "of_a", "of_b"),
    [
        ("rows", "rows", "rows"),
        ("rows", "rows", "columns"),
        ("contraction", "columns", "rows"),
        ("columns", "rows", "columns"),
        ("columns", "columns", "columns"),
        ("batch", "rows", "rows"),
        ("batch", "rows", "columns"),
    ],
)
def test_what_is_read_as_it_is_stored(rng, kind, of_a, of_b):
    problem = draw_product(rng, HARD, "bf16", kind)
    a, b = stored(problem.a, of_a), stored(problem.b, of_b)
    with Copies() as copies:
        functional.grouped_mm(a, b, offs=offs_of(problem))
    assert not copies.seen


@every_kind
def test_copies_are_noticed(rng, kind):
    problem = draw_product(rng, HARD, "bf16", kind)
    with Copies() as copies:
        functional.grouped_mm(stored(problem.a, "strided"), to_torch(problem.b), offs=offs_of(problem))
    assert copies.seen


# Sizes that torch's own accepts: rows of 16 bytes. It leaves the tail of its result as it found it.
@every_kind
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("of_b", ["rows", "columns"])
def test_same_product_as_torch(rng, dtype, kind, of_b):
    problem = draw_product(rng, BY_NAME["even"], dtype, kind)
    a, b, offs = to_torch(problem.a), stored(problem.b, of_b), offs_of(problem)
    theirs = F.grouped_mm(a, b, offs=offs)
    ours = functional.grouped_mm(a, b, offs=offs)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    expected, terms = problem.expected()
    assert_close(to_numpy(ours), expected, terms)
    # Theirs against the same truth, so that both mean the same product. It may round more than once.
    largest = np.abs(expected[0]).max()
    np.testing.assert_allclose(to_numpy(theirs).astype(np.float64), expected[0], atol=0.05 * largest)


def out_for(problem: Product, y: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    out = torch.full_like(y, SENTINEL, dtype=dtype)  # keeps the order of the dimensions in memory
    problem.defined(out).fill_(float("nan"))
    return out


@every_kind
@every_case("empty_middle", "one_group", "all_empty", "no_k", "odd_everything")
@pytest.mark.parametrize("dtype", ["bf16", "f64"])
def test_out(rng, case, dtype, kind):
    problem = draw_product(rng, case, dtype, kind)
    a, b, offs = to_torch(problem.a), to_torch(problem.b), offs_of(problem)
    y = functional.grouped_mm(a, b, offs=offs)
    out = out_for(problem, y)
    before = out._version
    found = functional.grouped_mm(a, b, offs=offs, out=out)
    assert found.data_ptr() == out.data_ptr()
    assert found.stride() == out.stride()
    assert out._version > before
    assert_bits(to_numpy(problem.defined(out)), to_numpy(problem.defined(y)))
    assert (problem.tail(out) == SENTINEL).all()


def test_out_of_a_contraction_may_be_stored_by_columns(rng):
    problem = draw_product(rng, HARD, "bf16", "contraction")
    a, b, offs = to_torch(problem.a), to_torch(problem.b), offs_of(problem)
    y = functional.grouped_mm(a, b, offs=offs)
    out = torch.full_like(y.mT.contiguous(), float("nan")).mT
    functional.grouped_mm(a, b, offs=offs, out=out)
    assert_bits(to_numpy(out), to_numpy(y))


@pytest.mark.parametrize("kind", ["rows", "columns", "contraction", "batch"])
def test_wider_result(rng, kind):
    problem = draw_product(rng, HARD, "bf16", kind)
    y = functional.grouped_mm(to_torch(problem.a), to_torch(problem.b), offs=offs_of(problem), out_dtype=torch.float32)
    assert y.dtype == torch.float32
    expected, terms = problem.expected()
    assert_close(to_numpy(y), expected, terms)


@pytest.mark.parametrize("vector", ["bf16", "f32"])
def test_bias(rng, vector):
    problem = draw_product(rng, HARD, "bf16", "rows")
    bias = draw(rng, (HARD.G, HARD.N), vector)
    y = functional.grouped_mm(to_torch(problem.a), to_torch(problem.b), offs=offs_of(problem), bias=to_torch(bias))
    assert_close(to_numpy(y), reference.grouped_mm(problem.a, problem.b, problem.sizes, bias, layout="gkn"), HARD.K + 1)


def test_bits_are_those_of_grouped_linear(rng):
    problem = draw_product(rng, HARD, "bf16", "rows")
    a, b = to_torch(problem.a), to_torch(problem.b)
    y = functional.grouped_linear(a, b, torch.from_numpy(problem.sizes), weight_layout="gkn")
    assert_bits(to_numpy(functional.grouped_mm(a, b, offs=offs_of(problem))), to_numpy(y))


def test_int64_ends(rng):
    problem = draw_product(rng, HARD, "bf16", "rows")
    a, b, offs = to_torch(problem.a), to_torch(problem.b), offs_of(problem)
    assert offs is not None
    assert_bits(
        to_numpy(functional.grouped_mm(a, b, offs=offs.long())), to_numpy(functional.grouped_mm(a, b, offs=offs))
    )


@every_kind
@every_case("empty_middle", "odd_everything", "one_row", "all_empty", "even")
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("with_out", [False, True], ids=["", "out"])
def test_gradients_against_fp64(rng, case, dtype, kind, with_out):
    """Each gradient is a product again, and so is what fp64 says of it."""
    problem = draw_product(rng, case, dtype, kind)
    a, b = (to_torch(t).requires_grad_() for t in (problem.a, problem.b))
    y = functional.grouped_mm(a, b, offs=offs_of(problem))
    if with_out:
        y = functional.grouped_mm(a, b, offs=offs_of(problem), out=out_for(problem, y.detach()))
    dy = draw(rng, tuple(y.shape), dtype)
    problem.tail(dy)[...] = np.nan
    da, db = torch.autograd.grad(y, (a, b), to_torch(dy))
    for name, found, gradient in zip("ab", (da, db), problem.gradients(dy), strict=True):
        expected, terms = gradient.expected()
        assert_close(to_numpy(found), expected, terms, what=name)


@every_kind
@pytest.mark.parametrize("of_a", ["rows", "columns"])
@pytest.mark.parametrize("of_b", ["rows", "columns"])
def test_gradients_to_the_second_order(rng, kind, of_a, of_b):
    shapes = {"rows": ((5, 3), (3, 3, 2)), "contraction": ((2, 5), (5, 3)), "columns": ((3, 2, 3), (3, 5))}
    shapes["batch"] = ((3, 2, 4), (3, 4, 2))
    sizes = np.array([2, 0, 1], np.int32)
    drawn_a, drawn_b = (draw(rng, shape, "f64") for shape in shapes[kind])
    problem = Product(kind, drawn_a, drawn_b, sizes)
    a, b = stored(problem.a, of_a).requires_grad_(), stored(problem.b, of_b).requires_grad_()

    def function(a, b):
        return functional.grouped_mm(a, b, offs=offs_of(problem))

    assert gradcheck(function, (a, b))
    assert gradgradcheck(function, (a, b))


def test_gradients_of_bias_to_the_second_order(rng):
    a, b, bias = (to_torch(draw(rng, s, "f64")).requires_grad_() for s in ((5, 3), (3, 3, 2), (3, 2)))
    offs = torch.tensor([2, 2, 3], dtype=torch.int32)

    def function(a, b, bias):
        return functional.grouped_mm(a, b, offs=offs, bias=bias).square()

    assert gradcheck(function, (a, b, bias))
    assert gradgradcheck(function, (a, b, bias))


@pytest.mark.parametrize("of_b", ["rows", "columns"])
def test_gradient_of_the_weight_has_its_storage(rng, of_b):
    problem = draw_product(rng, HARD, "bf16", "rows")
    a = to_torch(problem.a)
    b = stored(problem.b, of_b).requires_grad_()
    y = functional.grouped_mm(a, b, offs=offs_of(problem))
    (db,) = torch.autograd.grad(y, b, torch.ones_like(y))
    assert db.stride() == b.stride()


def test_gradient_of_a_wider_result(rng):
    problem = draw_product(rng, HARD, "bf16", "rows")
    a, b = (to_torch(t).requires_grad_() for t in (problem.a, problem.b))
    y = functional.grouped_mm(a, b, offs=offs_of(problem), out_dtype=torch.float32)
    dy = to_torch(draw(rng, tuple(y.shape), "bf16"))
    found = torch.autograd.grad(y, (a, b), dy.float())
    expected = torch.autograd.grad(functional.grouped_mm(a, b, offs=offs_of(problem)), (a, b), dy)
    for f, e in zip(found, expected, strict=True):
        assert_bits(to_numpy(f), to_numpy(e))


def test_gradient_that_is_expanded(rng):
    # Of a sum, for one. torch's own refuses it.
    problem = draw_product(rng, HARD, "f32", "rows")
    a = torch.nan_to_num(to_torch(problem.a)).requires_grad_()
    b = to_torch(problem.b).requires_grad_()
    functional.grouped_mm(a, b, offs=offs_of(problem)).sum().backward()
    expected = torch.autograd.grad(
        functional.grouped_mm(a, b, offs=offs_of(problem)), (a, b), torch.ones(HARD.T, HARD.N)
    )
    for found, e in zip((a.grad, b.grad), expected, strict=True):
        assert_bits(to_numpy(found), to_numpy(e))


def test_overwriting_out_that_something_saved_raises_in_backward(rng):
    problem = draw_product(rng, HARD, "f32", "rows")
    a, b = (to_torch(t).requires_grad_() for t in (problem.a, problem.b))
    out = torch.zeros(HARD.T, HARD.N)
    loss = functional.grouped_mm(a, b, offs=offs_of(problem), out=out).square().sum()
    functional.grouped_mm(a.detach(), b.detach(), offs=offs_of(problem), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert not out.requires_grad


@every_kind
def test_counts(rng, kind):
    problem = draw_product(rng, HARD, "f32", kind)
    before = [call_count(op) for op in Op]
    functional.grouped_mm(to_torch(problem.a), to_torch(problem.b), offs=offs_of(problem))
    grown = [op for op, n in zip(Op, before, strict=True) if call_count(op) != n]
    assert grown == [Op.WGRAD if kind == "contraction" else Op.MM]


@every_kind
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
# What torch says of itself: see test_compile.py.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_compiled(rng, kind, backend):
    torch._dynamo.reset()
    problem = draw_product(rng, HARD, "f32", kind)

    def step(a, b, offs):
        y = functional.grouped_mm(a * 2, b, offs=offs)
        return y, y.square().sum()

    def outcome(function):
        a, b = (torch.nan_to_num(to_torch(t)).requires_grad_() for t in (problem.a, problem.b))
        y, loss = function(a, b, offs_of(problem))
        loss.backward()
        return [to_numpy(t) for t in (y, a.grad, b.grad)]

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for found, expected in zip(outcome(compiled), outcome(step), strict=True):
        assert_bits(found, expected)
    torch._dynamo.reset()


@every_kind
# What torch says of itself: see test_compile.py.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
def test_compiled_once_for_every_number_of_rows(rng, kind):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda a, b, offs: functional.grouped_mm(a, b, offs=offs), fullgraph=True, backend=counter, dynamic=True
    )
    for T, sizes in ((40, (9, 0, 0, 22)), (40, (1, 2, 3, 4)), (55, (20, 20, 5, 5)), (8, (0, 0, 0, 0))):
        problem = draw_product(rng, Case("rows", T, 16, 33, sizes), "f32", kind)
        found = compiled(to_torch(problem.a), to_torch(problem.b), offs_of(problem))
        expected, terms = problem.expected()
        assert_close(to_numpy(found), expected, terms)
        assert not problem.tail(found).any()
    assert counter.frame_count == 1
    torch._dynamo.reset()


@every_kind
def test_exported(rng, kind):
    problem = draw_product(rng, HARD, "f32", kind)

    class Model(torch.nn.Module):
        def forward(self, a, b, offs):
            return functional.grouped_mm(a, b, offs=offs)

    arguments = to_torch(problem.a), to_torch(problem.b), offs_of(problem)
    exported = torch.export.export(Model(), arguments).module()
    assert_bits(to_numpy(exported(*arguments)), to_numpy(functional.grouped_mm(*arguments[:2], offs=arguments[2])))


def test_transforms_of_functorch(rng):
    problem = draw_product(rng, HARD, "f32", "rows")
    a, b, offs = to_torch(problem.a), to_torch(problem.b), offs_of(problem)
    found = torch.func.grad(lambda b: functional.grouped_mm(a, b, offs=offs).sum())(b)
    b.requires_grad_()
    functional.grouped_mm(a, b, offs=offs).sum().backward()
    assert_bits(to_numpy(found), to_numpy(b.grad))


def test_out_is_handed_downstream_and_its_gradient_back(rng):
    problem = draw_product(rng, HARD, "f32", "rows")
    a, b = to_torch(problem.a).requires_grad_(), to_torch(problem.b)
    seen: list[int] = []
    out = torch.empty(HARD.T, HARD.N)
    y = functional.grouped_mm(Witness.apply(a, seen), b, offs=offs_of(problem), out=out)
    y.sum().backward()
    assert len(seen) == 1
    assert a.grad is not None
