# SPDX-License-Identifier: Apache-2.0
"""When nothing listens to torch's dispatcher, the core may be called without it.

An operator call through the dispatcher into Python, and a description of each tensor in Python, cost more than the
launch of a kernel. So in plain eager mode the core reads the tensors itself. Everything that looks at operators
(compilation, export, fake tensors, modes, functorch, tracing, profiling) still sees them: see `is_eager`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import _C
from torch.autograd import forward_ad

from grouped_core import DirectCalls

# Types whose instances are memory and nothing else. Subclasses go through the dispatcher.
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)  # by the core's codes


def _quick_memory() -> tuple[Any, ...]:
    # What code that torch compiles takes its memory from: neither dispatched nor with arguments to sort out.
    guards = getattr(getattr(_C, "_dynamo", None), "guards", None)
    on_cpu, on_cuda = (getattr(guards, f"_empty_strided_{device}", None) for device in ("cpu", "cuda"))
    current_device = getattr(_C, "_cuda_getDevice", None)
    return on_cpu, None if current_device is None else on_cuda, current_device, _DTYPES


def _make_calls() -> DirectCalls | None:
    if os.environ.get("GROUPED_NVTX", "") not in ("", "0"):
        return None  # ranges are set around operators
    # An add-on for older versions of torch sets the attribute too; only torch's own is wanted.
    own = hasattr(_C, "_dlpack_exchange_api")
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None) if own else None
    return None if exchange is None else DirectCalls(exchange, _PLAIN, _quick_memory())


calls = _make_calls()

_is_compiling = torch.compiler.is_compiling
_dispatch_modes = _C._len_torch_dispatch_stack
_function_modes = _C._len_torch_function_stack
_functorch = _C._are_functorch_transforms_active
_tracing = _C._is_tracing
_profiling = torch.autograd._profiler_enabled  # pyright: ignore[reportPrivateImportUsage]
# Whether autocast is on for any device. A compiler cannot trace it. Where torch does not have it: perhaps.
may_autocast = getattr(_C, "_is_any_autocast_enabled", lambda: True)


def is_eager() -> bool:
    """Whether no tracer, mode, transform or profiler would notice an operator."""
    return not (
        _is_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _functorch()
        or forward_ad._current_level >= 0
        or _tracing()
        or _profiling()
    )
