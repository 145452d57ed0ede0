# SPDX-License-Identifier: Apache-2.0
"""The grouped MLP from the same numpy bytes in both packages: the same bits forward and backward."""

from __future__ import annotations

import pytest
import torch_calls
from cases import BY_NAME, CASES
from jax_mlp import mlp as in_jax
from mlp_problems import mlp_problem
from problems import ACTIVATION_KINDS, GATE_LAYOUTS
from tolerances import DTYPES, assert_bits
from torch_mlp_calls import mlp as in_torch

HARD = BY_NAME["empty_middle"]
FORMS = [(k, g) for k in ACTIVATION_KINDS for g in GATE_LAYOUTS if k != "squared_relu" or g == "concatenated"]


def assert_same(from_jax: dict, from_torch: dict) -> None:
    assert from_jax.keys() == from_torch.keys()
    for name in from_jax:
        assert_bits(from_jax[name], from_torch[name], f"{name}, JAX against torch")


@pytest.mark.parametrize(("kind", "gate_layout"), FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_activation(rng, kind, gate_layout, dtype) -> None:
    problem = mlp_problem(rng, HARD, dtype, kind, gate_layout)
    from_torch = in_torch(problem)
    for function in ("mlp", "composed"):
        assert_same(in_jax(problem, function), from_torch)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_shape(rng, case) -> None:
    problem = mlp_problem(rng, case, "bf16")
    assert_same(in_jax(problem), in_torch(problem))


@pytest.mark.parametrize(("bias", "row_scale"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("layout", ["gkn", "gnk"])
def test_absent_arguments(rng, bias, row_scale, layout) -> None:
    problem = mlp_problem(rng, HARD, "f32", bias=bias, row_scale=row_scale, layout=layout)
    assert_same(in_jax(problem), in_torch(problem))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_f32_vectors_and_recomputation(rng, dtype) -> None:
    problem = mlp_problem(rng, HARD, dtype, "geglu", vector_dtype="f32")
    kept = in_torch(problem)
    assert_same(in_jax(problem, recompute_activation=True), kept)
    assert_same(in_torch(problem, recompute_activation=True), kept)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_into_buffers(rng, dtype) -> None:
    problem = mlp_problem(rng, HARD, dtype)
    out, dgrad_out = (problem.buffers(dtype)[name] for name in ("out", "dgrad_out"))
    from_jax = in_jax(problem, out=out, dgrad_out=dgrad_out)
    written = torch_calls.to_torch(dgrad_out)
    from_torch = in_torch(problem, out=torch_calls.to_torch(out), dgrad_out=written)
    from_torch["dgrad_out"] = torch_calls.to_numpy(written)
    assert_same(from_jax, from_torch)
    for name, buffer in (("y", out), ("dgrad_out", dgrad_out)):
        assert_bits(from_jax[name][HARD.S :], buffer[HARD.S :], f"the tail of {name}")
