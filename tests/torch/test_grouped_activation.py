# SPDX-License-Identifier: Apache-2.0
"""torch_grouped.functional.grouped_activation: results and gradients against fp64, with and without buffers."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch_calls
from cases import BY_NAME, CASES, SENTINEL
from problems import ACTIVATION_KINDS, GATE_LAYOUTS, activation_problem, poisoned_buffer
from tolerances import DTYPES, assert_bits, assert_close
from torch_calls import Witness, leaves, to_numpy, to_torch

from torch_grouped.functional import grouped_activation

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_kind = pytest.mark.parametrize("kind", ACTIVATION_KINDS)
every_layout = pytest.mark.parametrize("gate_layout", GATE_LAYOUTS)
HARD = BY_NAME["empty_middle"]
TAILED = ("y", "h", "row_scale")


def assert_expected(found, problem):
    for name, (reference_pair, terms) in problem.expected().items():
        assert_close(found[name], reference_pair, terms, what=name)


def buffers_for(problem, dtype, **wanted) -> dict[str, Any]:
    shapes = {"out": problem.dy.shape, "dgrad_out": problem.h.shape}
    return {
        name: to_torch(poisoned_buffer(shapes[name], dtype, problem.S, SENTINEL))
        for name, is_wanted in wanted.items()
        if is_wanted
    }


@every_layout
@every_kind
@every_dtype
def test_result_and_gradients(rng, dtype, kind, gate_layout):
    for case in CASES:
        problem = activation_problem(rng, case, dtype, kind, gate_layout)
        found = torch_calls.activation(problem)
        assert found.keys() == {"y", "h", "row_scale"}
        assert {a.dtype for a in found.values()} == {DTYPES[dtype]}
        assert_expected(found, problem)
        for name in TAILED:
            assert_bits(found[name][case.S :], np.zeros_like(found[name][case.S :]), f"the tail of {name} of {case}")


@every_kind
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_f32_row_scale_beside_16_bit(rng, dtype, kind):
    for case in CASES:
        problem = activation_problem(rng, case, dtype, kind, vector_dtype="f32")
        found = torch_calls.activation(problem)
        assert found["row_scale"].dtype == np.float32
        assert_expected(found, problem)


@every_kind
@every_dtype
def test_without_row_scale(rng, dtype, kind):
    problem = activation_problem(rng, HARD, dtype, kind, row_scale=False)
    found = torch_calls.activation(problem)
    assert found.keys() == {"y", "h"}
    assert_expected(found, problem)


@every_kind
@every_case
def test_buffers_change_no_bit_and_keep_their_tails(rng, case, kind):
    problem = activation_problem(rng, case, "bf16", kind)
    plain = torch_calls.activation(problem)
    for out, dgrad_out in product([False, True], repeat=2):
        buffers = buffers_for(problem, "bf16", out=out, dgrad_out=dgrad_out)
        found = torch_calls.activation(problem, **buffers)
        for name in TAILED:
            assert_bits(found[name][: case.S], plain[name][: case.S], f"{name} with {list(buffers)}")
        for name, given in (("y", out), ("h", dgrad_out), ("row_scale", False)):
            tail = found[name][case.S :]
            assert_bits(tail, np.full_like(tail, SENTINEL if given else 0), f"tail of {name} with {list(buffers)}")
        if out:
            assert_bits(to_numpy(buffers["out"]), found["y"])
        if dgrad_out:
            assert_bits(to_numpy(buffers["dgrad_out"]), found["h"])


@every_kind
@every_dtype
def test_which_gradients_are_asked_for_changes_no_bit(rng, dtype, kind):
    problem = activation_problem(rng, HARD, dtype, kind)
    every = torch_calls.activation(problem)
    for without in ("h", "row_scale"):
        found = torch_calls.activation(problem, without_grad=(without,))
        assert set(found) == {"y", "h", "row_scale"} - {without}
        for name, value in found.items():
            assert_bits(value, every[name], f"{name} without {without}")


@pytest.mark.parametrize("form", ["list", "int32", "int64"])
def test_forms_of_sizes(rng, form):
    problem = activation_problem(rng, HARD, "f32", "geglu")
    sizes = list(HARD.sizes) if form == "list" else torch.tensor(HARD.sizes, dtype=getattr(torch, form))
    expected = torch_calls.activation(problem)
    for name, value in torch_calls.activation(problem, sizes=sizes).items():
        assert_bits(value, expected[name], name)


def test_result_is_the_buffer_and_upstream_gets_the_other(rng):
    problem = activation_problem(rng, HARD, "bf16", "swiglu")
    inputs = leaves(problem.inputs)
    buffers = buffers_for(problem, "bf16", out=True, dgrad_out=True)
    seen = []
    h = inputs.pop("h")
    y = grouped_activation(
        Witness.apply(h, seen), group_sizes=to_torch(problem.sizes), **problem.options, **inputs, **buffers
    )
    assert y.data_ptr() == buffers["out"].data_ptr()
    y.backward(to_torch(problem.dy))
    assert seen == [buffers["dgrad_out"].data_ptr()]
    for name, buffer in buffers.items():
        assert not buffer.requires_grad, name
        assert buffer.grad_fn is None, name


def test_buffer_of_a_gradient_that_nobody_wants_is_left_alone(rng):
    problem = activation_problem(rng, HARD, "f32", "swiglu")
    buffers = buffers_for(problem, "f32", dgrad_out=True)
    before = to_numpy(buffers["dgrad_out"])
    torch_calls.activation(problem, without_grad=("h",), **buffers)
    assert_bits(to_numpy(buffers["dgrad_out"]), before)


@every_kind
def test_gradient_that_is_not_contiguous(rng, kind):
    problem = activation_problem(rng, BY_NAME["even"], "f32", kind)
    found = []
    for backward in (lambda y: y.sum().backward(), lambda y: y.backward(torch.ones_like(y))):
        inputs = leaves(problem.inputs)
        backward(grouped_activation(group_sizes=to_torch(problem.sizes), **problem.options, **inputs))
        found.append({name: to_numpy(t.grad) for name, t in inputs.items()})
    for name in found[0]:
        assert_bits(found[0][name], found[1][name], name)


def test_defaults_are_swiglu_concatenated(rng):
    problem = activation_problem(rng, HARD, "f32", "swiglu", row_scale=False)
    h = to_torch(problem.h)
    named = grouped_activation(h, list(HARD.sizes), "swiglu", gate_layout="concatenated")
    assert_bits(to_numpy(grouped_activation(h, list(HARD.sizes))), to_numpy(named))


def test_defaults_of_the_clamp_are_those_of_gpt_oss(rng):
    h = 8 * torch.randn(5, 12, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    named = grouped_activation(h, [5], "clamped_swiglu", alpha=1.702, limit=7.0, offset=1.0)
    assert_bits(to_numpy(grouped_activation(h, [5], "clamped_swiglu")), to_numpy(named))
