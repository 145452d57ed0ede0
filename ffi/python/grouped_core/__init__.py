# SPDX-License-Identifier: Apache-2.0
"""The framework-free half of grouped-ffi: the native core and the words both packages share.

Nothing here imports jax or torch, and importing needs neither a GPU nor a driver.
"""

from grouped_core._core import (
    DirectCalls,
    abi_version,
    argument_dims,
    call_count,
    check,
    check_enabled,
    has_cuda,
    run,
    version,
    workspace_size,
    xla_ffi_version,
    xla_registrations,
)
from grouped_core._symbolic import check_symbolic
from grouped_core._words import (
    ACTIVATIONS,
    CPU_DEVICE,
    META_DEVICE,
    NO_DATA,
    REQUIRES_GRAD,
    Activation,
    DType,
    Op,
    Options,
    Tail,
    activation_kind,
    activation_options,
    other_layout,
    weight_layout_code,
)

__version__ = version()

__all__ = [
    "ACTIVATIONS",
    "CPU_DEVICE",
    "META_DEVICE",
    "NO_DATA",
    "REQUIRES_GRAD",
    "Activation",
    "DType",
    "DirectCalls",
    "Op",
    "Options",
    "Tail",
    "__version__",
    "abi_version",
    "activation_kind",
    "activation_options",
    "argument_dims",
    "call_count",
    "check",
    "check_enabled",
    "check_symbolic",
    "has_cuda",
    "other_layout",
    "run",
    "version",
    "weight_layout_code",
    "workspace_size",
    "xla_ffi_version",
    "xla_registrations",
]
