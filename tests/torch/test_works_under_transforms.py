# SPDX-License-Identifier: Apache-2.0
"""torch.func without buffers, a clear refusal with them, and second derivatives that are refused, never zeros."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BY_NAME
from mlp_problems import mlp_problem
from problems import activation_problem, linear_problem
from tolerances import assert_bits
from torch_calls import DEVICE, to_numpy, to_torch

from torch_grouped.functional import grouped_activation, grouped_linear, grouped_mlp, grouped_mm

CASE = BY_NAME["empty_middle"]


class Operation:
    """A function of its differentiable arguments, those arguments, and a buffer for each of its results."""

    def __init__(self, name: str, rng) -> None:
        if name == "linear":
            problem, function = linear_problem(rng, CASE, "f32", layout="gnk"), grouped_linear
            self.options: dict[str, Any] = {"weight_layout": "gnk"}
            self.first = "x"
        elif name == "activation":
            problem, function = activation_problem(rng, CASE, "f32", "geglu"), grouped_activation
            self.options = problem.options
            self.first = "h"
        else:
            problem, function = mlp_problem(rng, CASE, "f32"), grouped_mlp
            self.options = problem.options
            self.first = "x"
        # Finite tails: torch.func gives them a gradient too, a zero.
        self.inputs = {n: torch.nan_to_num(to_torch(a)) for n, a in problem.inputs.items()}
        self.dy = torch.nan_to_num(to_torch(problem.dy))
        self.sizes, self.function = to_torch(problem.sizes), function
        self.buffers: dict[str, Any] = {
            "out": torch.zeros_like(self.dy),
            "dgrad_out": torch.zeros_like(self.inputs[self.first]),
        }
        self.buffers |= {
            {"weight": "wgrad_out", "fc1_weight": "fc1_wgrad_out", "fc2_weight": "fc2_wgrad_out"}[n]: torch.zeros_like(
                t
            )
            for n, t in self.inputs.items()
            if n.endswith("weight")
        }

    def __call__(self, inputs: dict[str, Any], **buffers: Any) -> torch.Tensor:
        return self.function(group_sizes=self.sizes, **inputs, **self.options, **buffers)

    def loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self(inputs).pow(2).sum()

    def leaves(self) -> dict[str, torch.Tensor]:
        return {n: t.clone().requires_grad_() for n, t in self.inputs.items()}


@pytest.fixture(params=["linear", "activation", "mlp"])
def operation(request, rng):
    return Operation(request.param, rng)


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_bits(to_numpy(found[name]), to_numpy(value), name)


def by_autograd(operation, dy=None) -> dict[str, torch.Tensor]:
    leaves = operation.leaves()
    y = operation.loss(leaves) if dy is None else operation(leaves)
    return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))


def test_grad(operation):
    assert_same(torch.func.grad(operation.loss)(operation.inputs), by_autograd(operation))


def test_grad_of_some_arguments(operation):
    every = by_autograd(operation)
    for name, value in operation.inputs.items():
        found = torch.func.grad(lambda t, n=name: operation.loss({**operation.inputs, n: t}))(value)
        assert_same({name: found}, {name: every[name]})


def test_vjp(operation):
    y, pull, *_ = torch.func.vjp(operation, operation.inputs)
    assert_bits(to_numpy(y), to_numpy(operation(operation.inputs)))
    assert_same(pull(operation.dy)[0], by_autograd(operation, operation.dy))


def test_jacrev(operation):
    """Row after row, each is a vjp; in one batch and in a loop."""
    inputs = operation.inputs
    first = operation.first

    def some_rows(t):
        return operation({**inputs, first: t})[:2, :3]

    rows = []
    for i in range(2):
        for j in range(3):
            dy = torch.zeros_like(operation.dy)
            dy[i, j] = 1
            rows.append(by_autograd(operation, dy)[first])
    expected = torch.stack(rows).view(2, 3, *inputs[first].shape)
    for chunk_size in (None, 1, 4):
        found = torch.func.jacrev(some_rows, chunk_size=chunk_size)(inputs[first])
        assert_bits(to_numpy(found), to_numpy(expected), f"chunks of {chunk_size}")


def test_jacrev_with_respect_to_what_follows(operation):
    """Batched gradients of every argument at once, absent ones among them."""
    found = torch.func.jacrev(lambda inputs: operation(inputs)[0, :2])(operation.inputs)
    for j in range(2):
        dy = torch.zeros_like(operation.dy)
        dy[0, j] = 1
        assert_same({n: t[j] for n, t in found.items()}, by_autograd(operation, dy))


def test_buffers_are_refused_by_name(operation):
    for name, buffer in operation.buffers.items():
        before = buffer.clone()
        with pytest.raises(NotImplementedError, match=f"^{name} cannot be written inside torch.func"):
            torch.func.grad(lambda t, n=name, b=buffer: operation(t, **{n: b}).sum())(operation.inputs)
        assert torch.equal(buffer, before)


SECOND = "have no derivative of their own"


def test_second_derivatives_are_refused_inside_torch_func(operation):
    """once_differentiable, torch's mark for this, gives zeros here."""

    def gradient(inputs):
        return sum(g.sum() for g in torch.func.grad(operation.loss)(inputs).values())

    with pytest.raises(NotImplementedError, match=SECOND):
        torch.func.grad(gradient)(operation.inputs)


@pytest.mark.parametrize("with_buffers", [False, True])
def test_second_derivatives_are_refused(operation, with_buffers):
    leaves = operation.leaves()
    buffers = {n: operation.buffers[n] for n in ("out", "dgrad_out")} if with_buffers else {}
    y = operation({**leaves, operation.first: leaves[operation.first] * 1}, **buffers)
    found = torch.autograd.grad((y * y.detach()).sum(), list(leaves.values()), create_graph=True)
    assert_same(dict(zip(leaves, found, strict=True)), by_autograd(operation, y.detach()))
    for buffer in buffers.values():
        assert not buffer.requires_grad
    for gradient in found:
        with pytest.raises(NotImplementedError, match=SECOND):
            gradient.sum().backward(retain_graph=True)


def test_create_graph_hands_the_buffer_upstream_and_leaves_it_usable(operation):
    leaves, dgrad_out = operation.leaves(), operation.buffers["dgrad_out"]
    x = leaves[operation.first]
    for _ in range(2):
        seen = []
        inner = x * 1
        inner.register_hook(lambda g, s=seen: s.append(g.data_ptr()))
        y = operation({**leaves, operation.first: inner}, dgrad_out=dgrad_out)
        torch.autograd.grad(y.sum(), x, create_graph=True)
        assert seen == [dgrad_out.data_ptr()]
        assert not dgrad_out.requires_grad


# torch imports torch.jit for forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_forward_mode_is_refused(operation):
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(operation, (operation.inputs,), (operation.inputs,))


def test_vmap_is_one_element_after_another(operation):
    """Of any of the arguments, and of a gradient."""
    stacked = {n: torch.stack([t, 2 * t, t - 1]) for n, t in operation.inputs.items()}
    elements = [{n: t[i] for n, t in stacked.items()} for i in range(3)]
    every = torch.func.vmap(operation)(stacked)
    gradients = torch.func.vmap(torch.func.grad(operation.loss))(stacked)
    for i, element in enumerate(elements):
        assert_bits(to_numpy(every[i]), to_numpy(operation(element)))
        assert_same({n: t[i] for n, t in gradients.items()}, torch.func.grad(operation.loss)(element))
    for name, value in stacked.items():
        found = torch.func.vmap(lambda t, n=name: operation({**operation.inputs, n: t}))(value)
        assert_bits(to_numpy(found[1]), to_numpy(operation({**operation.inputs, name: value[1]})), name)


def test_vmap_of_no_element_is_empty(operation):
    """Of all arguments and of each alone, also a gradient, also where the batch is not the first axis."""
    none = {n: t.new_empty(0, *t.shape) for n, t in operation.inputs.items()}
    sizes_too = torch.func.vmap(
        lambda inputs, sizes: operation.function(group_sizes=sizes, **inputs, **operation.options)
    )
    every = (torch.func.vmap(operation)(none), sizes_too(none, operation.sizes.new_empty(0, *operation.sizes.shape)))
    assert [y.shape for y in every] == [(0, *operation.dy.shape)] * 2
    for name, gradient in torch.func.vmap(torch.func.grad(operation.loss))(none).items():
        assert gradient.shape == none[name].shape
    for name, value in none.items():
        call = torch.func.vmap(lambda t, n=name: operation({**operation.inputs, n: t}), in_dims=1)
        leaf = value.transpose(0, 1).requires_grad_()
        y = call(leaf)
        assert y.shape == (0, *operation.dy.shape)
        assert y.dtype == operation.dy.dtype
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert gradient.shape == leaf.shape
        shared = {n: t.clone().requires_grad_() for n, t in operation.inputs.items() if n != name}
        y = torch.func.vmap(lambda t, n=name, s=shared: operation({**s, n: t}))(value)
        for gradient in torch.autograd.grad(y.sum(), list(shared.values())):
            assert (gradient == 0).all()


def grouped_products():
    torch.manual_seed(3)
    offs = torch.tensor([4, 4, 10], device=DEVICE)
    a, b = torch.randn(12, 8, device=DEVICE), torch.randn(3, 8, 5, device=DEVICE)
    return {
        "rows": (lambda a, b, **options: grouped_mm(a, b, offs=offs, **options), a, b),
        "contraction": (
            lambda a, b, **options: grouped_mm(a.mT, b, offs=offs, **options),
            a,
            torch.randn(12, 5, device=DEVICE),
        ),
        "batches": (lambda a, b, **options: grouped_mm(a, b, **options), torch.randn(3, 4, 8, device=DEVICE), b),
    }


@pytest.mark.parametrize("kind", ["rows", "contraction", "batches"])
def test_grouped_mm(kind):
    """torch's own product: second derivatives too."""
    product, a, b = grouped_products()[kind]

    def loss(a, b):
        return product(a, b).pow(3).sum()

    leaves = [t.clone().requires_grad_() for t in (a, b)]
    expected = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    found = torch.func.grad(loss, argnums=(0, 1))(a, b)
    for x, y in zip(found, expected, strict=True):
        assert_bits(to_numpy(x), to_numpy(y))
    (second,) = torch.autograd.grad(expected[0].sum(), leaves[0])
    twice = torch.func.grad(lambda a: torch.func.grad(loss)(a, b).sum())(a)
    assert_bits(to_numpy(twice), to_numpy(second))
    assert second.abs().sum() > 0
    jacobian = torch.func.jacrev(lambda a: product(a, b).flatten()[:3])(a)
    for i in range(3):
        row = torch.func.grad(lambda a, i=i: product(a, b).flatten()[i])(a)
        assert_bits(to_numpy(jacobian[i]), to_numpy(row))
    stacked = torch.stack([a, a + 1])
    assert_bits(to_numpy(torch.func.vmap(lambda a: product(a, b))(stacked)[1]), to_numpy(product(a + 1, b)))
    assert torch.func.vmap(lambda a: product(a, b))(stacked[:0]).shape == (0, *product(a, b).shape)
    out = torch.empty_like(product(a, b))
    with pytest.raises(NotImplementedError, match=r"^out cannot be written inside torch.func"):
        torch.func.grad(lambda a: product(a, b, out=out).sum())(a)


def test_functional_call(rng):
    """Parameters as arguments, as training loops on torch.func have them."""
    from torch_grouped import GroupedMLP

    module = GroupedMLP(3, 8, 6, device=DEVICE)
    parameters = dict(module.named_parameters())
    x, sizes = torch.randn(10, 8, device=DEVICE), torch.tensor([4, 0, 5], device=DEVICE)

    def loss(parameters):
        return torch.func.functional_call(module, parameters, (x, sizes)).pow(2).sum()

    found = torch.func.grad(loss)({n: p.detach() for n, p in parameters.items()})
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    assert_same(found, dict(zip(parameters, expected, strict=True)))
