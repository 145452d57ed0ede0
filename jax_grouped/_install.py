# SPDX-License-Identifier: Apache-2.0
"""install(): jax.lax.ragged_dot itself on the core.

JAX keeps its lowering rules in two tables that are not public, and no public call takes a rule out again. So the
versions are compared and the tables are looked at before anything is changed, and `uninstall` puts back the very
entries it found.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
from jax.interpreters import mlir

import grouped_core
from jax_grouped._lowering import lowering

__all__ = ["Installation", "install", "installed", "uninstall"]

_TESTED = ("0.10.2", "0.12.0.1")  # before 0.10 backward hands over a weight that JAX has transposed
_PLATFORMS = ("cuda", "cpu")
_WAY_OUT = "Call jax_grouped.ragged_dot instead, which works with every jax that jax_grouped imports on."
_lock = threading.RLock()
_found: dict[str, Any] = {}  # by platform: the entry that was there before, or None
_ours: dict[str, Any] = {}


class _Tables(NamedTuple):
    """Where JAX keeps lowering rules, and the key of ragged_dot_general in them."""

    primitive: Any
    common: dict[Any, Any]
    specific: dict[str, dict[Any, Any]]


class Installation:
    """What `install` did. As a context manager it takes that back at its end, and only that."""

    def __init__(self, added: dict[str, Any]) -> None:
        self._added = added

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *exception: object) -> Literal[False]:
        _remove(self._added)
        return False


def install(platforms: Sequence[str] = ("cuda",)) -> Installation:
    """Gives ``jax.lax.ragged_dot`` and ``jax.lax.ragged_dot_general`` the core's lowering, in the whole process.

    Nothing else of a model changes: derivatives and ``vmap`` remain JAX's own, and the gradients they make of a
    ``ragged_dot`` run on the core too. JAX's caches are cleared, so that every jitted function compiles anew.
    ``with install(...):`` takes it back at the end of the block.

    What the core does not serve keeps JAX's lowering (``GROUPED_LOG=1`` says which calls, and why): dtypes other
    than float16, bfloat16, float32 and float64, a ragged batch dimension, an explicit dot algorithm as precision,
    and programs that XLA partitions over several devices by itself (inside ``jax.shard_map`` the core serves them).

    Args:
      platforms: of "cuda" and "cpu". A platform already installed stays as it is.

    Returns:
      An `Installation`, for use as a context manager.

    Raises:
      ValueError: an unknown platform.
      RuntimeError: "cuda" in a build without CUDA kernels, or a jax version whose tables are not known.

    Tail: zeros, as JAX's own; a NaN there reaches no result.
    Empty groups: legal anywhere; their gradient is zero.
    Aliasing: none; use `jax_grouped.ragged_dot` with ``out`` for that.
    Determinism: bitwise repeatable, the bits of `jax_grouped.ragged_dot`. float32 is computed in full float32,
    where XLA's default on a GPU is TF32. Operands of two dtypes are cast to that of the result first, as JAX does:
    with ``preferred_element_type=float32`` beside 16-bit operands the gradients are therefore products in float32.
    Source: jax.lax.ragged_dot.
    """
    wanted = (platforms,) if isinstance(platforms, str) else tuple(platforms)
    for platform in wanted:
        if platform not in _PLATFORMS:
            raise ValueError(f'platforms must be of "cuda" and "cpu"; got {platform!r}.')
    if "cuda" in wanted and not grouped_core.has_cuda():
        raise RuntimeError(
            f'platforms has "cuda", and this build of grouped-ffi ({grouped_core.__version__}) has no CUDA kernels. '
            'Install a CUDA build (GROUPED_CUDA=ON), or pass platforms=("cpu",).'
        )
    with _lock:
        tables = _tables()
        added = tuple(dict.fromkeys(p for p in wanted if p not in _found))
        for platform in added:
            before = tables.specific[platform].get(tables.primitive)
            rule = lowering((before or tables.common[tables.primitive]).rule)
            mlir.register_lowering(tables.primitive, rule, platform=platform)
            _found[platform], _ours[platform] = before, tables.specific[platform][tables.primitive]
        if added:
            jax.clear_caches()
        return Installation({platform: _ours[platform] for platform in added})


def uninstall() -> None:
    """Gives JAX its own lowering back on every platform, and clears its caches. Without `install` nothing happens."""
    with _lock:
        _remove(dict(_ours))


def installed() -> tuple[str, ...]:
    """The platforms on which `install` holds: empty if none."""
    with _lock:
        return tuple(p for p in _PLATFORMS if p in _found)


def _remove(entries: dict[str, Any]) -> None:
    with _lock:
        there = [p for p, entry in entries.items() if _ours.get(p) is entry]
        for platform in there:
            tables = _tables()
            rules = tables.specific[platform]
            before, ours = _found.pop(platform), _ours.pop(platform)
            if rules.get(tables.primitive) is not ours:
                continue  # replaced by another package since: its rule is not ours to take out
            if before is None:
                del rules[tables.primitive]
            else:
                rules[tables.primitive] = before
        if there:
            jax.clear_caches()


def _tables() -> _Tables:
    """The tables of the running JAX, or a RuntimeError if they are not as the tested versions have them."""
    check_jax(jax.__version__)
    try:
        from jax._src.interpreters.mlir import _lowerings as common
        from jax._src.interpreters.mlir import _platform_specific_lowerings as specific
        from jax._src.lax.lax import ragged_dot_general_p as primitive

        if not callable(common[primitive].rule):
            raise TypeError(f"its rule is {common[primitive].rule!r}")
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        raise RuntimeError(
            f"install() cannot find ragged_dot's lowering in jax {jax.__version__} ({error!r}). {_WAY_OUT}"
        ) from error
    return _Tables(primitive, common, specific)


def check_jax(version: str) -> None:
    """Raises RuntimeError for a jax outside the series between the oldest and the newest that was tested."""
    oldest, newest = map(_series, _TESTED)
    if not oldest <= _series(version) <= newest:
        raise RuntimeError(
            f"install() changes tables inside JAX and knows those of jax {oldest[0]}.{oldest[1]} to "
            f"{newest[0]}.{newest[1]}; got jax {version}. {_WAY_OUT}"
        )


def _series(version: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)
