# SPDX-License-Identifier: Apache-2.0
"""Grouped linear layers for mixture-of-experts training in JAX, into buffers that the caller donates."""

from grouped_core import __version__
from jax_grouped import _registration
from jax_grouped._activation import grouped_activation
from jax_grouped._export import EXPORT_CHECKS
from jax_grouped._install import Installation, install, installed, uninstall
from jax_grouped._linear import grouped_linear
from jax_grouped._mlp import grouped_mlp
from jax_grouped._ragged_dot import ragged_dot
from jax_grouped._ragged_dot_general import ragged_dot_general

_registration.register()

__all__ = [
    "EXPORT_CHECKS",
    "Installation",
    "__version__",
    "grouped_activation",
    "grouped_linear",
    "grouped_mlp",
    "install",
    "installed",
    "ragged_dot",
    "ragged_dot_general",
    "uninstall",
]
