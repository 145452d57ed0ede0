# SPDX-License-Identifier: Apache-2.0
"""One call of every operation of the core at a case's shapes, for tests that hold for all of them."""

from __future__ import annotations

from cases import draw, poison_tail
from core_call import poisoned, sizes_of
from tolerances import DTYPES

from grouped_core import ACTIVATIONS, Op, activation_options


def every_operation(rng, case, dtype, magnitude=1.0):
    """{name: (op, arrays, options)}, with NaN tails."""

    def rows(columns):
        return poison_tail(draw(rng, (case.T, *columns), dtype, magnitude), case.S)

    def result(*shape):
        return poisoned(shape, DTYPES[dtype], case.S if shape[:1] == (case.T,) else None)

    T, K, N, G = case.T, case.K, case.N, case.G
    sizes = sizes_of(case.sizes)[0]

    x, dy, scale = rows((K,)), rows((N,)), poison_tail(draw(rng, (T,), dtype), case.S)
    weight, bias = draw(rng, (G, N, K), dtype), draw(rng, (G, N), dtype, magnitude)
    found = {
        "mm": (
            Op.MM,
            {"x": x, "weight": weight, "group_sizes": sizes, "bias": bias, "row_scale": scale, "out": result(T, N)},
            {},
        ),
        "wgrad": (Op.WGRAD, {"x": x, "dy": rows((N,)), "group_sizes": sizes, "out": poisoned((G, N, K), x.dtype)}, {}),
        "bias_grad": (Op.BIAS_GRAD, {"dy": dy, "group_sizes": sizes, "out": poisoned((G, N), dy.dtype)}, {}),
        "row_scale": (Op.ROW_SCALE, {"x": x, "group_sizes": sizes, "row_scale": scale, "out": result(T, K)}, {}),
        "row_dot": (
            Op.ROW_DOT,
            {"a": x, "b": rows((K,)), "group_sizes": sizes, "dy": dy, "bias": bias, "out": result(T)},
            {},
        ),
    }
    for kind in ACTIVATIONS:
        options = activation_options(kind, "interleaved", 1.702, 7.0, 1.0)._asdict()
        h = rows((N if kind == "squared_relu" else 2 * N,))
        common = {"group_sizes": sizes, "row_scale": scale}
        found[kind] = (Op.ACTIVATION, {"h": h, **common, "out": result(T, N)}, options)
        gradients = {"dh": result(*h.shape), "d_row_scale": result(T)}
        found[f"{kind}_grad"] = (Op.ACTIVATION_GRAD, {"h": h, "dy": dy, **common, **gradients}, options)
    return found
