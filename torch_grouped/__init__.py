# SPDX-License-Identifier: Apache-2.0
"""Grouped linear layers for mixture-of-experts training in PyTorch, into buffers that the caller owns."""

from grouped_core import __version__
from torch_grouped import functional
from torch_grouped._install import install, installed, uninstall
from torch_grouped.grouped_linear import GroupedLinear

__all__ = ["GroupedLinear", "__version__", "functional", "install", "installed", "uninstall"]
