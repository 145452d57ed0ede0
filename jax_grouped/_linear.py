# SPDX-License-Identifier: Apache-2.0
"""grouped_linear: forward, and where its gradients go."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from grouped_core import Op, Options, other_layout, weight_layout_code
from jax_grouped import _operations as core
from jax_grouped._calls import Array, accumulator, check_arguments, check_own, vary_together
from jax_grouped._refs import Buffer, check_buffers, check_inputs, cotangent, is_ref, read, write

__all__ = ["grouped_linear"]


class _Config(NamedTuple):
    weight_layout: int
    accumulate_wgrad: bool


def grouped_linear(
    x: Array,
    weight: Array,
    group_sizes: Array,
    bias: Array | None = None,
    *,
    row_scale: Array | None = None,
    out: Buffer | None = None,
    dgrad_out: Buffer | None = None,
    wgrad_out: Buffer | None = None,
    accumulate_wgrad: bool = False,
    weight_layout: str = "gkn",
) -> Array:
    """One linear layer per group of rows: ``y[t] = (x[t] @ W[g(t)] + bias[g(t)]) * row_scale[t]``.

    Rows of group 0 come first, then those of group 1, and so on; ``S = sum(group_sizes)`` may be less than ``T``.

    Buffers are arrays to be donated to the jit around this call; then nothing is copied and they come back filled:
    ``out`` as the result ``y``, ``dgrad_out`` and ``wgrad_out`` as **their own cotangents**::

        def loss(params, out, dgrad_out):
            y = grouped_linear(x, params["w"], sizes, out=out, dgrad_out=dgrad_out)
            return objective(y), y

        @partial(jax.jit, donate_argnames=("out", "dgrad_out"))
        def step(params, out, dgrad_out):
            grads, y = jax.grad(loss, argnums=(0, 2), has_aux=True)(params, out, dgrad_out)
            return grads[0], y, grads[1]  # y and grads[1] are the buffers: donate them again

    JAX pairs donated arguments and results by shape and order, so hand buffers of one shape back in the order in
    which they came. A gradient buffer whose call is not differentiated has zeros as its cotangent: what it held is
    lost. Each buffer may be a whole ``jax.Ref`` instead, to be used inside jit: it is written where it is, nothing is
    donated or handed back, and it has no cotangent: the loss must read ``y``, not the Ref.

    Args:
      x: ``[T, K]`` float16, bfloat16, float32 or float64.
      weight: ``[G, K, N]`` (``weight_layout="gkn"``, as ``jax.lax.ragged_dot``) or ``[G, N, K]`` (``"gnk"``), dtype
        of x.
      group_sizes: ``[G]`` int32 or int64.
      bias: ``[G, N]``, dtype of x, or float32 beside 16-bit x.
      row_scale: ``[T]``, likewise; the router's probability of each row.
      out: ``[T, N]``, dtype of x: y is written there.
      dgrad_out: ``[T, K]``, dtype of x: the gradient of x is written there.
      wgrad_out: the weight's shape, its dtype or float32 beside 16-bit: the gradient of weight is written there,
        and weight's own cotangent is zero.
      accumulate_wgrad: add to what wgrad_out holds instead of overwriting it.
      weight_layout: how weight is stored.

    Returns:
      ``[T, N]``, dtype of x.

    Raises:
      ValueError: at trace time, a shape that the rules forbid, or one Ref for two buffers.
      TypeError: at trace time, a dtype that the rules forbid, a slice of a Ref, or a Ref as an input.
      jax.errors.JaxRuntimeError or ValueError: at run time, sizes that do not fit, on CPU always and on CUDA under
        ``GROUPED_CHECK=1``. Which of the two, JAX decides: a call that has run before is made by its native code.

    Tail: with ``out`` or ``dgrad_out`` rows ``S..T`` of it are neither read nor written; without, they are zeros.
    A NaN in the tail of an input reaches no result.
    Empty groups: legal anywhere; their weight gradient is zero, or unchanged when accumulating.
    Aliasing: XLA copies a buffer that is not donated, is read elsewhere too, or of which a numpy or torch view
    lives, and a Ref outside jit or under ``jax.checkpoint``.
    Names for ``jax.checkpoint`` policies: the result is "grouped_linear".
    Determinism: bitwise repeatable, the same with and without buffers and from PyTorch; ``y[t]`` depends on
    ``x[t]`` and ``W[g(t)]`` only. 16-bit inputs are summed in fp32, and each stored tensor is rounded once. With
    ``row_scale`` the weight and bias gradients are those of ``dy * row_scale`` rounded to dtype of x.
    Source: the semantics of TransformerEngine's GroupedLinear with caller buffers (its PR #3161).
    """
    check_buffers(out=out, dgrad_out=dgrad_out, wgrad_out=wgrad_out)
    inputs = {"x": x, "weight": weight, "group_sizes": group_sizes, "bias": bias, "row_scale": row_scale}
    check_inputs(**inputs)
    config = _Config(weight_layout_code(weight_layout), bool(accumulate_wgrad))
    arguments = {**inputs, "out": out, "dgrad_out": dgrad_out, "wgrad_out": wgrad_out}
    check_arguments(Op.LINEAR, arguments, Options(weight_layout=config.weight_layout))
    own = {"out": out if is_ref(out) else None, "dgrad_out": dgrad_out, "wgrad_out": wgrad_out}
    check_own(own, inputs.values())
    with jax.named_scope("grouped_linear"):
        arguments["out"] = read(out)
        y = _linear(config, *vary_together(*arguments.values()))
        write(out, y)
        return checkpoint_name(y, "grouped_linear")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(
    config: _Config,
    x: Array,
    weight: Array,
    group_sizes: Array,
    bias: Array | None,
    row_scale: Array | None,
    out: Array | None,
    dgrad_out: Buffer | None,
    wgrad_out: Buffer | None,
) -> Array:
    return core.mm(x, weight, group_sizes, bias, row_scale, out, config.weight_layout)


def _forward(config: _Config, *arguments: Any) -> tuple[Array, tuple]:
    x, weight, group_sizes, bias, row_scale, _, dgrad_out, wgrad_out = arguments
    return _linear(config, *arguments), (x, weight, group_sizes, bias, row_scale, dgrad_out, wgrad_out)


def _backward(config: _Config, residuals: tuple, dy: Array) -> tuple:
    x, weight, group_sizes, bias, row_scale, dgrad_out, wgrad_out = residuals
    dx_buffer, dweight_buffer = read(dgrad_out), read(wgrad_out)
    layout, transposed = config.weight_layout, other_layout(config.weight_layout)
    dz, dscale = dy, None
    if row_scale is None:
        dx = core.mm(dy, weight, group_sizes, None, None, dx_buffer, transposed)
    else:
        # The gradient of row_scale is x . (dy W^T) + dy . bias: one product serves it and dx. Kept in the
        # accumulator's dtype, so that scaling and rounding it gives the bits that the fused epilogue gives.
        unscaled = core.mm(dy, weight, group_sizes, None, None, None, transposed, accumulator(x.dtype))
        bias_dy = None if bias is None else dy
        dscale = core.row_dot(x, unscaled, group_sizes, bias_dy, bias, row_scale.dtype)
        dx = core.row_scale(unscaled, group_sizes, row_scale, dx_buffer, x.dtype)
        dz = core.row_scale(dy, group_sizes, row_scale, None, dy.dtype)
    dweight = core.wgrad(x, dz, group_sizes, dweight_buffer, config.accumulate_wgrad and wgrad_out is not None, layout)
    dbias = None if bias is None else core.bias_grad(dz, group_sizes, bias.dtype)
    write(dgrad_out, dx)
    write(wgrad_out, dweight)
    return (
        dx,
        dweight if wgrad_out is None else None,
        None,
        dbias,
        dscale,
        None,
        cotangent(dgrad_out, dx),
        cotangent(wgrad_out, dweight),
    )


_linear.defvjp(_forward, _backward)
