# SPDX-License-Identifier: Apache-2.0
"""torch_grouped.Sequential: extra inputs, buffers by module and by index, which path runs, what is refused."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from cases import BY_NAME, SENTINEL
from mlp_problems import mlp_problem
from problems import poisoned_buffer
from tolerances import assert_bits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_calls import to_numpy, to_torch

import torch_grouped
from torch_grouped import (
    GRAD_INPUT_BUFFER_KEY,
    OUTPUT_BUFFER_KEY,
    GroupedLinear,
    GroupedMLP,
    ScaledClampedQGeGLU,
    ScaledGEGLU,
    ScaledSReLU,
    ScaledSwiGLU,
    Sequential,
    SwiGLU,
)

CASE = BY_NAME["tail"]
SCALED = {
    "swiglu": ScaledSwiGLU,
    "clamped_swiglu": ScaledClampedQGeGLU,
    "geglu": ScaledGEGLU,
    "squared_relu": ScaledSReLU,
}


class Operators(TorchDispatchMode):
    """The names of our operators that are called from outside of them, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "grouped_ffi":
            self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def linear_with(weight, bias) -> GroupedLinear:
    G, N, K = weight.shape
    layer = GroupedLinear(G, K, N, bias=bias is not None, params_dtype=to_torch(weight).dtype)
    layer.load_state_dict({"weight": to_torch(weight)} | ({} if bias is None else {"bias": to_torch(bias)}))
    return layer


class Setup:
    """A problem, the container for it, and the container's inputs."""

    def __init__(self, rng, dtype="f32", kind="swiglu", gate_layout="concatenated", case=CASE, **options) -> None:
        self.problem = problem = mlp_problem(rng, case, dtype, kind, gate_layout)
        i = problem.inputs
        clamp = {"alpha": 1.25, "limit": 1.5, "glu_linear_offset": 0.75}
        interleave = 1 if gate_layout == "interleaved" else None
        self.fc1 = linear_with(i["fc1_weight"], i["fc1_bias"])
        self.activation = SCALED[kind](interleave, **clamp, **options)
        self.fc2 = linear_with(i["fc2_weight"], i["fc2_bias"])
        self.container = Sequential(self.fc1, self.activation, self.fc2)
        self.sizes: Any = to_torch(problem.sizes)
        self.dtype = dtype

    def buffer(self, shape) -> torch.Tensor:
        return to_torch(poisoned_buffer(shape, self.dtype, self.problem.S, SENTINEL))

    def run(self, op_kwargs=None, *, sizes2=None, container=None) -> dict[str, Any]:
        """y, gradients, operators of forward; buffers are left to the caller."""
        x = to_torch(self.problem.inputs["x"]).requires_grad_()
        probs = to_torch(self.problem.inputs["row_scale"]).requires_grad_()
        container = self.container if container is None else container
        container.zero_grad()
        sizes2 = self.sizes if sizes2 is None else sizes2
        with Operators() as operators:
            y = container(x * 1, self.sizes, probs, sizes2, op_kwargs=op_kwargs)
        name = y.grad_fn.name()
        address = y.data_ptr()
        y.backward(to_torch(self.problem.dy))
        found = {"y": y, "x": x.grad, "probs": probs.grad}
        found |= {n: p.grad for n, p in container.named_parameters()}
        return {
            "values": {n: to_numpy(t) for n, t in found.items()},
            "operators": operators.names,
            "node": name,
            "address": address,
        }


FUSED, IN_TURN = ["mlp"], ["linear", "activation", "linear"]


def assert_same_rows(found, expected, S, tails=()) -> None:
    for name, value in expected["values"].items():
        rows = slice(None, S) if name in tails else slice(None)
        assert_bits(found["values"][name][rows], value[rows], name)


def in_turn(setup) -> dict[str, Any]:
    return setup.run(sizes2=setup.sizes.clone())


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_three_in_a_row_run_as_one_with_the_same_bits(rng, dtype, kind):
    for gate_layout in ("concatenated", "interleaved"):
        setup = Setup(rng, dtype, kind, gate_layout)
        fused, parts = setup.run(), in_turn(setup)
        assert fused["operators"] == FUSED
        assert fused["node"].startswith("GroupedMLPFunction")
        assert parts["operators"] == IN_TURN
        assert parts["node"].startswith("GroupedLinearFunction")
        assert_same_rows(fused, parts, CASE.S)


@pytest.mark.parametrize("keys", ["modules", "indices", "negative"])
def test_buffers_on_the_outer_edges_keep_it_one(rng, keys):
    setup = Setup(rng, "bf16")
    out, dgrad_out = setup.buffer(setup.problem.dy.shape), setup.buffer(setup.problem.inputs["x"].shape)
    first, last = {"modules": (setup.fc1, setup.fc2), "indices": (0, 2), "negative": (-3, -1)}[keys]
    found = setup.run({first: {GRAD_INPUT_BUFFER_KEY: dgrad_out}, last: {OUTPUT_BUFFER_KEY: out}})
    assert found["operators"] == FUSED
    assert found["address"] == out.data_ptr()
    plain, S = setup.run(), CASE.S
    assert_same_rows(found, plain, S, tails=("y", "x"))
    for name, buffer in (("y", out), ("x", dgrad_out)):
        assert_bits(to_numpy(buffer)[:S], plain["values"][name][:S], name)
        assert (buffer[S:] == SENTINEL).all()
        assert not buffer.requires_grad


INNER = [
    (0, OUTPUT_BUFFER_KEY, "h"),
    (1, OUTPUT_BUFFER_KEY, "a"),
    (1, GRAD_INPUT_BUFFER_KEY, "h"),
    (2, GRAD_INPUT_BUFFER_KEY, "a"),
]


@pytest.mark.parametrize(("position", "key", "like"), INNER)
def test_a_buffer_on_an_inner_edge_is_honoured(rng, position, key, like):
    """A key never means different things: where the one step has no place for it, the operations run in turn."""
    setup = Setup(rng)
    width = {"h": 2 * CASE.N, "a": CASE.N}[like]
    buffer, out = setup.buffer((CASE.T, width)), setup.buffer(setup.problem.dy.shape)
    op_kwargs: dict[Any, Any] = {2: {OUTPUT_BUFFER_KEY: out}}
    op_kwargs.setdefault(position, {})[key] = buffer
    found = setup.run(op_kwargs)
    assert found["operators"] == IN_TURN
    assert found["address"] == out.data_ptr()
    assert torch.isfinite(buffer).all()  # written: it was NaN
    assert (buffer[CASE.S :] == SENTINEL).all()
    assert_same_rows(found, setup.run(), CASE.S, tails=("y",))


def test_none_is_no_buffer(rng):
    setup = Setup(rng)
    found = setup.run({0: {OUTPUT_BUFFER_KEY: None, GRAD_INPUT_BUFFER_KEY: None}, 1: {OUTPUT_BUFFER_KEY: None}})
    assert found["operators"] == FUSED


class Loud(GroupedLinear):
    """A subclass: its forward may do anything."""


def hooked(setup) -> None:
    setup.activation.register_forward_hook(lambda *_: None)


def pre_hooked(setup) -> None:
    setup.fc1.register_forward_pre_hook(lambda *_: None)


def backward_hooked(setup) -> None:
    setup.fc2.register_full_backward_hook(lambda *_: None)


def subclassed(setup) -> None:
    setup.fc1.__class__ = Loud


@pytest.mark.parametrize("change", [hooked, pre_hooked, backward_hooked, subclassed])
# A full backward hook returns views of what the operation made.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_what_could_be_seen_is_not_fused_away(rng, change):
    setup = Setup(rng)
    plain = setup.run()
    change(setup)
    found = setup.run()
    assert found["operators"] == IN_TURN
    assert_same_rows(found, plain, CASE.S)


def test_hooks_are_called(rng):
    setup, seen = Setup(rng), []
    setup.activation.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    setup.run()
    assert seen == [(CASE.T, CASE.N)]


def test_equal_lists_of_sizes_are_the_same_sizes(rng):
    setup = Setup(rng)
    fused = setup.run(sizes2=setup.sizes)
    setup.sizes = list(CASE.sizes)
    assert setup.run(sizes2=list(CASE.sizes))["operators"] == FUSED
    assert_same_rows(setup.run(), fused, CASE.S)
    assert setup.run(sizes2=torch.tensor(CASE.sizes))["operators"] == IN_TURN


def test_recomputation_is_asked_for_at_the_activation(rng):
    for recompute in (False, True):
        setup, saved = Setup(rng, activation_recompute_in_mlp=recompute), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.shape) or t, lambda t: t):
            setup.container(torch.ones(CASE.T, CASE.K), setup.sizes, torch.ones(CASE.T), setup.sizes)
        assert ((CASE.T, CASE.N) in saved) is not recompute


def test_what_stands_around_and_between(rng):
    """Other modules, a second MLP, and an activation without probabilities, in one container."""
    G, K, F = 3, 8, 6
    container = Sequential(
        nn.Identity(),
        GroupedLinear(G, K, 2 * F),
        ScaledSwiGLU(),
        GroupedLinear(G, F, K),
        nn.Tanh(),
        GroupedLinear(G, K, 2 * F),
        SwiGLU(),
        GroupedLinear(G, F, K),
        GroupedMLP(G, K, F),
    )
    assert container.num_extra_inputs == 6
    x, sizes, probs = torch.randn(10, K), torch.tensor([4, 0, 5]), torch.rand(10)
    with Operators() as operators:
        y = container(x, sizes, probs, sizes, sizes, sizes, sizes)
    assert operators.names == ["mlp"] * 3
    expected = x
    modules = list(container)
    for module, extra in zip(
        modules, [(), (sizes,), (probs, sizes), (sizes,), (), (sizes,), (sizes,), (sizes,), (sizes,)], strict=True
    ):
        expected = module(expected, *extra)
    assert_bits(to_numpy(y), to_numpy(expected))


def test_nested_containers_take_their_inputs_in_order():
    inner = Sequential(GroupedLinear(2, 4, 8), ScaledSwiGLU(), GroupedLinear(2, 4, 4))
    outer = Sequential(nn.Identity(), inner, GroupedLinear(2, 4, 3))
    sizes, probs = [2, 3], torch.ones(5)
    x = torch.randn(5, 4)
    expected = outer[2](inner(x, sizes, probs, sizes), sizes)
    assert_bits(to_numpy(outer(x, sizes, probs, sizes, sizes)), to_numpy(expected))


def test_leading_dimensions_are_rows(rng):
    setup = Setup(rng)
    flat = setup.run()["values"]["y"]
    x, probs = (to_torch(setup.problem.inputs[n]) for n in ("x", "row_scale"))
    y = setup.container(x.view(5, 10, -1), setup.sizes, probs.view(5, 10), setup.sizes)
    assert y.shape == (5, 10, CASE.K + 3)
    assert_bits(to_numpy(y).reshape(50, -1), flat)


def test_a_nan_in_the_tail_reaches_nothing_in_turn_either(rng):
    """The activation between the layers takes their sizes, so that its tail is left out too."""
    setup = Setup(rng)
    h = torch.full((CASE.T, 2 * CASE.N), float("nan"))
    found = setup.run({0: {OUTPUT_BUFFER_KEY: h}})  # its tail stays NaN
    assert found["operators"] == IN_TURN
    assert torch.isnan(h[CASE.S :]).all()
    assert_same_rows(found, setup.run(), CASE.S)


def test_parameters_and_state_are_named_by_position(rng):
    setup = Setup(rng)
    assert list(setup.container.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    named = Sequential(OrderedDict(up=setup.fc1, act=setup.activation, down=setup.fc2))
    assert list(named.state_dict()) == ["up.weight", "up.bias", "down.weight", "down.bias"]
    assert_same_rows(setup.run(container=named) | {}, {"values": {"y": setup.run()["values"]["y"]}}, CASE.S)


def test_constants_are_those_of_transformer_engine():
    assert (torch_grouped.OUTPUT_BUFFER_KEY, torch_grouped.GRAD_INPUT_BUFFER_KEY) == ("output", "grad_input")


def refused(exception, words, container, extra, op_kwargs=None):
    with pytest.raises(exception, match=re.escape(words)):
        container(torch.ones(5, 4), *extra, op_kwargs=op_kwargs)


def small():
    fc = GroupedLinear(2, 4, 4)
    return Sequential(fc, nn.Tanh(), GroupedLinear(2, 4, 8), ScaledSwiGLU()), fc


EXTRA: tuple = ([2, 3], [2, 3], torch.ones(5))


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_extra_inputs(count):
    words = "extra_inputs must be 3 (0 GroupedLinear: m_splits; 2 GroupedLinear: m_splits; 3 ScaledSwiGLU: probs); got "
    refused(ValueError, f"{words}{count}.", small()[0], (*EXTRA, [2, 3])[:count])
    refused(ValueError, "extra_inputs must be 0 (no operation takes any); got 1.", Sequential(nn.Tanh()), ([1],))


O = {OUTPUT_BUFFER_KEY: None}  # noqa: E741 - the value is not looked at


@pytest.mark.parametrize(
    ("key", "given", "exception", "words"),
    [
        (
            GroupedLinear(2, 4, 4),
            O,
            ValueError,
            "op_kwargs must name operations of this Sequential; got a GroupedLinear",
        ),
        (4, O, ValueError, "op_kwargs must name operations of this Sequential; got index 4, and it has 4."),
        (-5, O, ValueError, "got index -5"),
        (1, O, ValueError, "op_kwargs must name operations that take buffers; got operation 1, a Tanh"),
        (0, {"out": None}, ValueError, "GRAD_INPUT_BUFFER_KEY=\"grad_input\" alone; got 'out'."),
        ("fc", O, TypeError, "op_kwargs must have modules or indices as keys; got 'fc'."),
        (True, O, TypeError, "op_kwargs must have modules or indices as keys; got True."),
    ],
    ids=["foreign", "past_the_end", "before_the_begin", "takes_none", "keyword", "string", "bool"],
)
def test_keys_that_are_refused(key, given, exception, words):
    refused(exception, words, small()[0], EXTRA, {key: given})


def test_two_keys_for_one_operation():
    container, fc = small()
    refused(ValueError, "got two keys for operation 0 (GroupedLinear)", container, EXTRA, {fc: O, 0: O})
    refused(ValueError, "got two keys for operation 0 (GroupedLinear)", container, EXTRA, {0: O, -4: O})


def test_a_layer_that_gives_a_pair():
    container = Sequential(GroupedLinear(2, 4, 4, return_bias=True))
    refused(
        ValueError, "operation 0 must give its result alone; got a GroupedLinear with return_bias", container, ([2, 3],)
    )


def test_a_module_that_stands_twice_is_named_by_index():
    fc = GroupedLinear(2, 4, 4)
    container = Sequential(fc, nn.Tanh(), fc)
    refused(ValueError, "a GroupedLinear that stands at 0, 2. Name it by index.", container, ([2, 3], [2, 3]), {fc: O})
    out = torch.empty(5, 4)
    y = container(torch.ones(5, 4), [2, 3], [2, 3], op_kwargs={-1: {OUTPUT_BUFFER_KEY: out}})
    assert y.data_ptr() == out.data_ptr()


def test_bad_buffers_are_told_before_anything_runs(rng):
    setup = Setup(rng)
    x, probs = to_torch(setup.problem.inputs["x"]), to_torch(setup.problem.inputs["row_scale"])
    for position, key, name in ((0, GRAD_INPUT_BUFFER_KEY, "dgrad_out"), (2, OUTPUT_BUFFER_KEY, "out")):
        op_kwargs = {position: {key: torch.ones(1, 1)}}
        with pytest.raises(ValueError, match=f"^{name} must be"), Operators() as operators:
            setup.container(x, setup.sizes, probs, setup.sizes, op_kwargs=op_kwargs)
        assert operators.names == ["mlp"]
