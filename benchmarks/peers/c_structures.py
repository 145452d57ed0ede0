# SPDX-License-Identifier: Apache-2.0
"""The structures of ffi/include/grouped/grouped.h for ctypes. Without torch, so that tests of the core can use them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_void_p

ABI_VERSION = 1


class Tensor(ctypes.Structure):
    """grouped_tensor."""

    _fields_ = (
        ("name", c_char_p),
        ("data", c_void_p),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("shape", c_int64 * 8),
        ("strides", c_int64 * 8),
        ("device", c_int32),
        ("flags", c_uint32),
    )


class Launch(ctypes.Structure):
    """grouped_launch."""

    _fields_ = (
        ("executor", c_void_p),
        ("workspace", c_void_p),
        ("workspace_size", c_size_t),
        ("stream", c_void_p),
    )


class Status(ctypes.Structure):
    """grouped_status."""

    _fields_ = (("struct_size", c_size_t), ("code", c_int32), ("message", c_char * 1012))


class WorkspaceQuery(ctypes.Structure):
    """grouped_workspace_query."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("op", c_int32),
        ("dtype", c_int32),
        ("device", c_int32),
        ("reserved", c_int32),
        ("K", c_int64),
        ("N", c_int64),
        ("G", c_int64),
    )


class MmArguments(ctypes.Structure):
    """grouped_mm_args."""

    _fields_ = (
        ("struct_size", c_size_t),
        *((name, POINTER(Tensor)) for name in ("x", "weight", "group_sizes", "bias", "row_scale", "out")),
        *((name, c_int32) for name in ("weight_layout", "sizes_kind", "tail", "reserved")),
    )


class WgradArguments(ctypes.Structure):
    """grouped_wgrad_args."""

    _fields_ = (
        ("struct_size", c_size_t),
        *((name, POINTER(Tensor)) for name in ("x", "dy", "group_sizes", "out")),
        *((name, c_int32) for name in ("weight_layout", "sizes_kind", "accumulate", "reserved")),
    )
