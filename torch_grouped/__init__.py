# SPDX-License-Identifier: Apache-2.0
"""Grouped linear layers for mixture-of-experts training in PyTorch, into buffers that the caller owns."""

from grouped_core import __version__
from torch_grouped import functional
from torch_grouped._install import install, installed, uninstall
from torch_grouped.activations import (
    GEGLU,
    ClampedSwiGLU,
    ScaledClampedQGeGLU,
    ScaledGEGLU,
    ScaledSReLU,
    ScaledSwiGLU,
    SReLU,
    SwiGLU,
)
from torch_grouped.grouped_linear import GroupedLinear
from torch_grouped.grouped_mlp import GroupedMLP
from torch_grouped.sequential import GRAD_INPUT_BUFFER_KEY, OUTPUT_BUFFER_KEY, Sequential

__all__ = [
    "GEGLU",
    "GRAD_INPUT_BUFFER_KEY",
    "OUTPUT_BUFFER_KEY",
    "ClampedSwiGLU",
    "GroupedLinear",
    "GroupedMLP",
    "SReLU",
    "ScaledClampedQGeGLU",
    "ScaledGEGLU",
    "ScaledSReLU",
    "ScaledSwiGLU",
    "Sequential",
    "SwiGLU",
    "__version__",
    "functional",
    "install",
    "installed",
    "uninstall",
]
