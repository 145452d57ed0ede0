# SPDX-License-Identifier: Apache-2.0
"""jax_grouped.grouped_mlp: the bits of its three parts, buffers, what it saves, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import jax_mlp
import numpy as np
import pytest
import reference
from cases import BY_NAME, CASES, SENTINEL, draw
from jax_mlp import mlp_problem
from mlp_problems import BUFFERS
from problems import ACTIVATION_KINDS, GATE_LAYOUTS, is_narrow
from tolerances import DTYPES, assert_bits, assert_close

from jax_grouped import grouped_mlp

HARD = BY_NAME["empty_middle"]
FORMS = [(k, g) for k in ACTIVATION_KINDS for g in GATE_LAYOUTS if k != "squared_relu" or g == "concatenated"]
every_form = pytest.mark.parametrize(("activation", "gate_layout"), FORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_bits(found[name], value, name)


@every_form
@every_dtype
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_bits_of_the_three_calls(rng, activation, gate_layout, dtype, recompute) -> None:
    problem = mlp_problem(rng, HARD, dtype, activation, gate_layout)
    found = jax_mlp.mlp(problem, recompute_activation=recompute)
    assert {a.dtype for a in found.values()} == {DTYPES[dtype]}
    assert_same(found, jax_mlp.mlp(problem, "composed"))
    assert np.isfinite(found["y"].astype(np.float64)).all()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layout", ["gkn", "gnk"])
def test_every_shape(rng, case, layout) -> None:
    """Tails of results are zeros; NaN in those of inputs reaches nothing."""
    problem = mlp_problem(rng, case, "bf16", layout=layout)
    found = jax_mlp.mlp(problem)
    assert_same(found, jax_mlp.mlp(problem, "composed"))
    for name in ("y", "x", "row_scale"):
        assert_bits(found[name][case.S :], np.zeros_like(found[name][case.S :]), f"the tail of {name}")
    for name, value in found.items():
        assert np.isfinite(value.astype(np.float64)).all(), name


@pytest.mark.parametrize(("bias", "row_scale"), [(False, False), (True, False), (False, True)])
def test_absent_arguments(rng, bias, row_scale) -> None:
    problem = mlp_problem(rng, HARD, "f32", bias=bias, row_scale=row_scale)
    assert_same(jax_mlp.mlp(problem), jax_mlp.mlp(problem, "composed"))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_fp32_vectors_beside_16_bit(rng, dtype) -> None:
    problem = mlp_problem(rng, HARD, dtype, vector_dtype="f32")
    found = jax_mlp.mlp(problem)
    assert {found[n].dtype for n in ("fc1_bias", "fc2_bias", "row_scale")} == {np.dtype(np.float32)}
    assert_same(found, jax_mlp.mlp(problem, "composed"))


def test_fc2_against_fp64(rng) -> None:
    """The last product from the activation's own bits, so that the wiring of weights and sizes is not only compared
    with itself."""
    problem = mlp_problem(rng, HARD, "f32", "squared_relu", bias=False, row_scale=False)
    x, w1, w2 = (problem.inputs[n] for n in ("x", "fc1_weight", "fc2_weight"))
    h = np.asarray(jnp.asarray(reference.grouped_mm(x, w1, problem.sizes, layout="gkn")[0], jnp.float32))
    a = np.maximum(h, 0) ** 2
    pair = reference.grouped_mm(a, w2, problem.sizes, layout="gkn")
    # Each of the F values carries the roundings of a product over K, its square and this sum.
    scale = reference.grouped_mm(np.abs(x), np.abs(w1), problem.sizes, layout="gkn")[0] ** 2
    bound = reference.grouped_mm(scale, np.abs(w2), problem.sizes, layout="gkn")[0]
    assert_close(jax_mlp.mlp(problem)["y"], (pair[0], bound), HARD.K + w2.shape[1] + 4)


@every_dtype
@pytest.mark.parametrize("given", [*((b,) for b in BUFFERS), BUFFERS], ids=lambda given: "+".join(given))
def test_buffers_have_the_same_bits(rng, dtype, given) -> None:
    """Results as without buffers, tails as the caller left them, and no second gradient of a weight."""
    problem = mlp_problem(rng, HARD, dtype)
    plain = jax_mlp.mlp(problem)
    buffers: dict[str, Any] = {name: b for name, b in problem.buffers(dtype).items() if name in given}
    found = jax_mlp.mlp(problem, **buffers)
    S = HARD.S
    for name, buffer in (("y", "out"), ("x", "dgrad_out")):
        assert_bits(found[name][:S], plain[name][:S], name)
        tail = np.full_like(plain[name][S:], SENTINEL if buffer in given else 0)
        assert_bits(found[name][S:], tail, f"the tail of {name}")
    if "dgrad_out" in given:
        assert_bits(found["dgrad_out"], found["x"], "the cotangent of dgrad_out")
    for fc in ("fc1", "fc2"):
        name, buffer = f"{fc}_weight", f"{fc}_wgrad_out"
        if buffer in given:
            assert_bits(found[buffer], plain[name], buffer)
            assert_bits(found[name], np.zeros_like(plain[name]), f"the cotangent of {name}")
        else:
            assert_bits(found[name], plain[name], name)
    for name in ("fc1_bias", "fc2_bias", "row_scale"):
        assert_bits(found[name], plain[name], name)


@pytest.mark.parametrize(
    ("dtype", "target"), [(d, t) for d in DTYPES for t in dict.fromkeys((d, "f32")) if t == d or is_narrow(d)]
)
def test_wgrads_accumulate(rng, dtype, target) -> None:
    problem = mlp_problem(rng, HARD, dtype)
    old = {f"{fc}_wgrad_out": draw(rng, problem.inputs[f"{fc}_weight"].shape, target) for fc in ("fc1", "fc2")}
    found = jax_mlp.mlp(problem, **old, accumulate_wgrad=True)
    assert_same(found, jax_mlp.mlp(problem, "composed", **old, accumulate_wgrad=True))
    for name, before in old.items():
        assert found[name].dtype == before.dtype
        assert_bits(found[name][1], before[1], f"{name} of an empty group")
        assert (found[name][0] != before[0]).any()


def residuals(problem, **options) -> list[tuple[int, ...]]:
    """Shapes of everything that jax.vjp keeps for backward, as it keeps it."""
    arrays = {name: jnp.asarray(a) for name, a in problem.inputs.items()}
    sizes = jnp.asarray(problem.sizes)

    def pull_back(arrays):
        return jax.vjp(lambda a: grouped_mlp(**a, group_sizes=sizes, **problem.options, **options), arrays)[1]

    return sorted(leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(pull_back, arrays)))


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
@pytest.mark.parametrize("vectors", [False, True], ids=["plain", "bias_and_row_scale"])
def test_saves_what_is_needed_and_nothing_more(rng, recompute, vectors) -> None:
    """x, both weights, the sizes, row_scale, fc1's result, and the activation unless it is recomputed.

    Of a bias only its dtype: a slice without elements.
    """
    problem = mlp_problem(rng, HARD, "f32", bias=vectors, row_scale=vectors)
    shapes = [problem.inputs[n].shape for n in ("x", "fc1_weight", "fc2_weight")] + [(HARD.G,), (HARD.T, 2 * HARD.N)]
    shapes += [] if recompute else [(HARD.T, HARD.N)]
    shapes += [(0, 2 * HARD.N), (0, problem.dy.shape[1]), (HARD.T,)] if vectors else []
    assert residuals(problem, recompute_activation=recompute) == sorted(shapes)


def test_recomputation_is_behind_a_barrier(rng) -> None:
    """Or XLA would merge it with forward's call and keep the result all the same."""
    problem: Any = mlp_problem(rng, HARD, "f32", bias=False, row_scale=False)
    x, w1, w2 = (jnp.asarray(problem.inputs[n]) for n in ("x", "fc1_weight", "fc2_weight"))

    def texts(recompute: bool) -> tuple[str, str]:
        def loss(x, w1, w2):
            return jnp.vdot(grouped_mlp(x, w1, w2, problem.sizes, recompute_activation=recompute), 1.0 + problem.dy)

        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(x, w1, w2)
        return lowered.as_text(), lowered.compile().as_text() or ""

    saved, recomputed = texts(False), texts(True)
    assert [t[0].count("@grouped_activation_v1(") for t in (saved, recomputed)] == [1, 2]
    assert "optimization_barrier" in recomputed[0]
    assert "optimization_barrier" not in saved[0]
    if jax.__version_info__ >= (0, 11):  # XLA of 0.10 drops the barrier on CPU before it merges calls
        assert recomputed[1].count('custom_call_target="grouped_activation_v1"') == 2


def test_scopes_are_in_the_program(rng) -> None:
    """Names in a profile, forward and backward."""
    problem: Any = mlp_problem(rng, HARD, "f32", bias=False, row_scale=False)
    x, w1, w2 = (jnp.asarray(problem.inputs[n]) for n in ("x", "fc1_weight", "fc2_weight"))
    gradient = jax.grad(lambda x, w1, w2: (grouped_mlp(x, w1, w2, problem.sizes) ** 2).sum(), argnums=(0, 1, 2))
    text = jax.jit(gradient).lower(x, w1, w2).compile().as_text() or ""
    names = re.findall(r'custom_call_target="grouped_.*?op_name="([^"]*)"', text)
    assert len(names) == 8
    for part in ("fc1", "activation", "fc2"):
        assert any("grouped_mlp" in n and f"/{part}/" in n and "transpose" not in n for n in names), part
        assert any(f"{part}/" in n and "transpose" in n for n in names), part


T, K, F, N, G = 6, 4, 5, 8, 2
BUFFER = ", contiguous, 16-byte aligned"
LAYOUT = ' The layout assumed is weight_layout="gkn"; "gnk" reads [G, N, K].'


def good() -> dict[str, Any]:
    shapes = {"x": (T, K), "fc1_weight": (G, K, 2 * F), "fc2_weight": (G, F, N), "fc1_bias": (G, 2 * F)}
    shapes |= {"fc2_bias": (G, N), "row_scale": (T,), "out": (T, N), "dgrad_out": (T, K)}
    shapes |= {"fc1_wgrad_out": (G, K, 2 * F), "fc2_wgrad_out": (G, F, N)}
    return {"group_sizes": jnp.zeros(G, jnp.int32), **{name: jnp.zeros(s) for name, s in shapes.items()}}


BAD = [
    ("x", (T,), "float32", ValueError, "x must be [T, K] f16, bf16, f32 or f64; got [6] f32."),
    (
        "fc1_weight",
        (G, 3, 10),
        "float32",
        ValueError,
        f"fc1_weight must be [G, K=4, N] f32; got [2, 3, 10] f32.{LAYOUT}",
    ),
    (
        "fc1_weight",
        (G, K, 10),
        "float16",
        TypeError,
        f"fc1_weight must be [G=2, K=4, N=10] f32; got [2, 4, 10] f16.{LAYOUT}",
    ),
    ("fc2_weight", (G, N, F), "float32", ValueError, f"fc2_weight must be [G, K=5, N] f32; got [2, 8, 5] f32.{LAYOUT}"),
    ("fc1_bias", (G, F), "float32", ValueError, "fc1_bias must be [G=2, N=10] f32; got [2, 5] f32."),
    ("fc2_bias", (G, F), "float32", ValueError, "fc2_bias must be [G=2, N=8] f32; got [2, 5] f32."),
    ("row_scale", (G,), "float32", ValueError, "row_scale must be [T=6] f32; got [2] f32."),
    ("group_sizes", (G,), "float32", TypeError, "group_sizes must be [G=2] i32 or i64; got [2] f32."),
    ("out", (T, K), "float32", ValueError, f"out must be [T=6, N=8] f32{BUFFER}; got [6, 4] f32."),
    ("dgrad_out", (T, K), "float16", TypeError, f"dgrad_out must be [T=6, K=4] f32{BUFFER}; got [6, 4] f16."),
    ("fc1_wgrad_out", (G, 10, K), "float32", ValueError, f"fc1_wgrad_out must be [G=2, K=4, N=10] f32{BUFFER}; got"),
    ("fc2_wgrad_out", (G, F, N), "int32", TypeError, f"fc2_wgrad_out must be [G=2, K=5, N=8] f32{BUFFER}; got"),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "exception", "message"), BAD)
def test_refused_at_trace(name, shape, dtype, exception, message) -> None:
    arguments = {**good(), name: jnp.zeros(shape, dtype)}
    for call in (jax.jit(grouped_mlp), lambda **a: jax.eval_shape(grouped_mlp, **a)):
        with pytest.raises(exception, match=f"^{re.escape(message)}"):
            call(**arguments)


def test_good_arguments_are_accepted() -> None:
    """Or the table above would prove nothing."""
    assert jax.jit(grouped_mlp)(**good()).shape == (T, N)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"activation": "relu"}, 'activation must be one of "swiglu", "clamped_swiglu", "geglu", "squared_relu"; got'),
        ({"gate_layout": "mixed"}, 'gate_layout must be one of "concatenated", "interleaved"; got'),
        ({"weight_layout": "nkg"}, 'weight_layout must be one of "gnk", "gkn"; got'),
    ],
)
def test_unknown_names(option, message) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        grouped_mlp(**good(), **option)
