# SPDX-License-Identifier: Apache-2.0
"""Registers the core's handlers with XLA, once the running jaxlib is known to take them.

A handler built against newer FFI headers than the running jaxlib speaks does not fail alone: the whole backend
refuses to start. So the versions are compared first.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import jax

import grouped_core

_OLDEST_JAXLIB = "0.9.1"  # the first whose FFI version is 0.3


def running_ffi_version() -> tuple[int, int] | None:
    """The XLA FFI version of the installed jaxlib, from the headers it ships; None if they are not there."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not header.exists():
        return None
    text = header.read_text()
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    if found[0] is None or found[1] is None:
        return None
    return int(found[0][1]), int(found[1][1])


def check_jaxlib(built: tuple[int, int], running: tuple[int, int] | None) -> None:
    """Raises ImportError if handlers of FFI version `built` would stop a jaxlib of version `running`."""
    given = f"jaxlib {version('jaxlib')}"
    if running is None:
        raise ImportError(
            f"jax_grouped cannot tell which XLA FFI version {given} speaks: its headers are missing. Install "
            f"jaxlib>={_OLDEST_JAXLIB} from PyPI."
        )
    if running[0] != built[0] or running < built:
        raise ImportError(
            f"jax_grouped was built for XLA FFI {built[0]}.{built[1]} and {given} speaks {running[0]}.{running[1]}; "
            f"registering would stop JAX's backend. Install a jaxlib>={_OLDEST_JAXLIB} that speaks "
            f"{built[0]}.x, x >= {built[1]}, or build grouped-ffi against "
            f"this jaxlib with GROUPED_SYSTEM_JAXLIB=1 pip install --no-build-isolation."
        )


def register() -> None:
    """Registers every handler for "cpu" and, if the build has them, for "CUDA"."""
    check_jaxlib(grouped_core.xla_ffi_version(), running_ffi_version())
    # A handler that waits for the device to check sizes must stay out of command buffers.
    capturable = not grouped_core.check_enabled()
    for target, handler in grouped_core.xla_registrations(False, capturable).items():
        jax.ffi.register_ffi_target(target, handler, platform="cpu")
    if grouped_core.has_cuda():
        for target, handler in grouped_core.xla_registrations(True, capturable).items():
            jax.ffi.register_ffi_target(target, handler, platform="CUDA")
