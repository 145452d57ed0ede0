# SPDX-License-Identifier: Apache-2.0
"""The MLP, the container and the modules under torch.compile and torch.export: bits, pointers, recompilations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BY_NAME, SENTINEL
from mlp_problems import mlp_problem
from problems import poisoned_buffer
from tolerances import assert_bits
from torch._dynamo.exc import TorchRuntimeError
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from torch_calls import DEVICE, leaves, to_numpy, to_torch

from torch_grouped import (
    GRAD_INPUT_BUFFER_KEY,
    OUTPUT_BUFFER_KEY,
    GroupedLinear,
    GroupedMLP,
    ScaledSwiGLU,
    Sequential,
)
from torch_grouped.functional import grouped_mlp

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:<class 'torch.autograd.function.Function'> should not be instantiated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]
CASE = BY_NAME["empty_middle"]
NO_BUFFERS: tuple[str, ...] = ()
BUFFERS = ("out", "dgrad_out", "fc1_wgrad_out", "fc2_wgrad_out")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(function, problem, names, dtype, **options) -> dict[str, Any]:
    """Everything that one forward and backward leave behind."""
    inputs = leaves(problem.inputs)
    shapes = {
        "out": problem.dy.shape,
        "dgrad_out": inputs["x"].shape,
        "fc1_wgrad_out": inputs["fc1_weight"].shape,
        "fc2_wgrad_out": inputs["fc2_weight"].shape,
    }
    buffers = {
        n: to_torch(poisoned_buffer(shapes[n], dtype, 99 if "wgrad" in n else problem.S, SENTINEL)) for n in names
    }
    y = function(inputs, to_torch(problem.sizes), buffers, {**problem.options, **options})
    y.backward(to_torch(problem.dy))
    found = {n: to_numpy(t.grad) for n, t in inputs.items() if t.grad is not None}
    found |= {n: to_numpy(b) for n, b in buffers.items()}
    assert not any(b.requires_grad for b in buffers.values())
    aliases = "out" in buffers and y.data_ptr() == buffers["out"].data_ptr()
    return {"aliases": aliases, "values": {"y": to_numpy(y), **found}}


def layer(inputs, sizes, buffers, options):
    # x is no leaf, so that the gradient handed upstream can be the buffer.
    return grouped_mlp(group_sizes=sizes, **{**inputs, "x": inputs["x"] * 2}, **buffers, **options)


@pytest.mark.parametrize(
    ("backend", "recompute"), [("inductor", False), ("aot_eager", False), ("aot_eager", True)], ids=str
)
@pytest.mark.parametrize("names", [BUFFERS, NO_BUFFERS, ("out",), ("dgrad_out",)], ids=lambda n: "-".join(n) or "none")
def test_mlp(rng, backend, names, recompute):
    problem = mlp_problem(rng, CASE, "bf16", "clamped_swiglu")
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    expected = step(layer, problem, names, "bf16", recompute_activation=recompute)
    found = step(compiled, problem, names, "bf16", recompute_activation=recompute)
    assert found["values"].keys() == expected["values"].keys()
    for n, value in expected["values"].items():
        assert_bits(found["values"][n], value, n)
    for n in set(names) & {"out", "dgrad_out"}:
        assert (found["values"][n][CASE.S :] == SENTINEL).all(), f"the tail of {n}"
    if backend == "inductor" and "out" in names:  # aot_eager copies back
        assert found["aliases"]


def test_only_what_is_needed_is_saved_compiled(rng):
    """The activation is computed again, so between forward and backward nothing of its size is alive."""
    problem = mlp_problem(rng, CASE, "f32")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for recompute in (False, True):
        saved: list[torch.Size] = []
        inputs = leaves(problem.inputs)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.shape) or t, lambda t: t):
            compiled(inputs, to_torch(problem.sizes), {}, {**problem.options, "recompute_activation": recompute})
        assert ((CASE.T, CASE.N) in saved) is not recompute


# Dynamo looks at .grad of every tensor that it is given, and a non-leaf warns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_dgrad_out_is_handed_upstream_without_a_copy(rng):
    problem = mlp_problem(rng, CASE, "f32")
    inputs, seen = leaves(problem.inputs), []
    dgrad_out = torch.full(problem.inputs["x"].shape, SENTINEL, device=DEVICE)

    @torch.compile(fullgraph=True)
    def plain(inputs, sizes, dgrad_out):
        return grouped_mlp(group_sizes=sizes, dgrad_out=dgrad_out, **inputs)

    x = inputs["x"].clone()
    x.register_hook(lambda dx: seen.append(dx.data_ptr()))
    plain({**inputs, "x": x}, to_torch(problem.sizes), dgrad_out).backward(to_torch(problem.dy))
    assert seen == [dgrad_out.data_ptr()]


def test_new_sizes_and_row_counts_do_not_recompile(rng):
    counter = CompileCounterWithBackend("aot_eager")
    module = GroupedMLP(3, 8, 6, device=DEVICE)
    compiled = torch.compile(module, fullgraph=True, backend=counter)

    def call(T, sizes):
        x, probs, out, dgrad_out = (
            torch.randn(T, 8, device=DEVICE),
            torch.rand(T, device=DEVICE),
            torch.full((T, 8), 7.0, device=DEVICE),
            torch.full((T, 8), 7.0, device=DEVICE),
        )
        for t in (x, probs, out, dgrad_out):
            torch._dynamo.mark_dynamic(t, 0)
        x.requires_grad_()
        y = compiled(x, torch.tensor(sizes, device=DEVICE), probs, out=out, dgrad_out=dgrad_out)
        y.sum().backward()
        S = sum(sizes)
        expected = x.detach().clone().requires_grad_()
        plain = module(expected, torch.tensor(sizes, device=DEVICE), probs)
        plain.sum().backward()
        assert_bits(to_numpy(out)[:S], to_numpy(plain)[:S])
        assert_bits(to_numpy(dgrad_out)[:S], to_numpy(expected.grad)[:S])
        assert (out[S:] == 7).all()
        assert (dgrad_out[S:] == 7).all()

    call(20, [5, 5, 5])
    for sizes in ([0, 20, 0], [20, 0, 0], [0, 0, 0], [1, 2, 3]):
        call(20, sizes)
    for T in (21, 64, 7):
        call(T, [2, 0, 5])
    assert counter.frame_count == 1


@pytest.mark.parametrize("keys", ["indices", "modules", None])
@pytest.mark.parametrize("inner", [False, True], ids=["as_one", "in_turn"])
def test_container(rng, keys, inner):
    fc1, activation, fc2 = GroupedLinear(3, 8, 12, device=DEVICE), ScaledSwiGLU(), GroupedLinear(3, 6, 8, device=DEVICE)
    container = Sequential(fc1, activation, fc2)
    x, sizes, probs = (
        torch.randn(10, 8, device=DEVICE),
        torch.tensor([4, 0, 5], device=DEVICE),
        torch.rand(10, device=DEVICE),
    )
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(container, fullgraph=True, backend=counter)
    first, last = (fc1, fc2) if keys == "modules" else (0, -1)

    def run(function):
        out, dgrad_out, h = (
            torch.full((10, 8), 7.0, device=DEVICE),
            torch.full((10, 8), 7.0, device=DEVICE),
            torch.full((10, 12), 7.0, device=DEVICE),
        )
        op_kwargs: Any = None
        if keys is not None:
            op_kwargs = {first: {GRAD_INPUT_BUFFER_KEY: dgrad_out}, last: {OUTPUT_BUFFER_KEY: out}}
            if inner:
                op_kwargs[first][OUTPUT_BUFFER_KEY] = h
        leaf = x.clone().requires_grad_()
        container.zero_grad()
        y = function(leaf, sizes, probs, sizes, op_kwargs=op_kwargs)
        y[:9].sum().backward()
        weights = [to_numpy(p.grad) for p in container.parameters()]
        return [to_numpy(t) for t in (y, leaf.grad, out, dgrad_out, h)] + weights

    for found, expected in zip(run(compiled), run(container), strict=True):
        assert_bits(found, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "module", [GroupedMLP(3, 8, 6, device=DEVICE), GroupedLinear(3, 8, 6, device=DEVICE)], ids=["mlp", "linear"]
)
def test_autocast_inside_compile(module):
    x, sizes = torch.randn(10, 8, device=DEVICE), torch.tensor([4, 0, 5], device=DEVICE)

    def run(x):
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            return module(x, sizes)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = []
    for function in (compiled, run):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        found.append((to_numpy(y), to_numpy(leaf.grad)))
    for a, b in zip(*found, strict=True):
        assert_bits(a, b)


def test_checkpoint_inside_compile():
    module = GroupedMLP(3, 8, 6, device=DEVICE)
    x, sizes = torch.randn(10, 8, device=DEVICE), torch.tensor([4, 0, 5], device=DEVICE)

    def run(x):
        return checkpoint(module, x, sizes, use_reentrant=False)

    found = []
    for function in (torch.compile(run, fullgraph=True, backend="aot_eager"), run):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        y.sum().backward()
        found.append((to_numpy(y), to_numpy(leaf.grad)))
    for a, b in zip(*found, strict=True):
        assert_bits(a, b)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "out",
            torch.ones(7, 8, device=DEVICE),
            "out must be [T=6, N=8] f32, contiguous, 16-byte aligned; got [7, 8] f32.",
        ),
        ("dgrad_out", torch.ones(6, 5, device=DEVICE), "dgrad_out must be [T=6, K=4] f32"),
        ("fc2_weight", torch.ones(2, 8, 9, device=DEVICE), "fc2_weight must be [G, N, K=8] f32; got [2, 8, 9] f32."),
        ("fc1_wgrad_out", torch.ones(2, 8, 9, device=DEVICE), "fc1_wgrad_out must be [G=2, N=16, K=4] f32"),
    ],
)
def test_mistakes_are_told_at_compile_time_in_the_cores_words(name, value, words, dynamic):
    def never(graph, inputs):
        raise AssertionError("the mistake was not seen while tracing")

    arguments: dict[str, Any] = {
        "x": torch.ones(6, 4, device=DEVICE),
        "fc1_weight": torch.ones(2, 16, 4, device=DEVICE),
        "fc2_weight": torch.ones(2, 8, 8, device=DEVICE),
        "group_sizes": torch.tensor([3, 2], device=DEVICE),
        name: value,
    }
    compiled = torch.compile(grouped_mlp, fullgraph=True, backend=never, dynamic=dynamic)
    with pytest.raises(TorchRuntimeError) as caught:
        compiled(**arguments)
    assert words in str(caught.value)


def test_overlap_is_told_when_compiled_code_runs():
    compiled = torch.compile(grouped_mlp, fullgraph=True, backend="inductor")
    buffer = torch.zeros(6, 4, device=DEVICE)
    arguments = (
        torch.ones(6, 4, device=DEVICE),
        torch.ones(2, 16, 4, device=DEVICE),
        torch.ones(2, 4, 8, device=DEVICE),
        torch.tensor([3, 2], device=DEVICE),
    )
    with pytest.raises(ValueError, match=r"(out|dgrad_out) must not overlap (out|dgrad_out); got memory"):
        compiled(*arguments, out=buffer, dgrad_out=buffer)


# torch.export


class Exported(torch.nn.Module):
    """A layer as it would be deployed: sizes and rows are inputs."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return self.module(x, sizes)


@pytest.mark.parametrize("kind", ["linear", "mlp", "container"])
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_rows(kind, strict):
    module = {
        "linear": lambda: GroupedLinear(3, 8, 6, device=DEVICE),
        "mlp": lambda: GroupedMLP(3, 8, 6, device=DEVICE),
        "container": lambda: Sequential(GroupedLinear(3, 8, 6, device=DEVICE), torch.nn.Tanh()),
    }[kind]()
    wrapped = Exported(module)
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(
        wrapped,
        (torch.randn(12, 8, device=DEVICE), torch.tensor([4, 0, 5], device=DEVICE)),
        dynamic_shapes={"x": {0: rows}, "sizes": None},
        strict=strict,
    )
    run = program.module()
    for T, sizes in ((12, [4, 0, 5]), (30, [0, 30, 0]), (2, [0, 0, 0])):
        x = torch.randn(T, 8, device=DEVICE)
        assert_bits(
            to_numpy(run(x, torch.tensor(sizes, device=DEVICE))),
            to_numpy(module(x, torch.tensor(sizes, device=DEVICE))),
        )


def test_export_with_a_buffer(tmp_path):
    """Saved to a file and loaded: the caller's memory is still what is written."""
    module = GroupedMLP(3, 8, 6, device=DEVICE)

    class WithOut(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor, sizes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            return self.module(x, sizes, out=out) * 1

    x, sizes = torch.randn(12, 8, device=DEVICE), torch.tensor([4, 0, 5], device=DEVICE)
    with torch.no_grad():
        program = torch.export.export(WithOut(), (x, sizes, torch.zeros(12, 8, device=DEVICE)))
    torch.export.save(program, str(tmp_path / "program.pt2"))
    run = torch.export.load(str(tmp_path / "program.pt2")).module()
    out = torch.full((12, 8), 7.0, device=DEVICE)
    run(x, sizes, out)
    assert_bits(to_numpy(out)[:9], to_numpy(module(x, sizes))[:9])
    assert (out[9:] == 7).all()
