# SPDX-License-Identifier: Apache-2.0
"""The contract on a GPU, both frameworks in one process: fp64 bounds, equal bits, tails, guards, buffers."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME, CASES, SENTINEL, draw, poison_tail
from frameworks import Guarded, from_jax, from_torch, jax_gradients, to_jax, to_torch, torch_gradients
from tolerances import DTYPES, assert_bits, assert_close

import jax_grouped
from torch_grouped import functional

ALIGNED = ("even", "empty_last", "crosses_tiles")
ALL = [(c.name, d) for c in CASES for d in ("bf16", "f32")]
ALL += [(name, d) for name in ("odd_everything", "tail", "empty_middle", *ALIGNED) for d in ("f16", "f64")]


def _draw(rng, case, dtype, layout):
    weight_shape = (case.G, case.N, case.K) if layout == "gnk" else (case.G, case.K, case.N)
    return {
        "x": poison_tail(draw(rng, (case.T, case.K), dtype), case.S),
        "weight": draw(rng, weight_shape, dtype),
        "bias": draw(rng, (case.G, case.N), dtype),
        "row_scale": poison_tail(draw(rng, (case.T,), dtype), case.S),
        "dy": poison_tail(draw(rng, (case.T, case.N), dtype), case.S),
        "sizes": np.array(case.sizes, np.int32),
    }


def _linear_reference(d, layout, with_scale):
    """[y, dx, dW, db, d row_scale] as (value, bound) with the number of terms of each."""
    x, w, sizes, dy = d["x"], d["weight"], d["sizes"], d["dy"]
    T, K = x.shape
    N = dy.shape[1]
    S = int(sizes.sum())
    rows = max(sizes.tolist(), default=0)
    scale = d["row_scale"] if with_scale else None
    back = "gkn" if layout == "gnk" else "gnk"
    dz = dy.copy()
    if scale is not None:
        # A stored tensor: one product in the accumulator, rounded once.
        accumulator = np.float64 if dy.dtype == np.float64 else np.float32
        dz[:S] = (dy[:S].astype(accumulator) * scale[:S, None].astype(accumulator)).astype(dy.dtype)
    results = [
        (reference.grouped_mm(x, w, sizes, d["bias"], scale, layout=layout), K + 2),
        (reference.grouped_mm(dy, w, sizes, None, scale, layout=back), N + 1),
        (reference.grouped_wgrad(x, dz, sizes, layout=layout), rows),
        (reference.grouped_bias_grad(dz, sizes), rows),
    ]
    if with_scale:
        product, bound = reference.grouped_mm(dy, w, sizes, layout=back)
        value, size = np.zeros((2, T))
        value[:S] = (x[:S].astype(np.float64) * product[:S]).sum(1)
        size[:S] = (np.abs(x[:S].astype(np.float64)) * bound[:S]).sum(1)
        for g, span in reference.groups(sizes):
            terms = dy[span].astype(np.float64) * d["bias"][g].astype(np.float64)
            value[span] += terms.sum(1)
            size[span] += np.abs(terms).sum(1)
        results.append(((value, size), K + 2 * N))
    return results


NAMES = ["y", "dx", "dW", "db", "d row_scale"]


@pytest.mark.parametrize(("name", "dtype"), ALL)
@pytest.mark.parametrize("layout", ["gnk", "gkn"])
@pytest.mark.parametrize("with_scale", [False, True], ids=["", "row_scale"])
def test_linear_forward_and_gradients(rng, name, dtype, layout, with_scale):
    case = BY_NAME[name]
    d = _draw(rng, case, dtype, layout)
    arguments = [d["x"], d["weight"], d["bias"], d["row_scale"] if with_scale else None]

    def with_torch(x, w, b, s):
        return functional.grouped_linear(x, w, to_torch(d["sizes"]), b, row_scale=s, weight_layout=layout)

    def with_jax(x, w, b, s):
        return jax_grouped.grouped_linear(x, w, to_jax(d["sizes"]), b, row_scale=s, weight_layout=layout)

    in_torch = torch_gradients(with_torch, arguments, d["dy"])
    in_jax = jax_gradients(with_jax, arguments, d["dy"])
    for what, t, j, (expected, terms) in zip(
        NAMES, in_torch, in_jax, _linear_reference(d, layout, with_scale), strict=False
    ):
        assert_close(from_torch(t), expected, terms, what=what)
        assert_bits(from_torch(t), from_jax(j), f"{what}: torch against JAX")


@pytest.mark.parametrize(("name", "dtype"), [(c.name, d) for c in CASES for d in ("bf16", "f32")])
@pytest.mark.parametrize("layout", ["gnk", "gkn"])
def test_buffers_of_torch(rng, name, dtype, layout):
    case = BY_NAME[name]
    d = _draw(rng, case, dtype, layout)
    arguments = [d["x"], d["weight"], d["bias"], d["row_scale"]]
    sizes = to_torch(d["sizes"])
    torch_dtype = to_torch(d["x"][:0]).dtype
    out = Guarded((case.T, case.N), torch_dtype)
    dgrad = Guarded((case.T, case.K), torch_dtype)
    wgrad = Guarded(d["weight"].shape, torch.float32)

    def plain(x, w, b, s):
        return functional.grouped_linear(x, w, sizes, b, row_scale=s, weight_layout=layout)

    def into_buffers(x, w, b, s):
        return functional.grouped_linear(
            x, w, sizes, b, row_scale=s, weight_layout=layout, out=out.tensor, dgrad_out=dgrad.tensor,
            wgrad_out=wgrad.tensor, accumulate_wgrad=True,
        )  # fmt: skip

    expected = torch_gradients(plain, arguments, d["dy"])
    found = torch_gradients(into_buffers, arguments, d["dy"])
    assert found[0].data_ptr() == out.tensor.data_ptr() or case.T * case.N == 0
    assert found[1].data_ptr() == dgrad.tensor.data_ptr() or case.T * case.K == 0
    assert found[2] is None
    for buffer, value in ((out, expected[0]), (dgrad, expected[1])):
        buffer.check()
        assert_bits(from_torch(buffer.tensor[: case.S]), from_torch(value[: case.S]))
        assert bool((buffer.tensor[case.S :] == SENTINEL).all())
        assert bool((value[case.S :] == 0).all())
    wgrad.check()
    dz = (to_torch(d["dy"]).float() * to_torch(d["row_scale"]).float()[:, None]).to(torch_dtype)
    old = np.full(d["weight"].shape, SENTINEL)
    rows = max(case.sizes, default=0)
    accumulated = reference.grouped_wgrad(d["x"], from_torch(dz), d["sizes"], layout=layout, old=old)
    assert_close(from_torch(wgrad.tensor), accumulated, rows + 1, what="accumulated dW")


@pytest.mark.parametrize("kind", ["swiglu", "clamped_swiglu", "geglu", "squared_relu"])
@pytest.mark.parametrize("gate_layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
@pytest.mark.parametrize("name", ["odd_everything", "tail", "empty_middle", "all_empty", "crosses_tiles", "no_rows"])
def test_activation(rng, name, dtype, kind, gate_layout):
    case = BY_NAME[name]
    gated = kind != "squared_relu"
    sizes = np.array(case.sizes, np.int64)
    h = poison_tail(draw(rng, (case.T, case.N * (2 if gated else 1)), dtype, 3.0), case.S)
    scale = poison_tail(draw(rng, (case.T,), dtype), case.S)
    dy = poison_tail(draw(rng, (case.T, case.N), dtype), case.S)
    options = {"gate_layout": gate_layout}

    def with_torch(h, s):
        return functional.grouped_activation(h, to_torch(sizes), kind, row_scale=s, **options)

    def with_jax(h, s):
        return jax_grouped.grouped_activation(h, to_jax(sizes), kind, row_scale=s, **options)

    in_torch = torch_gradients(with_torch, [h, scale], dy)
    in_jax = jax_gradients(with_jax, [h, scale], dy)
    expected = [reference.grouped_activation(h, sizes, kind, scale, **options)]
    expected += reference.grouped_activation_grad(h, dy, sizes, kind, scale, **options)
    # Terms: the roundings of exp, of the quotient and of the products; of d row_scale also those of its sum.
    for what, t, j, value, terms in zip(
        ("y", "dh", "d row_scale"), in_torch, in_jax, expected, (16, 16, 16 + case.N), strict=True
    ):
        assert_close(from_torch(t), value, terms, what=what)
        assert_bits(from_torch(t), from_jax(j), f"{what}: torch against JAX")


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_both_storages_give_the_same_bits(rng, dtype):
    for name in ("odd_everything", "crosses_tiles", "even", "long_k"):
        case = BY_NAME[name]
        d = _draw(rng, case, dtype, "gnk")
        sizes, dy = to_torch(d["sizes"]), d["dy"]
        other = np.ascontiguousarray(d["weight"].transpose(0, 2, 1))
        one = torch_gradients(lambda x, w, s=sizes: functional.grouped_linear(x, w, s), [d["x"], d["weight"]], dy)
        two = torch_gradients(
            lambda x, w, s=sizes: functional.grouped_linear(x, w, s, weight_layout="gkn"), [d["x"], other], dy
        )
        assert_bits(from_torch(one[0]), from_torch(two[0]), f"{name} y")
        assert_bits(from_torch(one[1]), from_torch(two[1]), f"{name} dx")
        assert_bits(from_torch(one[2]), from_torch(two[2]).transpose(0, 2, 1), f"{name} dW")


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_company(rng, dtype):
    """The rows of one group among others, and alone, at another place."""
    K, N, rows = 72, 136, 45
    x, dy = draw(rng, (rows, K), dtype), draw(rng, (rows, N), dtype)
    weight = draw(rng, (3, N, K), dtype)
    before, after = 71, 130
    many_x = np.concatenate([draw(rng, (before, K), dtype), x, draw(rng, (after, K), dtype)])
    many_dy = np.concatenate([draw(rng, (before, N), dtype), dy, draw(rng, (after, N), dtype)])
    many_sizes = torch.tensor([before, rows, after], device="cuda")
    alone_sizes = torch.tensor([0, rows, 0], device="cuda")
    many = torch_gradients(lambda x, w: functional.grouped_linear(x, w, many_sizes), [many_x, weight], many_dy)
    alone = torch_gradients(lambda x, w: functional.grouped_linear(x, w, alone_sizes), [x, weight], dy)
    span = slice(before, before + rows)
    assert_bits(from_torch(many[0][span]), from_torch(alone[0]), "y")
    assert_bits(from_torch(many[1][span]), from_torch(alone[1]), "dx")
    assert_bits(from_torch(many[2][1]), from_torch(alone[2][1]), "dW")


def test_property_sizes(rng):
    """Random sizes with empty groups and a tail, int32 and int64, against fp64."""
    for draw_number in range(25):
        G = int(rng.integers(1, 40))
        sizes = rng.integers(0, 30, G) * (rng.random(G) > 0.3)
        T = int(sizes.sum() + rng.integers(0, 20))
        K, N = (int(v) for v in rng.integers(1, 150, 2))
        x = poison_tail(draw(rng, (T, K), "bf16"), int(sizes.sum()))
        weight = draw(rng, (G, N, K), "bf16")
        given = to_torch(sizes.astype(np.int32 if draw_number % 2 else np.int64))
        y = functional.grouped_linear(to_torch(x), to_torch(weight), given)
        assert_close(from_torch(y), reference.grouped_mm(x, weight, sizes), K)
