# SPDX-License-Identifier: Apache-2.0
"""The same numpy bytes through jax_grouped and torch_grouped: the same bits, and the right ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax_calls
import numpy as np
import pytest
import torch
import torch_calls
from cases import BY_NAME, CASES, SENTINEL, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    ACTIVATION_KINDS,
    GATE_LAYOUTS,
    ActivationProblem,
    LinearProblem,
    activation_problem,
    is_narrow,
    linear_problem,
    poisoned_buffer,
)
from tolerances import DTYPES, assert_bits, assert_close

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
FORMS = [(k, g) for k in ACTIVATION_KINDS for g in GATE_LAYOUTS if k != "squared_relu" or g == "concatenated"]
every_form = pytest.mark.parametrize(("kind", "gate_layout"), FORMS)
HARD = BY_NAME["empty_middle"]


def assert_same(from_jax: dict, from_torch: dict, expected: dict) -> None:
    """Equal bits under equal names. Tails of results without a buffer are compared too: both are zeros."""
    assert from_jax.keys() == from_torch.keys()
    for name in from_jax:
        assert_bits(from_jax[name], from_torch[name], f"{name}, JAX against torch")
    for name, (pair, terms) in expected.items():
        assert_close(from_jax[name], pair, terms, what=f"{name} from JAX")
        assert_close(from_torch[name], pair, terms, what=f"{name} from torch")


def linear(problem: LinearProblem) -> None:
    assert_same(jax_calls.linear(problem), torch_calls.linear(problem), problem.expected())


def activation(problem: ActivationProblem) -> None:
    assert_same(jax_calls.activation(problem), torch_calls.activation(problem), problem.expected())


@pytest.mark.parametrize("case", CASES, ids=str)
@every_dtype
def test_linear(rng, case, dtype) -> None:
    """Forward, dgrad, wgrad, bias gradient and the gradient of row_scale."""
    linear(linear_problem(rng, case, dtype))


@pytest.mark.parametrize(("bias", "row_scale"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("layout", ["gkn", "gnk"])
@every_dtype
def test_absent_arguments(rng, bias, row_scale, layout, dtype) -> None:
    linear(linear_problem(rng, HARD, dtype, bias=bias, row_scale=row_scale, layout=layout))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_fp32_bias_and_row_scale_beside_16_bit(rng, dtype) -> None:
    linear(linear_problem(rng, HARD, dtype, vector_dtype="f32"))


def test_own_default_layouts(rng) -> None:
    """JAX stores [G,K,N], torch [G,N,K]: the same numbers stored either way."""
    problem = linear_problem(rng, HARD, "bf16")
    from_jax, from_torch = jax_calls.linear(problem), torch_calls.linear(problem.in_layout("gnk"))
    from_torch["weight"] = from_torch["weight"].transpose(0, 2, 1)
    assert_same(from_jax, from_torch, problem.expected())


def test_int64_sizes(rng) -> None:
    linear(linear_problem(rng, HARD, "f32", sizes_dtype=np.int64))


TARGETS = [(d, t) for d in DTYPES for t in dict.fromkeys((d, "f32")) if t == d or is_narrow(d)]


@pytest.mark.parametrize(("dtype", "target"), TARGETS)
@pytest.mark.parametrize("layout", ["gkn", "gnk"])
@pytest.mark.parametrize("accumulate", [False, True], ids=["overwrite", "accumulate"])
def test_linear_into_buffers(rng, dtype, target, layout, accumulate) -> None:
    problem = linear_problem(rng, HARD, dtype, layout=layout)
    S = HARD.S
    out, dgrad_out = (poisoned_buffer(a.shape, dtype, S, SENTINEL) for a in (problem.dy, problem.x))
    wgrad_out = draw(rng, problem.weight.shape, target)
    from_jax = jax_calls.linear(problem, out, dgrad_out, wgrad_out, accumulate_wgrad=accumulate)
    written: dict[str, Any] = {
        n: torch_calls.to_torch(b) for n, b in (("dgrad_out", dgrad_out), ("wgrad_out", wgrad_out))
    }
    from_torch = torch_calls.linear(problem, out=torch_calls.to_torch(out), accumulate_wgrad=accumulate, **written)
    from_torch.update({name: torch_calls.to_numpy(b) for name, b in written.items()})
    # A JAX argument always has a cotangent, torch can leave it out.
    assert not from_jax.pop("weight").any()
    assert_same(from_jax, from_torch, {})
    for name, buffer in (("y", out), ("dgrad_out", dgrad_out)):
        assert_bits(from_jax[name][S:], buffer[S:], f"the tail of {name}")
    expected = problem.expected(old_wgrad=wgrad_out if accumulate else None)
    for name, found in (("y", "y"), ("x", "dgrad_out")):
        pair, terms = expected[name]
        assert_close(from_jax[found][:S], tuple(a[:S] for a in pair), terms, what=found)
    assert_close(from_jax["wgrad_out"], *expected["weight"], what="wgrad_out")


@every_form
@every_dtype
@pytest.mark.parametrize("row_scale", [False, True], ids=["plain", "row_scale"])
def test_activation(rng, kind, gate_layout, dtype, row_scale) -> None:
    activation(activation_problem(rng, HARD, dtype, kind, gate_layout, row_scale=row_scale))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("kind", ACTIVATION_KINDS)
def test_activation_with_fp32_row_scale(rng, kind, dtype) -> None:
    activation(activation_problem(rng, HARD, dtype, kind, vector_dtype="f32"))


@every_form
@every_dtype
def test_activation_into_buffers(rng, kind, gate_layout, dtype) -> None:
    problem = activation_problem(rng, HARD, dtype, kind, gate_layout)
    out, dgrad_out = (poisoned_buffer(a.shape, dtype, HARD.S, SENTINEL) for a in (problem.dy, problem.h))
    from_jax = jax_calls.activation(problem, out, dgrad_out)
    written = torch_calls.to_torch(dgrad_out)
    from_torch = torch_calls.activation(problem, out=torch_calls.to_torch(out), dgrad_out=written)
    from_torch["dgrad_out"] = torch_calls.to_numpy(written)
    assert_same(from_jax, from_torch, {})
    for name, buffer in (("y", out), ("dgrad_out", dgrad_out)):
        assert_bits(from_jax[name][HARD.S :], buffer[HARD.S :], f"the tail of {name}")


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16"])
@pytest.mark.parametrize("case", ["tail", "crosses_tiles"])
def test_denormals(rng, case, dtype) -> None:
    """XLA's threads flush denormals and torch's do not; the core sets a mode of its own and so neither matters."""
    tiny = np.finfo(DTYPES[dtype]).tiny
    problem = linear_problem(rng, BY_NAME[case], dtype, bias=False)
    small = (problem.x.astype(np.float64) * float(tiny) / 16).astype(DTYPES[dtype])
    problem = replace(problem, x=small)
    from_jax = jax_calls.linear(problem)
    y = from_jax["y"][: problem.S]
    assert ((y != 0) & (np.abs(y) < tiny)).any(), "the data does not reach denormals"
    assert_same(from_jax, torch_calls.linear(problem), problem.expected())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads(rng, threads) -> None:
    """XLA's pool has its own size; torch's changes here."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        linear(linear_problem(rng, BY_NAME["crosses_tiles"], "bf16"))
    finally:
        torch.set_num_threads(before)


@st.composite
def sizes_with_a_tail(draw_from, T: int, G: int) -> tuple[int, ...]:
    """G sizes that fit into T rows: gaps between sorted cuts, so that empty groups and long tails are common."""
    cuts = sorted(draw_from(st.lists(st.integers(0, T), min_size=G, max_size=G)))
    return tuple(int(n) for n in np.diff([0, *cuts]))


# One shape, so that JAX compiles once per dtype.
DRAWN = replace(HARD, name="drawn", T=45, K=17, N=18)


@settings(max_examples=40, deadline=None)
@given(sizes=sizes_with_a_tail(DRAWN.T, 6), dtype=st.sampled_from(["bf16", "f32"]), seed=st.integers(0, 2**32 - 1))
def test_any_sizes(sizes, dtype, seed) -> None:
    linear(linear_problem(np.random.default_rng(seed), replace(DRAWN, sizes=sizes), dtype))


@settings(max_examples=40, deadline=None)
@given(sizes=sizes_with_a_tail(DRAWN.T, 6), kind=st.sampled_from(ACTIVATION_KINDS), seed=st.integers(0, 2**32 - 1))
def test_any_sizes_of_an_activation(sizes, kind, seed) -> None:
    activation(activation_problem(np.random.default_rng(seed), replace(DRAWN, sizes=sizes), "bf16", kind))
