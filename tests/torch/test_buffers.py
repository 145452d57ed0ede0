# SPDX-License-Identifier: Apache-2.0
"""The contract on buffers of grouped_linear, line by line: what they may share, when that is said, what is written."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from cases import SENTINEL, Case
from problems import linear_problem, poisoned_buffer
from tolerances import assert_bits, assert_close
from torch_calls import Witness, leaves, to_numpy, to_torch

from torch_grouped.functional import grouped_linear

T, K, N, G = 8, 8, 8, 2  # x, out and dgrad_out of one size, so that any may take the memory of any
INPUTS = ("x", "weight", "bias", "row_scale", "group_sizes")
BUFFERS = ("out", "dgrad_out", "wgrad_out")
PAIRS = [(b, o) for b, o in product(BUFFERS, INPUTS + BUFFERS) if b != o]


def arguments() -> dict[str, Any]:
    return {
        "x": torch.ones(T, K),
        "weight": torch.ones(G, N, K),
        "group_sizes": torch.tensor([3, 2]),
        "bias": torch.ones(G, N),
        "row_scale": torch.ones(T),
        "out": torch.full((T, N), SENTINEL),
        "dgrad_out": torch.full((T, K), SENTINEL),
        "wgrad_out": torch.full((G, N, K), SENTINEL),
    }


def placed(memory: torch.Tensor, like: torch.Tensor, offset: int) -> torch.Tensor:
    """A tensor of that form in `memory`, from a byte on."""
    count = like.numel() * like.element_size()
    found = memory[offset : offset + count].view(like.dtype).view(like.shape)
    return found.copy_(like)


@pytest.mark.parametrize("needs_grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize(("buffer", "other"), PAIRS, ids=lambda name: name)
def test_a_buffer_shares_memory_with_nothing(buffer, other, needs_grad):
    """By its last 16 bytes; in forward, whichever pass would write it."""
    given = arguments()
    size = {name: t.numel() * t.element_size() for name, t in given.items()}
    memory = torch.zeros(4096, dtype=torch.uint8)
    given[buffer] = placed(memory, given[buffer], 1024)
    given[other] = placed(memory, given[other], 1024 + size[buffer] - 16)
    if needs_grad:
        given["weight"] = given["weight"].requires_grad_() if other != "weight" else given["weight"]
    before = memory.clone()
    with pytest.raises(ValueError, match=r"must not overlap .*; got memory that they share") as caught:
        grouped_linear(**given)
    assert buffer in str(caught.value)
    assert other in str(caught.value)
    assert torch.equal(memory, before)


@pytest.mark.parametrize(("buffer", "other"), PAIRS, ids=lambda name: name)
def test_neighbours_in_memory_are_no_overlap(buffer, other):
    given = arguments()
    memory = torch.zeros(4096, dtype=torch.uint8)
    size = given[buffer].numel() * given[buffer].element_size()
    given[buffer] = placed(memory, given[buffer], 1024)
    given[other] = placed(memory, given[other], 1024 + size)
    y = grouped_linear(**given)
    assert y.data_ptr() == given["out"].data_ptr()


@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("shift", [4, 8, 12])
def test_alignment(buffer, shift):
    given = arguments()
    memory = torch.zeros(4096, dtype=torch.uint8)
    given[buffer] = placed(memory, given[buffer], 1024 + shift)
    with pytest.raises(ValueError, match=rf"^{buffer} must be 16-byte aligned; got an address {shift} bytes past"):
        grouped_linear(**given)


def backward_into(dy_of, **buffers):
    given: dict[str, Any] = (
        arguments() | {"out": None, "dgrad_out": None, "wgrad_out": None, "row_scale": None} | buffers
    )
    x, weight = given["x"].requires_grad_(), given["weight"].requires_grad_()
    y = grouped_linear(**given)
    before = {name: b.clone() for name, b in buffers.items()}
    with pytest.raises(ValueError) as caught:
        y.backward(dy_of(buffers))
    for name, b in buffers.items():
        assert torch.equal(b, before[name]), f"{name} was written"
    assert x.grad is None
    assert weight.grad is None
    return str(caught.value)


@pytest.mark.parametrize("name", ["dgrad_out", "wgrad_out"])
def test_incoming_gradient_shares_no_memory_with_a_buffer_of_backward(name):
    shapes = {"dgrad_out": (T, K), "wgrad_out": (G, N, K)}
    buffer = torch.full(shapes[name], SENTINEL)
    message = backward_into(lambda b: b[name].view(-1)[: T * N].view(T, N), **{name: buffer})
    assert message == f"{name} must not overlap dy; got memory that they share. Pass memory of its own."


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda b: b.double(), TypeError),
        (lambda b: torch.empty(3), ValueError),
        (lambda b: b.transpose(-1, -2), ValueError),
        (lambda b: b.clone().requires_grad_(), ValueError),
        (lambda b: b.to("meta"), ValueError),
    ],
    ids=["dtype", "shape", "strides", "requires_grad", "device"],
)
def test_every_buffer_is_checked_in_forward(name, spoil, error):
    given = arguments()
    given["weight"].requires_grad_()
    given["x"].requires_grad_()
    given[name] = spoil(given[name])
    kept = {n: t.detach().clone() for n, t in given.items() if n in BUFFERS and n != name}
    with pytest.raises(error, match=f"^{name} must"):
        grouped_linear(**given)
    for n, t in kept.items():
        assert torch.equal(given[n], t)


def with_buffers(problem, dtype) -> dict[str, Any]:
    shapes = {"out": problem.dy.shape, "dgrad_out": problem.x.shape}
    return {n: to_torch(poisoned_buffer(s, dtype, problem.S, SENTINEL)) for n, s in shapes.items()}


# What other engines do by another way: one group as a plain product, and more groups than fit a kernel's arguments.
@pytest.mark.parametrize("groups", [1, 2, 64, 65, 127, 1024, 1025, 3000])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_any_number_of_groups(rng, groups, dtype):
    sizes = tuple(int(n) for n in rng.integers(0, 4, groups)) if groups > 2 else (5, 0)[:groups]
    case = Case("groups", sum(sizes) + 7, 9, 12, sizes)
    problem = linear_problem(rng, case, dtype, row_scale=False, layout="gnk")
    plain, inputs, buffers = leaves(problem.inputs), leaves(problem.inputs), with_buffers(problem, dtype)
    given_sizes, dy = to_torch(problem.sizes), to_torch(problem.dy)
    seen: list[int] = []
    y = grouped_linear(group_sizes=given_sizes, **plain)
    y.backward(dy)
    x = inputs.pop("x")
    aliased = grouped_linear(Witness.apply(x, seen), group_sizes=given_sizes, **inputs, **buffers)
    aliased.backward(dy)
    found = {"y": y, **{n: t.grad for n, t in plain.items()}}
    for name, (expected, terms) in problem.expected().items():
        assert_close(to_numpy(found[name]), expected, terms, what=name)
    assert aliased.data_ptr() == buffers["out"].data_ptr()
    assert seen == [buffers["dgrad_out"].data_ptr()]
    assert_bits(to_numpy(buffers["out"])[: case.S], to_numpy(y)[: case.S])
    assert_bits(to_numpy(buffers["dgrad_out"])[: case.S], to_numpy(plain["x"].grad)[: case.S])
    for name, buffer in buffers.items():
        assert (buffer[case.S :] == SENTINEL).all(), f"the tail of {name}"
    for name, t in inputs.items():
        assert_bits(to_numpy(t.grad), to_numpy(plain[name].grad), name)


def test_buffers_of_no_rows(rng):
    problem = linear_problem(rng, Case("none", 0, 5, 3, (0, 0)), "f32", row_scale=False, layout="gnk")
    y = grouped_linear(group_sizes=to_torch(problem.sizes), **leaves(problem.inputs), **with_buffers(problem, "f32"))
    assert y.shape == (0, 3)
    wgrad_out = torch.full((2, 3, 5), np.nan)
    inputs = leaves(problem.inputs)
    grouped_linear(group_sizes=to_torch(problem.sizes), wgrad_out=wgrad_out, **inputs).sum().backward()
    assert not wgrad_out.any()


@pytest.mark.parametrize("name", ["out", "dgrad_out"])
def test_writing_a_buffer_again_counts_as_a_change(name):
    given = arguments()
    given["x"].requires_grad_()
    buffer = given[name]
    before = buffer._version
    y = grouped_linear(**given)
    if name == "dgrad_out":
        assert buffer._version == before
        y.sum().backward()
    assert buffer._version > before
