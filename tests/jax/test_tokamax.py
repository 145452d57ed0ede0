# SPDX-License-Identifier: Apache-2.0
"""tokamax.ragged_dot with the core as its implementation; without tokamax, its calling convention alone."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME
from problems import linear_problem
from tolerances import assert_bits, assert_close

import grouped_core
from grouped_core import Op
from jax_grouped import ragged_dot
from jax_grouped.tokamax import implementation

CASE = BY_NAME["empty_middle"]
NUMBERS = jax.lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))


def like_tokamax(lhs, rhs, group_sizes, **options):
    """As tokamax calls: everything but the operands by keyword, and only what was asked for beyond these."""
    fixed: dict[str, Any] = {"precision": None, "preferred_element_type": None, "activation": None, **options}
    return implementation(lhs, rhs, group_sizes=group_sizes, ragged_dot_dimension_numbers=NUMBERS, **fixed)


def through_tokamax(lhs, rhs, group_sizes, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, on import and on use
        tokamax = pytest.importorskip("tokamax")
        return tokamax.ragged_dot(lhs, rhs, group_sizes, implementation=[implementation], **options)


WAYS = pytest.mark.parametrize("call", [like_tokamax, through_tokamax])


def operands(rng, dtype="f32"):
    p = linear_problem(rng, CASE, dtype, bias=False, row_scale=False)
    return p, tuple(jnp.asarray(a) for a in (p.x, p.weight, p.sizes))


@WAYS
def test_result_and_gradients_are_ours(rng, call) -> None:
    p, (lhs, rhs, sizes) = operands(rng)
    before = [grouped_core.call_count(op) for op in (Op.MM, Op.WGRAD)]
    y, pull = jax.vjp(lambda a, b: call(a, b, sizes), lhs, rhs)
    found = (y, *pull(jnp.asarray(p.dy)))
    counted = [grouped_core.call_count(op) - n for op, n in zip((Op.MM, Op.WGRAD), before, strict=True)]
    assert counted == [2, 1]
    y, pull = jax.vjp(lambda a, b: ragged_dot(a, b, sizes), lhs, rhs)
    for a, b in zip(found, (y, *pull(jnp.asarray(p.dy))), strict=True):
        assert_bits(a, b)


@WAYS
def test_activation_comes_before_the_rounding(rng, call) -> None:
    """cos is steep enough that rounding the sums first would show."""
    p, (lhs, rhs, sizes) = operands(rng, "bf16")
    y = call(lhs, rhs, sizes, activation=jnp.cos)
    assert y.dtype == jnp.bfloat16
    value, scale = p.expected()["y"][0]
    assert_close(y, (np.cos(value), scale + 1), CASE.K)


@WAYS
@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        (jnp.int32, {}, "lhs is int32"),
        (jnp.float32, {"precision": jax.lax.DotAlgorithmPreset.F32_F32_F32}, "precision asks for the algorithm"),
        (jnp.float32, {"fuse_gateup_activation": "silu"}, "jax_grouped does not serve fuse_gateup_activation"),
    ],
)
def test_the_rest_is_left_to_the_next(rng, call, dtype, options, words) -> None:
    _, (lhs, rhs, sizes) = operands(rng)
    with pytest.raises(NotImplementedError, match=words):
        call(lhs.astype(dtype), rhs.astype(dtype), sizes, **options)


def test_quantized_arrays_are_left_to_the_next(rng) -> None:
    _, (lhs, rhs, sizes) = operands(rng)

    class Quantized:
        shape, dtype, ndim = rhs.shape, rhs.dtype, rhs.ndim

    with pytest.raises(NotImplementedError, match="jax_grouped serves arrays; got ArrayImpl and Quantized"):
        like_tokamax(lhs, Quantized(), sizes)


def test_sizes_of_tokamax(rng) -> None:
    """It has a class for sizes that carries an example of them."""
    _, (lhs, rhs, sizes) = operands(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokamax = pytest.importorskip("tokamax")
    given = tokamax.RaggedDotGroupSizes(sizes, CASE.T)
    assert_bits(through_tokamax(lhs, rhs, given), ragged_dot(lhs, rhs, sizes))
