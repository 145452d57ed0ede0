# SPDX-License-Identifier: Apache-2.0
"""The core's operations on JAX arrays, without derivatives. A buffer given is aliased by the result."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from grouped_core import Activation, Op, Options, Tail
from jax_grouped._calls import Array, call, result_type


def _target(buffer: Array | None, shape: Any, dtype: Any, *like: Array | None) -> Any:
    return result_type(shape, dtype, *like) if buffer is None else buffer


def _tail(buffer: Array | None) -> Tail:
    return Tail.ZERO if buffer is None else Tail.KEEP


def mm(
    x: Array,
    weight: Array,
    group_sizes: Array,
    bias: Array | None,
    row_scale: Array | None,
    out: Array | None,
    weight_layout: int,
    dtype: Any = None,
) -> Array:
    """y = (x @ W[g] + bias[g]) * row_scale, as dtype (of x, if None)."""
    (rows, K), N, G = x.shape, weight.shape[1 + weight_layout], group_sizes.shape[0]
    target = _target(out, (rows, N), dtype or x.dtype, x, weight, group_sizes, bias, row_scale)
    options = Options(weight_layout=weight_layout, tail=_tail(out))
    return call(Op.MM, [x, weight, group_sizes, bias, row_scale, None], {5: target}, options, (K, N, G))[0]


def wgrad(
    x: Array,
    dy: Array,
    group_sizes: Array,
    out: Array | None,
    accumulate: bool,
    weight_layout: int,
    dtype: Any = None,
) -> Array:
    """dW (+)= x^T dy over each group's rows, in the weight's storage, as dtype (of x, if None)."""
    K, N, G = x.shape[1], dy.shape[1], group_sizes.shape[0]
    target = _target(out, (G, K, N) if weight_layout else (G, N, K), dtype or x.dtype, x, dy, group_sizes)
    options = Options(weight_layout=weight_layout, accumulate=int(accumulate))
    return call(Op.WGRAD, [x, dy, group_sizes, None], {3: target}, options, (K, N, G))[0]


def bias_grad(dy: Array, group_sizes: Array, dtype: Any) -> Array:
    """db = sum of dy over each group's rows."""
    G, N = group_sizes.shape[0], dy.shape[1]
    target = result_type((G, N), dtype, dy, group_sizes)
    return call(Op.BIAS_GRAD, [dy, group_sizes, None], {2: target}, Options(), (0, N, G))[0]


def row_scale(x: Array, group_sizes: Array, scale: Array, out: Array | None, dtype: Any) -> Array:
    """x * scale, row by row."""
    K, G = x.shape[1], group_sizes.shape[0]
    target = _target(out, x.shape, dtype, x, group_sizes, scale)
    options = Options(tail=_tail(out))
    return call(Op.ROW_SCALE, [x, group_sizes, scale, None], {3: target}, options, (K, 0, G))[0]


def row_dot(a: Array, b: Array, group_sizes: Array, dy: Array | None, bias: Array | None, dtype: Any) -> Array:
    """a . b + dy . bias[g], row by row."""
    K, N, G = a.shape[1], 0 if dy is None else dy.shape[1], group_sizes.shape[0]
    target = result_type((a.shape[0],), dtype, a, b, group_sizes, dy, bias)
    options = Options(tail=Tail.ZERO)
    return call(Op.ROW_DOT, [a, b, group_sizes, dy, bias, None], {5: target}, options, (K, N, G))[0]


def activation(h: Array, group_sizes: Array, scale: Array | None, out: Array | None, choice: Activation) -> Array:
    """activation(h) * scale."""
    shape = (h.shape[0], choice.width(h.shape[1]))
    target = _target(out, shape, h.dtype, h, group_sizes, scale)
    options = choice.options(_tail(out))
    return call(Op.ACTIVATION, [h, group_sizes, scale, None], {3: target}, options, (0, 0, group_sizes.shape[0]))[0]


def activation_grad(
    h: Array, dy: Array, group_sizes: Array, scale: Array | None, out: Array | None, choice: Activation
) -> tuple[Array, Array | None]:
    """dh, and the gradient of scale if there is one."""
    outputs: dict[int, Any] = {4: _target(out, h.shape, h.dtype, h, dy, group_sizes, scale)}
    if scale is not None:
        # With a buffer for dh the call leaves the tail of this result alone too, so it starts from zeros.
        zeros = None if out is None else jnp.zeros_like(scale)
        outputs[5] = _target(zeros, scale.shape, scale.dtype, h, dy, group_sizes, scale)
    inputs = [h, dy, group_sizes, scale, None, None]
    results = call(Op.ACTIVATION_GRAD, inputs, outputs, choice.options(_tail(out)), (0, 0, group_sizes.shape[0]))
    return results[0], results[1] if scale is not None else None
