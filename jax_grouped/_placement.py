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
from jax.interpreters import batching, mlir

__all__ = ["automatic_devices", "device_local"]

_device_local = Primitive("grouped_device_local")


def device_local(array: jax.Array) -> jax.Array:
    """The array as it is; where its program is lowered for devices among which XLA divides it, a ValueError."""
    return _device_local.bind(array)


def automatic_devices(context: Any) -> int:
    """Over how many devices XLA divides what is lowered here by itself; 1 inside shard_map and on one device.

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
    return getattr(axes, "num_devices", 1)


def _lower(context: Any, operand: Any) -> list:
    devices = automatic_devices(context)
    if devices > 1:
        raise ValueError(
            f"jax_grouped cannot be divided automatically: this program is for {devices} devices, and XLA would gather "
            f"every operand on each of them. Call it inside jax.shard_map, with rows or experts sharded by in_specs; "
            f"in_specs of P() say that every device computes all of it."
        )
    return [operand]


_device_local.def_impl(jax.jit(_device_local.bind))
_device_local.def_abstract_eval(lambda aval: aval)
mlir.register_lowering(_device_local, _lower)
batching.primitive_batchers[_device_local] = lambda arrays, dims: (_device_local.bind(*arrays), dims[0])
