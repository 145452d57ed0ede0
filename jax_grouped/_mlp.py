# SPDX-License-Identifier: Apache-2.0
"""grouped_mlp: two grouped linear layers with an activation between them, and where their gradients go."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from grouped_core import (
    Activation,
    Op,
    Options,
    Tail,
    activation_kind,
    activation_options,
    other_layout,
    weight_layout_code,
)
from jax_grouped import _operations as core
from jax_grouped._calls import Array, check_arguments, check_own, dtype_of, result_type, vary_together
from jax_grouped._refs import Buffer, check_buffers, check_inputs, cotangent, is_ref, read, write

__all__ = ["grouped_mlp"]


class _Config(NamedTuple):
    choice: Activation
    weight_layout: int
    accumulate_wgrad: bool
    recompute_activation: bool


class _Arguments(NamedTuple):
    """What is traced: arrays, Refs, None. Also their cotangents, in the same order."""

    x: Any
    fc1_weight: Any
    fc2_weight: Any
    group_sizes: Any
    fc1_bias: Any
    fc2_bias: Any
    row_scale: Any
    out: Any
    dgrad_out: Any
    fc1_wgrad_out: Any
    fc2_wgrad_out: Any


class _Residuals(NamedTuple):
    """What backward reads. Of fc2's bias it needs the dtype alone; `activation` is None where it is recomputed."""

    given: _Arguments
    hidden: Array
    activation: Array | None


def grouped_mlp(
    x: Array,
    fc1_weight: Array,
    fc2_weight: Array,
    group_sizes: Array,
    fc1_bias: Array | None = None,
    fc2_bias: Array | None = None,
    *,
    activation: str = "swiglu",
    gate_layout: str = "concatenated",
    alpha: float = 1.702,
    limit: float = 7.0,
    offset: float = 1.0,
    row_scale: Array | None = None,
    out: Buffer | None = None,
    dgrad_out: Buffer | None = None,
    fc1_wgrad_out: Buffer | None = None,
    fc2_wgrad_out: Buffer | None = None,
    accumulate_wgrad: bool = False,
    recompute_activation: bool = False,
    weight_layout: str = "gkn",
) -> Array:
    """The experts of a mixture: ``fc2(activation(fc1(x)) * row_scale)``, each row through its group's weights.

    The bits are those of `grouped_linear`, `grouped_activation` and `grouped_linear` one after another, in the result
    and in every gradient. Buffers are given and come back as there: ``out`` as the result, the others as their own
    cotangents, or each a ``jax.Ref``.

    Saved for backward: the arguments that it reads, fc1's result and the activation's; under
    ``recompute_activation`` not the latter.

    Args:
      x: ``[T, K]`` float16, bfloat16, float32 or float64.
      fc1_weight: ``[G, K, 2F]`` (gate and up) or, for ``"squared_relu"``, ``[G, K, F]``; dtype of x.
      fc2_weight: ``[G, F, N]``, dtype of x.
      group_sizes: ``[G]`` int32 or int64.
      fc1_bias: ``[G, 2F]`` or ``[G, F]``, dtype of x, or float32 beside 16-bit x.
      fc2_bias: ``[G, N]``, likewise. row_scale does not multiply it; where a probability must, add it outside.
      activation: ``"swiglu"``, ``"clamped_swiglu"`` (gpt-oss), ``"geglu"`` (tanh form) or ``"squared_relu"``.
      gate_layout: ``"concatenated"``: fc1 gives [gate | up]; ``"interleaved"``: gate0, up0, gate1, up1, ...
      alpha: slope inside the sigmoid, of the clamped kind alone.
      limit: clamp of gate (from above) and up (both sides), of the clamped kind alone.
      offset: added to up, of the clamped kind alone.
      row_scale: ``[T]``, as a bias's dtype: multiplies the activation's row, that is, the router's probability; gets
        a gradient.
      out: ``[T, N]``, dtype of x: fc2's result is written there.
      dgrad_out: ``[T, K]``, dtype of x: the gradient of x is written there.
      fc1_wgrad_out: fc1_weight's shape, its dtype or float32 beside 16-bit: the gradient of fc1_weight is written
        there, and fc1_weight's own cotangent is zero.
      fc2_wgrad_out: the same for fc2_weight.
      accumulate_wgrad: add to what the two hold instead of overwriting it.
      recompute_activation: compute the activation once more in backward instead of keeping it.
      weight_layout: how both weights are stored; ``"gnk"``: ``[G, 2F, K]`` and ``[G, N, F]``.

    Returns:
      ``[T, N]``, dtype of x.

    Raises:
      ValueError: at trace time, an unknown name, a shape that the rules forbid, or one Ref for two buffers.
      TypeError: at trace time, a dtype that the rules forbid, a slice of a Ref, or a Ref as an input.
      jax.errors.JaxRuntimeError or ValueError: at run time, sizes that do not fit, as `grouped_linear`.

    Tail: with ``out`` or ``dgrad_out`` rows ``S..T`` of it are neither read nor written; without, they are zeros.
    A NaN in the tail of an input reaches no result.
    Empty groups: legal anywhere; their weight gradients are zero, or unchanged when accumulating.
    Aliasing: as `grouped_linear`.
    Names for ``jax.checkpoint`` policies: "grouped_mlp_hidden" (fc1's result), "grouped_mlp_activation",
    "grouped_mlp" (the result).
    Determinism: bitwise repeatable, the same with and without buffers and from PyTorch. Rounded at fc1's result, at
    the activation and at the result.
    Source: TransformerEngine's grouped MLP (scaled activation between two grouped linear layers) with caller buffers.
    """
    buffers = {"out": out, "dgrad_out": dgrad_out, "fc1_wgrad_out": fc1_wgrad_out, "fc2_wgrad_out": fc2_wgrad_out}
    check_buffers(**buffers)
    activation_kind("activation", activation)  # under the argument's name here
    choice = activation_options(activation, gate_layout, alpha, limit, offset)
    layout = weight_layout_code(weight_layout)
    config = _Config(choice, layout, bool(accumulate_wgrad), bool(recompute_activation))
    given = _Arguments(x, fc1_weight, fc2_weight, group_sizes, fc1_bias, fc2_bias, row_scale, **buffers)
    inputs = dict(zip(_Arguments._fields[:7], given[:7], strict=True))
    check_inputs(**inputs)
    _check(config, given)
    check_own({**buffers, "out": out if is_ref(out) else None}, inputs.values())
    with jax.named_scope("grouped_mlp"):
        y = _mlp(config, *vary_together(*given._replace(out=read(out))))
        write(out, y)
        return checkpoint_name(y, "grouped_mlp")


def _check(config: _Config, given: _Arguments) -> None:
    """The rules of the three calls, on the caller's arguments under their names and on what passes between them."""
    sizes, options = given.group_sizes, Options(weight_layout=config.weight_layout)
    fc1 = {
        "x": given.x,
        "fc1_weight": given.fc1_weight,
        "group_sizes": sizes,
        "fc1_bias": given.fc1_bias,
        "row_scale": given.row_scale,
        "out": None,
        "dgrad_out": given.dgrad_out,
        "fc1_wgrad_out": given.fc1_wgrad_out,
    }
    check_arguments(Op.LINEAR, fc1, options)
    config.choice.check_columns("fc1_weight", given.fc1_weight.shape, config.weight_layout)
    rows, dtype = given.x.shape[0], dtype_of(given.x)
    hidden = result_type((rows, given.fc1_weight.shape[1 + config.weight_layout]), dtype)
    between = result_type((rows, config.choice.width(hidden.shape[1])), dtype)
    scaled = {"fc1's result": hidden, "group_sizes": sizes, "row_scale": given.row_scale, "activation": between}
    check_arguments(Op.ACTIVATION, scaled, config.choice.options(Tail.KEEP))
    fc2 = {
        "activation": between,
        "fc2_weight": given.fc2_weight,
        "group_sizes": sizes,
        "fc2_bias": given.fc2_bias,
        "row_scale": given.row_scale,
        "out": given.out,
        "dgrad_out": None,
        "fc2_wgrad_out": given.fc2_wgrad_out,
    }
    check_arguments(Op.LINEAR, fc2, options)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(config: _Config, *arguments: Any) -> Array:
    return _run(config, _Arguments(*arguments))[0]


def _run(config: _Config, given: _Arguments) -> tuple[Array, Array, Array]:
    """The result, and what backward may want of the way there."""
    layout, sizes = config.weight_layout, given.group_sizes
    with jax.named_scope("fc1"):
        hidden = core.mm(given.x, given.fc1_weight, sizes, given.fc1_bias, None, None, layout)
        hidden = checkpoint_name(hidden, "grouped_mlp_hidden")
    with jax.named_scope("activation"):
        activation = core.activation(hidden, sizes, given.row_scale, None, config.choice)
        activation = checkpoint_name(activation, "grouped_mlp_activation")
    with jax.named_scope("fc2"):
        y = core.mm(activation, given.fc2_weight, sizes, given.fc2_bias, None, given.out, layout)
    return y, hidden, activation


def _forward(config: _Config, *arguments: Any) -> tuple[Array, _Residuals]:
    given = _Arguments(*arguments)
    y, hidden, activation = _run(config, given)
    # Of the biases backward needs the dtype, which an empty slice has.
    biases = {
        "fc1_bias": None if given.fc1_bias is None else given.fc1_bias[:0],
        "fc2_bias": None if given.fc2_bias is None else given.fc2_bias[:0],
    }
    kept = given._replace(out=None, **biases)
    return y, _Residuals(kept, hidden, None if config.recompute_activation else activation)


def _backward(config: _Config, residuals: _Residuals, dy: Array) -> tuple:
    given, hidden, activation = residuals
    sizes, layout, transposed = given.group_sizes, config.weight_layout, other_layout(config.weight_layout)
    if activation is None:
        # Behind a barrier, or XLA would find the same call in forward and keep its result after all.
        hidden, dy = jax.lax.optimization_barrier((hidden, dy))
        activation = core.activation(hidden, sizes, given.row_scale, None, config.choice)

    def weight_gradient(a: Array, gradient: Array, buffer: Buffer | None) -> Array:
        accumulate = config.accumulate_wgrad and buffer is not None
        return core.wgrad(a, gradient, sizes, read(buffer), accumulate, layout)

    with jax.named_scope("fc2"):
        d_activation = core.mm(dy, given.fc2_weight, sizes, None, None, None, transposed)
        d_fc2 = weight_gradient(activation, dy, given.fc2_wgrad_out)
        d_fc2_bias = None if given.fc2_bias is None else core.bias_grad(dy, sizes, given.fc2_bias.dtype)
    with jax.named_scope("activation"):
        d_hidden, d_scale = core.activation_grad(hidden, d_activation, sizes, given.row_scale, None, config.choice)
    with jax.named_scope("fc1"):
        dx = core.mm(d_hidden, given.fc1_weight, sizes, None, None, read(given.dgrad_out), transposed)
        d_fc1 = weight_gradient(given.x, d_hidden, given.fc1_wgrad_out)
        d_fc1_bias = None if given.fc1_bias is None else core.bias_grad(d_hidden, sizes, given.fc1_bias.dtype)
    filled = {"dgrad_out": dx, "fc1_wgrad_out": d_fc1, "fc2_wgrad_out": d_fc2}
    for name, value in filled.items():
        write(getattr(given, name), value)
    cotangents = _Arguments(
        x=dx,
        fc1_weight=d_fc1 if given.fc1_wgrad_out is None else None,
        fc2_weight=d_fc2 if given.fc2_wgrad_out is None else None,
        group_sizes=None,
        fc1_bias=d_fc1_bias,
        fc2_bias=d_fc2_bias,
        row_scale=d_scale,
        out=None,
        **{name: cotangent(getattr(given, name), value) for name, value in filled.items()},
    )
    return tuple(cotangents)


_mlp.defvjp(_forward, _backward)
