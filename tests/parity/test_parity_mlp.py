# SPDX-License-Identifier: Apache-2.0
"""The grouped MLP from the same numpy bytes in both packages: the same bits forward and backward, the same words."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_calls
from cases import BY_NAME, CASES, SENTINEL
from jax_calls import wide_enough
from mlp_problems import MLPProblem, mlp_problem
from numpy.typing import NDArray
from problems import ACTIVATION_KINDS, GATE_LAYOUTS, poisoned_buffer
from tolerances import DTYPES, assert_bits
from torch_mlp_calls import mlp as in_torch

import jax_grouped
from torch_grouped.functional import grouped_mlp as torch_mlp

HARD = BY_NAME["empty_middle"]
FORMS = [(k, g) for k in ACTIVATION_KINDS for g in GATE_LAYOUTS if k != "squared_relu" or g == "concatenated"]


def in_parts(x, fc1_weight, fc2_weight, group_sizes, fc1_bias=None, fc2_bias=None, **options):
    """What grouped_mlp stands for, of jax_grouped's own parts."""
    row_scale, out, dgrad_out = (options.pop(n, None) for n in ("row_scale", "out", "dgrad_out"))
    layout, kind = options.pop("weight_layout"), options.pop("activation")
    options.pop("recompute_activation", None)
    h = jax_grouped.grouped_linear(x, fc1_weight, group_sizes, fc1_bias, dgrad_out=dgrad_out, weight_layout=layout)
    a = jax_grouped.grouped_activation(h, group_sizes, kind, row_scale=row_scale, **options)
    return jax_grouped.grouped_linear(a, fc2_weight, group_sizes, fc2_bias, out=out, weight_layout=layout)


FUNCTIONS = {"mlp": getattr(jax_grouped, "grouped_mlp", in_parts), "parts": in_parts}


@partial(jax.jit, static_argnames=("options", "function"))
def _step(inputs, sizes, dy, out, dgrad_out, options, function):
    differentiated = {**inputs, **({} if dgrad_out is None else {"dgrad_out": dgrad_out})}
    y, pull_back = jax.vjp(
        lambda arguments: FUNCTIONS[function](group_sizes=sizes, out=out, **dict(options), **arguments), differentiated
    )
    return {"y": y, **pull_back(dy)[0]}


def in_jax(
    problem: MLPProblem,
    function: str = "mlp",
    out: NDArray | None = None,
    dgrad_out: NDArray | None = None,
    **more: Any,
) -> dict[str, NDArray]:
    """y under "y", and every cotangent under the name of its argument."""
    with wide_enough(*problem.inputs.values()):
        buffers = [None if b is None else jnp.asarray(b) for b in (out, dgrad_out)]
        inputs = {name: jnp.asarray(a) for name, a in problem.inputs.items()}
        options = tuple({**problem.options, **more}.items())
        found = _step(inputs, jnp.asarray(problem.sizes), jnp.asarray(problem.dy), *buffers, options, function)
    return {name: np.asarray(a) for name, a in found.items()}


def assert_same(from_jax: dict, from_torch: dict) -> None:
    assert from_jax.keys() == from_torch.keys()
    for name in from_jax:
        assert_bits(from_jax[name], from_torch[name], f"{name}, JAX against torch")


@pytest.mark.parametrize(("kind", "gate_layout"), FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_activation(rng, kind, gate_layout, dtype) -> None:
    problem = mlp_problem(rng, HARD, dtype, kind, gate_layout)
    from_torch = in_torch(problem)
    for function in FUNCTIONS:
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
    out, dgrad_out = (poisoned_buffer(a.shape, dtype, HARD.S, SENTINEL) for a in (problem.dy, problem.inputs["x"]))
    from_jax = in_jax(problem, out=out, dgrad_out=dgrad_out)
    written = torch_calls.to_torch(dgrad_out)
    from_torch = in_torch(problem, out=torch_calls.to_torch(out), dgrad_out=written)
    from_torch["dgrad_out"] = torch_calls.to_numpy(written)
    assert_same(from_jax, from_torch)
    for name, buffer in (("y", out), ("dgrad_out", dgrad_out)):
        assert_bits(from_jax[name][HARD.S :], buffer[HARD.S :], f"the tail of {name}")


T, K, F, N, G = 6, 4, 8, 5, 2
GOOD = {
    "x": (T, K),
    "fc1_weight": (G, 2 * F, K),
    "fc2_weight": (G, N, F),
    "group_sizes": (G,),
    "fc1_bias": (G, 2 * F),
    "fc2_bias": (G, N),
    "row_scale": (T,),
    "out": (T, N),
    "dgrad_out": (T, K),
    "fc1_wgrad_out": (G, 2 * F, K),
    "fc2_wgrad_out": (G, N, F),
}
MISTAKES = [
    *((name, (*shape[:-1], shape[-1] + 1), "f32", ValueError) for name, shape in GOOD.items() if name != "group_sizes"),
    *((name, (*shape, 1), "f32", ValueError) for name, shape in GOOD.items() if name != "group_sizes"),
    ("group_sizes", (G + 1,), "int32", ValueError),
    ("group_sizes", (G,), "f32", TypeError),
    *((name, shape, "f16", TypeError) for name, shape in GOOD.items() if name not in ("x", "group_sizes")),
]


@pytest.mark.skipif(not hasattr(jax_grouped, "grouped_mlp"), reason="jax_grouped has the parts only")
@pytest.mark.parametrize(("name", "shape", "dtype", "exception"), MISTAKES, ids=lambda v: str(v) if v else "")
def test_the_same_words(name, shape, dtype, exception) -> None:
    arrays = {n: np.zeros(s, np.int32 if n == "group_sizes" else np.float32) for n, s in GOOD.items()}
    arrays[name] = np.zeros(shape, DTYPES.get(dtype, dtype))
    options: dict[str, Any] = {"weight_layout": "gnk"}
    in_torch_: dict[str, Any] = {n: torch_calls.to_torch(a) for n, a in arrays.items()}
    with pytest.raises(exception) as from_torch:
        torch_mlp(**in_torch_, **options)
    with pytest.raises(exception) as from_jax:
        jax.jit(partial(FUNCTIONS["mlp"], **options))(**arrays)
    assert str(from_jax.value) == str(from_torch.value)
