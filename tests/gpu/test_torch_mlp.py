# SPDX-License-Identifier: Apache-2.0
"""The grouped MLP on a GPU: bits of its parts and of JAX, buffers between guards, no synchronisation, streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BY_NAME, SENTINEL, Case
from frameworks import Guarded, from_jax, from_torch, grad_of, jax_gradients, to_jax, to_torch, torch_gradients
from mlp_problems import MLPProblem, mlp_problem
from tolerances import assert_bits
from torch_mlp_calls import composed

import jax_grouped
from torch_grouped import (
    GRAD_INPUT_BUFFER_KEY,
    OUTPUT_BUFFER_KEY,
    GroupedLinear,
    GroupedMLP,
    ScaledSwiGLU,
    Sequential,
)
from torch_grouped.functional import grouped_mlp

# K + 3 columns come out: 61 gives 64, so that every product may take the fast kernels, 64 gives 67, which may not.
FAST = Case("fast", 700, 61, 128, (300, 0, 65, 1, 200))
SLOW = Case("slow", 300, 64, 72, (120, 0, 65, 1, 100))
NAMES = ("x", "fc1_weight", "fc2_weight", "fc1_bias", "fc2_bias", "row_scale")


def aligned_problem(rng, dtype: str, kind: str = "swiglu", gate_layout: str = "concatenated") -> MLPProblem:
    """K = 64: x and fc1_weight are drawn again with it."""
    problem = mlp_problem(rng, FAST, dtype, kind, gate_layout)
    wide = mlp_problem(rng, Case("wide", FAST.T, 64, FAST.N, FAST.sizes), dtype, kind, gate_layout)
    inputs = {**problem.inputs, "x": wide.inputs["x"], "fc1_weight": wide.inputs["fc1_weight"]}
    return MLPProblem(inputs, problem.sizes, problem.dy, kind, gate_layout, problem.layout)


def problems(rng, dtype: str, kind: str = "swiglu", gate_layout: str = "concatenated") -> list[MLPProblem]:
    others = [mlp_problem(rng, case, dtype, kind, gate_layout) for case in (SLOW, BY_NAME["odd_everything"])]
    return [aligned_problem(rng, dtype, kind, gate_layout), *others]


def run(problem: MLPProblem, function: Any = grouped_mlp, **options: Any) -> list[Any]:
    """[y, gradients in the order of NAMES], None for one that went into a buffer of its own."""
    sizes = to_torch(problem.sizes)

    def call(x, fc1_weight, fc2_weight, fc1_bias, fc2_bias, row_scale):
        return function(
            x, fc1_weight, fc2_weight, sizes, fc1_bias, fc2_bias, row_scale=row_scale, **problem.options, **options
        )

    found = torch_gradients(call, [problem.inputs[n] for n in NAMES], problem.dy)
    return [None if t is None else from_torch(t) for t in found]


@pytest.mark.parametrize("kind", ["swiglu", "clamped_swiglu", "geglu", "squared_relu"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_bits_of_the_parts_and_of_jax(rng, dtype, kind):
    for gate_layout in ("concatenated", "interleaved"):
        for problem in problems(rng, dtype, kind, gate_layout):
            one, recomputed = run(problem), run(problem, recompute_activation=True)
            parts = run(problem, composed)
            for i, name in enumerate(("y", *NAMES)):
                assert_bits(one[i], parts[i], f"{name}: in one step against part by part")
                assert_bits(recomputed[i], one[i], f"{name}: with the activation computed again")
            sizes = to_jax(problem.sizes)

            def in_jax(x, w1, w2, b1, b2, scale, sizes=sizes, problem=problem):
                layout: dict[str, Any] = {"weight_layout": "gnk"}
                h = jax_grouped.grouped_linear(x, w1, sizes, b1, **layout)
                options = problem.activation_options
                a = jax_grouped.grouped_activation(h, sizes, problem.kind, row_scale=scale, **options)
                return jax_grouped.grouped_linear(a, w2, sizes, b2, **layout)

            if gate_layout == "interleaved" or problem.inputs["x"].shape[0] != FAST.T:
                continue  # XLA compiles for seconds; the CPU suite compares every form
            from_parts_in_jax = jax_gradients(in_jax, [problem.inputs[n] for n in NAMES], problem.dy)
            for i, name in enumerate(("y", *NAMES)):
                assert_bits(one[i], from_jax(from_parts_in_jax[i]), f"{name}: torch against JAX")


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_buffers_between_guards(rng, dtype):
    torch_dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    for problem in problems(rng, dtype):
        S, plain = problem.S, run(problem)
        out = Guarded(problem.dy.shape, torch_dtype)
        dgrad_out = Guarded(problem.inputs["x"].shape, torch_dtype)
        wgrads = [Guarded(problem.inputs[n].shape, torch.float32, 1.0) for n in ("fc1_weight", "fc2_weight")]
        buffers = {"out": out.tensor, "dgrad_out": dgrad_out.tensor}
        for accumulate in (False, True):
            found = run(
                problem,
                **buffers,
                fc1_wgrad_out=wgrads[0].tensor,
                fc2_wgrad_out=wgrads[1].tensor,
                accumulate_wgrad=accumulate,
            )
            if dtype == "f32" and not accumulate:
                assert_bits(from_torch(wgrads[0].tensor), plain[2], "fc1_wgrad_out")
                assert_bits(from_torch(wgrads[1].tensor), plain[3], "fc2_wgrad_out")
            assert_bits(found[0][:S], plain[0][:S], "y")
            assert_bits(from_torch(out.tensor)[:S], plain[0][:S], "out")
            assert_bits(from_torch(dgrad_out.tensor)[:S], plain[1][:S], "dgrad_out")
            for guarded in (out, dgrad_out, *wgrads):
                guarded.check()
            for guarded in (out, dgrad_out):
                assert bool((guarded.tensor[S:] == SENTINEL).all())


def module_and_inputs(rng) -> tuple[GroupedMLP, torch.Tensor, torch.Tensor, torch.Tensor]:
    module = GroupedMLP(6, 64, 96, params_dtype=torch.bfloat16, device="cuda")
    x, dy = (to_torch(rng.standard_normal((300, 64))).bfloat16() for _ in range(2))
    return module, x, to_torch(rng.random(300)).bfloat16(), dy


SIZES = [40, 0, 100, 60, 1, 50]


def test_no_synchronisation(rng):
    """Module, container and both paths, sizes on the device: sizes, tails and buffers never meet the host."""
    module, x, probs, dy = module_and_inputs(rng)
    container = Sequential(
        GroupedLinear(6, 64, 192, params_dtype=torch.bfloat16, device="cuda"),
        ScaledSwiGLU(),
        GroupedLinear(6, 96, 64, params_dtype=torch.bfloat16, device="cuda"),
    )
    sizes = torch.tensor(SIZES, device="cuda")
    other = sizes.clone()
    out, dgrad_out = torch.zeros_like(x), torch.zeros_like(x)
    x.requires_grad_()
    op_kwargs: Any = {0: {GRAD_INPUT_BUFFER_KEY: dgrad_out}, -1: {OUTPUT_BUFFER_KEY: out}}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(x, sizes, probs, out=out, dgrad_out=dgrad_out).backward(dy)
        module(x, sizes.int()).backward(dy)
        container(x, sizes, probs, sizes, op_kwargs=op_kwargs).backward(dy)
        container(x, sizes, probs, other).backward(dy)  # part by part
        ScaledSwiGLU()(x, probs).sum().backward()  # without sizes: all rows
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(grad_of(x)).all())


def test_several_streams_at_once(rng):
    """Each stream has its own calls; what they allocate between the parts must not meet."""
    module, x, probs, dy = module_and_inputs(rng)
    sizes = torch.tensor(SIZES, device="cuda")
    x.requires_grad_()

    def step() -> list[torch.Tensor]:
        y = module(x, sizes, probs)
        return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]

    expected = [from_torch(t) for t in step()]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    found = []
    for _ in range(8):
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found.append(step())
    torch.cuda.synchronize()
    for run_ in found:
        for a, b in zip(run_, expected, strict=True):
            assert_bits(from_torch(a), b)


def test_autocast(rng):
    module = GroupedMLP(6, 64, 96, device="cuda")
    x, sizes = to_torch(rng.standard_normal((300, 64))).float(), torch.tensor(SIZES, device="cuda")
    out = torch.full((300, 64), SENTINEL, dtype=torch.bfloat16, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = module(x, sizes, out=out)
        with pytest.raises(TypeError, match="out must be"):
            module(x, sizes, out=torch.empty(300, 64, device="cuda"))
    assert y.dtype == torch.bfloat16
    assert y.data_ptr() == out.data_ptr()
    y.float().sum().backward()
    assert all(grad_of(p).dtype == torch.float32 for p in module.parameters())
    narrow = GroupedMLP(6, 64, 96, device="cuda", params_dtype=torch.bfloat16)
    with torch.no_grad():
        for a, b in zip(narrow.parameters(), module.parameters(), strict=True):
            a.copy_(b)
        # Biases are read as they are, fp32 beside 16-bit operands.
        narrow.fc1.bias = torch.nn.Parameter(module.fc1.bias.detach())
        narrow.fc2.bias = torch.nn.Parameter(module.fc2.bias.detach())
        assert_bits(from_torch(narrow(x.bfloat16(), sizes))[: sum(SIZES)], from_torch(y)[: sum(SIZES)])


def test_deterministic_mode(rng):
    """New memory is then filled with NaN."""
    module, x, probs, dy = module_and_inputs(rng)
    sizes = torch.tensor(SIZES, device="cuda")
    x.requires_grad_()
    found = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            y = module(x, sizes, probs)
            found.append([from_torch(t) for t in (y, *torch.autograd.grad(y, [x, *module.parameters()], dy))])
        finally:
            torch.use_deterministic_algorithms(False)
    for a, b in zip(*found, strict=True):
        assert_bits(a, b)


@pytest.mark.parametrize("pair", [("out", "dgrad_out"), ("out", "x"), ("dgrad_out", "fc2_weight")])
def test_overlap_is_refused(pair):
    given: dict[str, torch.Tensor] = {
        "x": torch.ones(64, 64, device="cuda"),
        "fc1_weight": torch.ones(1, 128, 64, device="cuda"),
        "fc2_weight": torch.ones(1, 64, 64, device="cuda"),
        "group_sizes": torch.tensor([64], device="cuda"),
        "out": torch.ones(64, 64, device="cuda"),
        "dgrad_out": torch.ones(64, 64, device="cuda"),
    }
    buffer, other = pair
    given[buffer] = given[other].view(64, 64)
    arguments: dict[str, Any] = given
    with pytest.raises(ValueError, match=r"must not overlap"):
        grouped_mlp(**arguments)


def test_host_sizes_are_uploaded(rng):
    module, x, probs, _ = module_and_inputs(rng)
    on_device = module(x, torch.tensor(SIZES, device="cuda"), probs)
    for sizes in (SIZES, torch.tensor(SIZES), torch.tensor(SIZES, dtype=torch.int32)):
        assert_bits(from_torch(module(x, sizes, probs)), from_torch(on_device))


def test_memory_between_forward_and_backward(rng):
    """What is kept is x, fc1's result and the activation; less the activation when it is computed again."""
    T, K, F = 4096, 512, 1024
    x = torch.randn(T, K, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    sizes = torch.tensor([T], device="cuda")
    out = torch.empty(T, K, device="cuda", dtype=torch.bfloat16)
    kept = {}
    for recompute in (False, True):
        module = GroupedMLP(
            1, K, F, bias=False, params_dtype=torch.bfloat16, device="cuda", activation_recompute=recompute
        )
        module(x, sizes, out=out)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        y = module(x, sizes, out=out)
        torch.cuda.synchronize()
        kept[recompute] = torch.cuda.memory_allocated() - before
        del y
    hidden, activation = T * 2 * F * 2, T * F * 2
    assert kept[False] == hidden + activation
    assert kept[True] == hidden
