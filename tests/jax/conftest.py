# SPDX-License-Identifier: Apache-2.0
"""Without jax nothing here is collected: this very folder would else be found as a namespace package `jax`."""

from __future__ import annotations

from importlib.util import find_spec

_spec = find_spec("jax")
collect_ignore_glob = [] if _spec is not None and _spec.origin is not None else ["test_*.py"]
