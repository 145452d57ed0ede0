# SPDX-License-Identifier: Apache-2.0
"""Refuses programs over several devices that XLA would divide itself.

XLA cannot look into a custom call. Where it divides a program automatically it gathers every operand on every device
and runs the whole call there, without a word. Only lowering knows how many devices a program is for, so the check is
an identity that does nothing but be lowered.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, get_abstract_mesh

__all__ = ["automatic_devices", "device_local"]

_device_local = Primitive("grouped_device_local")


def device_local(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays as they are; a ValueError where XLA divides what is computed of them among devices."""
    return _device_local.bind(*arrays)


def automatic_devices(context: Any) -> int:
    """Over how many devices XLA may divide what is lowered here by itself; 1 inside shard_map and on one device.

    Args:
      context: the LoweringRuleContext of a primitive.
    """
    axes = context.module_context.axis_context
    if hasattr(axes, "mesh"):  # inside shard_map: automatic are the axes over which it does not map
        sizes = dict(axes.mesh.shape)
        devices = 1
        for name in set(sizes) - set(axes.manual_axes):
            devices *= sizes[name]
        return devices
    if all(map(_is_everywhere, context.avals_in)):
        return 1
    return getattr(axes, "num_devices", 1)


def _is_everywhere(aval: Any) -> bool:
    """Whether its type says that every device has all of it; types of automatic axes say nothing."""
    mesh = get_abstract_mesh() if aval.sharding.mesh.empty else aval.sharding.mesh
    explicit = not mesh.empty and all(kind == AxisType.Explicit for kind in mesh.axis_types)
    spec = aval.sharding.spec
    return explicit and not getattr(spec, "unreduced", None) and all(axis is None for axis in spec)


def _check(devices: int) -> None:
    if devices > 1:
        raise ValueError(
            f"jax_grouped cannot be divided automatically: this program is for {devices} devices, and XLA would gather "
            f"every operand on each of them. Call it inside jax.shard_map over all axes of the mesh, with rows or "
            f"experts sharded by in_specs; in_specs of P() say that every device computes all of it."
        )


def _lower(context: Any, *operands: Any) -> list:
    _check(automatic_devices(context))
    return list(operands)


def _run_eagerly(*arrays: jax.Array) -> list[jax.Array]:
    divided = [a for a in arrays if isinstance(a, jax.Array) and not a.sharding.is_fully_replicated]
    _check(max((len(a.sharding.device_set) for a in divided), default=1))
    return list(arrays)


def _refuse_derivative(*_: Any) -> Any:
    raise NotImplementedError(
        "jax_grouped's calls must be differentiated once, in reverse mode; got a derivative of that gradient. "
        "jax_grouped.ragged_dot without out has all derivatives."
    )


_device_local.multiple_results = True
_device_local.def_impl(_run_eagerly)
_device_local.def_abstract_eval(lambda *avals: avals)
mlir.register_lowering(_device_local, _lower)
ad.primitive_jvps[_device_local] = _refuse_derivative
batching.primitive_batchers[_device_local] = lambda arrays, dims: (_device_local.bind(*arrays), dims)
