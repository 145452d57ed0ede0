# SPDX-License-Identifier: Apache-2.0
"""What a jitted JAX call costs the host: microseconds until it returns, beside JAX's own and beside no work at all.

On a GPU the device is idle when a sample begins, and a sample is short enough that its queue never fills; 8 groups of
256 rows, 256 x 256, bf16. On a CPU everything a call sets going is in the time, and the product is made as small as it
can be: 8 groups of one row, 8 x 8, f32. There pin the process to one core (`taskset -c 0`), or what is measured is how
long threads take to wake each other.

Rows that begin with "floor" add one to an array, so that all of their time is JAX's: with as many arguments as the
product has, one more, and that one donated. What is donated is the result of the call before, as in training. On a GPU
one floor more is a custom call with one small kernel, as the product is, but of JAX's own.

Samples of all candidates are interleaved; a number is the median, with the least beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

import jax_grouped

Array = jax.Array
GROUPS = 8
SAMPLES, CALLS = 100, 40


def _with_out(x: Array, weight: Array, sizes: Array, out: Array) -> Array:
    return jax_grouped.grouped_linear(x, weight, sizes, out=out)


def _add_one(x: Array, *others: Array) -> Array:
    del others
    return x + 1


def _add_one_to_last(*arguments: Array) -> Array:
    return arguments[-1] + 1


class _Chained:
    """A call whose last argument is its last result; donated, if so asked."""

    def __init__(self, function: Callable[..., Array], operands: tuple[Array, ...], last: Array, donated: bool) -> None:
        donate = len(operands) if donated else ()
        self._call = partial(jax.jit(function, donate_argnums=donate, keep_unused=True), *operands)
        self._last = last + 0  # its own memory, which a donation takes away

    def __call__(self) -> Array:
        self._last = self._call(self._last)
        return self._last


def candidates(device: str) -> dict[str, Callable[[], Array]]:
    """By name: a call that returns its result, which may not be there yet."""
    rows, width, dtype = (256, 256, jnp.bfloat16) if device == "gpu" else (1, 8, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (GROUPS * rows, width), dtype)
    weight = jax.random.normal(keys[1], (GROUPS, width, width), dtype)
    operands = x, weight, jnp.full(GROUPS, rows, jnp.int32)
    new = {
        "floor: 3 arguments": _add_one,
        "jax.lax.ragged_dot": jax.lax.ragged_dot,
        "jax_grouped.ragged_dot": jax_grouped.ragged_dot,
        "grouped_linear": jax_grouped.grouped_linear,
    }
    chained = {"floor: 4 arguments": _add_one_to_last, "grouped_linear, out": _with_out}
    found: dict[str, Callable[[], Array]] = {
        name: partial(jax.jit(function, keep_unused=True), *operands) for name, function in new.items()
    }
    if device == "gpu":
        permute = jax.jit(partial(jax.lax.linalg.lu_pivots_to_permutation, permutation_size=GROUPS))
        found["floor: a custom call of JAX's own"] = partial(permute, jnp.arange(GROUPS, dtype=jnp.int32))
    for name, function in chained.items():
        found[f"{name}, not donated"] = _Chained(function, operands, x, donated=False)
        found[f"{name}, donated"] = _Chained(function, operands, x, donated=True)
    return found


def _sample(function: Callable[[], Array], calls: int) -> float:
    """Microseconds a call, of `calls` one after another on an idle device."""
    function().block_until_ready()
    begin = time.perf_counter()
    for _ in range(calls):
        result = function()
    seconds = time.perf_counter() - begin
    result.block_until_ready()
    return seconds / calls * 1e6


def measure(device: str, samples: int = SAMPLES, calls: int = CALLS) -> dict[str, tuple[float, float]]:
    """{candidate: median and least microseconds}."""
    functions = candidates(device)
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(3):
        for function in functions.values():
            _sample(function, calls)
    for _ in range(samples):
        for name, function in functions.items():
            found[name].append(_sample(function, calls))
    return {name: (statistics.median(times), min(times)) for name, times in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Measures on JAX's default device and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jax_host_cost", description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--calls", type=int, default=CALLS)
    arguments = parser.parse_args(argv)
    device = jax.default_backend()
    print(f"jax {jax.__version__} on {device}")
    for name, (median, least) in measure(device, arguments.samples, arguments.calls).items():
        print(f"{name:36} {median:8.1f} us   least {least:8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
