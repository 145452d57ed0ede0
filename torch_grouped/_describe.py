# SPDX-License-Identifier: Apache-2.0
"""Torch tensors as the core takes them, and where a call runs."""

from __future__ import annotations

from functools import lru_cache

import torch

from grouped_core import CPU_DEVICE, META_DEVICE, NO_DATA, REQUIRES_GRAD, DType, workspace_size

_DTYPES: dict[torch.dtype, int] = {
    torch.float16: DType.F16,
    torch.bfloat16: DType.BF16,
    torch.float32: DType.F32,
    torch.float64: DType.F64,
    torch.int32: DType.I32,
    torch.int64: DType.I64,
    torch.bool: DType.BOOL,
    torch.int8: DType.I8,
    torch.uint8: DType.U8,
    torch.int16: DType.I16,
    torch.uint16: DType.U16,
    torch.uint32: DType.U32,
    torch.uint64: DType.U64,
    torch.complex64: DType.C64,
    torch.complex128: DType.C128,
    torch.float8_e4m3fn: DType.F8E4M3,
    torch.float8_e5m2: DType.F8E5M2,
}
_WITHOUT_ORDINAL = {"cpu": CPU_DEVICE, "meta": META_DEVICE}
# Plain ints: an enumeration costs half a microsecond a use.
_CODES = {dtype: int(code) for dtype, code in _DTYPES.items()}


def dtype_code(dtype: torch.dtype) -> int:
    """The core's number for a dtype; OTHER for one it has no name for."""
    return _CODES.get(dtype, 0)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What the core sums this dtype in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def describe(tensor: torch.Tensor | None, name: str = "") -> tuple | None:
    """A real tensor: address, strides, device and whether it requires grad."""
    if tensor is None:
        return None
    return (
        name,
        tensor.data_ptr(),
        _CODES.get(tensor.dtype, 0),
        tensor.shape,
        tensor.stride(),
        tensor.get_device(),  # -1 for the CPU, as the core counts
        REQUIRES_GRAD if tensor.requires_grad else 0,
    )


def describe_fake(tensor: torch.Tensor | None, name: str = "") -> tuple | None:
    """A fake tensor: no address; sizes may be symbols, strides are given only where they are not contiguous."""
    if tensor is None:
        return None
    flags = NO_DATA | (REQUIRES_GRAD if tensor.requires_grad else 0)
    strides = None if tensor.is_contiguous() else tensor.stride()
    device = _WITHOUT_ORDINAL.get(tensor.device.type, tensor.device.index or 0)
    return name, 0, dtype_code(tensor.dtype), tuple(tensor.shape), strides, device, flags


@lru_cache(maxsize=4096)
def _workspace_bytes(op: int, dtype: int, device: int, K: int, N: int, G: int) -> int:
    return workspace_size(op, dtype, device, K, N, G)


def new_workspace(op: int, like: torch.Tensor, K: int, N: int, G: int) -> torch.Tensor:
    """The scratch memory that `op` needs, from torch's allocator, so that it is safe in a CUDA graph."""
    size = _workspace_bytes(op, dtype_code(like.dtype), like.get_device(), K, N, G)
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def current_stream(device: torch.device) -> int:
    """The address of the device's current CUDA stream; 0 on CPU."""
    if device.type != "cuda":
        return 0
    return torch.cuda.current_stream(device).cuda_stream
