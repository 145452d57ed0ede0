# SPDX-License-Identifier: Apache-2.0
"""torch_grouped.functional.grouped_linear: results and gradients against fp64, with and without buffers."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch_calls
from cases import BY_NAME, CASES, SENTINEL, draw
from problems import is_narrow, linear_problem, poisoned_buffer
from tolerances import DTYPES, assert_bits, assert_close
from torch_calls import Witness, leaves, to_numpy, to_torch

from torch_grouped.functional import grouped_linear

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_layout = pytest.mark.parametrize("layout", ["gnk", "gkn"])
HARD = BY_NAME["empty_middle"]  # a tail, empty groups, an odd N
SUBSETS: list[dict[str, bool]] = [
    dict(zip(("out", "dgrad_out", "wgrad_out"), s, strict=True)) for s in product([False, True], repeat=3)
]


def assert_expected(found, problem, **options):
    expected = problem.expected(**options)
    assert found.keys() <= expected.keys()
    for name in found:
        reference_pair, terms = expected[name]
        assert_close(found[name], reference_pair, terms, what=name)


def buffers_for(problem, dtype, **wanted) -> dict[str, Any]:
    shapes = {
        "out": problem.dy.shape,
        "dgrad_out": problem.x.shape,
        "wgrad_out": problem.weight.shape,
    }
    found = {}
    for name, is_wanted in wanted.items():
        if is_wanted:
            S = problem.S if name != "wgrad_out" else len(problem.weight)
            found[name] = to_torch(poisoned_buffer(shapes[name], dtype, S, SENTINEL))
    return found


@every_layout
@every_dtype
@every_case
def test_result_and_gradients(rng, case, dtype, layout):
    problem = linear_problem(rng, case, dtype, layout=layout)
    found = torch_calls.linear(problem)
    assert found.keys() == {"y", "x", "weight", "bias", "row_scale"}
    assert {a.dtype for a in found.values()} == {DTYPES[dtype]}
    assert_expected(found, problem)
    for name in ("y", "x", "row_scale"):
        assert_bits(found[name][case.S :], np.zeros_like(found[name][case.S :]), f"the tail of {name}")


@pytest.mark.parametrize(("bias", "row_scale"), [(False, False), (True, False), (False, True)])
@every_dtype
def test_without_bias_or_row_scale(rng, dtype, bias, row_scale):
    for case in CASES:
        problem = linear_problem(rng, case, dtype, bias=bias, row_scale=row_scale, layout="gnk")
        found = torch_calls.linear(problem)
        assert ("bias" in found, "row_scale" in found) == (bias, row_scale)
        assert_expected(found, problem)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@every_case
def test_f32_bias_and_row_scale_beside_16_bit(rng, case, dtype):
    problem = linear_problem(rng, case, dtype, vector_dtype="f32", layout="gnk")
    found = torch_calls.linear(problem)
    assert found["bias"].dtype == found["row_scale"].dtype == np.float32
    assert_expected(found, problem)


@every_dtype
@every_case
def test_buffers_change_no_bit_and_keep_their_tails(rng, case, dtype):
    problem = linear_problem(rng, case, dtype, layout="gnk")
    S = case.S
    plain = torch_calls.linear(problem)
    for subset in SUBSETS:
        buffers = buffers_for(problem, dtype, **subset)
        found = torch_calls.linear(problem, **buffers)
        what = f"with {', '.join(buffers)}: "
        for name, rows in (("y", S), ("x", S), ("bias", None), ("row_scale", S)):
            assert_bits(found[name][:rows], plain[name][:rows], what + name)
        assert ("weight" in found) == (not subset["wgrad_out"])
        dw = to_numpy(buffers["wgrad_out"]) if subset["wgrad_out"] else found["weight"]
        assert_bits(dw, plain["weight"], what + "weight")
        for buffer, name in (("out", "y"), ("dgrad_out", "x")):
            tail = found[name][S:]
            assert_bits(tail, np.full_like(tail, SENTINEL if subset[buffer] else 0), what + f"the tail of {name}")
            if subset[buffer]:
                assert_bits(to_numpy(buffers[buffer]), found[name], what + buffer)
        assert_bits(found["row_scale"][S:], np.zeros_like(found["row_scale"][S:]), what + "the tail of row_scale")


@every_dtype
def test_whether_row_scale_needs_a_gradient_changes_no_bit(rng, dtype):
    for case, vector_dtype in product(CASES, {dtype, "f32"} if is_narrow(dtype) else {dtype}):
        problem = linear_problem(rng, case, dtype, vector_dtype=vector_dtype, layout="gnk")
        fused = torch_calls.linear(problem, without_grad=("row_scale",))
        apart = torch_calls.linear(problem)
        for name, value in fused.items():
            assert_bits(value, apart[name], f"{name} of {case}")


@every_dtype
def test_which_gradients_are_asked_for_changes_no_bit(rng, dtype):
    problem = linear_problem(rng, HARD, dtype, layout="gnk")
    every = torch_calls.linear(problem)
    names = tuple(problem.inputs)
    for asked in product([False, True], repeat=len(names)):
        without = tuple(name for name, is_asked in zip(names, asked, strict=True) if not is_asked)
        found = torch_calls.linear(problem, without_grad=without)
        assert set(found) == {"y", *names} - set(without)
        for name, value in found.items():
            assert_bits(value, every[name], f"{name} without {without}")


@every_layout
@every_dtype
def test_both_layouts_give_the_same_bits(rng, dtype, layout):
    for case in CASES:
        problem = linear_problem(rng, case, dtype, layout="gnk")
        found, other = torch_calls.linear(problem), torch_calls.linear(problem.in_layout("gkn"))
        other["weight"] = other["weight"].transpose(0, 2, 1)
        for name, value in found.items():
            assert_bits(other[name], value, f"{name} of {case}")


@pytest.mark.parametrize("form", ["list", "tuple", "int32", "int64"])
@every_case
def test_forms_of_sizes(rng, case, form):
    problem = linear_problem(rng, case, "bf16", layout="gnk")
    sizes = {"list": list, "tuple": tuple}.get(form, lambda s: torch.tensor(s, dtype=getattr(torch, form)))(case.sizes)
    expected = torch_calls.linear(problem)
    for name, value in torch_calls.linear(problem, sizes=sizes).items():
        assert_bits(value, expected[name], name)


def test_result_is_the_buffer_and_the_buffers_stay_plain(rng):
    problem = linear_problem(rng, HARD, "bf16", layout="gnk")
    inputs = leaves(problem.inputs)
    buffers = buffers_for(problem, "bf16", out=True, dgrad_out=True, wgrad_out=True)
    addresses = {name: b.data_ptr() for name, b in buffers.items()}
    y = grouped_linear(group_sizes=to_torch(problem.sizes), **inputs, **buffers)
    assert y.data_ptr() == addresses["out"]
    assert y.requires_grad
    y.backward(to_torch(problem.dy))
    for name, buffer in buffers.items():
        assert buffer.data_ptr() == addresses[name]
        assert not buffer.requires_grad, name
        assert buffer.grad_fn is None, name
        assert buffer.is_leaf, name


@pytest.mark.parametrize("scale_needs_grad", [False, True])
def test_gradient_handed_upstream_is_the_buffer(rng, scale_needs_grad):
    problem = linear_problem(rng, HARD, "f32", layout="gnk")
    inputs = leaves(problem.inputs, () if scale_needs_grad else ("row_scale",))
    dgrad_out = buffers_for(problem, "f32", dgrad_out=True)["dgrad_out"]
    seen = []
    x = inputs.pop("x")
    y = grouped_linear(Witness.apply(x, seen), group_sizes=to_torch(problem.sizes), dgrad_out=dgrad_out, **inputs)
    y.backward(to_torch(problem.dy))
    assert seen == [dgrad_out.data_ptr()]
    assert_bits(to_numpy(x.grad), to_numpy(dgrad_out))
    assert_bits(to_numpy(dgrad_out)[: HARD.S], torch_calls.linear(problem)["x"][: HARD.S])


def test_second_consumer_of_x_gets_its_sum(rng):
    problem = linear_problem(rng, BY_NAME["even"], "f32", layout="gnk")
    inputs = leaves(problem.inputs)
    dgrad_out = buffers_for(problem, "f32", dgrad_out=True)["dgrad_out"]
    x = inputs.pop("x")
    between = x * 1
    y = grouped_linear(between, group_sizes=to_torch(problem.sizes), dgrad_out=dgrad_out, **inputs)
    (y * to_torch(problem.dy)).sum().add(between.sum()).backward()
    assert_bits(to_numpy(x.grad), torch_calls.linear(problem)["x"] + np.float32(1))


@pytest.mark.parametrize("layout", ["gnk", "gkn"])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("dtype", "target"),
    [("f32", "f32"), ("f64", "f64"), ("bf16", "bf16"), ("bf16", "f32"), ("f16", "f16"), ("f16", "f32")],
)
def test_weight_gradient_goes_to_its_buffer_alone(rng, dtype, target, accumulate, layout):
    for case in CASES:
        problem = linear_problem(rng, case, dtype, layout=layout)
        old = draw(rng, problem.weight.shape, target)
        wgrad_out = to_torch(old if accumulate else np.full_like(old, np.nan))
        inputs = leaves(problem.inputs)
        y = grouped_linear(
            group_sizes=to_torch(problem.sizes),
            weight_layout=layout,
            wgrad_out=wgrad_out,
            accumulate_wgrad=accumulate,
            **inputs,
        )
        y.backward(to_torch(problem.dy))
        assert inputs["weight"].grad is None
        reference_pair, terms = problem.expected(old_wgrad=old if accumulate else None)["weight"]
        assert_close(to_numpy(wgrad_out), reference_pair, terms, what=str(case))
        empty = problem.sizes == 0
        untouched = old[empty] if accumulate else np.zeros_like(old[empty])
        assert_bits(to_numpy(wgrad_out)[empty], untouched, f"empty groups of {case}")


@pytest.mark.parametrize(("target", "expected"), [(torch.float32, 556), (torch.bfloat16, 256)])
def test_accumulating_over_microbatches(target, expected):
    # 256 + 1 is 256 in bf16, however often.
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    weight = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    main_grad = torch.full((1, 1, 1), 256, dtype=target)
    for _ in range(300):
        grouped_linear(one, weight, [1], wgrad_out=main_grad, accumulate_wgrad=True).backward(one)
    assert main_grad.item() == expected


@pytest.mark.parametrize(("name", "buffer"), [("x", "dgrad_out"), ("weight", "wgrad_out")])
def test_buffer_of_a_gradient_that_nobody_wants_is_left_alone(rng, name, buffer):
    problem = linear_problem(rng, HARD, "f32", layout="gnk")
    buffers = buffers_for(problem, "f32", **{buffer: True})
    before = to_numpy(buffers[buffer])
    torch_calls.linear(problem, without_grad=(name,), **buffers)
    assert_bits(to_numpy(buffers[buffer]), before)


def test_gradients_that_are_not_contiguous(rng):
    problem = linear_problem(rng, BY_NAME["even"], "f32", layout="gnk")
    sizes = to_torch(problem.sizes)

    def gradients(backward):
        inputs = leaves(problem.inputs)
        backward(grouped_linear(group_sizes=sizes, **inputs))
        return {name: to_numpy(t.grad) for name, t in inputs.items()}

    ones = torch.ones(problem.dy.shape)
    expected = gradients(lambda y: y.backward(ones))
    expanded = gradients(lambda y: y.sum().backward())
    turned = gradients(lambda y: y.backward(torch.ones(*problem.dy.shape[::-1]).t()))
    for name, value in expected.items():
        assert_bits(expanded[name], value, f"{name}, expanded")
        assert_bits(turned[name], value, f"{name}, transposed")


def test_slices_of_one_arena_are_buffers(rng):
    # A caller's arena: y and dx side by side, the rest of it untouched.
    problem = linear_problem(rng, HARD, "f32", layout="gnk")
    T, K, N = HARD.T, HARD.K, HARD.N
    arena = torch.full((T * (K + N) + 16,), SENTINEL)
    begin = -(-T * N // 4) * 4
    out, dgrad_out = arena[: T * N].view(T, N), arena[begin : begin + T * K].view(T, K)
    expected = torch_calls.linear(problem)
    found = torch_calls.linear(problem, out=out, dgrad_out=dgrad_out)
    assert_bits(found["y"][: HARD.S], expected["y"][: HARD.S])
    assert_bits(to_numpy(dgrad_out)[: HARD.S], expected["x"][: HARD.S])
    assert (arena[begin + T * K :] == SENTINEL).all()
    assert (arena[T * N : begin] == SENTINEL).all()
    assert not arena.requires_grad


@pytest.mark.parametrize("threads", [1, 3])
def test_number_of_threads_changes_no_bit(rng, threads):
    problem = linear_problem(rng, BY_NAME["crosses_tiles"], "f32", layout="gnk")
    before = torch.get_num_threads()
    expected = torch_calls.linear(problem)
    try:
        torch.set_num_threads(threads)
        found = torch_calls.linear(problem)
    finally:
        torch.set_num_threads(before)
    for name, value in expected.items():
        assert_bits(found[name], value, name)
