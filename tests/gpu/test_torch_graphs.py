# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs and compiled code on a GPU: captured once, replayed with other sizes, in the caller's memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import SENTINEL
from frameworks import Guarded, from_torch, grad_of, to_torch
from tolerances import assert_bits

from torch_grouped import (
    GRAD_INPUT_BUFFER_KEY,
    OUTPUT_BUFFER_KEY,
    GroupedLinear,
    GroupedMLP,
    ScaledSwiGLU,
    Sequential,
)

T, K, F, G = 300, 64, 96, 6
NEW_SIZES = ([50] * 6, [300, 0, 0, 0, 0, 0], [0, 7, 0, 93, 100, 3], [0] * 6)
BF16: dict[str, Any] = {"params_dtype": torch.bfloat16, "device": "cuda"}


def make(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "mlp":
        return GroupedMLP(G, K, F, **BF16)
    return Sequential(GroupedLinear(G, K, 2 * F, **BF16), ScaledSwiGLU(), GroupedLinear(G, F, K, **BF16))


def call(kind: str, module, x, sizes, probs, out=None, dgrad_out=None, *, in_turn: bool = False):
    if kind == "mlp":
        return module(x, sizes, probs, out=out, dgrad_out=dgrad_out)
    op_kwargs: Any = {0: {GRAD_INPUT_BUFFER_KEY: dgrad_out}, 2: {OUTPUT_BUFFER_KEY: out}}
    return module(x, sizes, probs, sizes.view(-1) if in_turn else sizes, op_kwargs=op_kwargs)


def inputs(rng) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, dy = (to_torch(rng.standard_normal((T, K))).bfloat16() for _ in range(2))
    return x, to_torch(rng.random(T)).bfloat16(), dy


@pytest.mark.parametrize(("kind", "in_turn"), [("mlp", False), ("container", False), ("container", True)])
def test_forward_and_backward_replay_with_new_sizes(rng, kind, in_turn):
    module, (x, probs, dy) = make(kind), inputs(rng)
    x.requires_grad_()
    probs.requires_grad_()
    sizes = torch.tensor([50] * 6, device="cuda")
    out, dgrad_out = Guarded((T, K), torch.bfloat16), Guarded((T, K), torch.bfloat16)
    leaves = [x, probs, *module.parameters()]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        y = call(kind, module, x * 1, sizes, probs, out.tensor, dgrad_out.tensor, in_turn=in_turn)
        y.backward(dy)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    captured = [leaf.grad for leaf in leaves]
    for new in NEW_SIZES:
        sizes.copy_(torch.tensor(new))
        for buffer in (out, dgrad_out):
            buffer.tensor.fill_(SENTINEL)
        graph.replay()
        S = sum(new)
        y = call(kind, module, x, sizes, probs, in_turn=in_turn)
        expected = torch.autograd.grad(y, leaves, dy)
        assert_bits(from_torch(out.tensor[:S]), from_torch(y[:S]), f"y with {new}")
        assert_bits(from_torch(dgrad_out.tensor[:S]), from_torch(expected[0][:S]), f"dx with {new}")
        for found, value in zip(captured[1:], expected[1:], strict=True):
            assert found is not None
            assert_bits(from_torch(found), from_torch(value), f"a gradient with {new}")
        for buffer in (out, dgrad_out):
            buffer.check()
            assert bool((buffer.tensor[S:] == SENTINEL).all())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_make_graphed_callables(rng, kind):
    """torch captures forward and backward and copies new inputs, the sizes among them, into the captured ones."""
    torch.manual_seed(0)
    module = GroupedMLP(G, K, F, **BF16) if kind == "mlp" else GroupedLinear(G, K, K, **BF16)
    torch.manual_seed(0)
    plain = GroupedMLP(G, K, F, **BF16) if kind == "mlp" else GroupedLinear(G, K, K, **BF16)
    plain.load_state_dict(module.state_dict())
    x, _, dy = inputs(rng)
    sample = (torch.randn_like(x).requires_grad_(), torch.tensor([50] * 6, device="cuda"))
    graphed: Any = torch.cuda.make_graphed_callables(module, sample)
    for new in NEW_SIZES:
        sizes = torch.tensor(new, device="cuda")
        found = []
        for function in (graphed, plain):
            leaf = x.clone().requires_grad_()
            function.zero_grad()
            y = function(leaf, sizes)
            y.backward(dy)
            gradients = [grad_of(leaf), *(grad_of(p) for p in function.parameters())]
            found.append([from_torch(t) for t in (y, *gradients)])
        for a, b in zip(*found, strict=True):
            assert_bits(a, b, f"with {new}")


def test_host_sizes_are_refused_during_capture(rng):
    module, (x, _, _) = make("mlp"), inputs(rng)
    module(x, [50] * 6)
    graph = torch.cuda.CUDAGraph()
    expected = pytest.raises(RuntimeError, match="group_sizes must be on the device while a CUDA graph")
    with expected, torch.cuda.graph(graph):
        module(x, [50] * 6)
    torch.cuda.synchronize()


# What torch says of itself while it compiles.
@pytest.mark.filterwarnings("ignore")
def test_inductor_writes_into_the_callers_memory(rng):
    torch._dynamo.reset()
    module, (x, probs, dy) = make("mlp"), inputs(rng)

    def layer(x, sizes, probs, out, dgrad_out):
        return module(x * 2, sizes, probs, out=out, dgrad_out=dgrad_out)

    compiled = torch.compile(layer, fullgraph=True)
    results = []
    for function in (compiled, layer):
        for new in NEW_SIZES:
            sizes = torch.tensor(new, device="cuda")
            out, dgrad_out = Guarded((T, K), torch.bfloat16), Guarded((T, K), torch.bfloat16)
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            y = function(leaf, sizes, probs, out.tensor, dgrad_out.tensor)
            assert y.data_ptr() == out.tensor.data_ptr()
            y.backward(dy)
            S = sum(new)
            for buffer in (out, dgrad_out):
                buffer.check()
                assert bool((buffer.tensor[S:] == SENTINEL).all())
            parameters = [grad_of(p) for p in module.parameters()]
            results.append([from_torch(t) for t in (out.tensor, dgrad_out.tensor, *parameters)])
    half = len(results) // 2
    for a, b in zip(results[:half], results[half:], strict=True):
        for found, expected in zip(a, b, strict=True):
            assert_bits(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_compiled_with_torchs_own_graphs(rng):
    """mode="reduce-overhead" captures what Inductor made; new sizes are inputs of the graph."""
    torch._dynamo.reset()
    module, (x, probs, _) = make("mlp"), inputs(rng)
    compiled = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(2):
            for new in NEW_SIZES:
                sizes = torch.tensor(new, device="cuda")
                torch.compiler.cudagraph_mark_step_begin()
                y = compiled(x, sizes, probs).clone()
                assert_bits(from_torch(y), from_torch(module(x, sizes, probs)), f"with {new}")
