# SPDX-License-Identifier: Apache-2.0
"""The core as an implementation of tokamax's ragged_dot; tokamax itself is not imported.

Hand it over by name::

    import tokamax
    from jax_grouped.tokamax import implementation

    y = tokamax.ragged_dot(lhs, rhs, group_sizes, implementation=[implementation, "xla"])

tokamax calls the first of the list, and the next one where it raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_grouped._calls import Array, accumulator
from jax_grouped._ragged_dot_general import ask, ragged_dot_general

__all__ = ["implementation"]


def implementation(
    lhs: Array,
    rhs: Array,
    *,
    group_sizes: Any,
    ragged_dot_dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    activation: Callable[[Array], Array] | None = None,
    zero_initialize: bool = False,
    **unsupported: Any,
) -> Array:
    """What tokamax calls, with its keywords; the contract is that of `jax_grouped.ragged_dot_general`.

    Args:
      lhs: the rows.
      rhs: the weights. A quantized array is not served.
      group_sizes: integers, or a ``tokamax.RaggedDotGroupSizes``.
      ragged_dot_dimension_numbers: any that the core computes.
      precision: as for `jax_grouped.ragged_dot`.
      preferred_element_type: likewise.
      activation: applied to the sums in their own dtype, before they are rounded to the result's.
      zero_initialize: True already: rows of no group are always zeros.
      unsupported: whatever else tokamax passes on.

    Returns:
      The result, in every derivative and under every transformation that `jax_grouped.ragged_dot` has.

    Raises:
      NotImplementedError: at trace time, what the core does not compute, with the reason.
    """
    del zero_initialize
    if unsupported:
        raise NotImplementedError(f"jax_grouped does not serve {', '.join(sorted(unsupported))}.")
    if not all(isinstance(a, jax.Array | np.ndarray) for a in (lhs, rhs)):
        raise NotImplementedError(f"jax_grouped serves arrays; got {type(lhs).__name__} and {type(rhs).__name__}.")
    sizes = jnp.asarray(getattr(group_sizes, "value", group_sizes))
    options = {
        "ragged_dot_dimension_numbers": ragged_dot_dimension_numbers,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
    }
    result, reason = ask(lhs, rhs, sizes, options)
    if reason is not None:
        raise NotImplementedError(f"jax_grouped does not serve this ragged_dot: {reason}.")
    if activation is None:
        return ragged_dot_general(lhs, rhs, sizes, **options)
    options["preferred_element_type"] = accumulator(result.dtype)
    return activation(ragged_dot_general(lhs, rhs, sizes, **options)).astype(result.dtype)
