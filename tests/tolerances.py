# SPDX-License-Identifier: Apache-2.0
"""How far a result may lie from fp64: an error bound, element by element, never a loose constant.

    |y - y64| <= half an ulp of the output + C * u * sqrt(terms) * (sum of |terms|)

u is the unit roundoff of the accumulator (2^-24 for fp32, 2^-53 for fp64). Half an ulp is the one rounding of the
stored tensor. C = 4 covers the summation: errors of a sum of n terms grow like sqrt(n) u for data without a
pattern; the worst case, n u, is not needed.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

C = 4.0
DTYPES = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
_PRECISION = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}  # significand bits, the hidden one counted
_MIN_EXPONENT = {"f16": -14, "bf16": -126, "f32": -126, "f64": -1022}  # of the smallest normal number


def name_of(dtype) -> str:
    return next(name for name, d in DTYPES.items() if d == np.dtype(dtype))


def ulp(value, dtype):
    """Spacing of the dtype's numbers at |value|."""
    name = name_of(dtype)
    _, exponent = np.frexp(np.abs(value))  # |value| = m 2^exponent, m in [0.5, 1)
    exponent = np.where(value == 0, _MIN_EXPONENT[name], np.maximum(exponent - 1, _MIN_EXPONENT[name]))
    return np.ldexp(1.0, exponent - (_PRECISION[name] - 1))


def bound(y64, scale, terms, dtype, accumulator=None):
    """The largest error allowed. `terms`: how many products or summands make one element."""
    accumulator = accumulator or ("f64" if name_of(dtype) == "f64" else "f32")
    u = 2.0 ** -_PRECISION[accumulator]
    # Near the format's lower end rounding errs by a part of its smallest number, however small the value.
    underflow = max(terms, 1) * np.ldexp(1.0, _MIN_EXPONENT[accumulator] - (_PRECISION[accumulator] - 1))
    summed = C * (u * np.sqrt(max(terms, 1)) * scale + underflow)
    return 0.5 * ulp(np.abs(y64) + summed, dtype) + summed


def assert_close(y, reference, terms, *, what="result", accumulator=None):
    """Every element within its bound, NaN nowhere; the message tells the worst element."""
    y64, scale = reference
    y = np.asarray(y)
    if y.shape != y64.shape:
        raise AssertionError(f"{what}: shape {y.shape}, reference {y64.shape}")
    if y.size == 0:
        return
    allowed = bound(y64, scale, terms, y.dtype, accumulator)
    error = np.abs(y.astype(np.float64) - y64)
    ratio = np.where(np.isfinite(error), error / allowed, np.inf)
    if not (ratio <= 1).all():
        at = np.unravel_index(np.argmax(ratio), ratio.shape)
        raise AssertionError(
            f"{what}: {(ratio > 1).sum()} of {ratio.size} elements out of bound; worst at {tuple(map(int, at))}: got "
            f"{y[at]}, fp64 {y64[at]}, error {error[at]:.3g}, allowed {allowed[at]:.3g}"
        )


def assert_bits(a, b, what="result"):
    """Equal bit for bit: NaNs and signed zeros too."""
    a, b = np.ascontiguousarray(np.asarray(a)), np.ascontiguousarray(np.asarray(b))
    if a.dtype != b.dtype or a.shape != b.shape:
        raise AssertionError(f"{what}: {a.dtype}{a.shape} against {b.dtype}{b.shape}")
    if a.tobytes() != b.tobytes():
        width = a.dtype.itemsize
        different = (a.reshape(-1).view(f"u{width}") != b.reshape(-1).view(f"u{width}")).reshape(a.shape)
        at = tuple(int(i) for i in np.argwhere(different)[0])
        raise AssertionError(f"{what}: {different.sum()} of {a.size} elements differ; first {at}: {a[at]} != {b[at]}")
