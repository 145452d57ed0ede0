# SPDX-License-Identifier: Apache-2.0
"""The functions inside autograd: overwritten buffers are noticed, reused ones leave no trace, and the modes work."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from cases import BY_NAME
from problems import activation_problem, linear_problem
from tolerances import assert_bits
from torch.utils.checkpoint import checkpoint
from torch_calls import leaves, to_numpy, to_torch

from grouped_core import Op, call_count
from torch_grouped.functional import grouped_activation, grouped_linear

HARD = BY_NAME["empty_middle"]
EVEN = BY_NAME["even"]


@pytest.fixture
def problem(rng):
    return linear_problem(rng, EVEN, "f32", layout="gnk")


def node_count(tensor):
    """Nodes of the graph behind a tensor."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [next_node for next_node, _ in node.next_functions]
    return len(seen)


def test_overwriting_out_that_something_saved_raises_in_backward(problem):
    inputs, sizes = leaves(problem.inputs), to_torch(problem.sizes)
    out = torch.empty(problem.dy.shape)
    y = grouped_linear(group_sizes=sizes, out=out, **inputs)
    loss = (y * y).sum()  # saves y
    grouped_linear(group_sizes=sizes, out=out, **{name: t.detach() * 2 for name, t in inputs.items()})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_overwriting_the_activations_out_raises_too(rng):
    problem = activation_problem(rng, EVEN, "f32", "swiglu")
    inputs, sizes = leaves(problem.inputs), to_torch(problem.sizes)
    out = torch.empty(problem.dy.shape)
    loss = grouped_activation(group_sizes=sizes, out=out, **problem.options, **inputs).pow(2).sum()
    grouped_activation(inputs["h"].detach(), sizes, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_overwriting_out_after_backward_is_nobodys_business(problem):
    inputs, sizes = leaves(problem.inputs), to_torch(problem.sizes)
    out = torch.empty(problem.dy.shape)
    for _ in range(2):
        grouped_linear(group_sizes=sizes, out=out, **inputs).pow(2).sum().backward()


def test_out_itself_is_not_needed_for_backward(problem):
    inputs, sizes = leaves(problem.inputs), to_torch(problem.sizes)
    out = torch.empty(problem.dy.shape)
    y = grouped_linear(group_sizes=sizes, out=out, **inputs)
    out.zero_()
    y.backward(to_torch(problem.dy))
    expected = leaves(problem.inputs)
    grouped_linear(group_sizes=sizes, **expected).backward(to_torch(problem.dy))
    for name, t in inputs.items():
        assert_bits(to_numpy(t.grad), to_numpy(expected[name].grad), name)


def test_an_input_that_was_overwritten_raises(problem):
    inputs = leaves(problem.inputs)
    x = inputs.pop("x").clone()
    y = grouped_linear(x, group_sizes=to_torch(problem.sizes), **inputs)
    with torch.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(to_torch(problem.dy))


def test_reused_buffers_link_no_iterations(problem):
    inputs, sizes = leaves(problem.inputs), to_torch(problem.sizes)
    out, dgrad_out = torch.empty(problem.dy.shape), torch.empty(problem.x.shape)
    wgrad_out = torch.zeros(problem.weight.shape)
    counts, dx, nodes = [], [], []
    for _ in range(20):
        y = grouped_linear(
            group_sizes=sizes,
            out=out,
            dgrad_out=dgrad_out,
            wgrad_out=wgrad_out,
            accumulate_wgrad=True,
            **inputs,
        )
        counts.append(node_count(y))
        nodes.append(weakref.ref(y.grad_fn))
        y.backward(to_torch(problem.dy))
        dx.append(to_numpy(dgrad_out))
        del y
        assert not out.requires_grad
        assert out.grad_fn is None
    assert len(set(counts)) == 1
    for found in dx:
        assert_bits(found, dx[0])
    assert all(node() is None for node in nodes), "a graph of an iteration is still alive"


def test_layers_share_one_gradient_buffer(problem):
    # Written by the second layer's backward, read by the first's, whose own result then takes its place.
    sizes = to_torch(problem.sizes)
    weights = [torch.randn(4, 32, 32, requires_grad=True) for _ in range(2)]

    def run(**buffers):
        x = to_torch(problem.x).requires_grad_()
        y = grouped_linear(
            torch.tanh(grouped_linear(x * 1, weights[0], sizes, **buffers)), weights[1], sizes, **buffers
        )
        return torch.autograd.grad(y.sum(), [x, *weights])

    for found, expected in zip(run(dgrad_out=torch.empty(64, 32)), run(), strict=True):
        assert_bits(to_numpy(found), to_numpy(expected))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("with_out", [False, True])
def test_modes_without_grad(problem, mode, with_out):
    expected = to_numpy(grouped_linear(group_sizes=to_torch(problem.sizes), **leaves(problem.inputs)))
    with mode():
        inputs = leaves(problem.inputs)
        out = torch.empty(problem.dy.shape) if with_out else None
        y = grouped_linear(group_sizes=to_torch(problem.sizes), out=out, **inputs)
        assert not y.requires_grad
        assert_bits(to_numpy(y), expected)
        if out is not None:
            assert y.data_ptr() == out.data_ptr()


def test_ordinary_out_written_in_inference_mode_is_still_ordinary(problem):
    out = torch.empty(problem.dy.shape)
    before = out._version
    with torch.inference_mode():
        grouped_linear(group_sizes=to_torch(problem.sizes), out=out, **leaves(problem.inputs))
    assert not out.is_inference()
    assert out._version > before


def test_double_backward_raises(problem):
    inputs = leaves(problem.inputs)
    y = grouped_linear(group_sizes=to_torch(problem.sizes), **inputs)
    (dx,) = torch.autograd.grad(y.pow(2).sum(), inputs["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="have no derivative of their own"):
        dx.sum().backward()


def test_double_backward_of_the_activation_raises(rng):
    problem = activation_problem(rng, EVEN, "f32", "geglu", row_scale=False)
    h = to_torch(problem.h).requires_grad_()
    (dh,) = torch.autograd.grad(grouped_activation(h, to_torch(problem.sizes)).pow(2).sum(), h, create_graph=True)
    with pytest.raises(NotImplementedError, match="have no derivative of their own"):
        dh.sum().backward()


@pytest.mark.parametrize("with_buffers", [False, True])
def test_checkpoint_computes_again(problem, with_buffers):
    inputs, sizes, dy = leaves(problem.inputs), to_torch(problem.sizes), to_torch(problem.dy)
    plain = leaves(problem.inputs)
    grouped_linear(group_sizes=sizes, **plain).backward(dy)
    buffers: dict[str, Any] = {}
    if with_buffers:
        buffers = {"out": torch.empty(problem.dy.shape), "dgrad_out": torch.empty(problem.x.shape)}
    x = inputs["x"]

    def layer(x):
        return grouped_linear(x * 1, group_sizes=sizes, **{n: t for n, t in inputs.items() if n != "x"}, **buffers)

    before = call_count(Op.MM)
    y = checkpoint(layer, x, use_reentrant=False)
    assert call_count(Op.MM) == before + 1
    y.backward(dy)
    assert call_count(Op.MM) == before + 3  # forward, forward again, dgrad
    for name, t in inputs.items():
        assert_bits(to_numpy(t.grad), to_numpy(plain[name].grad), name)


def test_gradient_of_a_graph_kept_for_a_second_backward(problem):
    inputs = leaves(problem.inputs)
    y = grouped_linear(group_sizes=to_torch(problem.sizes), **inputs)
    first = torch.autograd.grad(y, list(inputs.values()), to_torch(problem.dy), retain_graph=True)
    second = torch.autograd.grad(y, list(inputs.values()), to_torch(problem.dy))
    for a, b in zip(first, second, strict=True):
        assert_bits(to_numpy(a), to_numpy(b))


def test_the_core_runs_once_an_operation(rng):
    problem = linear_problem(rng, HARD, "bf16", row_scale=False, layout="gnk")
    inputs = leaves(problem.inputs)
    before = [call_count(op) for op in Op]
    y = grouped_linear(group_sizes=to_torch(problem.sizes), **inputs)
    y.backward(to_torch(problem.dy))
    grown = {op: call_count(op) - n for op, n in zip(Op, before, strict=True) if call_count(op) != n}
    assert grown == {Op.MM: 2, Op.WGRAD: 1, Op.BIAS_GRAD: 1}
