# SPDX-License-Identifier: Apache-2.0
"""The no-copy harness itself: a planted copy must break the clause that is there to see it."""

from __future__ import annotations

import warnings

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case
from problems import linear_problem

import grouped_core
from grouped_core import Op
from jax_grouped import grouped_linear

CASE = Case("planted", 96, 40, 56, (30, 0, 50))


@pytest.fixture
def arguments(rng) -> list[jax.Array]:
    """out, x, weight, sizes."""
    p = linear_problem(rng, CASE, "f32", bias=False, row_scale=False)
    return [jnp.zeros(p.dy.shape), *(jnp.asarray(a) for a in (p.x, p.weight, p.sizes))]


def clean(out, x, weight, sizes):
    return (grouped_linear(x, weight, sizes, out=out),)


def faults(step, arguments, *, donate: bool = True) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = jax.jit(step, donate_argnums=(0,) if donate else ()).lower(*arguments).compile()
    return hlo.faults(compiled, arguments[:1])


def test_no_fault_in_a_clean_step(arguments) -> None:
    assert faults(clean, arguments) == {}


def test_sum_before_the_call(arguments) -> None:
    def step(out, x, weight, sizes):
        return (grouped_linear(x, weight, sizes, out=out + 1),)

    assert "add" in faults(step, arguments)[hlo.PRODUCER]


def test_copy_after_the_call(arguments) -> None:
    def step(out, x, weight, sizes):
        y = grouped_linear(x, weight, sizes, out=out)
        return y, y * 2

    assert hlo.PRODUCER in faults(step, arguments)


def test_buffer_read_elsewhere(arguments) -> None:
    def step(out, x, weight, sizes):
        return grouped_linear(x, weight, sizes, out=out), (out * weight.sum()).sum()

    found = faults(step, arguments)
    assert " copy(" in found[hlo.PRODUCER]
    assert hlo.TEMPORARY in found


def test_call_without_aliasing(arguments) -> None:
    """The same target, but its result has memory of its own: only the text of the call tells."""

    def step(out, x, weight, sizes):
        scratch = grouped_core.workspace_size(Op.MM, 3, grouped_core.CPU_DEVICE, CASE.K, CASE.N, CASE.G)
        types = [jax.ShapeDtypeStruct(out.shape, out.dtype), jax.ShapeDtypeStruct((scratch,), jnp.uint8)]
        return (jax.ffi.ffi_call("grouped_mm_v1", types)(x, weight, sizes, out)[0],)

    found = faults(step, arguments, donate=False)
    assert hlo.CALL in found
    assert hlo.PRODUCER not in found


def test_not_donated(arguments) -> None:
    assert {hlo.PROGRAM, hlo.ALIASED} <= faults(clean, arguments, donate=False).keys()


def test_one_of_two_buffers_donated(arguments) -> None:
    """Buffers of the same shape are counted, so that one alias does not stand for two."""

    def step(out, x, weight, sizes, second):
        return *clean(out, x, weight, sizes), *clean(second, x, weight, sizes[::-1])

    both = [*arguments, jnp.zeros_like(arguments[0])]
    compiled = jax.jit(step, donate_argnums=(0,)).lower(*both).compile()
    found = hlo.faults(compiled, [both[0], both[-1]])
    assert {hlo.PROGRAM, hlo.ALIASED} <= found.keys()


def test_large_temporary(arguments) -> None:
    """Nothing of the buffer's shape, but room for it."""

    def step(out, x, weight, sizes):
        order = jnp.argsort(weight.reshape(-1))
        return grouped_linear(x, weight, sizes, out=out), weight.reshape(-1)[order]

    found = faults(step, arguments)
    assert hlo.TEMPORARY in found
    assert hlo.PRODUCER not in found


def test_assert_no_copy_names_every_clause(arguments) -> None:
    compiled = jax.jit(clean).lower(*arguments).compile()
    with pytest.raises(AssertionError, match=rf"(?s){hlo.PROGRAM}: .*{hlo.ALIASED}: "):
        hlo.assert_no_copy(compiled, arguments[:1])


def test_donated_buffer_that_no_result_takes(arguments) -> None:
    def step(out, x, weight, sizes):
        return (grouped_linear(x, weight, sizes, out=out).sum(),)

    with pytest.raises(UserWarning, match="Some donated buffers were not usable"):
        hlo.compile_donating(step, arguments[:1], *arguments[1:])


def test_buffer_not_taken(arguments) -> None:
    compiled = jax.jit(clean).lower(*arguments).compile()
    with pytest.raises(AssertionError, match="step 0 did not take buffer 0"):
        hlo.run_in_place(compiled, arguments[:1], *arguments[1:])


def test_numpy_view_of_the_buffer(arguments) -> None:
    """The program is sound, and yet XLA copies at run time."""
    compiled = hlo.compile_donating(clean, arguments[:1], *arguments[1:])
    hlo.assert_no_copy(compiled, arguments[:1])
    view = np.asarray(arguments[0])
    with pytest.raises(AssertionError, match=r"step 0 (did not take|moved) buffer 0"):
        hlo.run_in_place(compiled, arguments[:1], *arguments[1:])
    assert not view.any()


def test_buffer_that_comes_back_elsewhere(arguments) -> None:
    """The array is taken, but the result is other memory."""

    def step(out, *rest):
        moved = jnp.copy(out)
        out.delete()
        return (moved,)

    with pytest.raises(AssertionError, match="step 0 moved buffer 0"):
        hlo.run_in_place(step, arguments[:1], *arguments[1:])


def test_what_a_scope_makes_passes_and_a_copy_does_not(arguments) -> None:
    """An array of the program's own, in a named scope, has the buffer's shape."""

    def step(out, x, weight, sizes):
        with jax.named_scope("own"):
            mine = jnp.sin(x @ weight[0])
        return grouped_linear(x, weight, sizes, out=out), (mine * weight.sum()).sum() + mine.max()

    def copying(out, x, weight, sizes):
        with jax.named_scope("own"):
            return grouped_linear(x, weight, sizes, out=out), (out * weight.sum()).sum()

    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    assert hlo.PRODUCER in hlo.faults(compiled, arguments[:1])
    assert hlo.PRODUCER in hlo.faults(compiled, arguments[:1], ("other",))
    assert hlo.faults(compiled, arguments[:1], ("own",)) == {}
    compiled = jax.jit(copying, donate_argnums=0).lower(*arguments).compile()
    assert "copy" in hlo.faults(compiled, arguments[:1], ("own",))[hlo.PRODUCER]


def test_ref_that_is_copied(arguments) -> None:
    out, *rest = arguments

    def clean(ref, *rest):
        grouped_linear(*rest, out=ref)

    def read_before(ref, x, weight, sizes):
        before = ref[...] * weight.sum()
        grouped_linear(x, weight, sizes, out=ref)
        return before.sum()

    hlo.assert_refs_in_place(clean, [jax.new_ref(out)], *rest)
    with pytest.raises(AssertionError, match=hlo.PRODUCER):
        hlo.assert_refs_in_place(read_before, [jax.new_ref(out)], *rest)
