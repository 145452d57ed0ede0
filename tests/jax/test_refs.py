# SPDX-License-Identifier: Apache-2.0
"""Buffers that are a jax.Ref: the bits of donated ones, in place inside jit, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax_calls
import jax_mlp
import numpy as np
import pytest
from cases import BY_NAME, CASES, SENTINEL, Case
from hlo import assert_refs_in_place, faults
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax_mlp import mlp_problem
from problems import activation_problem, linear_problem, poisoned_buffer
from tolerances import DTYPES, assert_bits, assert_close

from jax_grouped import grouped_activation, grouped_linear, grouped_mlp, ragged_dot

HARD = BY_NAME["empty_middle"]
CASE = Case("refs", 96, 40, 56, (30, 0, 50))


def ref_of(a: np.ndarray) -> jax.Ref:
    return jax.new_ref(jnp.asarray(a))


def linear_refs(problem, dtype: str, wgrad: np.ndarray | None = None) -> dict[str, Any]:
    """out, dgrad_out and wgrad_out, poisoned."""
    S = problem.S
    out, dgrad = (poisoned_buffer(a.shape, dtype, S, SENTINEL) for a in (problem.dy, problem.x))
    wgrad = np.full(problem.weight.shape, np.nan, DTYPES[dtype]) if wgrad is None else wgrad
    return {"out": ref_of(out), "dgrad_out": ref_of(dgrad), "wgrad_out": ref_of(wgrad)}


def assert_rows(found: Any, expected: np.ndarray, S: int, what: str) -> None:
    """The rows of groups, and a tail that nobody touched."""
    value = np.asarray(found)
    assert_bits(value[:S], expected[:S], what)
    assert_bits(value[S:], np.full_like(value[S:], SENTINEL), f"the tail of {what}")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_linear_writes_its_refs(rng, case, dtype) -> None:
    """All three at once: what they hold is what buffers get, and so is every other gradient."""
    problem: Any = linear_problem(rng, case, dtype)
    plain = jax_calls.linear(problem)
    refs = linear_refs(problem, dtype)

    @jax.jit
    def step(inputs, refs, dy):
        y, pull_back = jax.vjp(lambda a: grouped_linear(**a, group_sizes=problem.sizes, **refs), inputs)
        return {"y": y, **pull_back(dy)[0]}

    found = step({n: jnp.asarray(a) for n, a in problem.inputs.items()}, refs, jnp.asarray(problem.dy))
    assert_rows(refs["out"][...], plain["y"], case.S, "out")
    assert_rows(refs["dgrad_out"][...], plain["x"], case.S, "dgrad_out")
    assert_bits(refs["wgrad_out"][...], plain["weight"], "wgrad_out")
    assert_rows(found["y"], plain["y"], case.S, "y")
    assert_rows(found["x"], plain["x"], case.S, "dx")
    assert_bits(found["weight"], np.zeros_like(plain["weight"]), "the cotangent of weight")
    for name in ("bias", "row_scale"):
        assert_bits(found[name], plain[name], name)


@pytest.mark.parametrize("given", ["out", "dgrad_out", "wgrad_out"])
def test_a_ref_beside_arrays(rng, given) -> None:
    """Each buffer chooses for itself; the arrays among them keep their cotangents."""
    problem: Any = linear_problem(rng, HARD, "f32")
    plain = jax_calls.linear(problem)
    refs = linear_refs(problem, "f32")
    arrays = {name: ref[...] for name, ref in refs.items() if name != given}
    ref: dict[str, Any] = {given: refs[given]}

    @jax.jit
    def step(x, ref: Any, arrays, dy):
        def call(x, gradients):
            rest = {name: a for name, a in arrays.items() if name == "out"}
            return grouped_linear(
                x, problem.weight, problem.sizes, problem.bias, row_scale=problem.row_scale, **ref, **rest, **gradients
            )

        gradients = {name: a for name, a in arrays.items() if name != "out"}
        y, pull_back = jax.vjp(call, x, gradients)
        return y, *pull_back(dy)

    y, dx, cotangents = step(jnp.asarray(problem.x), ref, arrays, jnp.asarray(problem.dy))
    found = {"out": y, **cotangents, given: refs[given][...]}
    assert_rows(found["out"], plain["y"], HARD.S, "out")
    assert_rows(found["dgrad_out"], plain["x"], HARD.S, "dgrad_out")
    assert_bits(found["wgrad_out"], plain["weight"], "wgrad_out")
    assert_bits(np.asarray(dx)[: HARD.S], plain["x"][: HARD.S], "dx")


@pytest.mark.parametrize("kind", ["swiglu", "squared_relu"])
def test_activation_writes_its_refs(rng, kind) -> None:
    problem: Any = activation_problem(rng, HARD, "bf16", kind)
    plain = jax_calls.activation(problem)
    out, dgrad = (ref_of(poisoned_buffer(a.shape, "bf16", HARD.S, SENTINEL)) for a in (problem.dy, problem.h))

    @jax.jit
    def step(h, row_scale, out, dgrad, dy):
        def call(h, row_scale):
            given = {"row_scale": row_scale, "out": out, "dgrad_out": dgrad}
            return grouped_activation(h, problem.sizes, **problem.options, **given)

        return jax.vjp(call, h, row_scale)[1](dy)

    _, d_row_scale = step(problem.h, problem.row_scale, out, dgrad, problem.dy)
    assert_rows(out[...], plain["y"], HARD.S, "out")
    assert_rows(dgrad[...], plain["h"], HARD.S, "dgrad_out")
    assert_bits(d_row_scale, plain["row_scale"], "the gradient of row_scale")


@pytest.mark.parametrize("recompute", [False, True])
def test_mlp_writes_its_refs(rng, recompute) -> None:
    problem: Any = mlp_problem(rng, HARD, "bf16")
    plain = jax_mlp.mlp(problem)
    refs = {name: ref_of(b) for name, b in problem.buffers("bf16").items()}

    @jax.jit
    def step(inputs, refs, dy):
        options = {**problem.options, "recompute_activation": recompute}
        call = lambda a: grouped_mlp(**a, group_sizes=problem.sizes, **refs, **options)  # noqa: E731
        return jax.vjp(call, inputs)[1](dy)[0]

    found = step({n: jnp.asarray(a) for n, a in problem.inputs.items()}, refs, jnp.asarray(problem.dy))
    assert_rows(refs["out"][...], plain["y"], HARD.S, "out")
    assert_rows(refs["dgrad_out"][...], plain["x"], HARD.S, "dgrad_out")
    for fc in ("fc1", "fc2"):
        assert_bits(refs[f"{fc}_wgrad_out"][...], plain[f"{fc}_weight"], fc)
    for name in ("fc1_bias", "fc2_bias", "row_scale"):
        assert_bits(found[name], plain[name], name)


def test_eager_is_right_too(rng) -> None:
    problem: Any = linear_problem(rng, HARD, "f32", bias=False, row_scale=False)
    plain, refs = jax_calls.linear(problem), linear_refs(problem, "f32")
    x, weight = jnp.asarray(problem.x), jnp.asarray(problem.weight)
    _, pull_back = jax.vjp(lambda x: grouped_linear(x, weight, problem.sizes, **refs), x)
    pull_back(jnp.asarray(problem.dy))
    assert_rows(refs["out"][...], plain["y"], HARD.S, "out")
    assert_rows(refs["dgrad_out"][...], plain["x"], HARD.S, "dgrad_out")
    assert_bits(refs["wgrad_out"][...], plain["weight"], "wgrad_out")


@pytest.fixture
def setting(rng) -> dict[str, Any]:
    """A layer that is not the first, on shapes of which nothing else in the program is."""
    problem: Any = linear_problem(rng, CASE, "f32", bias=False, row_scale=False)
    arrays = {name: jnp.asarray(getattr(problem, name)) for name in ("x", "weight", "sizes")}
    return {"problem": problem, "target": jnp.asarray(problem.dy.ravel()), **arrays}


def gradients(out, dgrad, wgrad, x, weight, sizes, target, accumulate=False):
    """The step of one microbatch. The loss reads y flat, so that its gradient is the target, without a copy."""

    def loss(x):
        y = grouped_linear(x, weight, sizes, out=out, dgrad_out=dgrad, wgrad_out=wgrad, accumulate_wgrad=accumulate)
        return jnp.vdot(y.ravel(), target)

    return jax.value_and_grad(loss)(x)[0]


def fresh(problem, wgrad: float = np.nan) -> list[jax.Ref]:
    weight = np.full(problem.weight.shape, wgrad, np.float32)
    return list(linear_refs(problem, "f32", weight).values())


def assert_written(refs: list[jax.Ref], problem) -> None:
    plain = jax_calls.linear(problem)
    assert_rows(refs[0][...], plain["y"], problem.S, "out")
    assert_rows(refs[1][...], plain["x"], problem.S, "dgrad_out")
    assert_bits(refs[2][...], plain["weight"], "wgrad_out")


def test_in_place(setting) -> None:
    refs = fresh(setting["problem"])
    assert_refs_in_place(gradients, refs, *(setting[n] for n in ("x", "weight", "sizes", "target")))
    assert_written(refs, setting["problem"])


@pytest.mark.parametrize("loop", ["scan", "fori", "cond"])
def test_in_place_inside(setting, loop) -> None:
    refs = fresh(setting["problem"])

    def step(*arguments):
        if loop == "scan":
            return jax.lax.scan(lambda c, _: (c, gradients(*arguments)), 0, length=3)[1]
        if loop == "fori":
            return jax.lax.fori_loop(0, 3, lambda i, c: c + gradients(*arguments), 0.0)
        return jax.lax.cond(arguments[3][0, 0] < 1e9, lambda: gradients(*arguments), lambda: 0.0)

    assert_refs_in_place(step, refs, *(setting[n] for n in ("x", "weight", "sizes", "target")))
    assert_written(refs, setting["problem"])


def test_microbatches_accumulate(rng) -> None:
    """bf16 microbatches of their own into one fp32 Ref, three steps of three."""
    case = Case("microbatch", 24, 64, 96, (7, 0, 10, 5))
    problems: list[Any] = [linear_problem(rng, case, "bf16", bias=False, row_scale=False) for _ in range(3)]
    weight, sizes = jnp.asarray(problems[0].weight), jnp.asarray(problems[0].sizes)
    xs = jnp.stack([jnp.asarray(p.x.ravel()) for p in problems])
    targets = jnp.stack([jnp.asarray(p.dy.ravel()) for p in problems])
    wgrad = ref_of(np.zeros(weight.shape, np.float32))

    def step(wgrad, weight, sizes, xs, targets):
        def microbatch(_, given):
            x, target = given
            return None, gradients(None, None, wgrad, x.reshape(case.T, case.K), weight, sizes, target, True)

        return jax.lax.scan(microbatch, None, (xs, targets))[1]

    assert_refs_in_place(step, [wgrad], weight, sizes, xs, targets, steps=3)
    pairs = [p.expected()["weight"][0] for p in problems]
    total = tuple(3 * sum(pair[i] for pair in pairs) for i in (0, 1))
    assert_close(wgrad[...], total, 9 * max(case.sizes), what="wgrad_out")


def test_scan_over_layers(rng) -> None:
    """One dgrad Ref for all layers: backward leaves that of the first layer in it, and copies nothing."""
    case = Case("layers", 96, 40, 40, (30, 0, 50))
    problems: list[Any] = [linear_problem(rng, case, "f32", bias=False, row_scale=False) for _ in range(3)]
    x, target = (jnp.asarray(a.ravel()) for a in (problems[0].x, problems[0].dy))
    weights, sizes = np.stack([p.weight for p in problems]), problems[0].sizes

    def loss(x, weights, dgrad):
        def body(x, weight):
            y = grouped_linear(x.reshape(case.T, case.K), weight, sizes, dgrad_out=dgrad)
            return y.ravel(), None

        return jnp.vdot(jax.lax.scan(body, x, weights)[0][: case.S * case.N], target[: case.S * case.N])

    plain = jax.jit(jax.grad(partial(loss, dgrad=None), argnums=(0, 1)))(x, weights)
    dgrad = ref_of(poisoned_buffer((case.T, case.K), "f32", case.S, SENTINEL))
    dx, dweights = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, weights, dgrad)
    assert_rows(dgrad[...], np.asarray(plain[0]).reshape(case.T, case.K), case.S, "dgrad_out")
    assert_bits(dx[: case.S * case.K], np.asarray(plain[0])[: case.S * case.K], "dx")
    assert_bits(dweights, np.asarray(plain[1]), "dW")


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(rng, check_vma) -> None:
    """Rows, Refs and experts on four devices."""
    problems: list[Any] = [linear_problem(rng, CASE, "f32", bias=False, row_scale=False) for _ in range(4)]
    mesh = Mesh(np.array(jax.devices()[:4]), ("experts",))
    sharding = NamedSharding(mesh, P("experts"))

    def gather(arrays):
        return jax.device_put(np.concatenate(list(map(np.asarray, arrays))), sharding)

    buffers = [gather(r[...] for r in refs) for refs in zip(*(fresh(p) for p in problems), strict=True)]
    refs = [jax.new_ref(b) for b in buffers]
    inputs = [gather(getattr(p, n) for p in problems) for n in ("x", "weight", "sizes")]
    inputs.append(gather(p.dy.ravel() for p in problems))

    def step(*arguments):
        call = jax.shard_map(
            lambda *a: gradients(*a)[None],
            mesh=mesh,
            in_specs=(P("experts"),) * 7,
            out_specs=P("experts"),
            check_vma=check_vma,
        )
        return call(*arguments)

    assert_refs_in_place(step, refs, *inputs)
    shards = [np.split(np.asarray(r[...]), 4) for r in refs]
    for n, p in enumerate(problems):
        plain = jax_calls.linear(p)
        assert_rows(shards[0][n], plain["y"], CASE.S, "out")
        assert_rows(shards[1][n], plain["x"], CASE.S, "dgrad_out")
        assert_bits(shards[2][n], plain["weight"], "wgrad_out")


@pytest.mark.parametrize("accumulate", [False, True])
def test_checkpoint_writes_once(setting, accumulate) -> None:
    """Forward runs again, backward does not: an accumulating Ref is added to once."""
    problem = setting["problem"]
    refs = fresh(problem, 2.0)
    out, dgrad, wgrad = refs

    @jax.jit
    def step(refs, x, weight, sizes, target):
        given = dict(zip(("out", "dgrad_out", "wgrad_out"), refs, strict=True))
        block = jax.checkpoint(lambda x: grouped_linear(x, weight, sizes, accumulate_wgrad=accumulate, **given))

        def loss(x):
            return jnp.vdot(block(x).ravel()[: CASE.S * CASE.N], target[: CASE.S * CASE.N])

        return jax.grad(loss)(x)

    step(refs, *(setting[n] for n in ("x", "weight", "sizes", "target")))
    old = np.full(problem.weight.shape, 2.0, np.float32)
    expected = jax_calls.linear(problem, wgrad_out=old, accumulate_wgrad=accumulate)
    assert_rows(out[...], expected["y"], CASE.S, "out")
    assert_rows(dgrad[...], expected["x"], CASE.S, "dgrad_out")
    assert_bits(wgrad[...], expected["wgrad_out"], "wgrad_out")


def test_a_result_that_leaves_jit_is_a_copy(setting) -> None:
    """The documented exception, and proof that the harness sees such copies in Refs."""
    refs = fresh(setting["problem"])[:1]

    def step(out, x, weight, sizes):
        return grouped_linear(x, weight, sizes, out=out)

    compiled = jax.jit(step).lower(*refs, *(setting[n] for n in ("x", "weight", "sizes"))).compile()
    assert faults(compiled, [refs[0][...]])


@pytest.mark.parametrize("name", ["out", "dgrad_out", "wgrad_out"])
def test_slices_are_refused(setting, name) -> None:
    problem = setting["problem"]
    shapes = {"out": (2, CASE.T, CASE.N), "dgrad_out": (2, CASE.T, CASE.K), "wgrad_out": (2, *problem.weight.shape)}
    ref = jax.new_ref(jnp.zeros(shapes[name]))

    @jax.jit
    def step(ref):
        return grouped_linear(setting["x"], setting["weight"], setting["sizes"], **{name: ref.at[0]})

    with pytest.raises(TypeError, match=f"^{name} must be a whole jax.Ref or an array; got a slice of a Ref"):
        step(ref)


VALUES = {
    "row": jnp.zeros(8),
    "matrix": jnp.zeros((8, 8)),
    "weight": jnp.zeros((2, 8, 8)),
    "bias": jnp.zeros((2, 8)),
    "group_sizes": jnp.zeros(2, jnp.int32),
}
ROWS = {"x": "matrix", "group_sizes": "group_sizes", "row_scale": "row"}
INPUTS = {
    grouped_linear: {**ROWS, "weight": "weight", "bias": "bias"},
    grouped_activation: {"h": "matrix", "group_sizes": "group_sizes", "row_scale": "row"},
    partial(grouped_mlp, activation="squared_relu"): {
        **ROWS,
        **{f"fc{n}_{name}": name for n in (1, 2) for name in ("weight", "bias")},
    },
    ragged_dot: {"lhs": "matrix", "rhs": "weight", "group_sizes": "group_sizes"},
}


@pytest.mark.parametrize("form", ["eager", "jit", "slice"])
@pytest.mark.parametrize(("function", "name"), [(f, name) for f, inputs in INPUTS.items() for name in inputs])
def test_inputs_are_no_refs(function, name, form) -> None:
    arguments = {other: VALUES[value] for other, value in INPUTS[function].items()}
    value = arguments[name]

    def call(ref: Any) -> Any:
        return function(**{**arguments, name: ref.at[0] if form == "slice" else ref})

    with pytest.raises(TypeError, match=rf"^{name} must be an array; got a jax\.Ref, which .* pass ref\[\.\.\.\]\."):
        (call if form == "eager" else jax.jit(call))(jax.new_ref(value[None] if form == "slice" else value))


@pytest.mark.parametrize("function", ["linear", "mlp", "activation"])
def test_one_ref_for_two_buffers(function) -> None:
    ref, sizes = jax.new_ref(jnp.zeros((8, 8))), jnp.zeros(2, jnp.int32)
    x, weight = jnp.zeros((8, 8)), jnp.zeros((2, 8, 8))
    two: dict[str, Any] = {"out": ref, "dgrad_out": ref}
    calls = {
        "linear": lambda: grouped_linear(x, weight, sizes, **two),
        "mlp": lambda: grouped_mlp(x, weight, weight, sizes, activation="squared_relu", **two),
        "activation": lambda: grouped_activation(x, sizes, "squared_relu", **two),
    }
    with pytest.raises(ValueError, match=r"^dgrad_out and out must be apart; got the same jax.Ref for both\."):
        calls[function]()


@pytest.mark.parametrize(
    ("shape", "dtype", "exception", "words"),
    [((8, 9), "float32", ValueError, r"got \[8, 9\] f32"), ((8, 5), "int32", TypeError, r"got \[8, 5\] i32")],
)
def test_rules_hold_for_refs(shape, dtype, exception, words) -> None:
    ref = jax.new_ref(jnp.zeros(shape, dtype))
    with pytest.raises(exception, match=rf"^out must be \[T=8, N=5\] f32, .*{words}"):
        jax.jit(lambda r: grouped_linear(jnp.zeros((8, 4)), jnp.zeros((2, 4, 5)), jnp.zeros(2, jnp.int32), out=r))(ref)
