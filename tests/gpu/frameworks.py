# SPDX-License-Identifier: Apache-2.0
"""Both frameworks on one GPU: numpy in, numpy out, every torch buffer between guard elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from cases import SENTINEL

jax.config.update("jax_enable_x64", True)

DEVICE = torch.device("cuda", 0)
_GUARD = 512  # elements before and after: a multiple of 16 bytes in every dtype
_GUARD_VALUE = 5.0


def to_torch(a: np.ndarray) -> torch.Tensor:
    a = np.ascontiguousarray(a)
    if a.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(a.view(np.uint16).copy()).view(torch.bfloat16).to(DEVICE)
    return torch.from_numpy(a.copy()).to(DEVICE)


def from_torch(t: torch.Tensor) -> np.ndarray:
    t = t.detach().cpu().contiguous()
    if t.dtype == torch.bfloat16:
        return t.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return t.numpy()


def grad_of(t: torch.Tensor) -> torch.Tensor:
    if t.grad is None:
        raise AssertionError("backward left no gradient in a tensor that should have one")
    return t.grad


def to_jax(a: np.ndarray) -> jax.Array:
    return jnp.array(a)


def from_jax(a: Any) -> np.ndarray:
    return np.array(a)


class Guarded:
    """A buffer filled with the sentinel, inside a larger allocation whose rest must not change."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, fill: float = SENTINEL) -> None:
        count = int(np.prod(shape))
        self._whole = torch.full((count + 2 * _GUARD,), _GUARD_VALUE, dtype=dtype, device=DEVICE)
        self.tensor = self._whole[_GUARD : _GUARD + count].view(shape)
        self.tensor.fill_(fill)

    def check(self) -> None:
        count = self.tensor.numel()
        guards = torch.cat([self._whole[:_GUARD], self._whole[_GUARD + count :]])
        if not bool((guards == _GUARD_VALUE).all()):
            raise AssertionError("elements outside the buffer were written")


def torch_gradients(function: Callable[..., torch.Tensor], arguments: list[np.ndarray | None], dy: np.ndarray) -> list:
    """[y, gradient of each argument], None for an absent one. The arguments enter as non-leaf tensors."""
    leaves = [None if a is None else to_torch(a).requires_grad_() for a in arguments]
    seen: dict[int, torch.Tensor] = {}
    inner = []
    for i, leaf in enumerate(leaves):
        if leaf is None:
            inner.append(None)
            continue
        t = leaf.view_as(leaf)
        t.register_hook(lambda g, i=i: seen.__setitem__(i, g))
        inner.append(t)
    y = function(*inner)
    y.backward(to_torch(dy))
    return [y, *(seen.get(i) for i in range(len(arguments)))]


def jax_gradients(function: Callable[..., jax.Array], arguments: list[np.ndarray | None], dy: np.ndarray) -> list:
    """The same through jax.jit."""
    present = {i: a for i, a in enumerate(arguments) if a is not None}

    def on_present(*given):
        full: list[Any] = [None] * len(arguments)
        for i, a in zip(present, given, strict=True):
            full[i] = a
        return function(*full)

    @jax.jit
    def both(given, cotangent):
        y, pull = jax.vjp(on_present, *given)
        return y, pull(cotangent)

    y, found = both(tuple(to_jax(a) for a in present.values()), to_jax(dy))
    gradients: list[Any] = [None] * len(arguments)
    for i, g in zip(present, found, strict=True):
        gradients[i] = g
    return [y, *gradients]
