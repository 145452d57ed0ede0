# SPDX-License-Identifier: Apache-2.0
"""install(): when JAX's own ragged_dot is on the core, when it is not, and that it says so."""

from __future__ import annotations

import re
import threading
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
import reference
from cases import BY_NAME
from hlo import PLUMBING, instructions
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import linear_problem
from ragged_cases import calls_of
from tolerances import assert_bits, assert_close

import grouped_core
from grouped_core import Op
from jax_grouped import _install, _log, install, installed, ragged_dot, uninstall

CASE = BY_NAME["empty_middle"]
ON_CPU = ("cpu",)


@pytest.fixture(autouse=True)
def leave_jax_as_it_was():
    yield
    uninstall()


def operands(rng, dtype="f32"):
    p = linear_problem(rng, CASE, dtype, bias=False, row_scale=False)
    return tuple(jnp.nan_to_num(jnp.asarray(a)) for a in (p.x, p.weight, p.sizes, p.dy))


def assert_right(y, lhs, rhs, sizes) -> None:
    """Whoever computed it."""
    assert_close(y, reference.grouped_mm(lhs, rhs, sizes, layout="gkn"), CASE.K)


def targets(function, *arguments) -> list[str]:
    """The custom calls of the compiled program."""
    return re.findall(r'custom_call_target="(grouped_\w+)"', function.lower(*arguments).compile().as_text())


def gradients(lhs, rhs, sizes, dy):
    return jax.vjp(lambda a, b: jax.lax.ragged_dot(a, b, sizes), lhs, rhs)[1](dy)


def test_a_jitted_function_changes_sides(rng) -> None:
    """The same function object, compiled before, during and after: the calls in its HLO, and the core's own count."""
    lhs, rhs, sizes, dy = operands(rng)
    forward, backward = jax.jit(jax.lax.ragged_dot), jax.jit(gradients)

    def assert_theirs() -> None:
        assert targets(forward, lhs, rhs, sizes) == targets(backward, lhs, rhs, sizes, dy) == []
        assert calls_of(forward, lhs, rhs, sizes) == calls_of(backward, lhs, rhs, sizes, dy) == {}
        assert calls_of(jax.lax.ragged_dot, lhs, rhs, sizes) == {}

    assert_theirs()
    with install(ON_CPU):
        assert targets(forward, lhs, rhs, sizes) == ["grouped_mm_v1"]
        assert sorted(targets(backward, lhs, rhs, sizes, dy)) == ["grouped_mm_v1", "grouped_wgrad_v1"]
        assert calls_of(forward, lhs, rhs, sizes) == {Op.MM: 1}
        assert calls_of(backward, lhs, rhs, sizes, dy) == {Op.MM: 1, Op.WGRAD: 1}
        assert calls_of(jax.lax.ragged_dot, lhs, rhs, sizes) == {Op.MM: 1}  # eager
    assert_theirs()


def test_no_copy_of_a_weight(rng) -> None:
    """Backward reads the weight as it lies, and its gradient is not moved after."""
    lhs, rhs, sizes, dy = operands(rng)
    shape = f"f32[{','.join(map(str, rhs.shape))}]"
    turned = f"f32[{rhs.shape[0]},{rhs.shape[2]},{rhs.shape[1]}]"
    with install(ON_CPU):
        compiled = jax.jit(gradients).lower(lhs, rhs, sizes, dy).compile()
    made = [i.opcode for i in instructions(str(compiled.as_text())) if {shape, turned} & set(i.shapes)]
    assert "custom-call" in made
    assert set(made) <= PLUMBING | {"custom-call"}


def test_the_context_manager_takes_back_what_it_did() -> None:
    assert installed() == ()
    with install(ON_CPU):
        assert installed() == ON_CPU
        with install(ON_CPU):  # adds nothing, so takes nothing back
            assert installed() == ON_CPU
        assert installed() == ON_CPU
    assert installed() == ()
    install("cpu")
    install(ON_CPU)
    assert installed() == ON_CPU
    uninstall()
    assert installed() == ()
    uninstall()
    with pytest.raises(KeyError), install(ON_CPU):
        raise KeyError
    assert installed() == ()


def test_uninstall_inside_a_block() -> None:
    with install(ON_CPU):
        uninstall()
        assert installed() == ()
    assert installed() == ()


def test_the_tables_are_as_they_were() -> None:
    tables = _install._tables()

    def entries():
        return {p: rules.get(tables.primitive) for p, rules in tables.specific.items()}

    before = entries()
    with mock.patch.object(grouped_core, "has_cuda", return_value=True), install(("cuda", "cpu")):
        changed = {p for p, entry in entries().items() if entry is not before.get(p)}
        assert changed == {"cuda", "cpu"}
        assert installed() == ("cuda", "cpu")
    assert entries() == before


def test_the_rule_of_another_package_stays() -> None:
    """Who registers over ours later keeps what they registered."""
    tables = _install._tables()
    before = tables.specific["cpu"].get(tables.primitive)
    other = object()
    try:
        install(ON_CPU)
        tables.specific["cpu"][tables.primitive] = other
        uninstall()
        assert tables.specific["cpu"][tables.primitive] is other
    finally:
        tables.specific["cpu"].pop(tables.primitive)
        if before is not None:
            tables.specific["cpu"][tables.primitive] = before


def test_lowered_for_cuda_without_one(rng) -> None:
    """The default platform, as far as a machine without a GPU can show it; a CPU program is left alone."""
    lhs, rhs, sizes, dy = operands(rng)

    def calls(function, *arguments):
        text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
        return sorted(re.findall(r"custom_call @(grouped_\w+)", text))

    with mock.patch.object(grouped_core, "has_cuda", return_value=True), install():
        assert calls(jax.lax.ragged_dot, lhs, rhs, sizes) == ["grouped_mm_v1"]
        assert calls(gradients, lhs, rhs, sizes, dy) == ["grouped_mm_v1", "grouped_wgrad_v1"]
        assert targets(jax.jit(jax.lax.ragged_dot), lhs, rhs, sizes) == []
    assert calls(jax.lax.ragged_dot, lhs, rhs, sizes) == []


@pytest.mark.skipif(grouped_core.has_cuda(), reason="this build has CUDA kernels")
def test_a_build_without_cuda() -> None:
    words = r'platforms has "cuda", and this build of grouped-ffi \(.*\) has no CUDA kernels\..*platforms=\("cpu",\)\.$'
    with pytest.raises(RuntimeError, match=words):
        install()
    assert installed() == ()


@pytest.mark.parametrize("platforms", [("gpu",), ("cpu", "tpu"), "CPU"])
def test_unknown_platforms(platforms) -> None:
    with pytest.raises(ValueError, match=r'^platforms must be of "cuda" and "cpu"; got \'(gpu|tpu|CPU)\'\.$'):
        install(platforms)
    assert installed() == ()


@pytest.mark.parametrize("version", ["0.9.2", "0.13.0", "1.0.0"])
def test_jax_versions_that_were_not_tested(version) -> None:
    words = f"^install\\(\\) changes tables inside JAX and knows those of jax 0.10 to 0.12; got jax {version}. Call jax"
    with mock.patch.object(jax, "__version__", version), pytest.raises(RuntimeError, match=words):
        install(ON_CPU)
    assert installed() == ()


@pytest.mark.parametrize("version", ["0.10.0", "0.10.2", "0.11.2.dev20260101", "0.12.0.1", "0.12.9"])
def test_jax_versions_of_the_tested_series(version) -> None:
    assert _install.check_jax(version) is None


def test_tables_that_have_changed() -> None:
    """A JAX that keeps its rules elsewhere is an error before anything is changed."""
    from jax._src.interpreters import mlir

    with mock.patch.object(mlir, "_lowerings", {}), pytest.raises(RuntimeError, match="cannot find ragged_dot's"):
        install(ON_CPU)
    assert installed() == ()


def logged(capsys, function, *arguments) -> str:
    """What the function prints while it is compiled."""
    with mock.patch.object(_log, "_on", True), mock.patch.object(_log, "_seen", set()):
        capsys.readouterr()
        jax.jit(lambda *a: function(*a)).lower(*arguments)  # a new function, which no cache knows
        return capsys.readouterr().err


LEFT_TO_JAX = {
    "int8": (jnp.int8, {}, "lhs is int8"),
    "complex64": (jnp.complex64, {}, "lhs is complex64"),
    "float8_e4m3fn": (jnp.float8_e4m3fn, {"preferred_element_type": jnp.float32}, "lhs is float8_e4m3fn"),
    "algorithm": (jnp.float32, {"precision": "F32_F32_F32"}, "precision asks for the algorithm"),
    "integer result": (jnp.float32, {"preferred_element_type": jnp.int32}, "the result is int32"),
}


@pytest.mark.parametrize("what", LEFT_TO_JAX)
def test_what_is_left_to_jax(rng, what, capsys) -> None:
    """Its own bits, no call of the core, and a line that says why. jax_grouped.ragged_dot leaves the same to it."""
    dtype, options, reason = LEFT_TO_JAX[what]
    lhs, rhs, sizes, _ = operands(rng)
    arguments = (4 * lhs).astype(dtype), (4 * rhs).astype(dtype), sizes
    expected = jax.jit(partial(jax.lax.ragged_dot, **options))(*arguments)
    drop_in = partial(ragged_dot, **options)
    assert calls_of(jax.jit(drop_in), *arguments) == {}
    assert_bits(jax.jit(drop_in)(*arguments), expected)
    assert re.search(rf"^grouped: ragged_dot .* -> jax\.lax, because {reason}", logged(capsys, drop_in, *arguments))
    with install(ON_CPU):
        call = partial(jax.lax.ragged_dot, **options)
        assert calls_of(jax.jit(call), *arguments) == {}
        assert_bits(jax.jit(call)(*arguments), expected)
        line = rf"^grouped: jax\.lax\.ragged_dot_general .* -> JAX's own lowering, because {reason}"
        assert re.search(line, logged(capsys, call, *arguments))


def test_what_is_served_is_not_logged(rng, capsys) -> None:
    lhs, rhs, sizes, _ = operands(rng)
    with install(ON_CPU):
        assert logged(capsys, jax.lax.ragged_dot, lhs, rhs, sizes) == ""


def test_automatic_sharding_is_left_to_jax(rng, capsys) -> None:
    lhs, rhs, sizes, _ = operands(rng)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(lhs, NamedSharding(mesh, P("rows")))
    with install(ON_CPU):
        call = jax.jit(jax.lax.ragged_dot)
        assert calls_of(call, sharded, rhs, sizes) == {}
        assert_right(call(sharded, rhs, sizes), lhs, rhs, sizes)
        assert "XLA divides it among 4 devices" in logged(capsys, call, sharded, rhs, sizes)


def test_what_every_device_has_by_its_type_is_served(rng) -> None:
    """Explicit axes, nothing sharded: the one case that JAX itself takes there."""
    lhs, rhs, sizes, _ = operands(rng)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Explicit,))
    with install(ON_CPU), jax.set_mesh(mesh):
        everywhere = [jax.device_put(a, NamedSharding(mesh, P())) for a in (lhs, rhs, sizes)]
        call = jax.jit(lambda *a: jax.lax.ragged_dot(a[0], a[1], a[2], out_sharding=P()))
        assert calls_of(call, *everywhere) == {Op.MM: 4}
        assert_right(call(*everywhere), lhs, rhs, sizes)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_is_served(rng, check_vma) -> None:
    parts = [operands(rng) for _ in range(4)]
    lhs, rhs, sizes, dy = (jnp.concatenate(a) for a in zip(*parts, strict=True))
    mesh = jax.make_mesh((4,), ("experts",), axis_types=(AxisType.Auto,))
    with install(ON_CPU):
        call = jax.jit(
            jax.shard_map(
                lambda *a: (jax.lax.ragged_dot(a[0], a[1], a[2]), *gradients(*a)),
                mesh=mesh,
                in_specs=(P("experts"),) * 4,
                out_specs=(P("experts"),) * 3,
                check_vma=check_vma,
            )
        )
        assert calls_of(call, lhs, rhs, sizes, dy) == {Op.MM: 8, Op.WGRAD: 4}
        found = call(lhs, rhs, sizes, dy)
        alone = [(jax.lax.ragged_dot(p[0], p[1], p[2]), *gradients(*p)) for p in parts]
    for value, expected in zip(found, zip(*alone, strict=True), strict=True):
        assert_bits(value, jnp.concatenate(expected))


def test_partly_manual_axes_are_left_to_jax(rng, capsys) -> None:
    parts = [operands(rng) for _ in range(2)]
    lhs, rhs, sizes, _ = (jnp.concatenate(a) for a in zip(*parts, strict=True))
    mesh = jax.make_mesh((2, 2), ("experts", "other"), axis_types=(AxisType.Auto,) * 2)
    with install(ON_CPU), jax.set_mesh(mesh):
        call = jax.shard_map(
            jax.lax.ragged_dot, in_specs=(P("experts"),) * 3, out_specs=P("experts"), axis_names={"experts"}
        )
        assert "XLA divides it among 2 devices" in logged(capsys, call, lhs, rhs, sizes)
        assert calls_of(jax.jit(call), lhs, rhs, sizes) == {}


def test_threads(rng) -> None:
    """Installing, compiling and taking back from several threads at once leaves JAX as it was."""
    lhs, rhs, sizes, _ = operands(rng)
    failures = []

    def work() -> None:
        try:
            for _ in range(3):
                with install(ON_CPU):
                    found = jax.jit(jax.lax.ragged_dot)(lhs, rhs, sizes)
                assert_right(found, lhs, rhs, sizes)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert installed() == ()
    assert calls_of(jax.jit(jax.lax.ragged_dot), lhs, rhs, sizes) == {}
