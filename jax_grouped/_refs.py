# SPDX-License-Identifier: Apache-2.0
"""Buffers that are a `jax.Ref`: read, handed to the kernel, and written back, which inside jit is one piece of memory.

A Ref is written where the kernel runs, so nothing of it is differentiated and it needs no cotangent.
"""

from __future__ import annotations

from typing import Any

import jax

__all__ = ["Buffer", "check_buffers", "check_inputs", "cotangent", "is_ref", "read", "write"]

Buffer = jax.Array | jax.Ref


def is_ref(buffer: Any) -> bool:
    """Whether it is a whole Ref, outside or inside jit."""
    return isinstance(buffer, jax.Ref)


def _is_slice(buffer: Any) -> bool:
    return hasattr(buffer, "transforms") and hasattr(buffer, "ref")


def check_inputs(**inputs: Any) -> None:
    """Refuses memory where an array is read: JAX differentiates arrays alone.

    Raises:
      TypeError: a Ref or a slice of one.
    """
    for name, given in inputs.items():
        if is_ref(given) or _is_slice(given):
            raise TypeError(
                f"{name} must be an array; got a jax.Ref, which only a buffer may be. Read it first: pass ref[...]."
            )


def check_buffers(**buffers: Any) -> None:
    """Refuses what would be copied or written twice without a word.

    Raises:
      TypeError: a slice of a Ref.
      ValueError: one Ref under two names.
    """
    seen: dict[int, str] = {}
    for name, buffer in buffers.items():
        if _is_slice(buffer):
            raise TypeError(
                f"{name} must be a whole jax.Ref or an array; got a slice of a Ref, which XLA would copy out and back. "
                f"Give it a Ref of its own."
            )
        if is_ref(buffer) and (other := seen.setdefault(id(buffer), name)) != name:
            raise ValueError(
                f"{name} and {other} must be apart; got the same jax.Ref for both. Pass {name}=None to do without it."
            )


def read(buffer: Any) -> Any:
    """The array that a call takes and aliases."""
    return buffer[...] if is_ref(buffer) else buffer


def write(buffer: Any, value: Any) -> None:
    """What the call made of it, where the buffer is a Ref."""
    if is_ref(buffer):
        buffer[...] = jax.lax.stop_gradient(value)


def cotangent(buffer: Any, filled: Any) -> Any:
    """Of a gradient buffer: it is the buffer, filled. A Ref has none."""
    return None if buffer is None or is_ref(buffer) else filled
