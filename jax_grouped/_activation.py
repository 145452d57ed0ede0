# SPDX-License-Identifier: Apache-2.0
"""grouped_activation: forward, and where its gradients go."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from grouped_core import Activation, Op, Tail, activation_options
from jax_grouped import _operations as core
from jax_grouped._calls import Array, check_arguments, check_own, dtype_of, result_type, vary_together
from jax_grouped._refs import Buffer, check_buffers, check_inputs, cotangent, is_ref, read, write

__all__ = ["grouped_activation"]


def grouped_activation(
    h: Array,
    group_sizes: Array,
    kind: str = "swiglu",
    *,
    row_scale: Array | None = None,
    gate_layout: str = "concatenated",
    alpha: float = 1.702,
    limit: float = 7.0,
    offset: float = 1.0,
    out: Buffer | None = None,
    dgrad_out: Buffer | None = None,
) -> Array:
    """The activation between two grouped linear layers: ``y[t] = activation(h[t]) * row_scale[t]``.

    Args:
      h: ``[T, 2F]`` (gate and up) or, for ``"squared_relu"``, ``[T, F]``; float16, bfloat16, float32 or float64.
      group_sizes: as for `grouped_linear`; only their sum matters here.
      kind: ``"swiglu"``, ``"clamped_swiglu"`` (gpt-oss), ``"geglu"`` (tanh form) or ``"squared_relu"``.
      row_scale: ``[T]``, dtype of h, or float32 beside 16-bit h; gets a gradient.
      gate_layout: ``"concatenated"``: h = [gate | up]; ``"interleaved"``: gate0, up0, gate1, up1, ...
      alpha: slope inside the sigmoid, of the clamped kind alone.
      limit: clamp of gate (from above) and up (both sides), of the clamped kind alone.
      offset: added to up, of the clamped kind alone.
      out: ``[T, F]``, dtype of h: a buffer to donate or a ``jax.Ref``; y is written there.
      dgrad_out: shape and dtype of h: a buffer to donate, and its cotangent is it, filled with the gradient of h; or
        a ``jax.Ref``.

    Returns:
      ``[T, F]``, dtype of h.

    Raises:
      ValueError: at trace time, an unknown name, a shape that the rules forbid, or one Ref for two buffers.
      TypeError: at trace time, a dtype that the rules forbid, a slice of a Ref, or a Ref as an input.
      jax.errors.JaxRuntimeError or ValueError: at run time, sizes that do not fit, as `grouped_linear`.

    Tail, empty groups, aliasing: as `grouped_linear`.
    Names for ``jax.checkpoint`` policies: the result is "grouped_activation".
    Determinism: bitwise repeatable and the same from PyTorch: exp is the core's own. Computed in fp32 (fp64 for
    float64), rounded once.
    Source: SwiGLU and GEGLU of Shazeer 2020, the clamped form of gpt-oss, squared ReLU of So et al. 2021.
    """
    check_buffers(out=out, dgrad_out=dgrad_out)
    check_inputs(h=h, group_sizes=group_sizes, row_scale=row_scale)
    choice = activation_options(kind, gate_layout, alpha, limit, offset)
    options = choice.options(Tail.KEEP)
    y: Any = out
    if y is None and hasattr(h, "dtype"):  # what is no array is for the rules to refuse
        y = result_type((h.shape[0], choice.width(h.shape[1])) if h.ndim == 2 else (0, 0), dtype_of(h))
    check_arguments(Op.ACTIVATION, {"h": h, "group_sizes": group_sizes, "row_scale": row_scale, "out": y}, options)
    if dgrad_out is not None:
        # Backward's rules, with the result in the place of its gradient.
        backward = {"h": h, "out": y, "group_sizes": group_sizes, "row_scale": row_scale, "dgrad_out": dgrad_out}
        check_arguments(Op.ACTIVATION_GRAD, {**backward, "d_row_scale": None}, options)
    check_own({"out": out if is_ref(out) else None, "dgrad_out": dgrad_out}, (h, group_sizes, row_scale))
    with jax.named_scope("grouped_activation"):
        result = _activation(choice, *vary_together(h, group_sizes, row_scale, read(out), dgrad_out))
        write(out, result)
        return checkpoint_name(result, "grouped_activation")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activation(
    choice: Activation,
    h: Array,
    group_sizes: Array,
    row_scale: Array | None,
    out: Array | None,
    dgrad_out: Buffer | None,
) -> Array:
    return core.activation(h, group_sizes, row_scale, out, choice)


def _forward(choice: Activation, *arguments: Any) -> tuple[Array, tuple]:
    h, group_sizes, row_scale, _, dgrad_out = arguments
    return _activation(choice, *arguments), (h, group_sizes, row_scale, dgrad_out)


def _backward(choice: Activation, residuals: tuple, dy: Array) -> tuple:
    h, group_sizes, row_scale, dgrad_out = residuals
    dh, dscale = core.activation_grad(h, dy, group_sizes, row_scale, read(dgrad_out), choice)
    write(dgrad_out, dh)
    return dh, None, dscale, None, cotangent(dgrad_out, dh)


_activation.defvjp(_forward, _backward)
