# SPDX-License-Identifier: Apache-2.0
"""torch_grouped.GroupedLinear: parameters, the order of forward's arguments, leading dimensions, main_grad."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, SENTINEL
from problems import linear_problem, poisoned_buffer
from tolerances import assert_bits, assert_close
from torch_calls import to_numpy, to_torch

from torch_grouped import GroupedLinear
from torch_grouped.functional import grouped_linear

HARD = BY_NAME["empty_middle"]


def module_for(problem, **options) -> Any:
    """Any: main_grad is the training loop's attribute, which nn.Parameter does not declare."""
    G, N, K = problem.weight.shape
    dtype = to_torch(problem.weight).dtype
    module = GroupedLinear(G, K, N, bias=problem.bias is not None, params_dtype=dtype, **options)
    module.load_state_dict({name: to_torch(problem.inputs[name]) for name in module.state_dict()})
    return module


@pytest.fixture
def problem(rng):
    return linear_problem(rng, HARD, "f32", row_scale=False, layout="gnk")


def test_arguments_are_in_the_order_of_transformer_engine():
    assert list(inspect.signature(GroupedLinear.forward).parameters)[1:] == [
        "inp",
        "m_splits",
        "is_first_microbatch",
        "out",
        "dgrad_out",
    ]
    assert list(inspect.signature(GroupedLinear.__init__).parameters)[1:4] == [
        "num_gemms",
        "in_features",
        "out_features",
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_parameters(bias):
    module = GroupedLinear(3, 16, 5, bias=bias, params_dtype=torch.bfloat16)
    found = {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in module.named_parameters()}
    expected: dict[str, tuple[tuple[int, ...], torch.dtype, bool]] = {"weight": ((3, 5, 16), torch.bfloat16, True)}
    if bias:
        expected["bias"] = ((3, 5), torch.bfloat16, True)
    assert found == expected
    assert set(module.state_dict()) == set(expected)


def test_initial_values_are_those_of_nn_linear():
    module = GroupedLinear(8, 64, 64)
    limit = 1 / math.sqrt(64)
    for parameter in module.parameters():
        assert parameter.abs().max() <= limit
        # Uniform on [-limit, limit]: the standard deviation is limit / sqrt(3).
        assert parameter.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)


def test_init_method_sees_the_weight_of_each_layer():
    seen = []

    def init(weight):
        seen.append(tuple(weight.shape))
        weight.fill_(len(seen))

    module = GroupedLinear(3, 4, 5, init_method=init)
    assert seen == [(5, 4)] * 3
    assert module.weight[:, 0, 0].tolist() == [1, 2, 3]
    assert module.weight.requires_grad


def test_no_features_at_all():
    module = GroupedLinear(2, 0, 3)
    with torch.no_grad():
        module.bias.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert module(torch.ones(4, 0), [1, 3]).tolist() == [[1, 2, 3], *[[4, 5, 6]] * 3]
    assert module(torch.ones(2, 2, 0), [1, 3])[1, 1].tolist() == [4, 5, 6]


def test_forward_and_gradients(problem):
    module = module_for(problem)
    x = to_torch(problem.x).requires_grad_()
    y = module(x, to_torch(problem.sizes))
    y.backward(to_torch(problem.dy))
    found = {"y": y, "x": x.grad, "weight": module.weight.grad, "bias": module.bias.grad}
    for name, (reference_pair, terms) in problem.expected().items():
        assert_close(to_numpy(found[name]), reference_pair, terms, what=name)


def test_is_the_function(problem):
    module = module_for(problem)
    x, sizes = to_torch(problem.x), to_torch(problem.sizes)
    assert_bits(to_numpy(module(x, sizes)), to_numpy(grouped_linear(x, module.weight, sizes, module.bias)))


@pytest.mark.parametrize("leading", [(40,), (4, 10), (2, 4, 5), (1, 40, 1)], ids=str)
def test_leading_dimensions_are_rows(problem, leading):
    module = module_for(problem)
    flat = module(to_torch(problem.x), list(HARD.sizes))
    x = to_torch(problem.x).view(*leading, HARD.K).requires_grad_()
    y = module(x, list(HARD.sizes))
    assert y.shape == (*leading, HARD.N)
    assert_bits(to_numpy(y).reshape(40, HARD.N), to_numpy(flat))
    y.backward(to_torch(problem.dy).view(y.shape))
    gradient = to_numpy(x.grad)
    assert gradient.shape == x.shape
    expected, terms = problem.expected()["x"]
    assert_close(gradient.reshape(40, HARD.K), expected, terms)


def test_leading_dimensions_without_rows():
    module = GroupedLinear(2, 4, 3)
    assert module(torch.ones(0, 5, 4), [0, 0]).shape == (0, 5, 3)
    assert module(torch.ones(5, 0, 4), [0, 0]).shape == (5, 0, 3)


def test_no_dimension_is_refused_in_the_cores_words():
    with pytest.raises(ValueError, match="must be"):
        GroupedLinear(1, 4, 3)(torch.ones(()), [1])


@pytest.mark.parametrize("leading", [(40,), (4, 10)], ids=str)
def test_buffers(problem, leading):
    module = module_for(problem)
    out = to_torch(poisoned_buffer((40, HARD.N), "f32", HARD.S, SENTINEL))
    dgrad_out = to_torch(poisoned_buffer((40, HARD.K), "f32", HARD.S, SENTINEL))
    x = to_torch(problem.x).view(*leading, HARD.K).requires_grad_()
    y = module(x, list(HARD.sizes), None, out, dgrad_out)
    assert y.data_ptr() == out.data_ptr()
    y.backward(to_torch(problem.dy).view(y.shape))
    plain = module(x, list(HARD.sizes))
    assert_bits(to_numpy(out)[: HARD.S], to_numpy(plain).reshape(40, -1)[: HARD.S])
    expected, terms = problem.expected()["x"]
    assert_close(to_numpy(dgrad_out)[: HARD.S], (expected[0][: HARD.S], expected[1][: HARD.S]), terms)
    for buffer in (out, dgrad_out):
        assert (buffer[HARD.S :] == SENTINEL).all()
        assert not buffer.requires_grad


@pytest.mark.parametrize("first", [None, False, True])
@pytest.mark.parametrize("main_dtype", ["f32", "same"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_fused_accumulation(rng, dtype, main_dtype, first):
    problem = linear_problem(rng, HARD, dtype, row_scale=False, layout="gnk")
    module = module_for(problem, fuse_wgrad_accumulation=True)
    old = np.ones(problem.weight.shape, np.float32 if main_dtype == "f32" else problem.weight.dtype)
    module.weight.main_grad = to_torch(old)
    module(to_torch(problem.x), to_torch(problem.sizes), first).backward(to_torch(problem.dy))
    expected, terms = problem.expected(old_wgrad=None if first else old)["weight"]
    assert_close(to_numpy(module.weight.main_grad), expected, terms)
    assert module.weight.grad is None
    reference_pair, terms = problem.expected()["bias"]
    assert_close(to_numpy(module.bias.grad), reference_pair, terms)
    assert not module.weight.main_grad.requires_grad


def test_main_grad_alone_fuses_nothing(problem):
    module = module_for(problem)
    module.weight.main_grad = torch.full_like(module.weight, SENTINEL, requires_grad=False)
    module(to_torch(problem.x), list(HARD.sizes)).backward(to_torch(problem.dy))
    assert (module.weight.main_grad == SENTINEL).all()
    assert module.weight.grad is not None


@pytest.mark.parametrize("given", ["missing", None])
def test_missing_main_grad(problem, given):
    module = module_for(problem, fuse_wgrad_accumulation=True)
    if given is None:
        module.weight.main_grad = None
    with pytest.raises(ValueError) as caught:
        module(to_torch(problem.x), list(HARD.sizes))
    assert str(caught.value) == (
        "weight.main_grad must be a tensor of the weight's shape with fuse_wgrad_accumulation=True; got none. "
        "Set it before forward, or construct the module without."
    )


def test_main_grad_of_another_shape_is_refused_in_forward(problem):
    module = module_for(problem, fuse_wgrad_accumulation=True)
    module.weight.main_grad = torch.zeros(1)
    with pytest.raises(ValueError, match=r"^wgrad_out must be \[G=4, N=33, K=16\] f32"):
        module(to_torch(problem.x), list(HARD.sizes))


def test_state_dict_goes_round(problem):
    module = module_for(problem)
    other = GroupedLinear(HARD.G, HARD.K, HARD.N)
    other.load_state_dict(module.state_dict())
    x = to_torch(problem.x)
    assert_bits(to_numpy(other(x, list(HARD.sizes))), to_numpy(module(x, list(HARD.sizes))))


def test_meta_device_then_reset():
    module = GroupedLinear(2, 3, 4, device="meta")
    assert module.weight.is_meta
    module.to_empty(device="cpu").reset_parameters()
    assert torch.isfinite(module.weight).all()


def test_print_shows_the_sizes():
    assert repr(GroupedLinear(2, 3, 4, bias=False)) == (
        "GroupedLinear(num_gemms=2, in_features=3, out_features=4, bias=False)"
    )
