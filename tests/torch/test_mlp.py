# SPDX-License-Identifier: Apache-2.0
"""torch_grouped.functional.grouped_mlp: the bits of its three parts, buffers, what is saved, what is refused."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases import BY_NAME, CASES, SENTINEL
from mlp_problems import BUFFERS, mlp_problem
from problems import ACTIVATION_KINDS
from tolerances import DTYPES, assert_bits, assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch_calls import Witness, leaves, to_numpy, to_torch
from torch_mlp_calls import composed, mlp

from grouped_core import Op, call_count
from torch_grouped.functional import grouped_activation, grouped_linear, grouped_mlp

FORMS = [
    (k, g)
    for k in ACTIVATION_KINDS
    for g in ("concatenated", "interleaved")
    if k != "squared_relu" or g == "concatenated"
]
every_form = pytest.mark.parametrize(("kind", "gate_layout"), FORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
HARD = BY_NAME["empty_middle"]
EVEN = BY_NAME["even"]


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_bits(found[name], value, name)


def buffers_for(problem, names=BUFFERS, dtype="f32") -> dict[str, Any]:
    return {n: to_torch(b) for n, b in problem.buffers(dtype).items() if n in names}


@every_form
@every_dtype
def test_bits_are_those_of_the_parts(rng, dtype, kind, gate_layout):
    for case in CASES:
        problem = mlp_problem(rng, case, dtype, kind, gate_layout)
        assert_same(mlp(problem), mlp(problem, composed))


@every_dtype
def test_against_fp64_part_by_part(rng, dtype):
    """Each part's rounded result is the next one's input, in the reference too."""
    problem = mlp_problem(rng, HARD, dtype)
    i, sizes = problem.inputs, problem.sizes
    found = mlp(problem)
    h = to_numpy(grouped_linear(to_torch(i["x"]), to_torch(i["fc1_weight"]), list(HARD.sizes), to_torch(i["fc1_bias"])))
    scale = to_torch(i["row_scale"])
    a = to_numpy(
        grouped_activation(to_torch(h), list(HARD.sizes), problem.kind, row_scale=scale, gate_layout="concatenated")
    )
    assert_close(h, reference.grouped_mm(i["x"], i["fc1_weight"], sizes, i["fc1_bias"]), HARD.K + 1)
    y = reference.grouped_mm(a, i["fc2_weight"], sizes, i["fc2_bias"])
    assert_close(found["y"], y, HARD.N + 1)
    assert_close(found["fc2_weight"], reference.grouped_wgrad(a, problem.dy, sizes), max(HARD.sizes))
    assert_close(found["fc2_bias"], reference.grouped_bias_grad(problem.dy, sizes), max(HARD.sizes))


@pytest.mark.parametrize(("bias", "row_scale"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("layout", ["gnk", "gkn"])
def test_absent_arguments(rng, layout, bias, row_scale):
    for dtype in ("f32", "bf16"):
        problem = mlp_problem(rng, HARD, dtype, bias=bias, row_scale=row_scale, layout=layout)
        assert_same(mlp(problem), mlp(problem, composed))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_f32_vectors_beside_16_bit(rng, dtype):
    problem = mlp_problem(rng, HARD, dtype, vector_dtype="f32")
    assert_same(mlp(problem), mlp(problem, composed))


@pytest.mark.parametrize("form", ["list", "int32", "int64"])
def test_forms_of_sizes(rng, form):
    problem = mlp_problem(rng, HARD, "f32")
    sizes = list(HARD.sizes) if form == "list" else torch.tensor(HARD.sizes, dtype=getattr(torch, form))
    assert_same(mlp(problem, sizes=sizes), mlp(problem))


@pytest.mark.parametrize("case", ["tail", "all_empty", "one_group", "one_row", "no_rows", "many_groups"])
def test_buffers_change_no_bit_and_keep_their_tails(rng, case):
    problem = mlp_problem(rng, BY_NAME[case], "bf16")
    plain, S = mlp(problem), problem.S
    for wanted in product([False, True], repeat=4):
        names = [n for n, w in zip(BUFFERS, wanted, strict=True) if w]
        buffers = buffers_for(problem, names, "bf16")
        found = mlp(problem, **buffers)
        for name, result in (("fc1_wgrad_out", "fc1_weight"), ("fc2_wgrad_out", "fc2_weight")):
            if name in names:
                assert result not in found
                found[result] = to_numpy(buffers[name])
        for name, buffer, S_ in (("y", "out", S), ("x", "dgrad_out", S)):
            if buffer in names:
                assert_bits(found[name], to_numpy(buffers[buffer]), buffer)
                assert (found[name][S_:] == SENTINEL).all(), f"the tail of {buffer} with {names}"
                found[name][S_:] = 0
        assert_same(found, plain)


@pytest.mark.parametrize("target", ["f32", "bf16"])
def test_accumulation(rng, target):
    problem = mlp_problem(rng, HARD, "bf16")
    found = []
    for function in (grouped_mlp, composed):
        buffers = buffers_for(problem, ["fc1_wgrad_out", "fc2_wgrad_out"], target)
        for buffer in buffers.values():
            buffer.fill_(1)
        mlp(problem, function, accumulate_wgrad=True, **buffers)
        found.append({n: to_numpy(b) for n, b in buffers.items()})
    assert_same(*found)
    # An empty group's gradient is what the buffer held.
    assert (found[0]["fc1_wgrad_out"][1] == 1).all()


def test_result_is_the_buffer_and_upstream_gets_the_other(rng):
    problem = mlp_problem(rng, HARD, "bf16")
    inputs, buffers, seen = leaves(problem.inputs), buffers_for(problem, dtype="bf16"), []
    x = inputs.pop("x")
    y = grouped_mlp(Witness.apply(x, seen), group_sizes=to_torch(problem.sizes), **inputs, **problem.options, **buffers)
    assert y.data_ptr() == buffers["out"].data_ptr()
    y.backward(to_torch(problem.dy))
    assert seen == [buffers["dgrad_out"].data_ptr()]
    for name, buffer in buffers.items():
        assert not buffer.requires_grad, name
        assert buffer.grad_fn is None, name


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_which_gradients_are_asked_for_changes_no_bit(rng, recompute):
    problem = mlp_problem(rng, HARD, "f32", "geglu")
    every = mlp(problem, recompute_activation=recompute)
    names = list(problem.inputs)
    for wanted in product([False, True], repeat=len(names)):
        without = tuple(n for n, w in zip(names, wanted, strict=True) if not w)
        if len(without) == len(names):
            continue
        found = mlp(problem, without_grad=without, recompute_activation=recompute)
        assert set(found) == {"y", *names} - set(without)
        assert_same(found, {name: every[name] for name in found})


def saved_by(function) -> list[torch.Tensor]:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function()
    return saved


X, W1, W2, SIZES, SCALE = "x", "fc1_weight", "fc2_weight", "sizes", "row_scale"
SAVED = [
    # wanted gradients, activation kept, what is saved: inputs by name, h and a by their columns
    ([X, W1, W2, SCALE], True, [X, W1, W2, SIZES, SCALE, "h", "a"]),
    ([X, W1, W2, SCALE], False, [X, W1, W2, SIZES, SCALE, "h"]),
    ([X], True, [W1, W2, SIZES, SCALE, "h"]),
    ([W2], True, [W2, SIZES, "a"]),
    ([W2], False, [W2, SIZES, SCALE, "h"]),
    (["fc2_bias"], True, [SIZES]),
    (["fc1_bias"], True, [W2, SIZES, SCALE, "h"]),
]


@pytest.mark.parametrize(
    ("wanted", "keep", "expected"), SAVED, ids=lambda v: "-".join(v) if isinstance(v, list) else ""
)
@pytest.mark.parametrize("with_buffers", [False, True])
def test_saves_what_is_needed_and_nothing_more(rng, wanted, keep, expected, with_buffers):
    problem = mlp_problem(rng, EVEN, "f32")
    inputs = leaves(problem.inputs, tuple(set(problem.inputs) - set(wanted)))
    sizes = to_torch(problem.sizes)
    buffers = buffers_for(problem) if with_buffers else {}
    widths = {2 * EVEN.N: "h", EVEN.N: "a"}

    def forward():
        y = grouped_mlp(group_sizes=sizes, **inputs, **problem.options, **buffers, recompute_activation=not keep)
        assert not with_buffers or y.data_ptr() == buffers["out"].data_ptr()

    pointers = {t.data_ptr(): n for n, t in [*inputs.items(), (SIZES, sizes)]}
    found = [pointers.get(t.data_ptr()) or widths[t.shape[-1]] for t in saved_by(forward)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("row_scale", [False, True])
def test_recomputing_the_activation_changes_no_bit_and_costs_one_pass(rng, row_scale):
    problem = mlp_problem(rng, HARD, "bf16", "clamped_swiglu", "interleaved", row_scale=row_scale)
    counts = []
    for recompute in (False, True):
        before = [call_count(op) for op in Op]
        found = mlp(problem, recompute_activation=recompute)
        counts.append({op: call_count(op) - n for op, n in zip(Op, before, strict=True) if call_count(op) != n})
        assert_same(found, mlp(problem, composed))
    assert counts[0] == {Op.MM: 4, Op.WGRAD: 2, Op.BIAS_GRAD: 2, Op.ACTIVATION: 1, Op.ACTIVATION_GRAD: 1}
    assert counts[1] == {**counts[0], Op.ACTIVATION: 2}


def test_out_may_be_overwritten_before_backward(rng):
    problem = mlp_problem(rng, HARD, "f32")
    expected = mlp(problem)
    inputs, out = leaves(problem.inputs), torch.empty(problem.dy.shape)
    y = grouped_mlp(group_sizes=to_torch(problem.sizes), **inputs, **problem.options, out=out)
    out.zero_()
    y.backward(to_torch(problem.dy))
    for name, t in inputs.items():
        assert_bits(to_numpy(t.grad), expected[name], name)


def test_overwriting_what_something_saved_raises_in_backward(rng):
    problem = mlp_problem(rng, EVEN, "f32")
    inputs, out = leaves(problem.inputs), torch.empty(problem.dy.shape)
    sizes = to_torch(problem.sizes)
    loss = grouped_mlp(group_sizes=sizes, **inputs, **problem.options, out=out).pow(2).sum()
    with torch.no_grad():
        grouped_mlp(group_sizes=sizes, **inputs, **problem.options, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_reused_buffers_link_no_iterations(rng):
    problem = mlp_problem(rng, HARD, "f32")
    inputs, buffers = leaves(problem.inputs), buffers_for(problem)
    sizes, first = to_torch(problem.sizes), None
    for _ in range(5):
        y = grouped_mlp(group_sizes=sizes, **inputs, **problem.options, **buffers)
        assert y.grad_fn is not None
        # AccumulateGrad of the leaves and nothing before.
        assert {type(n).__name__ for n, _ in y.grad_fn.next_functions if n is not None} == {"AccumulateGrad"}
        y.backward(to_torch(problem.dy))
        now = {n: to_numpy(b) for n, b in buffers.items()}
        first = first or now
        assert_same(now, first)


class SeenOperators(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recompute", [False, True])
def test_with_and_without_the_operator_around_its_parts(rng, recompute):
    """In plain eager mode the parts are called without one; whoever looks for operators sees it."""
    problem = mlp_problem(rng, HARD, "bf16")
    plain = mlp(problem, recompute_activation=recompute)
    with SeenOperators() as seen:
        assert_same(mlp(problem, recompute_activation=recompute), plain)
    assert [n for n in seen.names if n.startswith("grouped_ffi::")] == ["grouped_ffi::mlp", "grouped_ffi::mlp_grad"]


def test_meta_tensors_are_checked_and_nothing_runs():
    arguments = {n: t.detach().to("meta") for n, t in good().items()}
    before = [call_count(op) for op in Op]
    assert grouped_mlp(**arguments).shape == (T, N)
    with pytest.raises(ValueError, match=r"^fc2_weight must be \["):
        grouped_mlp(**{**arguments, "fc2_weight": arguments["fc2_weight"][0]})
    assert [call_count(op) for op in Op] == before


T, K, F, N, G = 6, 4, 8, 8, 2


def good() -> dict[str, Any]:
    return {
        "x": torch.ones(T, K, requires_grad=True),
        "fc1_weight": torch.ones(G, 2 * F, K),
        "fc2_weight": torch.ones(G, N, F),
        "group_sizes": torch.tensor([3, 2]),
        "fc1_bias": torch.ones(G, 2 * F),
        "fc2_bias": torch.ones(G, N),
        "row_scale": torch.ones(T),
        "out": torch.full((T, N), SENTINEL),
        "dgrad_out": torch.full((T, K), SENTINEL),
        "fc1_wgrad_out": torch.full((G, 2 * F, K), SENTINEL),
        "fc2_wgrad_out": torch.full((G, N, F), SENTINEL),
    }


CONTIGUOUS = "contiguous, 16-byte aligned"
BAD_VALUES = [
    ("x", torch.ones(T), "x must be [T, K] f16, bf16, f32 or f64; got [6] f32."),
    ("fc1_weight", torch.ones(G, 2 * F, K + 1), "fc1_weight must be [G, N, K=4] f32; got [2, 16, 5] f32."),
    ("fc1_weight", torch.ones(G, 2 * F), "fc1_weight must be [G, N, K=4] f32; got [2, 16] f32."),
    ("fc1_weight", torch.ones(G, 15, K), "fc1_bias must be [G=2, N=15] f32; got [2, 16] f32."),
    ("fc2_weight", torch.ones(G, N, F + 1), "fc2_weight must be [G, N, K=8] f32; got [2, 8, 9] f32."),
    ("fc2_weight", torch.ones(G + 1, N, F), "group_sizes must be [G=3] i32 or i64; got [2] i64."),
    ("group_sizes", torch.tensor([3]), "group_sizes must be [G=2] i32 or i64; got [1] i64."),
    ("fc2_bias", torch.ones(G, N + 1), "fc2_bias must be [G=2, N=8] f32; got [2, 9] f32."),
    ("row_scale", torch.ones(T + 1), "row_scale must be [T=6] f32; got [7] f32."),
    ("out", torch.ones(T + 1, N), f"out must be [T=6, N=8] f32, {CONTIGUOUS}; got [7, 8] f32."),
    ("dgrad_out", torch.ones(T, N), f"dgrad_out must be [T=6, K=4] f32, {CONTIGUOUS}; got [6, 8] f32."),
    ("fc1_wgrad_out", torch.ones(G, N, F), f"fc1_wgrad_out must be [G=2, N=16, K=4] f32, {CONTIGUOUS}; got"),
    ("fc2_wgrad_out", torch.ones(G, N), f"fc2_wgrad_out must be [G=2, N=8, K=8] f32, {CONTIGUOUS}; got [2, 8] f32."),
    ("out", torch.ones(T, 2 * N)[:, ::2], "out must be contiguous; got shape [6, 8] with strides [16, 2]."),
    ("out", torch.ones(T, N, requires_grad=True), "out must not require grad: it is memory to write into;"),
    ("dgrad_out", torch.ones(T, K, requires_grad=True), "dgrad_out must not require grad"),
    ("fc2_wgrad_out", torch.ones(G, N, F, requires_grad=True), "fc2_wgrad_out must not require grad"),
    ("out", torch.ones(T * N + 1)[1:].view(T, N), "out must be 16-byte aligned; got an address 4 bytes past"),
    ("dgrad_out", torch.ones(T * K + 1)[1:].view(T, K), "dgrad_out must be 16-byte aligned; got"),
]
BAD_TYPES = [
    ("fc1_weight", torch.ones(G, 2 * F, K).double(), "fc1_weight must be [G=2, N=16, K=4] f32; got"),
    ("fc2_weight", torch.ones(G, N, F).half(), "fc2_weight must be [G=2, N=8, K=8] f32; got [2, 8, 8] f16."),
    ("group_sizes", torch.ones(G), "group_sizes must be [G=2] i32 or i64; got [2] f32."),
    ("out", torch.ones(T, N).double(), f"out must be [T=6, N=8] f32, {CONTIGUOUS}; got [6, 8] f64."),
    ("row_scale", torch.ones(T).half(), "row_scale must be [T=6] f32; got [6] f16."),
]


def assert_nothing_ran(arguments, before):
    assert [call_count(op) for op in Op] == before
    for name in BUFFERS:
        if arguments[name].shape == good()[name].shape and arguments[name].dtype == torch.float32:
            assert (arguments[name].detach() != SENTINEL).sum() in (0, arguments[name].numel()), name


@pytest.mark.parametrize(
    ("exception", "name", "value", "words"),
    [(ValueError, *row) for row in BAD_VALUES] + [(TypeError, *row) for row in BAD_TYPES],
    ids=lambda v: v if isinstance(v, str) and len(v) < 20 else "",
)
def test_mistakes_are_told_before_anything_runs(exception, name, value, words):
    arguments = {**good(), name: value}
    before = [call_count(op) for op in Op]
    with pytest.raises(exception) as caught:
        grouped_mlp(**arguments)
    assert str(caught.value).startswith(words)
    assert_nothing_ran(arguments, before)
    assert all((arguments[n] == SENTINEL).all() for n in BUFFERS if n != name)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"activation": "relu"}, 'activation must be one of "swiglu"'),
        ({"gate_layout": "mixed"}, "gate_layout must be one of"),
        ({"weight_layout": "nkg"}, "weight_layout must be one of"),
    ],
)
def test_unknown_names(option, words):
    with pytest.raises(ValueError, match=words):
        grouped_mlp(**good(), **option)


PAIRS = [(b, o) for b in BUFFERS for o in good() if o != b]


@pytest.mark.parametrize(("buffer", "other"), PAIRS)
def test_buffers_may_overlap_nothing(buffer, other):
    arguments = good()
    shapes = {n: arguments[n].shape for n in (buffer, other)}
    whole = torch.full((512,), SENTINEL)
    for name, shape in shapes.items():
        dtype = arguments[name].dtype
        memory = whole[: shape.numel() * (2 if dtype == torch.int64 else 1)]
        arguments[name] = memory.view(dtype).view(shape)
    if other == "group_sizes":
        arguments[other].copy_(torch.tensor([3, 2]))
    before = [call_count(op) for op in Op]
    with pytest.raises(ValueError, match="must not overlap") as caught:
        grouped_mlp(**arguments)
    assert {buffer, other} == set(re.findall(r"^(\w+) must not overlap (\w+);", str(caught.value))[0])
    assert [call_count(op) for op in Op] == before


@pytest.mark.parametrize("buffer", ["dgrad_out", "fc1_wgrad_out", "fc2_wgrad_out"])
def test_a_gradient_that_overlaps_a_buffer_is_refused_in_backward(buffer):
    arguments = good()
    whole = torch.full((512,), SENTINEL)
    for name in ("fc1_weight", "fc2_weight"):
        arguments[name].requires_grad_()
    arguments[buffer] = whole[: arguments[buffer].numel()].view(arguments[buffer].shape)
    y = grouped_mlp(**arguments)
    before = [call_count(op) for op in Op]
    with pytest.raises(ValueError, match=f"^{buffer} must not overlap dy; got memory that they share."):
        y.backward(whole[: y.numel()].view(y.shape))
    assert [call_count(op) for op in Op] == before
    assert (whole == SENTINEL).all()


@pytest.mark.parametrize("G", [65, 1025])
def test_many_groups(rng, G):
    sizes = rng.integers(0, 3, G)
    case = type(HARD)("many", int(sizes.sum()) + 5, 8, 6, tuple(int(s) for s in sizes))
    problem = mlp_problem(rng, case, "f32")
    assert_same(mlp(problem), mlp(problem, composed))


def test_in_modes_without_grad(rng):
    problem = mlp_problem(rng, HARD, "f32")
    expected = mlp(problem)["y"]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = torch.empty(problem.dy.shape)
            y = grouped_mlp(group_sizes=to_torch(problem.sizes), **leaves(problem.inputs), **problem.options, out=out)
            assert not y.requires_grad
            assert y.data_ptr() == out.data_ptr()
            assert_bits(to_numpy(y)[: problem.S], expected[: problem.S])


def test_the_tail_without_buffers_is_zeros(rng):
    problem = mlp_problem(rng, BY_NAME["tail"], "bf16")
    found = mlp(problem)
    for name in ("y", "x", "row_scale"):
        assert_bits(found[name][problem.S :], np.zeros_like(found[name][problem.S :]), name)
