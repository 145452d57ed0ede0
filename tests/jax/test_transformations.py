# SPDX-License-Identifier: Apache-2.0
"""jax_grouped under JAX's transformations: the right numbers, and from the core."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax_calls
import numpy as np
import pytest
from cases import BY_NAME, SENTINEL
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import linear_problem, poisoned_buffer
from tolerances import assert_bits, assert_close

import grouped_core
from grouped_core import Op
from jax_grouped import grouped_activation, grouped_linear, ragged_dot

HARD = BY_NAME["empty_middle"]


def problem_of(rng, **options) -> Any:
    """Any, because its arrays are numpy's, which JAX takes where the signatures say jax.Array."""
    return linear_problem(rng, HARD, "f32", **options)


def layer(x, weight, bias, row_scale, sizes, **buffers):
    return grouped_linear(x, weight, sizes, bias, row_scale=row_scale, **buffers)


def arguments_of(p):
    return p.x, p.weight, p.bias, p.row_scale, p.sizes


def counted(call, *ops: Op) -> list[int]:
    """How many calls of each operation the core has seen while `call` ran."""
    before = [grouped_core.call_count(op) for op in ops]
    jax.block_until_ready(call())
    return [grouped_core.call_count(op) - b for op, b in zip(ops, before, strict=True)]


def test_every_run_calls_the_core(rng) -> None:
    """One call per operation and run, so that a silent fallback would show."""
    p = problem_of(rng, bias=True, row_scale=False)
    x, weight, bias, _, sizes = jax.tree.map(jnp.asarray, arguments_of(p))
    forward = jax.jit(grouped_linear)
    backward = jax.jit(jax.grad(lambda x, w, b: grouped_linear(x, w, sizes, b).sum(), argnums=(0, 1, 2)))
    for _ in range(2):
        assert counted(lambda: forward(x, weight, sizes, bias), Op.MM, Op.WGRAD) == [1, 0]
        # The sum needs no forward; dx is a product with the weight read the other way.
        assert counted(lambda: backward(x, weight, bias), Op.MM, Op.WGRAD, Op.BIAS_GRAD) == [1, 1, 1]


def test_row_scale_gradients_call_the_core(rng) -> None:
    p = problem_of(rng)
    ops = (Op.MM, Op.WGRAD, Op.BIAS_GRAD, Op.ROW_SCALE, Op.ROW_DOT)
    assert counted(lambda: jax_calls.linear(p), *ops) == [2, 1, 1, 2, 1]


def test_activation_and_ragged_dot_call_the_core(rng) -> None:
    p = problem_of(rng)
    h = jnp.asarray(p.x[:, :16])
    gradient = jax.jit(jax.grad(lambda h: grouped_activation(h, p.sizes).sum()))
    assert counted(lambda: jax.jit(grouped_activation)(h, p.sizes), Op.ACTIVATION) == [1]
    assert counted(lambda: gradient(h), Op.ACTIVATION_GRAD) == [1]
    assert counted(lambda: jax.jit(ragged_dot)(p.x, p.weight, p.sizes), Op.MM) == [1]


@pytest.mark.parametrize("axes", [(0, None, None, None, None), (0, 0, 0, 0, 0), (None, 0, None, None, None)], ids=str)
def test_vmap(rng, axes) -> None:
    """Whatever is batched; unbatched arguments are shared."""
    problems = [problem_of(rng) for _ in range(3)]
    stacked = [np.stack(a) for a in zip(*map(arguments_of, problems), strict=True)]
    given = [a if axis == 0 else a[0] for a, axis in zip(stacked, axes, strict=True)]
    found = jax.jit(jax.vmap(layer, in_axes=axes))(*given)
    for i in range(3):
        expected = jax.jit(layer)(*(a[i] if axis == 0 else a for a, axis in zip(given, axes, strict=True)))
        assert_bits(found[i], expected, f"batch {i}")


def test_vmap_of_buffers_and_gradients(rng) -> None:
    problems = [problem_of(rng) for _ in range(3)]
    S = HARD.S
    out, dgrad_out = (poisoned_buffer(a.shape, "f32", S, SENTINEL) for a in (problems[0].dy, problems[0].x))
    wgrad_out = rng.standard_normal(problems[0].weight.shape).astype(np.float32)

    def step(x, weight, bias, row_scale, sizes, dy, out, dgrad_out, wgrad_out):
        def call(x, dgrad_out, wgrad_out):
            return layer(
                *(x, weight, bias, row_scale, sizes),
                out=out,
                dgrad_out=dgrad_out,
                wgrad_out=wgrad_out,
                accumulate_wgrad=True,
            )

        y, pull_back = jax.vjp(call, x, dgrad_out, wgrad_out)
        return y, *pull_back(dy)

    stacked = [np.stack(a) for a in zip(*((*arguments_of(p), p.dy) for p in problems), strict=True)]
    buffers = [np.stack([b] * 3) for b in (out, dgrad_out, wgrad_out)]
    y, dx, dgrad, wgrad = jax.jit(jax.vmap(step))(*stacked, *buffers)
    assert_bits(dx, dgrad, "the cotangent of dgrad_out")
    for i, p in enumerate(problems):
        expected = jax_calls.linear(p, out, dgrad_out, wgrad_out, accumulate_wgrad=True)
        for name, value in (("y", y), ("x", dx), ("wgrad_out", wgrad)):
            assert_bits(value[i], expected[name], f"{name} of batch {i}")


def test_grad_of_vmap_is_vmap_of_grad(rng) -> None:
    problems = [problem_of(rng, bias=False, row_scale=False) for _ in range(2)]
    x, weight, dy = (np.stack(a) for a in zip(*((p.x, p.weight, p.dy) for p in problems), strict=True))
    sizes = problems[0].sizes

    def objective(x, weight, dy):
        return jnp.vdot(ragged_dot(x, weight, sizes)[: HARD.S], dy[: HARD.S])

    inside = jax.jit(jax.vmap(jax.grad(objective, argnums=(0, 1))))(x, weight, dy)
    outside = jax.jit(jax.grad(lambda *a: jax.vmap(objective)(*a).sum(), argnums=(0, 1)))(x, weight, dy)
    for i, p in enumerate(problems):
        expected = p.expected()
        for name, a, b in zip(("x", "weight"), inside, outside, strict=True):
            assert_close(a[i], *expected[name], what=name)
            assert_bits(a[i], np.asarray(b[i]), name)


@pytest.mark.parametrize("remat", [False, True], ids=["plain", "checkpoint"])
@pytest.mark.parametrize("buffers", [False, True], ids=["none", "buffers"])
def test_checkpoint(rng, remat, buffers) -> None:
    """Recomputation runs forward again and gives the same gradients, with buffers too."""
    p = problem_of(rng)
    plain = jax_calls.linear(p)
    given = {"out": jnp.full(p.dy.shape, SENTINEL), "dgrad_out": jnp.full(p.x.shape, SENTINEL)} if buffers else {}

    def call(x, weight):
        return layer(x, weight, p.bias, p.row_scale, p.sizes, **given)

    @jax.jit
    def gradients(x, weight, dy):
        y, pull_back = jax.vjp(jax.checkpoint(call) if remat else call, x, weight)
        return y, *pull_back(dy)

    y, dx, dweight = gradients(p.x, p.weight, p.dy)
    for name, value in (("y", y), ("x", dx)):
        assert_bits(value[: HARD.S], plain[name][: HARD.S], name)
        tail = np.full_like(plain[name][HARD.S :], SENTINEL if buffers else 0)
        assert_bits(value[HARD.S :], tail, f"the tail of {name}")
    assert_bits(dweight, plain["weight"], "dW")


def test_scan_over_layers(rng) -> None:
    """Weights of several layers stacked, as scanned models hold them; gradients through all of them."""
    case = replace(HARD, N=HARD.K)
    problems: list[Any] = [linear_problem(rng, case, "f64", bias=False, row_scale=False) for _ in range(3)]
    weights, sizes = np.stack([p.weight for p in problems]), problems[0].sizes
    with jax.enable_x64(True):

        @jax.jit
        def stack(x, weights, dy):
            def run(x, weights):
                return jax.lax.scan(lambda x, w: (grouped_linear(x, w, sizes), None), x, weights)[0]

            y, pull_back = jax.vjp(run, x, weights)
            return y, *pull_back(dy)

        y, dx, dweights = (np.asarray(a) for a in stack(problems[0].x, weights, problems[0].dy))
    # Layer by layer, so that the truth of each is a single product.
    inputs = [problems[0].x]
    for p in problems:
        inputs.append(jax_calls.linear(replace(p, x=inputs[-1]))["y"])
    assert_bits(y, inputs[-1], "y")
    dy = problems[0].dy
    for i in reversed(range(3)):
        found = jax_calls.linear(replace(problems[i], x=inputs[i], dy=dy))
        assert_bits(dweights[i], found["weight"], f"dW of layer {i}")
        dy = found["x"]
    assert_bits(dx, dy, "dx")


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("operation", ["linear", "ragged_dot", "activation"])
def test_shard_map_with_replicated_parameters(rng, operation, check_vma) -> None:
    """Rows on four devices, weights on all: the weights' gradients are summed over the devices."""
    problems = [replace(problem_of(rng), row_scale=None) for _ in range(4)]
    weight, bias = problems[0].weight, problems[0].bias
    problems = [replace(p, weight=weight, bias=bias if operation == "linear" else None) for p in problems]
    functions = {
        "linear": lambda x, w, b, s: grouped_linear(x, w, s, b),
        "ragged_dot": lambda x, w, b, s: ragged_dot(x, w, s),
        "activation": lambda x, w, b, s: grouped_activation(x, s, "squared_relu", row_scale=w[0, 0, 0] * x[:, 0]),
    }
    mesh = Mesh(np.array(jax.devices()[:4]), ("rows",))
    sharded = jax.shard_map(
        functions[operation],
        mesh=mesh,
        in_specs=(P("rows"), P(), P(), P("rows")),
        out_specs=P("rows"),
        check_vma=check_vma,
    )

    @partial(jax.jit, static_argnums=0)
    def gradients(function, x, weight, bias, sizes, dy):
        y, pull_back = jax.vjp(lambda *a: function(*a, sizes), x, weight, bias)
        return y, *pull_back(dy)

    xs, sizes, dys = (np.concatenate(a) for a in zip(*((p.x, p.sizes, p.dy) for p in problems), strict=True))
    if operation == "activation":
        dys = xs
    y, dx, dweight, dbias = gradients(sharded, xs, weight, bias, sizes, dys)
    alone = [
        gradients(functions[operation], p.x, weight, bias, p.sizes, p.x if operation == "activation" else p.dy)
        for p in problems
    ]
    for i, (name, value) in enumerate((("y", y), ("dx", dx))):
        assert_bits(value, np.concatenate([np.asarray(a[i]) for a in alone]), name)
    if operation == "activation":
        return
    # A sum of four rounded gradients, each within the bound of its own.
    pairs = [p.expected()["weight"][0] for p in problems]
    assert_close(dweight, tuple(sum(pair[i] for pair in pairs) for i in (0, 1)), 4 * HARD.T, what="dW")
    if operation == "linear":
        pairs = [p.expected()["bias"][0] for p in problems]
        assert_close(dbias, tuple(sum(pair[i] for pair in pairs) for i in (0, 1)), 4 * HARD.T, what="db")


def test_shard_map_over_experts(rng) -> None:
    """Each device holds the weights of its experts and their rows; no collective is needed."""
    case = replace(HARD, sizes=(9, 0, 0, 22, 5, 1, 0, 3))
    p = linear_problem(rng, case, "f32", bias=False, row_scale=False)
    mesh = Mesh(np.array(jax.devices()[:4]), ("experts",))
    parts, begin = [], 0
    for device in range(4):
        own = p.sizes[2 * device : 2 * device + 2]
        rows = np.full((HARD.T, HARD.K), np.nan, np.float32)
        rows[: own.sum()] = p.x[begin : begin + own.sum()]
        parts.append(rows)
        begin += own.sum()
    call = jax.shard_map(
        lambda x, w, s: grouped_linear(x, w, s), mesh=mesh, in_specs=(P("experts"),) * 3, out_specs=P("experts")
    )
    y = np.asarray(jax.jit(call)(np.concatenate(parts), p.weight, p.sizes)).reshape(4, HARD.T, HARD.N)
    whole, begin = jax_calls.linear(p)["y"], 0
    for device in range(4):
        count = p.sizes[2 * device : 2 * device + 2].sum()
        assert_bits(y[device, :count], whole[begin : begin + count], f"rows of device {device}")
        assert not y[device, count:].any()
        begin += count


def test_threads(rng) -> None:
    """Several Python threads at once, each with data and sizes of its own."""
    problems = [linear_problem(rng, BY_NAME["crosses_tiles"], "f32") for _ in range(4)]
    problems = [replace(p, sizes=np.roll(p.sizes, i)) for i, p in enumerate(problems)]
    expected = [jax_calls.linear(p) for p in problems]

    def work(i: int) -> None:
        for _ in range(10):
            for name, value in jax_calls.linear(problems[i]).items():
                assert_bits(value, expected[i][name], f"{name} of thread {i}")

    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(work, i) for i in range(4)]:
            result.result()
