# SPDX-License-Identifier: Apache-2.0
"""How JAX's own ragged_dot_general is lowered while `install` holds: to the core, or as JAX would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.interpreters import mlir

from jax_grouped._log import log_once
from jax_grouped._placement import automatic_devices
from jax_grouped._ragged_form import compute, why_not


def lowering(original: Callable) -> Callable:
    """A lowering rule that serves what the core computes and leaves the rest to the original rule."""

    def lower(context: Any, lhs: Any, rhs: Any, group_sizes: Any, **parameters: Any) -> Any:
        reason = _why_not_here(context, parameters)
        if reason is not None:
            types = " ".join(str(t) for t in context.avals_in)
            log_once(f"jax.lax.ragged_dot_general {types} -> JAX's own lowering, because {reason}")
            return original(context, lhs, rhs, group_sizes, **parameters)
        numbers, dtype = parameters["ragged_dot_dimension_numbers"], context.avals_out[0].dtype
        served = partial(_served, numbers, dtype)
        return mlir.lower_fun(served, multiple_results=False)(context, lhs, rhs, group_sizes)

    return lower


def _served(numbers: Any, dtype: Any, lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
    with jax.named_scope("ragged_dot"):
        return compute(lhs, rhs, group_sizes, numbers, dtype)


def _why_not_here(context: Any, parameters: dict[str, Any]) -> str | None:
    """Why the core does not serve this call in this program, or None."""
    if parameters["group_offset"] is not None:
        return "it has a group_offset"
    lhs, rhs, _ = context.avals_in
    dtype = context.avals_out[0].dtype
    reason = why_not(lhs, rhs, dtype, parameters["ragged_dot_dimension_numbers"], parameters["precision"])
    devices = automatic_devices(context)
    if reason is None and devices > 1:
        return f"XLA divides it among {devices} devices; inside jax.shard_map over all axes of the mesh it is served"
    return reason
