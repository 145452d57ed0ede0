# SPDX-License-Identifier: Apache-2.0
"""jax_grouped.grouped_activation: results and cotangents against fp64, with and without buffers."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax_calls
import numpy as np
import pytest
from cases import BY_NAME, CASES, SENTINEL
from problems import ACTIVATION_KINDS, GATE_LAYOUTS, activation_problem, poisoned_buffer
from tolerances import DTYPES, assert_bits, assert_close

from jax_grouped import grouped_activation

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
# A kind without a gate has one layout.
FORMS = [(k, g) for k in ACTIVATION_KINDS for g in GATE_LAYOUTS if k != "squared_relu" or g == "concatenated"]
every_form = pytest.mark.parametrize(("kind", "gate_layout"), FORMS)
HARD = BY_NAME["empty_middle"]


def assert_expected(found: dict, problem) -> None:
    expected = problem.expected()
    assert found.keys() == expected.keys()
    for name, (reference_pair, terms) in expected.items():
        assert_close(found[name], reference_pair, terms, what=name)


@every_form
@every_dtype
@pytest.mark.parametrize("row_scale", [False, True], ids=["plain", "row_scale"])
def test_result_and_cotangents(rng, kind, gate_layout, dtype, row_scale) -> None:
    problem = activation_problem(rng, HARD, dtype, kind, gate_layout, row_scale=row_scale)
    found = jax_calls.activation(problem)
    assert {a.dtype for a in found.values()} == {DTYPES[dtype]}
    assert_expected(found, problem)
    for name, value in found.items():
        assert_bits(value[HARD.S :], np.zeros_like(value[HARD.S :]), f"the tail of {name}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_shape(rng, case) -> None:
    problem = activation_problem(rng, case, "bf16", "swiglu")
    assert_expected(jax_calls.activation(problem), problem)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("kind", ACTIVATION_KINDS)
def test_fp32_row_scale_beside_16_bit(rng, kind, dtype) -> None:
    problem = activation_problem(rng, HARD, dtype, kind, vector_dtype="f32")
    found = jax_calls.activation(problem)
    assert found["row_scale"].dtype == np.float32
    assert_expected(found, problem)


@every_form
@pytest.mark.parametrize("buffers", ["out", "dgrad_out", "both"])
def test_buffers_have_the_same_bits(rng, kind, gate_layout, buffers) -> None:
    """Results as without buffers, each buffer's tail as it was, and the gradient of row_scale with a zero tail."""
    problem = activation_problem(rng, HARD, "bf16", kind, gate_layout)
    S = HARD.S
    given = {}
    if buffers != "dgrad_out":
        given["out"] = poisoned_buffer(problem.dy.shape, "bf16", S, SENTINEL)
    if buffers != "out":
        given["dgrad_out"] = poisoned_buffer(problem.h.shape, "bf16", S, SENTINEL)
    plain, found = jax_calls.activation(problem), jax_calls.activation(problem, **given)
    for name, buffer in (("y", "out"), ("h", "dgrad_out")):
        assert_bits(found[name][:S], plain[name][:S], name)
        tail = np.full_like(plain[name][S:], SENTINEL if buffer in given else 0)
        assert_bits(found[name][S:], tail, f"the tail of {name}")
    assert_bits(found["row_scale"], plain["row_scale"], "the gradient of row_scale")
    if "dgrad_out" in given:
        assert_bits(found["dgrad_out"], found["h"], "the cotangent of dgrad_out")


@pytest.mark.parametrize("kind", ["swiglu", "clamped_swiglu", "geglu"])
def test_gate_layouts_have_the_same_bits(rng, kind) -> None:
    problem = activation_problem(rng, HARD, "f32", kind, "concatenated")
    gate, up = np.split(problem.h, 2, axis=1)
    mixed = np.stack([gate, up], axis=2).reshape(problem.h.shape)
    found = jax_calls.activation(replace(problem, h=mixed, gate_layout="interleaved"))
    plain = jax_calls.activation(problem)
    assert_bits(found["y"], plain["y"], "y")
    assert_bits(np.concatenate([found["h"][:, 0::2], found["h"][:, 1::2]], axis=1), plain["h"], "dh")
    assert_bits(found["row_scale"], plain["row_scale"], "the gradient of row_scale")


@pytest.mark.parametrize("kind", ["swiglu", "geglu", "squared_relu"])
def test_only_the_clamped_kind_reads_the_numbers(rng, kind) -> None:
    problem = activation_problem(rng, HARD, "f32", kind, row_scale=False)
    y = jax.jit(lambda h, sizes: grouped_activation(h, sizes, kind))(problem.h, problem.sizes)
    assert_bits(y, jax_calls.activation(problem)["y"])


@pytest.mark.parametrize("magnitude", [1.0, 1e4])
@every_form
def test_far_from_zero_the_sigmoid_is_0_or_1(rng, kind, gate_layout, magnitude) -> None:
    """exp saturates instead of overflowing into NaN. Nearer to zero fp32 denormals would blur the result."""
    problem = activation_problem(rng, HARD, "f32", kind, gate_layout, row_scale=False)
    far = np.copysign(200 + np.abs(problem.h), problem.h) * np.float32(magnitude)
    problem = replace(problem, h=far)
    assert_expected(jax_calls.activation(problem), problem)
