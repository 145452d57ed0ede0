# SPDX-License-Identifier: Apache-2.0
"""torch_grouped.GroupedMLP and the activation modules: arguments, parameters, both paths, main_grad."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from cases import BY_NAME, SENTINEL
from mlp_problems import mlp_problem
from problems import ACTIVATION_KINDS, poisoned_buffer
from problems import CLAMP as CLAMP_OPTIONS
from tolerances import assert_bits
from torch_calls import to_numpy, to_torch
from torch_mlp_calls import composed

import torch_grouped
from torch_grouped import GroupedMLP
from torch_grouped.functional import grouped_activation, grouped_mlp

CASE = BY_NAME["empty_middle"]
K, F, G = 16, 12, CASE.G
CLAMP: dict[str, Any] = dict(CLAMP_OPTIONS)
PLAIN = {"swiglu": "SwiGLU", "clamped_swiglu": "ClampedSwiGLU", "geglu": "GEGLU", "squared_relu": "SReLU"}
SCALED = {
    "swiglu": "ScaledSwiGLU",
    "clamped_swiglu": "ScaledClampedQGeGLU",
    "geglu": "ScaledGEGLU",
    "squared_relu": "ScaledSReLU",
}


def run(module: Any, x, probs, sizes, dy, **buffers) -> dict[str, Any]:
    x = x.clone().requires_grad_()
    probs = None if probs is None else probs.clone().requires_grad_()
    module.zero_grad()
    y = module(x, sizes, probs, **buffers)
    node = y.grad_fn.name()
    y.backward(dy)
    found = {"y": y, "x": x.grad, **{n: p.grad for n, p in module.named_parameters()}}
    if probs is not None:
        found["probs"] = probs.grad
    return {"node": node, **{n: to_numpy(t) for n, t in found.items() if t is not None}}


def inputs(rng, dtype=torch.float32):
    def new(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

    return new(CASE.T, K), new(CASE.T), torch.tensor(CASE.sizes), new(CASE.T, K)


def test_arguments():
    assert list(inspect.signature(GroupedMLP.forward).parameters)[1:] == [
        "inp",
        "m_splits",
        "probs",
        "is_first_microbatch",
        "out",
        "dgrad_out",
    ]
    assert list(inspect.signature(GroupedMLP.__init__).parameters)[1:4] == [
        "num_gemms",
        "hidden_size",
        "ffn_hidden_size",
    ]


@pytest.mark.parametrize("activation", ACTIVATION_KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_parameters(activation, bias):
    module = GroupedMLP(G, K, F, activation=activation, bias=bias, params_dtype=torch.bfloat16)
    columns = F if activation == "squared_relu" else 2 * F
    expected = {"fc1.weight": (G, columns, K), "fc2.weight": (G, K, F)}
    if bias:
        expected |= {"fc1.bias": (G, columns), "fc2.bias": (G, K)}
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == expected
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert set(module.state_dict()) == set(expected)


@pytest.mark.parametrize("activation", ACTIVATION_KINDS)
@pytest.mark.parametrize("with_probs", [False, True])
def test_is_the_function_in_one_step_and_in_turn(rng, activation, with_probs):
    for interleave, recompute in ((None, False), (1, True)):
        options: dict[str, Any] = {n: v for n, v in CLAMP.items() if n != "offset"} | {
            "glu_linear_offset": CLAMP["offset"]
        }
        module = GroupedMLP(
            G, K, F, activation=activation, glu_interleave_size=interleave, activation_recompute=recompute, **options
        )
        x, probs, sizes, dy = inputs(rng)
        probs = probs if with_probs else None
        one = run(module, x, probs, sizes, dy)
        assert one.pop("node").startswith("GroupedMLPFunction")
        module.activation.register_forward_hook(lambda *_: None)
        turn = run(module, x, probs, sizes, dy)
        assert turn.pop("node").startswith("GroupedLinearFunction")
        p = dict(module.named_parameters())
        layout = "concatenated" if interleave is None else "interleaved"
        for function in (grouped_mlp, composed):
            y = function(
                x,
                p["fc1.weight"],
                p["fc2.weight"],
                sizes,
                p["fc1.bias"],
                p["fc2.bias"],
                row_scale=probs,
                activation=activation,
                gate_layout=layout,
                **CLAMP,
            )
            assert_bits(to_numpy(y), one["y"])
        assert one.keys() == turn.keys()
        for name, value in one.items():
            assert_bits(turn[name], value, name)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("leading", [(40,), (4, 10)], ids=str)
def test_buffers(rng, leading, in_turn):
    module = GroupedMLP(G, K, F)
    if in_turn:
        module.fc1.register_forward_hook(lambda *_: None)
    x, probs, sizes, dy = inputs(rng)
    plain = run(module, x, probs, sizes, dy)
    out, dgrad_out = (to_torch(poisoned_buffer((CASE.T, K), "f32", CASE.S, SENTINEL)) for _ in range(2))
    x, probs, dy = x.view(*leading, K), probs.view(leading), dy.view(*leading, K)
    found = run(module, x, probs, sizes, dy, out=out, dgrad_out=dgrad_out)
    for name, buffer in (("y", out), ("x", dgrad_out)):
        assert_bits(to_numpy(buffer)[: CASE.S], plain[name][: CASE.S], name)
        assert (buffer[CASE.S :] == SENTINEL).all()
        assert not buffer.requires_grad
    for name in ("fc1.weight", "fc2.weight", "fc1.bias", "fc2.bias"):
        assert_bits(found[name], plain[name], name)


FLAGS = [None, "grad_added_to_main_grad", "overwrite_main_grad", "delay_wgrad_compute"]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("first", [None, True])
def test_main_grad(rng, first, recompute, flag):
    """In one step, whatever a layer does with its gradient."""
    module: Any = GroupedMLP(
        G, K, F, params_dtype=torch.bfloat16, fuse_wgrad_accumulation=True, activation_recompute=recompute
    )
    plain: Any = GroupedMLP(G, K, F, params_dtype=torch.bfloat16)
    plain.load_state_dict(module.state_dict())
    x, probs, sizes, dy = inputs(rng, torch.bfloat16)
    for layer in (module.fc1, module.fc2):
        layer.weight.main_grad = torch.ones(layer.weight.shape)
        if flag == "delay_wgrad_compute":
            layer.delay_wgrad_compute = True
        elif flag is not None:
            setattr(layer.weight, flag, flag == "overwrite_main_grad" and first is None)
    y = module(x, sizes, probs, first)
    assert y.grad_fn.name().startswith("GroupedMLPFunction")
    y.backward(dy)
    if flag == "delay_wgrad_compute":
        module.fc2.backward_dw()
        module.fc1.backward_dw()
    targets = [torch.ones(w.shape) for w in (plain.fc1.weight, plain.fc2.weight)]
    grouped_mlp(
        x,
        plain.fc1.weight,
        plain.fc2.weight,
        sizes,
        plain.fc1.bias,
        plain.fc2.bias,
        row_scale=probs,
        fc1_wgrad_out=targets[0],
        fc2_wgrad_out=targets[1],
        accumulate_wgrad=not first and flag != "overwrite_main_grad",
    ).backward(dy)
    for layer, target in zip((module.fc1, module.fc2), targets, strict=True):
        assert flag != "grad_added_to_main_grad" or layer.weight.grad_added_to_main_grad
        assert_bits(to_numpy(layer.weight.main_grad), to_numpy(target))
        assert not layer.weight.main_grad.requires_grad


def test_missing_main_grad():
    module = GroupedMLP(G, K, F, fuse_wgrad_accumulation=True)
    with pytest.raises(ValueError, match=r"^weight.main_grad must be a tensor of the weight's shape"):
        module(torch.ones(4, K), [1, 1, 1, 1])


def test_state_in_transformer_engines_form():
    """Separate weights of experts are stacked on loading."""
    module, other = GroupedMLP(2, 4, 3), GroupedMLP(2, 4, 3)
    state = module.fc1.export_te_state_dict("fc1.") | module.fc2.export_te_state_dict("fc2.")
    assert "fc1.weight1" in state
    other.load_state_dict(state)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert_bits(to_numpy(a), to_numpy(b))


@pytest.mark.parametrize("kind", ACTIVATION_KINDS)
def test_activation_modules_are_the_function(rng, kind):
    problem = mlp_problem(rng, CASE, "f32", kind)
    columns = CASE.N * (1 if kind == "squared_relu" else 2)
    h = torch.from_numpy(rng.standard_normal((CASE.T, columns))).float()
    probs = torch.from_numpy(rng.standard_normal(CASE.T)).float()
    for interleave, layout in ((None, "concatenated"), (1, "interleaved")):
        options = {"alpha": CLAMP["alpha"], "limit": CLAMP["limit"], "glu_linear_offset": CLAMP["offset"]}
        plain = getattr(torch_grouped, PLAIN[kind])(interleave, **options)
        scaled = getattr(torch_grouped, SCALED[kind])(interleave, **options)
        for sizes in (None, to_torch(problem.sizes)):
            given = [CASE.T] if sizes is None else sizes
            expected = grouped_activation(h, given, kind, gate_layout=layout, **CLAMP)
            assert_bits(to_numpy(plain(h, sizes)), to_numpy(expected))
            expected = grouped_activation(h, given, kind, row_scale=probs, gate_layout=layout, **CLAMP)
            assert_bits(to_numpy(scaled(h, probs, sizes)), to_numpy(expected))
            batched = scaled(h.view(4, 10, -1), probs.view(4, 10, 1), sizes)
            assert_bits(to_numpy(batched).reshape(CASE.T, -1), to_numpy(expected))


def test_activation_buffers(rng):
    h, probs = torch.randn(6, 8, requires_grad=True), torch.rand(6)
    out, dgrad_out = torch.full((6, 4), SENTINEL), torch.full((6, 8), SENTINEL)
    y = torch_grouped.ScaledSwiGLU()(h * 1, probs, [2, 2], out, dgrad_out)
    assert y.data_ptr() == out.data_ptr()
    y.sum().backward()
    assert (out[4:] == SENTINEL).all()
    assert (dgrad_out[4:] == SENTINEL).all()
    assert (dgrad_out[:4] != SENTINEL).all()


@pytest.mark.parametrize("size", [2, 32, 0, "1"])
def test_blocks_of_gates_are_refused(size):
    with pytest.raises(ValueError, match=rf"^glu_interleave_size must be None .* got {size!r}"):
        torch_grouped.ScaledSwiGLU(glu_interleave_size=size)
    with pytest.raises(ValueError, match=r"^glu_interleave_size"):
        GroupedMLP(G, K, F, glu_interleave_size=size)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"^activation must be one of "):
        GroupedMLP(G, K, F, activation="relu")


def test_print_and_reset():
    module = GroupedMLP(2, 4, 3, activation="clamped_swiglu", device="meta")
    assert '(activation): ClampedSwiGLU(gate_layout="concatenated", alpha=1.702, limit=7.0, offset=1.0)' in repr(module)
    module.to_empty(device="cpu").reset_parameters()
    assert all(torch.isfinite(p).all() for p in module.parameters())
