# SPDX-License-Identifier: Apache-2.0
"""What jax_grouped refuses, when, and in which words."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import DTYPES

import grouped_core
from grouped_core import DType, Op
from jax_grouped import grouped_activation, grouped_linear, ragged_dot
from jax_grouped._registration import check_jaxlib, running_ffi_version

T, K, N, G = 6, 4, 8, 2
GKN = ' The layout assumed is weight_layout="gkn"; "gnk" reads [G, N, K].'
GNK = ' The layout assumed is weight_layout="gnk"; "gkn" reads [G, K, N].'
BUFFER = ", contiguous, 16-byte aligned"


def zeros(shape, dtype: str = "f32"):
    return jnp.zeros(shape, DTYPES.get(dtype, dtype))


def good_linear() -> dict:
    return {
        "x": zeros((T, K)),
        "weight": zeros((G, K, N)),
        "group_sizes": zeros((G,), "int32"),
        "bias": zeros((G, N)),
        "row_scale": zeros((T,)),
        "out": zeros((T, N)),
        "dgrad_out": zeros((T, K)),
        "wgrad_out": zeros((G, K, N)),
    }


def without(name: str) -> str:
    return f" Pass {name}=None to do without it."


# argument, its shape and dtype, exception, message
LINEAR = [
    ("x", (T, K, 1), "f32", ValueError, "x must be [T, K] f16, bf16, f32 or f64; got [6, 4, 1] f32."),
    ("x", (T, K), "int32", TypeError, "x must be [T=6, K=4] f16, bf16, f32 or f64; got [6, 4] i32."),
    ("weight", (G, N, K), "f32", ValueError, f"weight must be [G, K=4, N] f32; got [2, 8, 4] f32.{GKN}"),
    ("weight", (G, K, N), "bf16", TypeError, f"weight must be [G=2, K=4, N=8] f32; got [2, 4, 8] bf16.{GKN}"),
    ("group_sizes", (G + 1,), "int32", ValueError, "group_sizes must be [G=2] i32 or i64; got [3] i32."),
    ("group_sizes", (G,), "f32", TypeError, "group_sizes must be [G=2] i32 or i64; got [2] f32."),
    ("group_sizes", (G,), "int16", TypeError, "group_sizes must be [G=2] i32 or i64; got [2] i16."),
    ("bias", (N,), "f32", ValueError, "bias must be [G=2, N=8] f32; got [8] f32."),
    ("bias", (G, N), "f16", TypeError, "bias must be [G=2, N=8] f32; got [2, 8] f16."),
    ("row_scale", (T, 1), "f32", ValueError, "row_scale must be [T=6] f32; got [6, 1] f32."),
    ("row_scale", (T,), "bool", TypeError, "row_scale must be [T=6] f32; got [6] bool."),
    ("out", (T, N + 1), "f32", ValueError, f"out must be [T=6, N=8] f32{BUFFER}; got [6, 9] f32.{without('out')}"),
    ("out", (T, N), "bf16", TypeError, f"out must be [T=6, N=8] f32{BUFFER}; got [6, 8] bf16.{without('out')}"),
    (
        "dgrad_out",
        (T + 1, K),
        "f32",
        ValueError,
        f"dgrad_out must be [T=6, K=4] f32{BUFFER}; got [7, 4] f32.{without('dgrad_out')}",
    ),
    (
        "dgrad_out",
        (T, K),
        "f16",
        TypeError,
        f"dgrad_out must be [T=6, K=4] f32{BUFFER}; got [6, 4] f16.{without('dgrad_out')}",
    ),
    (
        "wgrad_out",
        (G, N, K),
        "f32",
        ValueError,
        f"wgrad_out must be [G=2, K=4, N=8] f32{BUFFER}; got [2, 8, 4] f32.{GKN}{without('wgrad_out')}",
    ),
    (
        "wgrad_out",
        (G, K, N),
        "bf16",
        TypeError,
        f"wgrad_out must be [G=2, K=4, N=8] f32{BUFFER}; got [2, 4, 8] bf16.{GKN}{without('wgrad_out')}",
    ),
]


def table(rows):
    return [pytest.param(*row, id=f"{row[0]}-{row[3].__name__}-{n}") for n, row in enumerate(rows)]


def assert_refused_at_trace(function, arguments, exception, message) -> None:
    """jit, and tracing alone: nothing has been lowered or run when the error comes."""
    for call in (jax.jit(function), lambda **a: jax.eval_shape(function, **a)):
        with pytest.raises(exception) as caught:
            call(**arguments)
        assert str(caught.value) == message


@pytest.mark.parametrize(("name", "shape", "dtype", "exception", "message"), table(LINEAR))
def test_linear(name, shape, dtype, exception, message) -> None:
    arguments = {**good_linear(), name: zeros(shape, dtype)}
    assert_refused_at_trace(grouped_linear, arguments, exception, message)


def test_linear_accepts_the_good_arguments() -> None:
    """Or the tables above and below would prove nothing."""
    assert jax.jit(grouped_linear)(**good_linear()).shape == (T, N)
    assert jax.jit(grouped_activation)(**good_activation()).shape == (T, N)


def test_messages_tell_what_16_bit_inputs_allow() -> None:
    x, weight = zeros((T, K), "bf16"), zeros((G, K, N), "bf16")
    bad = {"x": x, "weight": weight, "group_sizes": zeros((G,), "int32"), "bias": zeros((G, N), "f16")}
    message = "bias must be [G=2, N=8] bf16 or f32; got [2, 8] f16."
    assert_refused_at_trace(grouped_linear, bad, TypeError, message)


def test_message_names_the_layout_given() -> None:
    arguments = {**good_linear(), "wgrad_out": None}
    message = f"weight must be [G, N, K=4] f32; got [2, 4, 8] f32.{GNK}"
    assert_refused_at_trace(partial(grouped_linear, weight_layout="gnk"), arguments, ValueError, message)


@pytest.mark.parametrize("layout", ["nkg", "GKN", "", None, 1])
def test_unknown_weight_layout(layout) -> None:
    message = f'weight_layout must be one of "gnk", "gkn"; got {layout!r}.'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        grouped_linear(**good_linear(), weight_layout=layout)


@pytest.mark.parametrize(
    ("h", "error", "message"),
    [
        (None, ValueError, "grouped_activation needs h; got none."),
        ([[1.0, 2.0]], TypeError, "h must be an array; got list. Pass jax.numpy.asarray(h)."),
    ],
)
def test_activation_of_no_array(h, error, message) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        grouped_activation(h, zeros((G,), "int32"))


def good_activation() -> dict:
    return {
        "h": zeros((T, 2 * N)),
        "group_sizes": zeros((G,), "int32"),
        "row_scale": zeros((T,)),
        "out": zeros((T, N)),
        "dgrad_out": zeros((T, 2 * N)),
    }


ACTIVATION = [
    ("h", (T,), "f32", ValueError, "h must be [T, 2F] f16, bf16, f32 or f64; got [6] f32."),
    ("h", (T, 15), "f32", ValueError, "h must be [T, 2F] f16, bf16, f32 or f64; got [6, 15] f32."),
    ("h", (T, 16), "int32", TypeError, "h must be [T=6, 2F=16] f16, bf16, f32 or f64; got [6, 16] i32."),
    ("group_sizes", (G, 1), "int32", ValueError, "group_sizes must be [G] i32 or i64; got [2, 1] i32."),
    ("row_scale", (T + 1,), "f32", ValueError, "row_scale must be [T=6] f32; got [7] f32."),
    ("row_scale", (T,), "f16", TypeError, "row_scale must be [T=6] f32; got [6] f16."),
    ("out", (T, 2 * N), "f32", ValueError, f"out must be [T=6, F=8] f32{BUFFER}; got [6, 16] f32."),
    ("out", (T, N), "bf16", TypeError, f"out must be [T=6, F=8] f32{BUFFER}; got [6, 8] bf16."),
    ("dgrad_out", (T, N), "f32", ValueError, f"dgrad_out must be [T=6, 2F=16] f32{BUFFER}; got [6, 8] f32."),
    ("dgrad_out", (T, 16), "f16", TypeError, f"dgrad_out must be [T=6, 2F=16] f32{BUFFER}; got [6, 16] f16."),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "exception", "message"), table(ACTIVATION))
def test_activation(name, shape, dtype, exception, message) -> None:
    arguments = {**good_activation(), name: zeros(shape, dtype)}
    assert_refused_at_trace(grouped_activation, arguments, exception, message)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kind": "relu"}, 'kind must be one of "swiglu", "clamped_swiglu", "geglu", "squared_relu"; got \'relu\'.'),
        (
            {"gate_layout": "mixed"},
            'gate_layout must be one of "concatenated", "interleaved"; got \'mixed\'.',
        ),
    ],
)
def test_unknown_activation(option, message) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        grouped_activation(**good_activation(), **option)


GENERAL = " A weight stored [G, N, K] is for jax_grouped.ragged_dot_general."
RAGGED = [
    ("lhs", (T,), "f32", ValueError, "lhs must be [T, K] f16, bf16, f32 or f64; got [6] f32."),
    ("rhs", (G, N, K), "f32", ValueError, f"rhs must be [G, K=4, N] f32; got [2, 8, 4] f32.{GENERAL}"),
    ("rhs", (K, N), "f32", ValueError, f"rhs must be [G, K=4, N] f32; got [4, 8] f32.{GENERAL}"),
    ("group_sizes", (G + 1,), "int32", ValueError, "group_sizes must be [G=2] i32 or i64; got [3] i32."),
    ("out", (T, K), "f32", ValueError, f"out must be [T=6, N=8] f32{BUFFER}; got [6, 4] f32."),
    ("out", (T, N), "int32", TypeError, f"out must be [T=6, N=8] f32{BUFFER}; got [6, 8] i32."),
]


@pytest.mark.parametrize(("name", "shape", "dtype", "exception", "message"), table(RAGGED))
def test_ragged_dot(name, shape, dtype, exception, message) -> None:
    good = {"lhs": zeros((T, K)), "rhs": zeros((G, K, N)), "group_sizes": zeros((G,), "int32")}
    assert_refused_at_trace(ragged_dot, {**good, name: zeros(shape, dtype)}, exception, message)


def test_ragged_dot_into_a_buffer_casts_nothing() -> None:
    """Without a buffer operands of two dtypes are cast, as JAX casts them."""
    good = {"lhs": zeros((T, K)), "rhs": zeros((G, K, N), "f16"), "group_sizes": zeros((G,), "int32")}
    assert jax.eval_shape(ragged_dot, **good).dtype == jnp.float32
    message = f"rhs must be [G=2, K=4, N=8] f32; got [2, 4, 8] f16.{GENERAL}"
    assert_refused_at_trace(ragged_dot, {**good, "out": zeros((T, N))}, TypeError, message)


BAD_SIZES = [
    ((3, -1), "group_sizes[1] = -1 is negative. A group holds 0 rows or more."),
    (
        (4, 3),
        "group_sizes[1] = 3 does not fit: group 1 begins at row 4 of T=6, so 2 rows are left. sum(group_sizes) must "
        "be at most T.",
    ),
    (
        (2**31 - 1, 1),
        "group_sizes[0] = 2147483647 does not fit: group 0 begins at row 0 of T=6, so 6 rows are left. "
        "sum(group_sizes) must be at most T.",
    ),
]


@pytest.mark.parametrize(("sizes", "message"), BAD_SIZES, ids=["negative", "too_many", "huge"])
@pytest.mark.parametrize("function", ["linear", "activation", "wgrad"])
def test_sizes_at_run_time(function, sizes, message) -> None:
    """CPU always checks; the error names the group."""
    sizes = jnp.asarray(sizes, jnp.int32)
    x, weight = zeros((T, K)), zeros((G, K, N))
    calls = {
        "linear": lambda sizes: grouped_linear(x, weight, sizes),
        "activation": lambda sizes: grouped_activation(zeros((T, 2 * N)), sizes),
        # Linear in weight, so only the gradient's own call is left to run.
        "wgrad": lambda sizes: jax.grad(lambda w: grouped_linear(x, w, sizes).sum())(weight),
    }
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"INVALID_ARGUMENT: {re.escape(message)}"):
        jax.block_until_ready(jax.jit(calls[function])(sizes))


def test_handler_asserts_aliasing() -> None:
    """A call that announces a buffer and does not alias it would leave garbage in the tail."""
    out = zeros((T, N))
    scratch = grouped_core.workspace_size(Op.MM, DType.F32, grouped_core.CPU_DEVICE, K, N, G)
    types = [jax.ShapeDtypeStruct(out.shape, out.dtype), jax.ShapeDtypeStruct((scratch,), jnp.uint8)]
    numbers = dict.fromkeys(("sizes_kind", "tail", "accumulate", "kind", "gate_layout"), np.int32(0))
    reals = dict.fromkeys(("alpha", "limit", "offset"), np.float64(0))

    def call(x, weight, sizes, out, aliases):
        return jax.ffi.ffi_call("grouped_mm_v1", types, input_output_aliases=aliases)(
            x,
            weight,
            sizes,
            out,
            inputs=np.int64(0b111),
            outputs=np.int64(1 << 5),
            aliased=np.int64(1 << 5),
            weight_layout=np.int32(1),
            **numbers,
            **reals,
        )[0]

    arguments = (zeros((T, K)), zeros((G, K, N)), zeros((G,), "int32"), out)
    assert jax.jit(call, static_argnums=4)(*arguments, Aliases({3: 0})).shape == (T, N)
    message = (
        "INVALID_ARGUMENT: out must be aliased by its result; XLA gave them different memory. Set "
        "input_output_aliases on the call."
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match=re.escape(message)):
        jax.block_until_ready(jax.jit(call, static_argnums=4)(*arguments, Aliases({})))


class Aliases(dict):
    """A dictionary that jit can take as a static argument."""

    def __hash__(self) -> int:
        return hash(tuple(self.items()))


@pytest.mark.parametrize("running", [(0, 3), (0, 4), (0, 17)])
def test_jaxlib_that_speaks_enough(running) -> None:
    assert check_jaxlib((0, 3), running) is None


@pytest.mark.parametrize(("built", "running"), [((0, 3), (0, 2)), ((0, 5), (0, 4)), ((0, 3), (1, 0)), ((1, 0), (0, 9))])
def test_jaxlib_of_another_ffi_version(built, running) -> None:
    words = f"jax_grouped was built for XLA FFI {built[0]}.{built[1]} and jaxlib .* speaks {running[0]}.{running[1]};"
    with pytest.raises(ImportError, match=f"^{words}.*GROUPED_SYSTEM_JAXLIB=1"):
        check_jaxlib(built, running)


def test_jaxlib_without_headers() -> None:
    with pytest.raises(ImportError, match=r"its headers are missing. Install jaxlib>=0\.9\.1"):
        check_jaxlib((0, 3), None)


def test_running_jaxlib_is_accepted() -> None:
    running = running_ffi_version()
    assert running is not None
    assert running >= grouped_core.xla_ffi_version()
