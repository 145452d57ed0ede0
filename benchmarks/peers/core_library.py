# SPDX-License-Identifier: Apache-2.0
"""A core library on disk, called through its C interface (ffi/include/grouped/grouped.h) without its Python module."""

from __future__ import annotations

import ctypes
import zipfile
from ctypes import c_size_t
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.peers import c_structures as c

MM, WGRAD = 0, 1  # operations of grouped_workspace_size()
GNK, GKN = 0, 1  # weight layouts
_DTYPES = {
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float32: 3,
    torch.float64: 4,
    torch.int32: 5,
    torch.int64: 6,
}
_CPU = -1


class CoreLibrary:
    """One build of the core, beside others in the same process."""

    def __init__(self, path: Path) -> None:
        """`path`: a shared library, or a wheel that has one.

        Raises:
          OSError: there is no such library.
          RuntimeError: its structures are of another version.
        """
        self._library = _from_wheel(path) if path.suffix == ".whl" else ctypes.CDLL(str(path.resolve()))
        self._library.grouped_workspace_size.restype = c_size_t
        version = self._library.grouped_abi_version()
        if version != c.ABI_VERSION:
            raise RuntimeError(f"{path} has version {version} of the C interface, and this calls {c.ABI_VERSION}")

    def has_cuda(self) -> bool:
        """Whether it was built with the CUDA kernels."""
        return bool(self._library.grouped_has_cuda())

    def mm(self, x: Tensor, weight: Tensor, sizes: Tensor, out: Tensor, layout: int) -> None:
        """out[t] = x[t] W[g(t)]; `layout`: GNK or GKN."""
        arguments = c.MmArguments(
            x=_describe(x), weight=_describe(weight), group_sizes=_describe(sizes), out=_describe(out)
        )
        arguments.weight_layout = layout
        K, N = x.shape[1], out.shape[1]
        self._call("grouped_mm", arguments, MM, x, K, N, len(sizes))

    def wgrad(self, x: Tensor, dy: Tensor, sizes: Tensor, out: Tensor, accumulate: bool) -> None:
        """out[g] (+)= dy_g^T x_g, [G, N, K]."""
        arguments = c.WgradArguments(x=_describe(x), dy=_describe(dy), group_sizes=_describe(sizes), out=_describe(out))
        arguments.accumulate = accumulate
        self._call("grouped_wgrad", arguments, WGRAD, x, x.shape[1], dy.shape[1], len(sizes))

    def _call(self, name: str, arguments: ctypes.Structure, op: int, x: Tensor, K: int, N: int, G: int) -> None:
        query = c.WorkspaceQuery(op=op, dtype=_DTYPES[x.dtype], device=_device(x), K=K, N=N, G=G)
        arguments.struct_size, query.struct_size = ctypes.sizeof(arguments), ctypes.sizeof(query)
        size = self._library.grouped_workspace_size(ctypes.byref(query))
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None
        launch = c.Launch(workspace=workspace.data_ptr(), workspace_size=size, stream=stream)
        status = c.Status(struct_size=ctypes.sizeof(c.Status))
        code = getattr(self._library, name)(ctypes.byref(arguments), ctypes.byref(launch), ctypes.byref(status))
        if code != 0:
            raise RuntimeError(status.message.decode())


def _from_wheel(path: Path) -> ctypes.CDLL:
    """Once it is loaded its file may go."""
    with zipfile.ZipFile(path) as wheel, TemporaryDirectory(prefix="grouped-build-") as folder:
        names = [n for n in wheel.namelist() if n.startswith("grouped_core/_core") and n.endswith(".so")]
        if not names:
            raise OSError(f"{path} has no grouped_core/_core*.so")
        return ctypes.CDLL(wheel.extract(names[0], folder))


def _device(t: Tensor) -> int:
    return t.device.index if t.is_cuda else _CPU


def _describe(t: Tensor) -> ctypes.Array | ctypes._Pointer:
    described = c.Tensor(data=t.data_ptr(), dtype=_DTYPES[t.dtype], rank=t.dim(), device=_device(t))
    described.shape[: t.dim()] = t.shape
    described.strides[: t.dim()] = t.stride()
    return ctypes.pointer(described)
