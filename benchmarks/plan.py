# SPDX-License-Identifier: Apache-2.0
"""Which cases a run measures, and in which order: a run that is cut short leaves the tables that matter most."""

from __future__ import annotations

from benchmarks import operations as ops
from benchmarks import shapes as registry
from benchmarks.problem import Case
from benchmarks.shapes import DRAWS, EVEN, PRIMARY, ROWS, SKEW, TAIL, TINY, ZIPF, Shape

_SEPARATE = ops.FWD, ops.DGRAD, ops.WGRAD


def cases(
    shapes: list[str], operations: list[str], draws: list[str], dtype: str | None, device: str, seed: int
) -> list[Case]:
    """The cases for these filters; without any, the default run of the device."""
    dtype = dtype or ("bf16" if device == "cuda" else "f32")
    if not (shapes or operations or draws):
        return _default(dtype, device, seed)
    default_shapes = [PRIMARY] if device == "cuda" else [TINY]
    if operations and set(operations) <= set(ops.HOST_COSTS):
        default_shapes = ["host" if device == "cuda" else "host-cpu"]
    found = []
    for draw in draws or [EVEN, ZIPF]:
        for op in operations or ops.PRODUCTS:
            for shape in registry.select(shapes or default_shapes):
                if ops.applies(op, shape):
                    found.append(Case(shape, op, draw, dtype, seed))
    return found


def _default(dtype: str, device: str, seed: int) -> list[Case]:
    gpu = device == "cuda"
    main = registry.select([PRIMARY if gpu else TINY])
    skewed = [shape for shape in main if SKEW in shape.tags]
    tiny = registry.select(["host" if gpu else "host-cpu"])
    few_rows = [shape for shape in registry.select([ROWS]) if shape not in main] if gpu else []
    other_draws = [draw for draw in DRAWS if draw not in (EVEN, ZIPF, TAIL)]

    steps: list[tuple[tuple[str, ...], tuple[str, ...] | list[str], list[Shape]]] = [
        (ops.HOST_COSTS, (EVEN,), tiny),
        (_SEPARATE, (EVEN,), main),
        (_SEPARATE, (ZIPF,), main),
        ((ops.WGRAD_ACC,), (EVEN, ZIPF), main),
        (_SEPARATE, (EVEN,), few_rows),
        ((*ops.ACTIVATIONS, ops.MLP), (EVEN,), skewed),
        (_SEPARATE, [*other_draws, TAIL], skewed),
        ((ops.LINEAR,), (EVEN,), main if gpu else skewed),
        ((ops.LINEAR, ops.MLP), (ZIPF,), skewed),
    ]
    found = []
    for operations, draws, shapes in steps:
        for shape in shapes:
            for draw in draws:
                found += [Case(shape, op, draw, dtype, seed) for op in operations if ops.applies(op, shape)]
    return found
