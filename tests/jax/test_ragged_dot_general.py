# SPDX-License-Identifier: Apache-2.0
"""jax_grouped.ragged_dot_general: every mode and order of dimensions, against an einsum in fp64 and against JAX."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SENTINEL
from ragged_cases import BATCH, CONTRACTING, EVERY, EXTENT, NONCONTRACTING, calls_of
from tolerances import DTYPES, assert_bits, assert_close

from grouped_core import Op
from jax_grouped import ragged_dot_general

BY_NAME = {c.name: c for c in EVERY}


def on_device(case, rng, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    with jax.enable_x64(dtype == "f64"):
        lhs, rhs, sizes = map(jnp.asarray, case.draw(rng, dtype))
        return lhs, rhs, sizes


@pytest.mark.parametrize("case", EVERY, ids=str)
@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_value(rng, case, dtype) -> None:
    arguments = on_device(case, rng, dtype)
    with jax.enable_x64(dtype == "f64"):
        y = jax.jit(partial(ragged_dot_general, ragged_dot_dimension_numbers=case.numbers))(*arguments)
        theirs = jax.eval_shape(
            partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=case.numbers), *arguments
        )
    assert (y.shape, y.dtype) == (theirs.shape, theirs.dtype)
    assert y.dtype == DTYPES[dtype]
    if case.mode != "batch" or dtype != "bf16":  # that one is XLA's, which rounds as it likes
        assert_close(y, case.pair(*arguments), case.terms, what=case.name)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_agrees_with_jax(rng, case) -> None:
    arguments = on_device(case, rng, "f64")
    with jax.enable_x64(True):
        ours, theirs = (
            jax.jit(partial(f, ragged_dot_dimension_numbers=case.numbers))(*arguments)
            for f in (ragged_dot_general, jax.lax.ragged_dot_general)
        )
    _, scale = case.pair(*arguments)
    assert_close(ours, (np.asarray(theirs), scale), 2 * case.terms)


@pytest.mark.parametrize("case", NONCONTRACTING + CONTRACTING, ids=str)
def test_the_core_computes_it(rng, case) -> None:
    """With nothing of JAX's own, and in one call; but where rows of several sizes share weights, one for each."""
    arguments = on_device(case, rng, "f32")
    call = jax.jit(partial(ragged_dot_general, ragged_dot_dimension_numbers=case.numbers))
    assert " dot(" not in str(call.lower(*arguments).compile().as_text())
    op = Op.WGRAD if case.mode == "contracting" else Op.MM
    shares = case.mode == "noncontracting" and "x" in case.sizes
    assert calls_of(call, *arguments) == {op: EXTENT["x"] if shares else 1}


@pytest.mark.parametrize("case", [BY_NAME[n] for n in ("plain", "rhs_transposed", "batch", "wgrad")], ids=str)
def test_nothing_is_transposed(rng, case) -> None:
    """These orders are the storage of the core's operands; group_last below shows that the search finds one."""

    def moves(case):
        call = jax.jit(partial(ragged_dot_general, ragged_dot_dimension_numbers=case.numbers))
        return re.findall(r" transpose\(", call.lower(*on_device(case, rng, "f32")).as_text("hlo"))

    assert not moves(case)
    assert moves(BY_NAME["group_last"])


def objective(function, weights, sizes):
    """A polynomial with positive coefficients: at the absolute values of its arguments every term is positive."""
    return lambda lhs, rhs: jnp.vdot(weights, function(lhs, rhs, sizes) ** 2)


DERIVATIVES = {
    "reverse": lambda f, lhs, rhs: jax.grad(f, (0, 1))(lhs, rhs),
    "forward": lambda f, lhs, rhs: jax.jvp(f, (lhs, rhs), (2 * lhs, 3 * rhs))[1],
    "forward_over_reverse": lambda f, lhs, rhs: jax.jvp(jax.grad(f, (0, 1)), (lhs, rhs), (2 * lhs, 3 * rhs))[1],
    "reverse_over_reverse": lambda f, lhs, rhs: jax.grad(
        lambda a, b: sum(jnp.vdot(g, 2 * p) for g, p in zip(jax.grad(f, (0, 1))(a, b), (lhs, rhs), strict=True)), (0, 1)
    )(lhs, rhs),
    "reverse_over_forward": lambda f, lhs, rhs: jax.grad(
        lambda a, b: jax.jvp(f, (a, b), (2 * lhs, 3 * rhs))[1], (0, 1)
    )(lhs, rhs),
}


# The mixed ones need nothing that these two do not, so a few cases of each kind show them.
ALL_CASES = ("reverse", "reverse_over_reverse")
SOME = ("plain", "rhs_transposed", "all_at_once", "wgrad", "wgrad_all_at_once")
ASKED = [
    pytest.param(case, d, id=f"{case}-{d}")
    for case in NONCONTRACTING + CONTRACTING
    for d in DERIVATIVES
    if d in ALL_CASES or case.name in SOME
]


@pytest.mark.parametrize(("case", "derivative"), ASKED)
def test_derivatives(rng, case, derivative) -> None:
    arguments = on_device(case, rng, "f64")
    with jax.enable_x64(True):
        lhs, rhs, sizes = arguments
        weights = jnp.asarray(np.abs(rng.standard_normal([EXTENT[c] for c in case.result])))
        ours = partial(ragged_dot_general, ragged_dot_dimension_numbers=case.numbers)
        take = jax.jit(lambda a, b, f: DERIVATIVES[derivative](objective(f, weights, sizes), a, b), static_argnums=2)
        found, expected, scale = take(lhs, rhs, ours), take(lhs, rhs, case.truth), take(abs(lhs), abs(rhs), case.truth)
    terms = case.terms * EXTENT["m"] * EXTENT["n"]
    assert len(jax.tree.leaves(found)) == len(jax.tree.leaves(expected)) > 0
    for a, b, s in zip(*map(jax.tree.leaves, (found, expected, scale)), strict=True):
        assert a.shape == b.shape
        assert_close(a, (np.asarray(b), np.asarray(s)), terms, what=derivative)


@pytest.mark.parametrize("name", ["plain", "rhs_transposed", "inner", "wgrad"])
def test_hessian(rng, name) -> None:
    case = BY_NAME[name]
    arguments = on_device(case, rng, "f64")
    with jax.enable_x64(True):
        lhs, rhs, sizes = arguments
        ours = partial(ragged_dot_general, ragged_dot_dimension_numbers=case.numbers)
        weights = jnp.ones([EXTENT[c] for c in case.result])
        take = jax.jit(lambda a, b, f: jax.hessian(objective(f, weights, sizes), (0, 1))(a, b), static_argnums=2)
        found, expected, scale = take(lhs, rhs, ours), take(lhs, rhs, case.truth), take(abs(lhs), abs(rhs), case.truth)
    leaves = list(zip(*map(jax.tree.leaves, (found, expected, scale)), strict=True))
    assert len(leaves) == 4
    for a, b, s in leaves:
        assert_close(a, (np.asarray(b), np.asarray(s)), case.terms * EXTENT["m"] * EXTENT["n"])


@pytest.mark.parametrize("name", ["plain", "wgrad", "batch", "wgrad_batch"])
def test_into_a_buffer(rng, name) -> None:
    """Forward, and reverse mode; rows past the sizes stay as they were."""
    case = BY_NAME[name]
    arguments = on_device(case, rng, "f32")
    call = partial(ragged_dot_general, ragged_dot_dimension_numbers=case.numbers)
    plain, pull = jax.vjp(lambda a, b: call(a, b, arguments[2]), *arguments[:2])
    out = jnp.full(plain.shape, SENTINEL, plain.dtype)
    dy = jnp.asarray(rng.standard_normal(plain.shape), plain.dtype)

    @jax.jit
    def both(lhs, rhs, sizes, out, dy):
        y, pull = jax.vjp(lambda a, b: call(a, b, sizes, out=out), lhs, rhs)
        return y, pull(dy)

    lhs, rhs, sizes = arguments
    y, gradients = both(lhs, rhs, sizes, out, dy)
    expected = plain
    if case.mode == "noncontracting":
        row = jax.lax.broadcasted_iota(jnp.int32, plain.shape, plain.ndim - 2)
        sums = np.asarray(sizes).sum(-1)
        expected = jnp.where(row < sums.reshape(*sums.shape, 1, 1), plain, SENTINEL)
        assert bool((expected == SENTINEL).any())
    assert_bits(y, expected, "y")
    for a, b in zip(gradients, pull(dy), strict=True):
        assert_bits(a, b, "gradient")


REFUSED = {
    "a shape": ({"shape": (EXTENT["m"], 1)}, ValueError, "out must have the result's shape float32[13, 7]; got "),
    "a dtype": ({"dtype": jnp.float16}, TypeError, "out must have the result's dtype float32; got float16."),
    "a sum": ({"case": "wgrad_outer"}, ValueError, "out must be None where contracting dimensions lie outside"),
    "a dense product": ({"case": "ragged_batch"}, ValueError, "out must be None where JAX computes the result: the "),
    "a cast": ({"preferred": jnp.float16, "dtype": jnp.float16}, TypeError, "out must be None where the core needs a"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_buffers_that_are_refused(rng, what) -> None:
    options, exception, message = REFUSED[what]
    case = BY_NAME[options.get("case", "plain")]
    arguments = on_device(case, rng, "f32")
    out = jnp.zeros(options.get("shape", [EXTENT[c] for c in case.result]), options.get("dtype", jnp.float32))
    with pytest.raises(exception, match=re.escape(message) + r".* Pass out=None to do without it\."):
        jax.eval_shape(
            lambda *a: ragged_dot_general(
                *a,
                ragged_dot_dimension_numbers=case.numbers,
                preferred_element_type=options.get("preferred"),
                out=out,
            ),
            *arguments,
        )


def numbers(contract=((1,), (1,)), batch=((), ()), ragged=(0,), group=(0,)):
    return jax.lax.RaggedDotDimensionNumbers((contract, batch), ragged, group)


BAD = {
    "two ragged dimensions": ({"ragged": (0, 1)}, [4]),
    "no such ragged dimension": ({"ragged": (2,)}, [4]),
    "no group dimension": ({"group": ()}, [4]),
    "no such group dimension": ({"group": (5,)}, [4]),
    "a group dimension when contracting": ({"ragged": (1,)}, [4]),
    "sizes without a dimension": ({}, []),
    "sizes of too many dimensions": ({}, [3, 4]),
    "another number of groups": ({}, [3]),
    "other contracted sizes": ({"contract": ((1,), (2,))}, [4]),
    "a batch that does not match": ({"batch": ((0,), (0,)), "ragged": (0,), "group": ()}, [4]),
}


@pytest.mark.parametrize("what", BAD)
def test_what_jax_refuses_is_refused_alike(what) -> None:
    options, sizes = BAD[what]
    lhs, rhs, group_sizes = jnp.zeros((13, 5)), jnp.zeros((4, 5, 7)), jnp.zeros(sizes, jnp.int32)
    found = []
    for function in (jax.lax.ragged_dot_general, ragged_dot_general):
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as caught:
            function(lhs, rhs, group_sizes, numbers(**options))
        found.append((type(caught.value), str(caught.value)))
    assert found[0] == found[1]


@pytest.mark.parametrize("case", BATCH, ids=str)
def test_a_ragged_batch_is_a_dense_product(rng, case) -> None:
    """JAX's own reading: every element of the batch is computed, whatever the sizes."""
    arguments = on_device(case, rng, "f32")
    call = jax.jit(partial(ragged_dot_general, ragged_dot_dimension_numbers=case.numbers))
    assert calls_of(call, *arguments) == {}
    lhs, rhs, sizes = arguments
    assert_bits(call(lhs, rhs, sizes), jax.lax.ragged_dot_general(lhs, rhs, sizes, case.numbers))
