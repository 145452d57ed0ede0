# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own ``grouped_mm`` through the core, for models that call it already.

The kernel behind ``aten::_grouped_mm`` is exchanged, below autograd: its derivatives, its shapes under a tracer and
what a compiler generates stay torch's, and call the exchanged kernel when they run.
"""

from __future__ import annotations

import warnings
from types import TracebackType

import torch
from torch import Tensor

from torch_grouped._grouped_mm import product

_OPERATOR = "aten::_grouped_mm"
_DEVICES = ("cpu", "cuda")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_ROW_BYTES = 16  # torch begins each row of a result at a multiple of these

_libraries: dict[str, torch.library.Library] = {}


class Installation:
    """What `install` did. As a context manager it takes that back at its end, and only that."""

    def __init__(self, added: dict[str, torch.library.Library]) -> None:
        self._added = added

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self._added)


def install(*devices: str) -> Installation:
    """Routes ``torch.nn.functional.grouped_mm`` through the core, on these devices from now on.

    Served are bf16, f16 and f32, in all four forms and with any strides that torch takes; beside them a gradient that
    is expanded, which torch's own refuses. Gradients, ``torch.compile`` and tracers are torch's own. Everything else
    (a ``bias``, another ``out_dtype``, arguments that do not fit) goes to torch's kernel, and its errors are torch's.

    Args:
      devices: ``"cuda"``, ``"cpu"``; ``"cuda"`` if none is named. A device already installed stays as it is.

    Returns:
      An `Installation`, for use as a context manager; it may be dropped.

    Raises:
      ValueError: another device.
      RuntimeError: a torch whose kernels cannot be looked up, below 2.10.

    Tail: zeros, where torch leaves what was in memory.
    Empty groups: zero, as torch.
    Aliasing: a result is new memory, with the strides that torch gives it. Where that is not how the core writes it
    (rows that are no multiple of 16 bytes, ``[G,M,K] @ [K,T]``) it is copied.
    Determinism: bitwise repeatable, and the bits of `torch_grouped.functional.grouped_mm`.
    Source: torch's documentation of ``torch.library.get_kernel``.
    """
    chosen = devices or ("cuda",)
    for device in chosen:
        if device not in _DEVICES:
            raise ValueError(f'device must be one of "cpu", "cuda"; got {device!r}.')
    if not hasattr(torch.library, "get_kernel"):
        raise RuntimeError(
            f"install() must find torch's own kernel to fall back on; got torch {torch.__version__}, which has no "
            "torch.library.get_kernel. Install a newer torch."
        )
    added = {device: _exchange(device.upper()) for device in dict.fromkeys(chosen) if device not in _libraries}
    _libraries.update(added)
    return Installation(added)


def uninstall() -> None:
    """Gives torch its own kernels back on every device. Nothing happens where nothing is installed."""
    _remove(dict(_libraries))


def installed() -> tuple[str, ...]:
    """The devices on which torch's ``grouped_mm`` goes through the core; empty where it does on none."""
    return tuple(sorted(_libraries))


def _remove(libraries: dict[str, torch.library.Library]) -> None:
    for device, library in libraries.items():
        if _libraries.get(device) is library:
            del _libraries[device]
            library._destroy()


def _exchange(key: str) -> torch.library.Library:
    original = torch.library.get_kernel(_OPERATOR, key)

    def grouped_mm(
        keys: torch._C.DispatchKeySet,
        a: Tensor,
        b: Tensor,
        offs: Tensor | None = None,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        if bias is None and out_dtype in (None, a.dtype) and _fits(a, b, offs):
            return _as_torch_stores_it(product(a, b, offs))
        return original.call_boxed(keys, a, b, offs, bias, out_dtype)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # That a kernel is replaced is what was asked for.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl(_OPERATOR, grouped_mm, key, with_keyset=True, allow_override=True)
    return library


def _fits(a: Tensor, b: Tensor, offs: Tensor | None) -> bool:
    if a.dtype not in _DTYPES or b.dtype != a.dtype or a.device != b.device:
        return False
    dims = (a.dim(), b.dim())
    if dims == (3, 3):
        return offs is None and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
    if dims not in ((2, 3), (2, 2), (3, 2)) or a.shape[-1] != b.shape[-2]:
        return False
    if offs is None or offs.dim() != 1 or offs.dtype != torch.int32 or offs.device != a.device:
        return False
    matrices = a if a.dim() == 3 else b
    return matrices.dim() == 2 or matrices.shape[0] == offs.shape[0]


def _as_torch_stores_it(y: Tensor) -> Tensor:
    width = y.shape[-1]
    items = _ROW_BYTES // y.element_size()
    row = -(-width // items) * items
    strides = (row, 1) if y.dim() == 2 else (y.shape[1] * row, row, 1)
    if y.stride() == strides:
        return y
    stored = torch.empty_strided(y.shape, strides, dtype=y.dtype, device=y.device)
    return stored.copy_(y)
