# SPDX-License-Identifier: Apache-2.0
"""torch's modes: autocast, checkpointing of both kinds, inference, deterministic algorithms, profiler ranges."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from cases import BY_NAME, SENTINEL
from mlp_problems import mlp_problem
from problems import linear_problem
from tolerances import assert_bits
from torch.utils.checkpoint import checkpoint
from torch_calls import DEVICE, leaves, to_numpy, to_torch

from grouped_core import Op, call_count
from torch_grouped import GroupedLinear, GroupedMLP, ScaledSwiGLU, Sequential, _nvtx
from torch_grouped.functional import grouped_activation, grouped_linear, grouped_mlp, grouped_mm

CASE = BY_NAME["empty_middle"]
OPERATIONS = ["linear", "mlp"]


def operation(name: str, rng, dtype: str = "f32", **options: Any) -> Any:
    """(function of keyword inputs, problem)."""
    if name == "linear":
        return grouped_linear, linear_problem(rng, CASE, dtype, layout="gnk", **options), {}
    problem = mlp_problem(rng, CASE, dtype, **options)
    return grouped_mlp, problem, problem.options


def gradients(function, inputs, sizes, options, dy, **buffers) -> dict[str, Any]:
    y = function(group_sizes=sizes, **inputs, **options, **buffers)
    found = torch.autograd.grad(y, list(inputs.values()), dy.to(y.dtype), allow_unused=True)
    return {"y": y.detach(), **dict(zip(inputs, found, strict=True))}


# Autocast: what torch's own matrix products do.


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
def test_autocast_is_a_cast_of_the_operands(rng, name, target):
    function, problem, options = operation(name, rng)
    sizes, dy = to_torch(problem.sizes), to_torch(problem.dy)
    vectors = ("bias", "row_scale", "fc1_bias", "fc2_bias")
    with torch.autocast(DEVICE.type, dtype=target):
        found = gradients(function, leaves(problem.inputs), sizes, options, dy)
    assert found["y"].dtype == target
    inputs = leaves(problem.inputs)
    cast = {n: t if n in vectors else t.to(target) for n, t in inputs.items()}
    y = function(group_sizes=sizes, **cast, **options)
    expected = torch.autograd.grad(y, list(inputs.values()), dy.to(target))
    assert_bits(to_numpy(found["y"].float()), to_numpy(y.float()))
    for n, gradient in zip(inputs, expected, strict=True):
        assert found[n].dtype == torch.float32  # of what was given
        assert_bits(to_numpy(found[n]), to_numpy(gradient), n)


@pytest.mark.parametrize("name", OPERATIONS)
def test_autocast_casts_16_bit_operands_of_the_other_kind(rng, name):
    function, problem, options = operation(name, rng, "f16")
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        y = function(group_sizes=to_torch(problem.sizes), **leaves(problem.inputs), **options)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("name", OPERATIONS)
def test_autocast_leaves_fp64_and_its_own_dtype_alone(rng, name):
    for dtype in ("f64", "bf16"):
        function, problem, options = operation(name, rng, dtype)
        inputs, sizes = leaves(problem.inputs), to_torch(problem.sizes)
        plain = function(group_sizes=sizes, **inputs, **options)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            y = function(group_sizes=sizes, **inputs, **options)
        assert y.dtype == plain.dtype
        assert torch.equal(torch.nan_to_num(y), torch.nan_to_num(plain))


@pytest.mark.parametrize("name", OPERATIONS)
def test_autocast_wants_buffers_in_its_dtype_and_casts_none(rng, name):
    function, problem, options = operation(name, rng)
    x, sizes = to_torch(problem.inputs["x"]).requires_grad_(), to_torch(problem.sizes)
    rest = {n: to_torch(a) for n, a in problem.inputs.items() if n != "x"}
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        with pytest.raises(TypeError, match=r"^out must be \[.*\] bf16, .* got \[.*\] f32"):
            function(x, group_sizes=sizes, out=torch.zeros(problem.dy.shape, device=DEVICE), **rest, **options)
        out = torch.full(problem.dy.shape, SENTINEL, dtype=torch.bfloat16, device=DEVICE)
        dgrad_out = torch.full(x.shape, SENTINEL, dtype=torch.bfloat16, device=DEVICE)
        y = function(x, group_sizes=sizes, out=out, dgrad_out=dgrad_out, **rest, **options)
    assert y.data_ptr() == out.data_ptr()
    y.backward(to_torch(problem.dy).bfloat16())
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert torch.equal(x.grad, dgrad_out.float())
    assert (dgrad_out[CASE.S :] == SENTINEL).all()


def test_autocast_adds_into_an_fp32_main_grad(rng):
    module: Any = GroupedLinear(3, 8, 6, fuse_wgrad_accumulation=True, device=DEVICE)
    module.weight.main_grad = torch.ones(3, 6, 8, device=DEVICE)
    x = torch.randn(10, 8, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        module(x, [4, 0, 5]).float().sum().backward()
    assert module.weight.main_grad.dtype == torch.float32
    assert (module.weight.main_grad[1] == 1).all()
    assert (module.weight.main_grad[0] != 1).any()


def test_autocast_turned_off_inside(rng):
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16), torch.autocast(DEVICE.type, enabled=False):
        assert (
            grouped_linear(torch.ones(2, 4, device=DEVICE), torch.ones(1, 3, 4, device=DEVICE), [2]).dtype
            == torch.float32
        )


@pytest.mark.parametrize("probs_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_autocast_through_modules(rng, probs_dtype):
    """The activation between takes what the first layer gives, and probabilities as the MLP in one step does."""
    sizes, x = torch.tensor([4, 0, 5], device=DEVICE), torch.randn(10, 8, device=DEVICE)
    probs = torch.rand(10, device=DEVICE).to(probs_dtype).requires_grad_()
    container = Sequential(
        GroupedLinear(3, 8, 12, device=DEVICE), ScaledSwiGLU(), GroupedLinear(3, 6, 8, device=DEVICE)
    )
    for module, arguments in ((GroupedMLP(3, 8, 6, device=DEVICE), (sizes, probs)), (container, (sizes, probs, sizes))):
        found = []
        for hooked in (False, True):
            if hooked:
                next(module.children()).register_forward_hook(lambda *_: None)
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                y = module(x, *arguments)
            assert y.dtype == torch.bfloat16
            (d_probs,) = torch.autograd.grad(y.float().sum(), probs)
            assert d_probs.dtype == probs_dtype
            found.append((to_numpy(y.detach()), to_numpy(d_probs)))
        for in_one_step, in_turn in zip(*found, strict=True):
            assert_bits(in_one_step, in_turn)


def test_autocast_takes_a_row_scale_of_the_other_16_bits(rng):
    h, scale, sizes = (
        torch.randn(6, 8, device=DEVICE).bfloat16(),
        torch.rand(6, device=DEVICE).half(),
        torch.tensor([2, 0, 3], device=DEVICE),
    )
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        y = grouped_activation(h, sizes, row_scale=scale)
    assert_bits(to_numpy(y), to_numpy(grouped_activation(h, sizes, row_scale=scale.bfloat16())))


def test_probs_of_the_other_16_bits_are_refused_without_autocast():
    with pytest.raises(TypeError, match=r"^row_scale must be .* f16 or f32; got .* bf16"):
        ScaledSwiGLU()(torch.ones(10, 8, device=DEVICE).half(), torch.ones(10, device=DEVICE).bfloat16())


# Checkpointing.


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("with_buffers", [False, True])
def test_checkpoint(rng, name, reentrant, with_buffers):
    function, problem, options = operation(name, rng)
    inputs, sizes, dy = leaves(problem.inputs), to_torch(problem.sizes), to_torch(problem.dy)
    plain = gradients(function, leaves(problem.inputs), sizes, options, dy)
    buffers: dict[str, Any] = {}
    if with_buffers:
        x = inputs["x"]
        buffers = {
            "out": torch.full(dy.shape, SENTINEL, device=DEVICE),
            "dgrad_out": torch.full(x.shape, SENTINEL, device=DEVICE),
        }

    def run(*tensors):
        given = dict(zip(inputs, tensors, strict=True))
        given["x"] = given["x"] * 1
        return function(group_sizes=sizes, **given, **options, **buffers)

    before = call_count(Op.MM)
    y = checkpoint(run, *inputs.values(), use_reentrant=reentrant)
    products = call_count(Op.MM) - before
    y.backward(dy)
    assert call_count(Op.MM) - before == 3 * products  # forward, forward again, dgrad
    rows = slice(None, CASE.S)
    assert_bits(to_numpy(y)[rows], to_numpy(plain["y"])[rows])
    for n, t in inputs.items():
        tail = rows if n == "x" else slice(None)
        assert_bits(to_numpy(t.grad)[tail], to_numpy(plain[n])[tail], n)
    for buffer in buffers.values():
        assert (buffer[CASE.S :] == SENTINEL).all()
        assert not buffer.requires_grad


# Inference.


@pytest.mark.parametrize("name", OPERATIONS)
def test_inference_mode_with_inference_buffers(rng, name):
    function, problem, options = operation(name, rng)
    plain = function(group_sizes=to_torch(problem.sizes), **leaves(problem.inputs), **options)
    with torch.inference_mode():
        inputs = {n: to_torch(a) for n, a in problem.inputs.items()}
        out = torch.full(problem.dy.shape, SENTINEL, device=DEVICE)
        assert out.is_inference()
        for _ in range(2):
            y = function(group_sizes=to_torch(problem.sizes), **inputs, **options, out=out)
    assert y.data_ptr() == out.data_ptr()
    assert_bits(to_numpy(out)[: CASE.S], to_numpy(plain)[: CASE.S])
    assert (out[CASE.S :] == SENTINEL).all()


@pytest.mark.parametrize("name", ["linear", "activation", "mlp", "grouped_mm"])
def test_an_inference_buffer_is_refused_where_it_would_lose_the_gradient(name):
    """torch records nothing that is computed from an inference tensor, not even from one with a history."""
    x, weight, sizes = torch.ones(6, 4), torch.ones(2, 4, 4), torch.tensor([3, 2])
    call: Any = {
        "linear": lambda x, out: grouped_linear(x, weight, sizes, out=out),
        "activation": lambda x, out: grouped_activation(x, sizes, "squared_relu", out=out),
        "mlp": lambda x, out: grouped_mlp(x, weight, weight, sizes, activation="squared_relu", out=out),
        "grouped_mm": lambda x, out: grouped_mm(x, weight, offs=sizes.cumsum(0), out=out),
    }[name]
    with torch.inference_mode():
        out = torch.full((6, 4), SENTINEL)
    message = r"^out must be an ordinary tensor where gradients are wanted; got one that was made in inference mode"
    with pytest.raises(ValueError, match=message):
        call(x.clone().requires_grad_(), out)
    assert (out == SENTINEL).all()
    y = call(x, out)  # where nothing is recorded nothing is lost
    assert y.data_ptr() == out.data_ptr()
    with torch.no_grad():
        call(x.clone().requires_grad_(), out)
    assert (out[:5] != SENTINEL).all()


# Deterministic algorithms: torch then fills new memory with NaN, which must reach nothing either.


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_deterministic_mode(rng, name, recompute):
    function, problem, options = operation(name, rng)
    if recompute and name == "mlp":
        options = {**options, "recompute_activation": True}
    sizes, dy = to_torch(problem.sizes), to_torch(problem.dy)
    plain = gradients(function, leaves(problem.inputs), sizes, options, dy)
    with deterministic():
        assert torch.isnan(torch.empty(3)).all()
        found = gradients(function, leaves(problem.inputs), sizes, options, dy)
    for n, value in plain.items():
        assert_bits(to_numpy(found[n]), to_numpy(value), n)


# Names for profilers.


def test_ranges_are_named_after_the_operation(monkeypatch):
    seen = []

    @contextlib.contextmanager
    def fake_range(name):
        seen.append(("begin", name))
        yield
        seen.append(("end", name))

    monkeypatch.setattr(torch.cuda.nvtx, "range", fake_range)
    calls = []
    ranged = _nvtx.with_range("linear", lambda *arguments: calls.append(arguments), enabled=True)
    ranged(1, 2)
    assert calls == [(1, 2)]
    assert seen == [("begin", "grouped.linear"), ("end", "grouped.linear")]


def test_a_range_ends_when_the_operation_fails(monkeypatch):
    ended = []

    @contextlib.contextmanager
    def fake_range(name):
        try:
            yield
        finally:
            ended.append(name)

    monkeypatch.setattr(torch.cuda.nvtx, "range", fake_range)

    def fails():
        raise ValueError("as it says")

    with pytest.raises(ValueError, match="as it says"):
        _nvtx.with_range("wgrad", fails, enabled=True)()
    assert ended == ["grouped.wgrad"]


def test_without_the_switch_nothing_stands_between():
    def function():
        pass

    assert _nvtx.with_range("linear", function, enabled=False) is function


@pytest.mark.parametrize(("value", "enabled"), [("1", True), ("0", False), ("", False)])
def test_the_switch_is_read_at_import_and_every_operator_obeys(value, enabled):
    program = """
        import contextlib, torch, torch.backends.cuda
        torch.backends.cuda.is_built = lambda: True
        seen = []
        @contextlib.contextmanager
        def fake(name):
            seen.append(name)
            yield
        torch.cuda.nvtx.range = fake
        from torch_grouped.functional import grouped_mlp
        ones = lambda *s: torch.ones(*s, requires_grad=True)
        grouped_mlp(ones(3, 4), ones(1, 8, 4), ones(1, 4, 4), torch.tensor([3])).sum().backward()
        print(sorted(set(seen)))
    """
    environment = {**os.environ, "GROUPED_NVTX": value}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    expected = [
        f"grouped.{n}" for n in ("activation", "activation_grad", "dgrad", "linear", "mlp", "mlp_grad", "wgrad")
    ]
    assert result.stdout.strip() == str(expected if enabled else [])
