# SPDX-License-Identifier: Apache-2.0
"""One FFI call per operation of the core: operands, results and aliases in the order that the handlers expect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grouped_core import CPU_DEVICE, NO_DATA, DType, Op, Options, check, check_symbolic, workspace_size
from jax_grouped._batching import batchable, fold
from jax_grouped._placement import device_local

Array = jax.Array

TARGETS = {
    Op.MM: "grouped_mm_v1",
    Op.WGRAD: "grouped_wgrad_v1",
    Op.BIAS_GRAD: "grouped_bias_grad_v1",
    Op.ACTIVATION: "grouped_activation_v1",
    Op.ACTIVATION_GRAD: "grouped_activation_grad_v1",
    Op.ROW_SCALE: "grouped_row_scale_v1",
    Op.ROW_DOT: "grouped_row_dot_v1",
}
_DTYPES = {
    "float16": DType.F16,
    "bfloat16": DType.BF16,
    "float32": DType.F32,
    "float64": DType.F64,
    "int32": DType.I32,
    "int64": DType.I64,
    "bool": DType.BOOL,
    "int8": DType.I8,
    "uint8": DType.U8,
    "int16": DType.I16,
    "uint16": DType.U16,
    "uint32": DType.U32,
    "uint64": DType.U64,
    "complex64": DType.C64,
    "complex128": DType.C128,
    "float8_e4m3fn": DType.F8E4M3,
    "float8_e5m2": DType.F8E5M2,
}
# The workspace result must have one size on every platform that a trace may be lowered for.
_DEVICES = (CPU_DEVICE, 0)


def accumulator(dtype: Any) -> Any:
    """What the core sums this dtype in."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _varying_axes(array: Any) -> frozenset:
    """The mesh axes between whose devices it differs: the types that shard_map checks."""
    if array is None:
        return frozenset()
    kind = jax.typeof(array)
    return getattr(kind, "vma", None) or getattr(getattr(kind, "manual_axis_type", None), "varying", frozenset())


def vary_together(*arrays: Any) -> tuple[Any, ...]:
    """The arrays, each varying over every mesh axis over which one of them does.

    JAX transposes that step to the sum over those axes: the gradient of an argument that devices share.
    """
    axes = frozenset().union(*map(_varying_axes, arrays))

    def vary(array: Any) -> Any:
        # A Ref is memory: it has the type that it was made with.
        missing = () if array is None or isinstance(array, jax.Ref) else tuple(axes - _varying_axes(array))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return tuple(map(vary, arrays))


def check_own(buffers: Mapping[str, Any], inputs: Iterable[Any]) -> None:
    """Refuses a buffer that devices share where what each of them writes is its own.

    JAX would add the buffers of all devices up, what they held before included; a Ref would hold any one device's.
    """
    axes = frozenset().union(*map(_varying_axes, inputs))
    for name, buffer in buffers.items():
        missing = sorted(axes - _varying_axes(buffer))
        if buffer is not None and missing:
            raise ValueError(
                f"{name} must be every device's own over the mesh axes {missing}, as what is written there is; got one "
                f"that they share. Give it in_specs that name these axes, and add the parts up with jax.lax.psum."
            )


def result_type(shape: Sequence[Any], dtype: Any, *like: Array | None) -> Any:
    """A new result's type. Inside shard_map it varies over every mesh axis over which one of `like` does."""
    varying = [a for a in like if a is not None and _varying_axes(a)]
    if not varying:
        return jax.ShapeDtypeStruct(tuple(shape), dtype)
    # JAX versions spell such a type differently, so it is taken from a sum that JAX types itself.
    typed = jax.make_jaxpr(
        lambda *arrays: jnp.zeros(shape, dtype) + sum(a.ravel()[:0].sum().astype(dtype) for a in arrays)
    )(*varying)
    return typed.out_avals[0]


def dtype_of(array: Any) -> Any:
    """The dtype with which JAX will take it: of numpy's 64 bits 32 are left without ``jax_enable_x64``."""
    return jax.typeof(array).dtype if isinstance(array, np.ndarray) else array.dtype


def _describe(name: str, value: Any) -> tuple | None:
    if value is None:
        return None
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise TypeError(f"{name} must be an array; got {type(value).__name__}. Pass jax.numpy.asarray({name}).")
    dtype = int(_DTYPES.get(np.dtype(dtype_of(value)).name, DType.OTHER))
    return name, 0, dtype, tuple(value.shape), None, CPU_DEVICE, NO_DATA


def check_arguments(op: Op, arguments: dict[str, Any], options: Options) -> None:
    """The core's rules at trace time, on arrays or result types, in table order under the names given."""
    described = tuple(_describe(name, value) for name, value in arguments.items())
    symbolic = any(type(size) is not int for d in described if d is not None for size in d[3])
    if symbolic:
        check_symbolic(op, described, options)
    else:
        check(op, described, tuple(options))


def call(
    op: Op,
    inputs: Sequence[Array | None],
    outputs: Mapping[int, Any],
    options: Options,
    dims: tuple[Any, Any, int],
) -> list[Array]:
    """Calls `op`.

    Args:
      op: the operation.
      inputs: its arguments in table order; None where absent and where an output stands.
      outputs: by table index: an array is a buffer that the result aliases, a type a result of its own.
      options: static.
      dims: K, N and G, for the workspace.

    Returns:
      The results in table order.
    """
    buffers = [i for i, o in outputs.items() if isinstance(o, jax.Array | np.ndarray)]
    present = [i for i, a in enumerate(inputs) if a is not None]
    arrays = [*(inputs[i] for i in present), *(outputs[i] for i in buffers)]
    # JAX keeps the two functions with what it traced, so they hold no array that is being traced.
    places = len(inputs)
    types: dict[int, Any] = {i: None if i in buffers else o for i, o in outputs.items()}

    def run(*arrays: Array) -> tuple[Array, ...]:
        given = dict(zip([*present, *buffers], arrays, strict=True))
        operands = {i: given[i] for i in present}
        return _run(op, operands, {i: given.get(i, kind) for i, kind in types.items()}, buffers, options, dims)

    def folded(size: int, batched: Sequence[bool], *arrays: Array) -> tuple[Array, ...] | None:
        given, is_batched = dict(zip(present, arrays, strict=True)), dict(zip(present, batched, strict=True))
        shapes = {i: kind.shape for i, kind in types.items()}
        one_call = fold(op, size, [given.get(i) for i in range(places)], is_batched, shapes, options)
        if one_call is None:
            return None
        (flat, flat_shapes, groups), unfold = one_call
        like = [a for a in flat if a is not None]
        new = {i: result_type(shape, types[i].dtype, *like) for i, shape in flat_shapes.items()}
        return unfold(call(op, flat, new, options, (dims[0], dims[1], groups)))

    return list(batchable(run, None if buffers else folded)(*arrays))


def _run(
    op: Op,
    operands: dict[int, Array],
    outputs: dict[int, Any],
    buffers: Iterable[int],
    options: Options,
    dims: tuple[Any, Any, int],
) -> tuple[Array, ...]:
    """The call itself."""
    aliases = {len(operands) + n: list(outputs).index(i) for n, i in enumerate(buffers)}
    # jax.typeof, because a buffer's type also says over which mesh axes it varies.
    types = [jax.typeof(o) if i in buffers else o for i, o in outputs.items()]
    dtype = int(_DTYPES[np.dtype(operands[0].dtype).name])
    scratch = max(workspace_size(op, dtype, device, *dims) for device in _DEVICES)
    arrays = device_local(*operands.values())
    results = jax.ffi.ffi_call(
        TARGETS[op],
        [*types, result_type((scratch,), jnp.uint8, *arrays)],
        input_output_aliases=aliases,
        vmap_method="sequential",
    )(
        *arrays,
        *(outputs[i] for i in buffers),
        inputs=_mask(operands),
        outputs=_mask(outputs),
        aliased=_mask(buffers),
        weight_layout=np.int32(options.weight_layout),
        sizes_kind=np.int32(options.sizes_kind),
        tail=np.int32(options.tail),
        accumulate=np.int32(options.accumulate),
        kind=np.int32(options.kind),
        gate_layout=np.int32(options.gate_layout),
        alpha=np.float64(options.alpha),
        limit=np.float64(options.limit),
        offset=np.float64(options.offset),
    )
    return tuple(results[:-1])


def _mask(indices: Any) -> np.int64:
    return np.int64(sum(1 << i for i in indices))
