# SPDX-License-Identifier: Apache-2.0
"""ragged_dot_general: jax.lax.ragged_dot_general on the core.

Built on primitives of our own and not on JAX's, whose vmap takes only a batch that all three operands have at
dimension 0 and whose transpose stops at the weight gradient (jax 0.10.2 and 0.11.2). JAX is asked what it accepts
and what comes out, by ``jax.eval_shape``; what the core does not compute it computes itself.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jax_grouped._calls import Array, check_own, vary_together
from jax_grouped._log import log_once
from jax_grouped._ragged_form import Mode, compute, form_of, why_not
from jax_grouped._refs import Buffer, check_buffers, check_inputs, is_ref, read, write

__all__ = ["ragged_dot_general"]

_TAKES_OUT_SHARDING = "out_sharding" in signature(jax.lax.ragged_dot_general).parameters  # from jax 0.10 on


def ragged_dot_general(
    lhs: Array,
    rhs: Array,
    group_sizes: Array,
    ragged_dot_dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    group_offset: Array | None = None,
    *,
    out: Buffer | None = None,
) -> Array:
    """``jax.lax.ragged_dot_general`` on the grouped core, in all of its modes.

    ========================  ============================================  =======================================
    the ragged dimension is   shapes                                        computed by
    ========================  ============================================  =======================================
    non-contracting           ``[b,m,k], [g,b,k,n], [b,g] -> [b,m,n]``      the grouped product
    contracting               ``[b,m,k], [b,k,n], [b,g] -> [g,b,m,n]``      the weight gradient
    batch                     ``[b,m,k], [b,k,n], [g] -> [b,m,n]``          JAX: ``dot_general``, whatever the sizes
    ========================  ============================================  =======================================

    A weight that lies as ``[b, g, k, n]`` or ``[b, g, n, k]`` (a transposed weight, said by dimension numbers) is
    read as it lies; another order is transposed first, as are rows that do not come before what is contracted.

    Args:
      lhs: the rows; any rank.
      rhs: the weights, or the other rows.
      group_sizes: ``[g]`` integers, or with the dimensions that JAX allows before it.
      ragged_dot_dimension_numbers: a ``jax.lax.RaggedDotDimensionNumbers``.
      precision: as for `ragged_dot`.
      preferred_element_type: as for `ragged_dot`.
      group_offset: must be None, as in JAX.
      out: shape and dtype of the result: a buffer to donate, or a ``jax.Ref``; the result is written there. Of the
        first two modes, and of dtypes that the core takes without a cast. With batch dimensions XLA copies slices.

    Returns:
      The array that JAX returns.

    Raises:
      ValueError, TypeError: at trace time, what JAX refuses, in its words; an ``out`` that does not fit, in ours.
      NotImplementedError: a group_offset.
      jax.errors.JaxRuntimeError or ValueError: at run time, sizes that do not fit, as `ragged_dot`.

    Tail: rows past the sum of the sizes are zeros, in gradients too; with ``out`` they are neither read nor written.
    Empty groups: legal anywhere; their gradient is zero.
    Aliasing: as `grouped_linear`.
    Determinism, derivatives: as `ragged_dot`.
    Source: jax.lax.ragged_dot_general.
    """
    refuse_group_offset(group_offset)
    options = {
        "ragged_dot_dimension_numbers": ragged_dot_dimension_numbers,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
    }
    return evaluate(lhs, rhs, group_sizes, options, out, "ragged_dot_general")


def refuse_group_offset(group_offset: Any) -> None:
    """Raises NotImplementedError for an offset: JAX has the argument and no implementation."""
    if group_offset is not None:
        raise NotImplementedError(
            f"group_offset must be None; got {group_offset!r}. Neither JAX nor jax_grouped implements it. Give the "
            "groups before the offset no rows: slice lhs to the rows of the groups that rhs holds, and group_sizes "
            "to those groups."
        )


def evaluate(
    lhs: Array, rhs: Array, group_sizes: Array, options: dict[str, Any], out: Buffer | None, name: str
) -> Array:
    """The call on the core where that serves it, else JAX's own. options: JAX's arguments but the arrays."""
    check_buffers(out=out)
    check_inputs(lhs=lhs, rhs=rhs, group_sizes=group_sizes)
    if is_ref(out):
        check_own({"out": out}, (lhs, rhs, group_sizes))
    with jax.named_scope(name):
        lhs, rhs, group_sizes, target = vary_together(lhs, rhs, group_sizes, read(out))
        lhs, rhs, group_sizes = map(jnp.asarray, (lhs, rhs, group_sizes))
        result, reason = ask(lhs, rhs, group_sizes, options)
        numbers = options["ragged_dot_dimension_numbers"]
        if target is not None:
            _check_out(lhs, rhs, target, result, numbers, reason)
            y = _into(numbers, result.dtype, lhs, rhs, group_sizes, target)
            write(out, y)
        elif reason is not None:
            log_once(f"{name} {_words(lhs)} {_words(rhs)} -> jax.lax, because {reason}")
            y = _jax_own(lhs, rhs, group_sizes, options)(lhs, rhs, group_sizes)
        else:
            y = compute(lhs, rhs, group_sizes, numbers, result.dtype)
        return checkpoint_name(y, name)


def ask(lhs: Array, rhs: Array, group_sizes: Array, options: dict[str, Any]) -> tuple[Any, str | None]:
    """The result's type, by JAX, which raises what it refuses; and why the core does not compute it, or None."""
    result = jax.eval_shape(_jax_own(lhs, rhs, group_sizes, options), lhs, rhs, group_sizes)
    numbers, precision = options["ragged_dot_dimension_numbers"], _canonical(options["precision"])
    return result, why_not(lhs, rhs, result.dtype, numbers, precision)


def _jax_own(lhs: Array, rhs: Array, group_sizes: Array, options: dict[str, Any]) -> Any:
    return partial(jax.lax.ragged_dot_general, **options, **_out_sharding(lhs, rhs, group_sizes))


def _out_sharding(*arrays: Array) -> dict[str, Any]:
    """On a mesh of explicit axes JAX wants to be told where a result lies; a custom call's lies whole everywhere."""
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(a).sharding.mesh for a in arrays)]
    explicit = next((m for m in meshes if m.explicit_axes), None)
    if not _TAKES_OUT_SHARDING or explicit is None:
        return {}
    return {"out_sharding": jax.sharding.NamedSharding(explicit, jax.sharding.PartitionSpec())}


def _canonical(precision: Any) -> Any:
    """An algorithm may come by its name."""
    presets = jax.lax.DotAlgorithmPreset.__members__
    return presets.get(precision, precision) if isinstance(precision, str) else precision


def _words(a: Any) -> str:
    return f"{jnp.dtype(a.dtype).name}{list(a.shape)}"


def _check_out(lhs: Array, rhs: Array, out: Array, result: Any, numbers: Any, reason: str | None) -> None:
    refused = " Pass out=None to do without it."
    if reason is not None:
        raise ValueError(f"out must be None where JAX computes the result: {reason}.{refused}")
    form = form_of(lhs.ndim, rhs.ndim, numbers)
    if form.mode is Mode.CONTRACTING and form.outer[0]:
        raise ValueError(
            f"out must be None where contracting dimensions lie outside the ragged one, because the result is then a "
            f"sum of several products.{refused}"
        )
    if out.shape != result.shape:
        raise ValueError(f"out must have the result's shape {_words(result)}; got {_words(out)}.{refused}")
    if out.dtype != result.dtype:
        raise TypeError(f"out must have the result's dtype {result.dtype}; got {out.dtype}.{refused}")
    narrow = lhs.dtype in (jnp.float16, jnp.bfloat16)
    if lhs.dtype != rhs.dtype or out.dtype not in (lhs.dtype, jnp.float32 if narrow else lhs.dtype):
        raise TypeError(
            f"out must be None where the core needs a cast: lhs is {lhs.dtype}, rhs is {rhs.dtype}, the result is "
            f"{out.dtype}. Into a buffer it computes operands of one dtype, to that dtype or from 16 bits to "
            f"float32.{refused}"
        )


def _plain(numbers: Any, dtype: Any, group_sizes: Array, lhs: Array, rhs: Array) -> Array:
    return compute(lhs, rhs, group_sizes, numbers, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _into(numbers: Any, dtype: Any, lhs: Array, rhs: Array, group_sizes: Array, out: Array) -> Array:
    return compute(lhs, rhs, group_sizes, numbers, dtype, out)


def _forward(numbers: Any, dtype: Any, lhs: Array, rhs: Array, group_sizes: Array, out: Array) -> tuple[Array, tuple]:
    return _into(numbers, dtype, lhs, rhs, group_sizes, out), (lhs, rhs, group_sizes)


def _backward(numbers: Any, dtype: Any, residuals: tuple, dy: Array) -> tuple:
    lhs, rhs, group_sizes = residuals
    product = partial(_plain, numbers, dtype, group_sizes)
    (dlhs,) = jax.linear_transpose(lambda a: product(a, rhs), lhs)(dy)
    (drhs,) = jax.linear_transpose(lambda b: product(lhs, b), rhs)(dy)
    return dlhs, drhs, None, None


_into.defvjp(_forward, _backward)
