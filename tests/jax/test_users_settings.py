# SPDX-License-Identifier: Apache-2.0
"""jax_grouped in a process whose JAX is set up to complain, and on arrays as NumPy makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME
from problems import linear_problem
from tolerances import assert_bits

from jax_grouped import grouped_activation, grouped_linear, grouped_mlp, ragged_dot

HARD = BY_NAME["empty_middle"]
AXES = ((0, 0, 0), (0, None, None), (0, 0, None), (0, None, 0), (None, 0, 0))


def layer(x, weight, sizes) -> Any:
    return grouped_linear(x, weight, sizes)


def activation(x, weight, sizes) -> Any:
    return grouped_activation(x[:, :16], sizes, row_scale=weight[0, 0, 0] * x[:, 0])


def mlp(x, weight, sizes) -> Any:
    columns = weight.shape[2] // 2 * 2
    return grouped_mlp(x, weight[..., :columns], weight[:, : columns // 2], sizes, row_scale=x[:, 0])


def ragged(x, weight, sizes) -> Any:
    return ragged_dot(x, weight, sizes)


FUNCTIONS = pytest.mark.parametrize("function", [layer, activation, mlp, ragged], ids=lambda f: f.__name__)


def with_gradients(function: Callable, x, weight, sizes) -> Any:
    return jax.value_and_grad(lambda x, w: function(x, w, sizes).sum(), argnums=(0, 1))(x, weight)


def arrays_of(rng) -> tuple[jax.Array, ...]:
    p = linear_problem(rng, HARD, "f32", layout="gkn", bias=False, row_scale=False)
    return jnp.asarray(p.x), jnp.asarray(p.weight), jnp.asarray(p.sizes)


@FUNCTIONS
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_no_silent_promotion(rng, function, axes, x64) -> None:
    """With JAX's own promotions of rank and dtype forbidden, batches come out as without."""
    arrays = arrays_of(rng)
    batched = [a if axis is None else jnp.stack([a, a]) for a, axis in zip(arrays, axes, strict=True)]
    step = jax.vmap(lambda x, w, s: with_gradients(function, x, w, s), axes)
    with jax.enable_x64(x64):
        expected = jax.jit(step)(*batched)
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            found = jax.jit(step)(*batched)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_bits(a, b)


@FUNCTIONS
@pytest.mark.parametrize("batched", [False, True])
def test_no_tracer_outlives_its_trace(rng, function, batched) -> None:
    x, weight, sizes = arrays_of(rng)

    def step(x):
        return with_gradients(function, x, weight, sizes)

    with jax.checking_leaks():
        jax.block_until_ready(jax.jit(jax.vmap(step))(x[None]) if batched else jax.jit(step)(x))


def test_no_tracer_of_a_buffer_outlives_its_trace(rng) -> None:
    x, weight, sizes = arrays_of(rng)

    @jax.jit
    def step(out, dgrad_out, wgrad_out):
        def loss(x, dgrad_out, wgrad_out):
            return grouped_linear(x, weight, sizes, out=out, dgrad_out=dgrad_out, wgrad_out=wgrad_out).sum()

        return jax.grad(loss, argnums=(1, 2))(x, dgrad_out, wgrad_out)

    with jax.checking_leaks():
        step(jnp.zeros((x.shape[0], weight.shape[2])), x, weight)


@pytest.mark.parametrize(
    "wide", [("x",), ("weight",), ("bias", "row_scale"), ("x", "weight", "bias", "row_scale")], ids=str
)
@pytest.mark.parametrize("eager", [False, True], ids=["jit", "eager"])
def test_numpys_64_bits_are_taken_as_jax_takes_them(rng, wide, eager) -> None:
    """As 32 where jax_enable_x64 is off, beside arrays of JAX's and of themselves."""
    p = linear_problem(rng, HARD, "f32")
    given: dict[str, Any] = {n: a.astype(np.float64) if n in wide else jnp.asarray(a) for n, a in p.inputs.items()}
    sizes: Any = p.sizes.astype(np.int64)
    expected = grouped_linear(**jax.tree.map(jnp.asarray, p.inputs), group_sizes=jnp.asarray(p.sizes))
    call = grouped_linear if eager else jax.jit(grouped_linear)
    y = call(**given, group_sizes=sizes)
    assert y.dtype == jnp.float32
    assert_bits(y, expected)


@FUNCTIONS
@pytest.mark.parametrize("differentiated", [0, 1], ids=["x", "weight"])
def test_derivatives_beside_numpys_64_bits(rng, function, differentiated) -> None:
    """What is differentiated is JAX's and in 32 bits; what stands beside it is as it came."""
    arrays = arrays_of(rng)
    wide: Any = [np.asarray(a, np.int64 if i == 2 else np.float64) for i, a in enumerate(arrays)]

    def gradient(arrays):
        return jax.grad(lambda *a: function(*a).sum(), differentiated)(*arrays)

    assert_bits(gradient(wide), gradient(arrays))


def test_numpys_64_bits_beside_16_are_refused_as_32(rng) -> None:
    p: Any = linear_problem(rng, HARD, "bf16", bias=False, row_scale=False)
    with pytest.raises(TypeError, match=r"weight must be \[.*\] f32; got \[.*\] bf16"):
        grouped_linear(p.x.astype(np.float64), p.weight, p.sizes)


@FUNCTIONS
def test_docstrings_name_what_sizes_that_do_not_fit_raise(rng, function) -> None:
    """A call that has run before is made by JAX's native code, which raises another type for the same error."""
    x, weight, sizes = arrays_of(rng)
    public = {layer: grouped_linear, activation: grouped_activation, mlp: grouped_mlp, ragged: ragged_dot}[function]
    documented = next(line for line in str(public.__doc__).splitlines() if ": at run time, " in line)
    bad = sizes.at[0].set(-1)
    for warm in (False, True):
        step = jax.jit(lambda *arrays: function(*arrays))
        if warm:
            jax.block_until_ready(step(x, weight, sizes))
        with pytest.raises(Exception, match=r"group_sizes\[0\] = -1 is negative") as error:
            jax.block_until_ready(step(x, weight, bad))
        assert error.type.__name__ in documented
