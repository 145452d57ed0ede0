# SPDX-License-Identifier: Apache-2.0
"""torch.compile: the bits, the pointers and the tails of eager mode; no recompilation for new sizes of the groups."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, cast

import pytest
import torch
from cases import BY_NAME, SENTINEL, draw
from problems import activation_problem, linear_problem, poisoned_buffer
from tolerances import assert_bits
from torch._dynamo.exc import TorchRuntimeError
from torch._dynamo.testing import CompileCounterWithBackend
from torch_calls import leaves, to_numpy, to_torch

from torch_grouped import GroupedLinear
from torch_grouped.functional import grouped_activation, grouped_linear

# What torch says of itself: Dynamo traces an autograd.Function through an instance; Inductor imports torch.jit.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:<class 'torch.autograd.function.Function'> should not be instantiated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]
HARD = BY_NAME["empty_middle"]
BUFFERS = ("out", "dgrad_out", "wgrad_out")
SUBSETS = [tuple(n for n, wanted in zip(BUFFERS, s, strict=True) if wanted) for s in product([True, False], repeat=3)]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def linear_layer(x, weight, sizes, bias, row_scale, out=None, dgrad_out=None, wgrad_out=None, accumulate=False):
    # x is no leaf, so that the gradient handed upstream can be the buffer.
    return grouped_linear(
        x * 2,
        weight,
        sizes,
        bias,
        row_scale=row_scale,
        out=out,
        dgrad_out=dgrad_out,
        wgrad_out=wgrad_out,
        accumulate_wgrad=accumulate,
    )


def linear_buffers(problem, names, dtype):
    shapes = {"out": problem.dy.shape, "dgrad_out": problem.x.shape, "wgrad_out": problem.weight.shape}
    return {
        name: to_torch(poisoned_buffer(shapes[name], dtype, problem.S if name != "wgrad_out" else 99, SENTINEL))
        for name in names
    }


def train(function, problem, names=(), dtype="f32", accumulate=False):
    """Everything that one step leaves behind, and the address of the result."""
    inputs, buffers = leaves(problem.inputs), linear_buffers(problem, names, dtype)
    if accumulate:
        buffers["wgrad_out"].fill_(1)
    x, weight, bias, row_scale = inputs.values()
    y = function(x, weight, to_torch(problem.sizes), bias, row_scale, **buffers, accumulate=accumulate)
    y.backward(to_torch(problem.dy))
    found = {name: to_numpy(t.grad) for name, t in inputs.items() if t.grad is not None}
    found |= {name: to_numpy(b) for name, b in buffers.items()}
    for name, buffer in buffers.items():
        assert not buffer.requires_grad, name
    return {"y": to_numpy(y), **found}, "out" in buffers and y.data_ptr() == buffers["out"].data_ptr()


def assert_same_as_eager(function, problem, names=(), *, in_place=False, **options):
    """`in_place`: whether the backend writes into buffers without a copy. Inductor does; aot_eager copies back."""
    expected, _ = train(linear_layer, problem, names, **options)
    found, aliases = train(function, problem, names, **options)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_bits(found[name], value, f"{name} with {names}")
    if in_place and "out" in names:
        assert aliases
    for name in set(names) & {"out", "dgrad_out"}:
        assert (found[name][problem.S :] == SENTINEL).all(), f"the tail of {name}"


@pytest.mark.parametrize("names", [SUBSETS[0], SUBSETS[-1]], ids=["all_buffers", "no_buffers"])
def test_linear_through_inductor(rng, names):
    problem = linear_problem(rng, HARD, "bf16", layout="gnk")
    compiled = torch.compile(linear_layer, fullgraph=True)
    assert_same_as_eager(compiled, problem, names, in_place=True, dtype="bf16")


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "-".join(names) or "none")
def test_linear_through_aot(rng, names):
    for dtype in ("f32", "bf16"):
        problem = linear_problem(rng, HARD, dtype, layout="gnk")
        compiled = torch.compile(linear_layer, fullgraph=True, backend="aot_eager")
        assert_same_as_eager(compiled, problem, names, dtype=dtype)


def test_accumulation_through_aot(rng):
    problem = linear_problem(rng, HARD, "f32", layout="gnk")
    compiled = torch.compile(linear_layer, fullgraph=True, backend="aot_eager")
    assert_same_as_eager(compiled, problem, ("wgrad_out",), accumulate=True)


# Dynamo looks at .grad of every tensor that it is given, and a non-leaf warns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_dgrad_out_is_handed_upstream_without_a_copy(rng):
    problem = linear_problem(rng, HARD, "f32", bias=False, row_scale=False, layout="gnk")
    dgrad_out = linear_buffers(problem, ["dgrad_out"], "f32")["dgrad_out"]

    @torch.compile(fullgraph=True)
    def layer(x, weight, sizes, dgrad_out):
        return grouped_linear(x, weight, sizes, dgrad_out=dgrad_out)

    seen = []
    x = to_torch(problem.x).requires_grad_().clone()  # no leaf
    x.register_hook(lambda dx: seen.append(dx.data_ptr()))
    layer(x, to_torch(problem.weight), to_torch(problem.sizes), dgrad_out).backward(to_torch(problem.dy))
    assert seen == [dgrad_out.data_ptr()]


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
@pytest.mark.parametrize("kind", ["clamped_swiglu", "squared_relu"])
def test_activation(rng, kind, backend):
    problem = activation_problem(rng, HARD, "bf16", kind)

    def layer(h, sizes, row_scale, out, dgrad_out):
        return grouped_activation(h * 2, sizes, row_scale=row_scale, out=out, dgrad_out=dgrad_out, **problem.options)

    def one_step(function):
        inputs = leaves(problem.inputs)
        out, dgrad_out = (
            to_torch(poisoned_buffer(a.shape, "bf16", problem.S, SENTINEL)) for a in (problem.dy, problem.h)
        )
        y = function(inputs["h"], to_torch(problem.sizes), inputs["row_scale"], out, dgrad_out)
        y.backward(to_torch(problem.dy))
        assert y.data_ptr() == out.data_ptr() or backend == "aot_eager"
        assert torch.equal(y, out)
        for buffer in (out, dgrad_out):
            assert (buffer[problem.S :] == SENTINEL).all()
        return [to_numpy(t) for t in (out, dgrad_out, inputs["h"].grad, inputs["row_scale"].grad)]

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for found, expected in zip(one_step(compiled), one_step(layer), strict=True):
        assert_bits(found, expected)


@pytest.mark.parametrize("leading", [(40,), (4, 10)], ids=str)
@pytest.mark.parametrize("with_out", [False, True], ids=["no_out", "out"])
def test_module_through_aot(rng, with_out, leading):
    # Any: main_grad is the training loop's attribute, which nn.Parameter does not declare.
    module = cast("Any", GroupedLinear(HARD.G, HARD.K, HARD.N, fuse_wgrad_accumulation=True))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, sizes = to_torch(draw(rng, (*leading, HARD.K), "f32")), torch.tensor(HARD.sizes)
    found = []
    for function in (module, compiled):
        out = torch.full((40, HARD.N), SENTINEL) if with_out else None
        module.weight.main_grad = torch.ones_like(module.weight, requires_grad=False)
        module.bias.grad = None
        y = function(x, sizes, None, out)
        assert y.requires_grad
        y.sum().backward()
        found.append([to_numpy(t) for t in (y, module.weight.main_grad, module.bias.grad)])
        assert module.weight.grad is None
    for eager, same in zip(*found, strict=True):
        assert_bits(same, eager)


@pytest.mark.parametrize("view", [lambda y: y.view(4, 10, -1), lambda y: y[:7], torch.t], ids=["view", "slice", "t"])
def test_a_view_of_the_result_keeps_its_gradient(rng, view):
    # AOTAutograd rebuilds a view of `out` from the caller's tensor, which requires no grad.
    problem = linear_problem(rng, HARD, "f32", bias=False, row_scale=False, layout="gnk")

    def layer(x, weight, sizes, out):
        return view(grouped_linear(x, weight, sizes, out=out))

    found = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        x = to_torch(problem.x).requires_grad_()
        y = function(x, to_torch(problem.weight), to_torch(problem.sizes), torch.zeros(problem.dy.shape))
        assert y.requires_grad
        y.sum().backward()
        found.append(to_numpy(x.grad))
    assert_bits(*found)


def test_new_sizes_and_new_row_counts_do_not_recompile(rng):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(linear_layer, fullgraph=True, backend=counter)
    K, N, G = 12, 9, 3
    weight, bias = to_torch(draw(rng, (G, N, K), "f32")), to_torch(draw(rng, (G, N), "f32"))

    def call(T, sizes):
        arguments = (to_torch(draw(rng, (T, K), "f32")), weight, torch.tensor(sizes), bias)
        row_scale, out = to_torch(draw(rng, (T,), "f32")), torch.full((T, N), SENTINEL)
        for t in (arguments[0], row_scale, out):
            torch._dynamo.mark_dynamic(t, 0)
        expected = linear_layer(*arguments, row_scale, out.clone())
        assert_bits(to_numpy(compiled(*arguments, row_scale, out)), to_numpy(expected))

    call(20, [5, 5, 5])
    assert counter.frame_count == 1
    for sizes in ([0, 20, 0], [20, 0, 0], [0, 0, 0], [1, 2, 3]):
        call(20, sizes)
    assert counter.frame_count == 1
    for T in (21, 64, 7):
        call(T, [2, 0, 5])
    assert counter.frame_count == 1


def test_row_count_becomes_dynamic_by_itself_after_one_recompilation(rng):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(linear_layer, fullgraph=True, backend=counter)
    weight, bias = to_torch(draw(rng, (2, 9, 12), "f32")), to_torch(draw(rng, (2, 9), "f32"))
    for T in (20, 33, 7, 64):
        x, row_scale = to_torch(draw(rng, (T, 12), "f32")), to_torch(draw(rng, (T,), "f32"))
        sizes, out = torch.tensor([3, 4]), torch.empty(T, 9)
        found = to_numpy(compiled(x, weight, sizes, bias, row_scale, out))
        assert_bits(found[:7], to_numpy(linear_layer(x, weight, sizes, bias, row_scale))[:7])
    assert counter.frame_count <= 2


def test_gradients_with_dynamic_rows(rng):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(linear_layer, fullgraph=True, backend=counter, dynamic=True)
    for name in ("even", "tail", "odd_everything"):
        problem = linear_problem(rng, BY_NAME[name], "f32", layout="gnk")
        assert_same_as_eager(compiled, problem, SUBSETS[0])
    # One graph with accumulate=False for all shapes.
    assert counter.frame_count == 1


BAD = [
    ("weight", {"weight": torch.ones(2, 5, 9)}, "weight must be [G, N, K=4] f32; got [2, 5, 9] f32."),
    (
        "out_shape",
        {"out": torch.ones(6, 7)},
        "out must be [T=6, N=8] f32, contiguous, 16-byte aligned; got [6, 7] f32.",
    ),
    (
        "out_dtype",
        {"out": torch.ones(6, 8).double()},
        "out must be [T=6, N=8] f32, contiguous, 16-byte aligned; got [6, 8] f64.",
    ),
    ("dgrad_out", {"dgrad_out": torch.ones(4, 6)}, "dgrad_out must be [T=6, K=4] f32, contiguous, 16-byte aligned;"),
    ("wgrad_out", {"wgrad_out": torch.ones(8, 4)}, "wgrad_out must be [G=2, N=8, K=4] f32, contiguous"),
    (
        "out_strided",
        {"out": torch.ones(6, 16)[:, ::2]},
        "out must be contiguous; got shape [6, 8] with strides [16, 2]. Pass a contiguous buffer.",
    ),
    (
        "out_grad",
        {"out": torch.ones(6, 8, requires_grad=True)},
        "out must not require grad: it is memory to write into; got a tensor that does. Pass out.detach().",
    ),
    ("sizes", {"sizes": torch.ones(2)}, "group_sizes must be [G=2] i32 or i64; got [2] f32."),
]


def bad_arguments(changes) -> dict[str, Any]:
    return {
        "x": torch.ones(6, 4),
        "weight": torch.ones(2, 8, 4),
        "sizes": torch.tensor([3, 2]),
        "bias": torch.ones(2, 8),
        "row_scale": torch.ones(6),
        **changes,
    }


@pytest.mark.parametrize(("changes", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
@pytest.mark.parametrize("dynamic", [False, True])
def test_mistakes_are_told_at_compile_time_in_the_cores_words(changes, message, dynamic):
    def never(graph, inputs):
        raise AssertionError("the mistake was not seen while tracing")

    arguments = bad_arguments(changes)
    with pytest.raises((ValueError, TypeError)):
        linear_layer(**arguments)
    compiled = torch.compile(linear_layer, fullgraph=True, backend=never, dynamic=dynamic)
    # Dynamo wraps what a fake kernel raises, and keeps its words.
    with pytest.raises(TorchRuntimeError, match=re.escape(message)):
        compiled(**arguments)


def test_gradient_that_overlaps_dgrad_out_is_refused_compiled(rng):
    compiled = torch.compile(linear_layer, fullgraph=True)
    arguments = bad_arguments({"weight": torch.ones(2, 4, 4), "bias": torch.ones(2, 4)})
    arguments["x"].requires_grad_()
    dgrad_out = torch.full((6, 4), SENTINEL)
    y = compiled(**arguments, dgrad_out=dgrad_out)
    with pytest.raises(ValueError, match="dgrad_out must not overlap dy; got memory that they share"):
        y.backward(dgrad_out)


def test_sizes_that_do_not_fit_are_told_when_it_runs():
    compiled = torch.compile(linear_layer, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=re.escape("group_sizes[1] = 4 does not fit")):
        compiled(**bad_arguments({"sizes": torch.tensor([3, 4])}))
