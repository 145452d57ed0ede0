# SPDX-License-Identifier: Apache-2.0
"""jax_grouped on several devices: what shard_map divides, what threads run, and what must not be divided silently."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax_calls
import numpy as np
import pytest
from cases import BY_NAME
from hlo import assert_in_place, pointers
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax_sharded import RESULTS, sharded_problem
from problems import activation_problem, linear_problem
from tolerances import assert_bits

from jax_grouped import grouped_activation, grouped_linear, grouped_mlp, ragged_dot

DEVICES = 4
HARD = BY_NAME["empty_middle"]


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:DEVICES]), ("d",))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("shared", [False, True], ids=["experts", "tokens"])
def test_mlp_in_place_with_the_bits_of_one_device(rng, mesh, shared, check_vma) -> None:
    problem = sharded_problem(rng, DEVICES, weights_are_shared=shared)
    buffers, inputs = problem.arrays(mesh)
    results = assert_in_place(problem.step(mesh, check_vma), buffers, *inputs)
    for name, value, expected in zip(RESULTS, results, problem.expected().values(), strict=True):
        assert_bits(value, expected, name)
        if "weight" in name:
            assert np.isfinite(expected).all()
            assert expected.any()


def loss_of(function: str) -> tuple[Any, tuple]:
    """A function whose arguments are rows first, and arguments for it."""
    x, sizes = jnp.ones((8, 4)), jnp.array([3, 5], jnp.int32)
    weight, back = jnp.ones((2, 4, 6)), jnp.ones((2, 3, 4))
    return {
        "linear": (grouped_linear, (x, weight, sizes)),
        "ragged_dot": (ragged_dot, (x, weight, sizes)),
        "activation": (grouped_activation, (x, sizes)),
        "mlp": (grouped_mlp, (x, weight, back, sizes)),
    }[function]


FUNCTIONS = ("linear", "ragged_dot", "activation", "mlp")
ADVICE = r"^jax_grouped cannot be divided automatically: this program is for 4 devices, .*jax\.shard_map"


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("form", ["jit", "eager", "grad", "scan", "vmap"])
def test_automatic_sharding_is_refused(mesh, function, form) -> None:
    """Where XLA would gather all operands on every device."""
    call, (x, *rest) = loss_of(function)
    x = jax.device_put(x, NamedSharding(mesh, P("d")))
    forms = {
        "jit": lambda: jax.jit(call)(x, *rest),
        "eager": lambda: call(x, *rest),
        "grad": lambda: jax.jit(jax.grad(lambda x: (call(x, *rest) ** 2).sum()))(x),
        "scan": lambda: jax.jit(lambda x: jax.lax.scan(lambda c, _: (c, call(x, *rest)), 0, length=2))(x),
        "vmap": lambda: jax.jit(jax.vmap(lambda x: call(x, *rest)))(jnp.stack([x, x])),
    }
    with pytest.raises(ValueError, match=ADVICE):
        forms[form]()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_explicit_sharding_is_refused(function) -> None:
    call, (x, *rest) = loss_of(function)
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, P("d")))
        with pytest.raises(ValueError, match=ADVICE):
            jax.jit(call)(x, *rest)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_types_that_say_everywhere_are_fine(function) -> None:
    """On explicit axes a type tells that every device has the whole: nothing would be gathered."""
    call, arguments = loss_of(function)
    expected = np.asarray(jax.jit(call)(*arguments))
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        everywhere = [jax.device_put(a, NamedSharding(mesh, P())) for a in arguments]
        assert_bits(jax.jit(call)(*everywhere), expected)
        assert_bits(call(*everywhere), expected)
        assert_bits(jax.jit(call)(*arguments), expected)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_whole_arrays_on_every_device_are_fine_eagerly(function, kind) -> None:
    """Without jit there is no program to divide, and the arrays themselves tell that each device has the whole."""
    call, arguments = loss_of(function)
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    whole = [jax.device_put(a, NamedSharding(mesh, P())) for a in arguments]

    def gradient(x, *rest):
        y, pull_back = jax.vjp(lambda x: call(x, *rest), x)
        return y, *pull_back(y)

    batch = (0, *[None] * (len(arguments) - 1))
    for form in (gradient, jax.vmap(gradient, in_axes=batch)):
        x = jnp.stack([whole[0]] * 2) if form is not gradient else whole[0]
        alone = form(*(jax.device_put(np.asarray(a), jax.devices()[0]) for a in (x, *whole[1:])))
        for found, expected in zip(form(x, *whole[1:]), alone, strict=True):
            assert len(found.devices()) == DEVICES
            assert_bits(found, np.asarray(expected))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_explicit_rows_without_a_mesh_around_are_refused(function) -> None:
    """As an eager call, in the words that it has under `jax.set_mesh`."""
    call, (x, *rest) = loss_of(function)
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with pytest.raises(ValueError, match=ADVICE):
        call(jax.device_put(x, NamedSharding(mesh, P("d"))), *rest)


def test_an_axis_left_to_xla_is_refused() -> None:
    """shard_map over one axis of two: XLA would divide over the other."""
    call, (x, *rest) = loss_of("linear")
    mesh = Mesh(np.array(jax.devices()[:DEVICES]).reshape(2, 2), ("manual", "automatic"))
    mapped = jax.shard_map(
        call, mesh=mesh, in_specs=(P("manual"), P(), P()), out_specs=P("manual"), axis_names={"manual"}
    )
    with pytest.raises(ValueError, match=r"this program is for 2 devices"):
        jax.jit(mapped)(x, *rest)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_device_may_compute_everything(mesh, function) -> None:
    """The way out that the message names."""
    call, arguments = loss_of(function)
    mapped = jax.shard_map(call, mesh=mesh, in_specs=(P(),) * len(arguments), out_specs=P())
    whole = [jax.device_put(a, NamedSharding(mesh, P())) for a in arguments]
    assert_bits(jax.jit(mapped)(*whole), np.asarray(jax.jit(call)(*arguments)))


def test_one_device_of_several_is_no_sharding() -> None:
    call, arguments = loss_of("linear")
    last = [jax.device_put(a, jax.devices()[3]) for a in arguments]
    found = jax.jit(call)(*last)
    assert found.devices() == {jax.devices()[3]}
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    one = jax.jit(call)(jax.device_put(arguments[0], NamedSharding(mesh, P("d"))), *arguments[1:])
    assert_bits(one, np.asarray(found))


def test_several_devices_from_several_threads(rng) -> None:
    """A thread a device, each with data and donated buffers of its own, all at the same time."""
    problems: list[Any] = [linear_problem(rng, BY_NAME["crosses_tiles"], "f32") for _ in range(DEVICES)]
    plain = [jax_calls.linear(p) for p in problems]

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(out, dgrad_out, inputs, sizes, dy):
        def call(dgrad_out):
            return grouped_linear(**inputs, group_sizes=sizes, out=out, dgrad_out=dgrad_out)

        y, pull_back = jax.vjp(call, dgrad_out)
        return y, *pull_back(dy)

    def work(n: int) -> None:
        p = problems[n]
        device = jax.devices()[n]
        inputs = {name: jax.device_put(a, device) for name, a in p.inputs.items()}
        buffers = [jnp.full(a.shape, jnp.nan, device=device) for a in (p.dy, p.x)]
        sizes, dy = jax.device_put(p.sizes, device), jax.device_put(p.dy, device)
        before = [pointers(b) for b in buffers]
        for _ in range(8):
            buffers = step(*buffers, inputs, sizes, dy)
            assert [b.devices() for b in buffers] == [{device}] * 2
            assert [pointers(b) for b in buffers] == before
        for name, value in zip(("y", "x"), buffers, strict=True):
            assert_bits(value[: p.S], plain[n][name][: p.S], f"{name} of device {n}")

    with ThreadPoolExecutor(DEVICES) as pool:
        for result in [pool.submit(work, n) for n in range(DEVICES)]:
            result.result()


def test_activation_is_divided_too(rng, mesh) -> None:
    problems: list[Any] = [activation_problem(rng, HARD, "f32", "swiglu") for _ in range(DEVICES)]
    h, sizes, scale = (np.concatenate([getattr(p, n) for p in problems]) for n in ("h", "sizes", "row_scale"))
    call = partial(grouped_activation, **problems[0].options)
    mapped = jax.shard_map(
        lambda h, s, scale: call(h, s, row_scale=scale), mesh=mesh, in_specs=(P("d"),) * 3, out_specs=P("d")
    )
    found = np.split(np.asarray(jax.jit(mapped)(h, sizes, scale)), DEVICES)
    for n, p in enumerate(problems):
        assert_bits(found[n], jax_calls.activation(p)["y"], f"device {n}")
