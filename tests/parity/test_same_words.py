# SPDX-License-Identifier: Apache-2.0
"""The same mistake gets the same exception with the same words from both packages."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
import torch_calls
from jax_calls import wide_enough
from tolerances import DTYPES

import jax_grouped
from torch_grouped import functional as torch_functional

T, K, N, G = 6, 4, 8, 2


def zeros(shape, dtype: str = "f32") -> np.ndarray:
    return np.zeros(shape, DTYPES.get(dtype, dtype))


LINEAR = {
    "x": zeros((T, K)),
    "weight": zeros((G, K, N)),
    "group_sizes": zeros((G,), "int32"),
    "bias": zeros((G, N)),
    "row_scale": zeros((T,)),
    "out": zeros((T, N)),
    "dgrad_out": zeros((T, K)),
    "wgrad_out": zeros((G, K, N)),
}
ACTIVATION = {
    "h": zeros((T, 2 * N)),
    "group_sizes": zeros((G,), "int32"),
    "row_scale": zeros((T,)),
    "out": zeros((T, N)),
    "dgrad_out": zeros((T, 2 * N)),
}
MLP = {
    "x": zeros((T, K)),
    "fc1_weight": zeros((G, K, 2 * N)),
    "fc2_weight": zeros((G, N, K)),
    "group_sizes": zeros((G,), "int32"),
    "fc1_bias": zeros((G, 2 * N)),
    "fc2_bias": zeros((G, K)),
    "row_scale": zeros((T,)),
    "out": zeros((T, K)),
    "dgrad_out": zeros((T, K)),
    "fc1_wgrad_out": zeros((G, K, 2 * N)),
    "fc2_wgrad_out": zeros((G, N, K)),
}
OPERATIONS = {
    "linear": (jax_grouped.grouped_linear, torch_functional.grouped_linear, LINEAR),
    "activation": (jax_grouped.grouped_activation, torch_functional.grouped_activation, ACTIVATION),
    "mlp": (jax_grouped.grouped_mlp, torch_functional.grouped_mlp, MLP),
}


def refusals(operation: str, arguments: dict, **options) -> list[Exception]:
    """What JAX under jit and torch raise. Torch gets JAX's default layout."""
    in_jax, in_torch, _ = OPERATIONS[operation]
    if operation != "activation":
        options = {"weight_layout": "gkn", **options}
    with wide_enough(*arguments.values()):
        calls = (
            lambda: jax.block_until_ready(jax.jit(partial(in_jax, **options))(**arguments)),
            lambda: in_torch(**{name: torch_calls.to_torch(a) for name, a in arguments.items()}, **options),
        )
        found = []
        for call in calls:
            with pytest.raises(Exception) as caught:
                call()
            found.append(caught.value)
    return found


def bad_shapes(a: np.ndarray) -> list[tuple[int, ...]]:
    """One row more, one column more, a dimension more and one less."""
    return [(a.shape[0] + 1, *a.shape[1:]), (*a.shape[:-1], a.shape[-1] + 1), (*a.shape, 1), a.shape[1:]]


SHAPES = [
    pytest.param(operation, name, shape, id=f"{operation}-{name}-{'x'.join(map(str, shape)) or 'scalar'}")
    for operation, (_, _, arguments) in OPERATIONS.items()
    for name, a in arguments.items()
    for shape in dict.fromkeys(bad_shapes(a))
    if (operation, name, shape) != ("activation", "group_sizes", (G + 1,))  # G is nobody else's there
]
BAD_DTYPES = {"float": ("f16", "bf16", "f64", "int32", "bool", "complex64"), "sizes": ("f32", "int8", "bool", "f64")}
DTYPE_MISTAKES = [
    pytest.param(operation, name, dtype, id=f"{operation}-{name}-{dtype}")
    for operation, (_, _, arguments) in OPERATIONS.items()
    for name in arguments
    for dtype in BAD_DTYPES["sizes" if name == "group_sizes" else "float"]
]


def assert_same_refusal(operation: str, arguments: dict, exception: type[Exception], **options) -> None:
    from_jax, from_torch = refusals(operation, arguments, **options)
    assert type(from_jax) is type(from_torch) is exception
    assert str(from_jax) == str(from_torch)


@pytest.mark.parametrize(("operation", "name", "shape"), SHAPES)
def test_shapes(operation, name, shape) -> None:
    assert_same_refusal(operation, {**OPERATIONS[operation][2], name: zeros(shape, dtype_of(name))}, ValueError)


@pytest.mark.parametrize(("operation", "name", "dtype"), DTYPE_MISTAKES)
def test_dtypes(operation, name, dtype) -> None:
    good = OPERATIONS[operation][2]
    assert_same_refusal(operation, {**good, name: zeros(good[name].shape, dtype)}, TypeError)


def dtype_of(name: str) -> str:
    return "int32" if name == "group_sizes" else "f32"


@pytest.mark.parametrize(
    ("operation", "option"),
    [
        ("linear", {"weight_layout": "nkg"}),
        ("activation", {"kind": "relu"}),
        ("activation", {"gate_layout": "mixed"}),
        ("mlp", {"activation": "relu"}),
    ],
    ids=["weight_layout", "kind", "gate_layout", "activation"],
)
def test_unknown_names(operation, option) -> None:
    assert_same_refusal(operation, OPERATIONS[operation][2], ValueError, **option)


@pytest.mark.parametrize("layout", ["gkn", "gnk"])
def test_as_many_columns_of_up_as_of_gate(layout) -> None:
    """Told of the weight that the caller gave, not of fc1's result; without a gate any number is right."""
    odd = {"x": zeros((T, K)), "fc1_weight": zeros((G, K, 7)), "fc2_weight": zeros((G, 3, K))}
    if layout == "gnk":
        odd = {n: np.ascontiguousarray(a.swapaxes(1, 2)) if "weight" in n else a for n, a in odd.items()}
    arguments = {**odd, "group_sizes": MLP["group_sizes"]}
    for error in refusals("mlp", arguments, weight_layout=layout):
        assert type(error) is ValueError
        assert str(error) == (
            f"fc1_weight must be {'[G, K, 2F]' if layout == 'gkn' else '[G, 2F, K]'}, with as many columns of up as of "
            f'gate; got {list(odd["fc1_weight"].shape)}. Without a gate pass activation="squared_relu".'
        )


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("sizes", [(3, -1), (4, 3), (7, 0), (2**31 - 1, 2**31 - 1)], ids=str)
def test_sizes_that_do_not_fit(operation, sizes) -> None:
    """Known only at run time, where XLA knows one exception; the words are still the core's."""
    arguments = {**OPERATIONS[operation][2], "group_sizes": np.array(sizes, np.int32)}
    from_jax, from_torch = refusals(operation, arguments)
    assert type(from_jax) is jax.errors.JaxRuntimeError
    assert type(from_torch) is ValueError
    words = str(from_torch)
    assert words.startswith("group_sizes[")
    assert str(from_jax).startswith(f"INVALID_ARGUMENT: {words}")
