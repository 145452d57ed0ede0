# SPDX-License-Identifier: Apache-2.0
"""What `jax.export` must be told of this package."""

from __future__ import annotations

from jax import export

from jax_grouped._calls import TARGETS

__all__ = ["EXPORT_CHECKS"]

# Their names end in a version, which is what jax.export wants to be promised.
EXPORT_CHECKS = tuple(export.DisabledSafetyCheck.custom_call(target) for target in TARGETS.values())
"""For ``jax.export.export(..., disabled_checks=EXPORT_CHECKS)``: our custom calls, by name."""
