# SPDX-License-Identifier: Apache-2.0
"""The operators behind the functions: torch's own opcheck, the version counter, and the fake kernels."""

from __future__ import annotations

import pytest
import torch
from cases import BY_NAME
from mlp_problems import mlp_problem
from problems import activation_problem, linear_problem
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch_calls import to_torch

from grouped_core import Op, call_count

OPS = torch.ops.grouped_ffi
CLAMPED = (1, 0, 1.702, 7.0, 1.0)
WRITTEN = {
    "linear": [5],
    "dgrad": [4],
    "wgrad": [3],
    "bias_grad": [2],
    "row_scale": [3],
    "row_dot": [5],
    "product": [4],
    "contraction": [3],
    "activation": [3],
    "activation_grad": [4, 5],
    "mlp": [7, 8, 9],
    "mlp_grad": [8, 9, 10, 11, 12, 13, 14],
}


def arguments_of(rng, dtype="f32"):
    """{operator: arguments}, every optional one given."""
    case = BY_NAME["tail"]
    linear = linear_problem(rng, case, dtype, layout="gnk")
    x, weight, bias, row_scale = map(to_torch, linear.inputs.values())
    dy, sizes = to_torch(linear.dy), to_torch(linear.sizes)
    acted = activation_problem(rng, case, dtype, "clamped_swiglu")
    h, scale = map(to_torch, acted.inputs.values())
    dact = to_torch(acted.dy)

    def new(like):
        return torch.full_like(like, 7)

    return {
        "linear": (x, weight, sizes, bias, row_scale, new(dy), new(x), new(weight), 0, False),
        "dgrad": (dy, weight, sizes, row_scale, new(x), None, 0, False),
        "wgrad": (x, dy, sizes, new(weight), 0, False),
        "bias_grad": (dy, sizes, new(bias), True),
        "row_scale": (x, sizes, row_scale, new(x), True),
        "row_dot": (x, x.clone(), sizes, dy, bias, new(row_scale), True),
        "product": (x, weight, sizes.cumsum(0), bias, new(dy), 0, False, False),
        "contraction": (x, dy, sizes.cumsum(0), new(weight), 0),
        "activation": (h, sizes, scale, new(dact), new(h), *CLAMPED, False),
        "activation_grad": (h, dact, sizes, scale, new(h), new(scale), *CLAMPED, True),
        **mlp_arguments_of(rng, case, dtype),
    }


def mlp_arguments_of(rng, case, dtype):
    problem = mlp_problem(rng, case, dtype, "clamped_swiglu")
    x, w1, w2, b1, b2, scale = map(to_torch, problem.inputs.values())
    sizes, dy = to_torch(problem.sizes), to_torch(problem.dy)
    h, a = torch.randn(case.T, 2 * case.N).to(x.dtype), torch.randn(case.T, case.N).to(x.dtype)
    h_out, a_out, out, *gradients = (torch.full_like(t, 7) for t in (h, a, dy, x, w1, w2, b1, b2, scale, h))
    buffers = [torch.full_like(t, 7) for t in (x, w1, w2)]
    return {
        "mlp": (x, w1, w2, sizes, b1, b2, scale, h_out, a_out, out, *buffers, 0, *CLAMPED, False),
        "mlp_grad": (dy, x, w1, w2, sizes, scale, h, a, *gradients, 0, *CLAMPED, True, False, False),
    }


every_op = pytest.mark.parametrize("name", list(WRITTEN))
# The MLP's two are made of the others.
every_core_op = pytest.mark.parametrize("name", [name for name in WRITTEN if not name.startswith("mlp")])


def test_every_operator_is_here():
    registered = {n.partition("::")[2] for n in torch._C._dispatch_get_all_op_names() if n.startswith("grouped_ffi::")}
    assert registered == set(WRITTEN)


@every_op
def test_opcheck(rng, name):
    # NaN tails would make opcheck's own comparisons fail.
    arguments = [
        torch.nan_to_num(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in arguments_of(rng)[name]
    ]
    torch.library.opcheck(getattr(OPS, name).default, tuple(arguments))


@every_op
def test_version_counter_of_what_is_written_and_of_nothing_else(rng, name):
    arguments = arguments_of(rng)[name]
    before = {i: a._version for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    getattr(OPS, name).default(*arguments)
    assert [i for i, version in before.items() if arguments[i]._version != version] == WRITTEN[name]


@every_op
def test_inference_tensors_have_no_version_to_bump(rng, name):
    with torch.inference_mode():
        arguments = arguments_of(rng)[name]
        getattr(OPS, name).default(*arguments)
    for i in WRITTEN[name]:
        assert not torch.equal(arguments[i], torch.full_like(arguments[i], 7))


@every_op
def test_schema_names_what_is_written(name):
    schema = getattr(OPS, name).default._schema
    written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    assert written == WRITTEN[name]
    assert not schema.returns


def faked(mode, arguments):
    return [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]


@every_op
@pytest.mark.parametrize("symbolic", [False, True])
def test_fake_kernel_accepts_what_is_right(rng, name, symbolic):
    with FakeTensorMode(shape_env=ShapeEnv() if symbolic else None) as mode:
        getattr(OPS, name).default(*faked(mode, arguments_of(rng)[name]))


def spoiled(name, arguments):
    """Argument lists with one wrong rank, dimension or dtype."""
    for i, argument in enumerate(arguments):
        if not isinstance(argument, torch.Tensor):
            continue
        wrong = [argument.unsqueeze(0), argument.to(torch.complex64)]
        # How many groups there are is nobody else's business where no other argument has a G.
        if argument.is_floating_point() or name not in ("row_scale", "activation", "activation_grad"):
            wrong.append(torch.cat([argument, argument], -1))
        for w in wrong:
            yield [*arguments[:i], w, *arguments[i + 1 :]]


@every_op
@pytest.mark.parametrize("symbolic", [False, True])
def test_fake_kernel_refuses_what_the_real_one_does_in_the_same_words(rng, name, symbolic):
    for bad in spoiled(name, arguments_of(rng)[name]):
        with pytest.raises((ValueError, TypeError)) as real:
            getattr(OPS, name).default(*bad)
        with (
            FakeTensorMode(shape_env=ShapeEnv() if symbolic else None) as mode,
            pytest.raises(type(real.value)) as fake,
        ):
            getattr(OPS, name).default(*faked(mode, bad))
        assert str(fake.value) == str(real.value)


@every_op
def test_fake_kernel_runs_nothing(rng, name):
    arguments = arguments_of(rng)[name]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = faked(mode, arguments)
        getattr(OPS, name).default(*fake)
    for i in WRITTEN[name]:
        assert (arguments[i] == 7).all()


@every_op
def test_tensors_on_the_meta_device_are_checked_and_nothing_runs(rng, name):
    arguments = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments_of(rng)[name]]
    operator = getattr(OPS, name).default
    before = [call_count(op) for op in Op]
    operator(*arguments)
    arguments[0] = arguments[0][None]
    with pytest.raises(ValueError, match=r"must be \["):
        operator(*arguments)
    assert [call_count(op) for op in Op] == before
