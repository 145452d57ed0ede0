# SPDX-License-Identifier: Apache-2.0
"""Calls of torch_grouped that are refused: the exception's type, the core's whole sentence, before anything runs."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from grouped_core import DType, Op, Options, check
from torch_grouped._describe import describe
from torch_grouped.functional import grouped_activation, grouped_linear, grouped_mlp

T, K, N, G, F = 6, 4, 8, 2, 8
BUFFER = ", contiguous, 16-byte aligned"
COMPUTED = "f16, bf16, f32 or f64"
LINEAR = ("x", "weight", "group_sizes", "bias", "row_scale", "out", "dgrad_out", "wgrad_out")


def linear_arguments(**changes):
    return {
        "x": torch.ones(T, K),
        "weight": torch.ones(G, N, K),
        "group_sizes": torch.tensor([3, 2], dtype=torch.int32),
        "bias": torch.ones(G, N),
        "row_scale": torch.ones(T),
        "out": torch.full((T, N), 7.0),
        "dgrad_out": torch.full((T, K), 7.0),
        "wgrad_out": torch.full((G, N, K), 7.0),
        **changes,
    }


def activation_arguments(**changes):
    return {
        "h": torch.ones(T, 2 * F),
        "group_sizes": torch.tensor([3, 2]),
        "row_scale": torch.ones(T),
        "out": torch.full((T, F), 7.0),
        "dgrad_out": torch.full((T, 2 * F), 7.0),
        **changes,
    }


def misaligned(*shape):
    return torch.ones(torch.Size(shape).numel() + 1)[1:].view(shape)


def bf16(*shape):
    return torch.ones(shape, dtype=torch.bfloat16)


SHARED = torch.full((64,), 7.0)
GNK = ' The layout assumed is weight_layout="gnk"; "gkn" reads [G, K, N].'

# id, what is passed instead, error, the whole message
LINEAR_TABLE = [
    ("x_rank", {"x": torch.ones(2, 3, K)}, ValueError, f"x must be [T, K] {COMPUTED}; got [2, 3, 4] f32."),
    ("x_scalar", {"x": torch.ones(())}, ValueError, f"x must be [T, K] {COMPUTED}; got [] f32."),
    ("x_int", {"x": torch.ones(T, K).int()}, TypeError, f"x must be [T=6, K=4] {COMPUTED}; got [6, 4] i32."),
    (
        "x_transposed",
        {"x": torch.ones(K, T).t()},
        ValueError,
        "x must be contiguous; got shape [6, 4] with strides [1, 6]. Pass a contiguous copy.",
    ),
    (
        "weight_k",
        {"weight": torch.ones(G, K, N)},
        ValueError,
        f"weight must be [G, N, K=4] f32; got [2, 4, 8] f32.{GNK}",
    ),
    (
        "weight_2d",
        {"weight": torch.ones(N, K)},
        ValueError,
        f"weight must be [G, N, K=4] f32; got [8, 4] f32.{GNK}",
    ),
    (
        "weight_dtype",
        {"weight": bf16(G, N, K)},
        TypeError,
        f"weight must be [G=2, N=8, K=4] f32; got [2, 8, 4] bf16.{GNK}",
    ),
    (
        "sizes_length",
        {"group_sizes": torch.tensor([1, 2, 3])},
        ValueError,
        "group_sizes must be [G=2] i32 or i64; got [3] i64.",
    ),
    (
        "sizes_scalar",
        {"group_sizes": torch.tensor(3)},
        ValueError,
        "group_sizes must be [G=2] i32 or i64; got [] i64.",
    ),
    (
        "sizes_dtype",
        {"group_sizes": torch.tensor([3, 2], dtype=torch.int16)},
        TypeError,
        "group_sizes must be [G=2] i32 or i64; got [2] i16.",
    ),
    ("bias_shape", {"bias": torch.ones(N)}, ValueError, "bias must be [G=2, N=8] f32; got [8] f32."),
    ("bias_dtype", {"bias": bf16(G, N)}, TypeError, "bias must be [G=2, N=8] f32; got [2, 8] bf16."),
    ("row_scale", {"row_scale": torch.ones(T, 1)}, ValueError, "row_scale must be [T=6] f32; got [6, 1] f32."),
    (
        "out_shape",
        {"out": torch.ones(T, N + 1)},
        ValueError,
        f"out must be [T=6, N=8] f32{BUFFER}; got [6, 9] f32. Pass out=None to do without it.",
    ),
    (
        "out_dtype",
        {"out": bf16(T, N)},
        TypeError,
        f"out must be [T=6, N=8] f32{BUFFER}; got [6, 8] bf16. Pass out=None to do without it.",
    ),
    (
        "out_strided",
        {"out": torch.ones(T, 2 * N)[:, ::2]},
        ValueError,
        "out must be contiguous; got shape [6, 8] with strides [16, 2]. Pass a contiguous buffer.",
    ),
    (
        "out_grad",
        {"out": torch.ones(T, N, requires_grad=True)},
        ValueError,
        "out must not require grad: it is memory to write into; got a tensor that does. Pass out.detach().",
    ),
    (
        "out_misaligned",
        {"out": misaligned(T, N)},
        ValueError,
        "out must be 16-byte aligned; got an address 4 bytes past a multiple of 16. "
        "Begin it at the start of an allocation.",
    ),
    (
        "dgrad_out_shape",
        {"dgrad_out": torch.ones(T, N)},
        ValueError,
        f"dgrad_out must be [T=6, K=4] f32{BUFFER}; got [6, 8] f32. Pass dgrad_out=None to do without it.",
    ),
    (
        "dgrad_out_dtype",
        {"dgrad_out": bf16(T, K)},
        TypeError,
        f"dgrad_out must be [T=6, K=4] f32{BUFFER}; got [6, 4] bf16. Pass dgrad_out=None to do without it.",
    ),
    (
        "dgrad_out_grad",
        {"dgrad_out": torch.ones(T, K, requires_grad=True)},
        ValueError,
        "dgrad_out must not require grad: it is memory to write into; got a tensor that does. Pass dgrad_out.detach().",
    ),
    (
        "dgrad_out_misaligned",
        {"dgrad_out": misaligned(T, K)},
        ValueError,
        "dgrad_out must be 16-byte aligned; got an address 4 bytes past a multiple of 16. "
        "Begin it at the start of an allocation.",
    ),
    (
        "wgrad_out_shape",
        {"wgrad_out": torch.ones(G, K, N)},
        ValueError,
        f"wgrad_out must be [G=2, N=8, K=4] f32{BUFFER}; got [2, 4, 8] f32.{GNK} Pass wgrad_out=None to do without it.",
    ),
    (
        "dgrad_out_is_x",
        {"x": SHARED[:24].view(T, K), "dgrad_out": SHARED[:24].view(T, K)},
        ValueError,
        "dgrad_out must not overlap x; got memory that they share. Pass memory of its own.",
    ),
    (
        "out_overlaps_dgrad_out",
        {"out": SHARED[:48].view(T, N), "dgrad_out": SHARED[40:].view(T, K)},
        ValueError,
        "out must not overlap dgrad_out; got memory that they share. Pass memory of its own.",
    ),
    (
        "wgrad_out_is_weight",
        {"weight": SHARED.view(G, N, K), "wgrad_out": SHARED.view(G, N, K)},
        ValueError,
        "wgrad_out must not overlap weight; got memory that they share. Pass memory of its own.",
    ),
]
by_row = pytest.mark.parametrize(
    ("changes", "error", "message"), [row[1:] for row in LINEAR_TABLE], ids=[row[0] for row in LINEAR_TABLE]
)


@by_row
def test_linear(changes, error, message):
    arguments = linear_arguments(**changes)
    before = {name: t.detach().clone() for name, t in arguments.items()}
    with pytest.raises(error) as caught:
        grouped_linear(**arguments)
    assert type(caught.value) is error
    assert str(caught.value) == message
    for name, t in arguments.items():
        assert torch.equal(t, before[name]), f"{name} was written"


@by_row
def test_linear_words_are_the_cores(changes, error, message):
    tensors = tuple(describe(t) for t in linear_arguments(**changes).values())
    with pytest.raises(error) as caught:
        check(Op.LINEAR, tensors, tuple(Options()))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [row[1:] for row in LINEAR_TABLE if not {"out", "dgrad_out", "wgrad_out"} & set(row[1])],
    ids=[row[0] for row in LINEAR_TABLE if not {"out", "dgrad_out", "wgrad_out"} & set(row[1])],
)
def test_linear_without_buffers_says_the_same(changes, error, message):
    arguments = linear_arguments(out=None, dgrad_out=None, wgrad_out=None, **changes)
    with pytest.raises(error) as caught:
        grouped_linear(**arguments)
    assert str(caught.value) == message


ACTIVATION_TABLE = [
    ("odd_width", {"h": torch.ones(T, 15)}, ValueError, f"h must be [T, 2F] {COMPUTED}; got [6, 15] f32."),
    ("h_rank", {"h": torch.ones(T)}, ValueError, f"h must be [T, 2F] {COMPUTED}; got [6] f32."),
    ("h_dtype", {"h": torch.ones(T, 16).long()}, TypeError, f"h must be [T=6, 2F=16] {COMPUTED}; got [6, 16] i64."),
    (
        "row_scale_dtype",
        {"row_scale": torch.ones(T).double()},
        TypeError,
        "row_scale must be [T=6] f32; got [6] f64.",
    ),
    (
        "sizes_dtype",
        {"group_sizes": torch.ones(G)},
        TypeError,
        "group_sizes must be [G=2] i32 or i64; got [2] f32.",
    ),
    (
        "out_shape",
        {"out": torch.ones(T, 2 * F)},
        ValueError,
        f"out must be [T=6, F=8] f32{BUFFER}; got [6, 16] f32.",
    ),
    (
        "out_misaligned",
        {"out": misaligned(T, F)},
        ValueError,
        "out must be 16-byte aligned; got an address 4 bytes past a multiple of 16. "
        "Begin it at the start of an allocation.",
    ),
    (
        "out_grad",
        {"out": torch.ones(T, F, requires_grad=True)},
        ValueError,
        "out must not require grad: it is memory to write into; got a tensor that does. Pass out.detach().",
    ),
    (
        "dgrad_out_shape",
        {"dgrad_out": torch.ones(T, F)},
        ValueError,
        f"dgrad_out must be [T=6, 2F=16] f32{BUFFER}; got [6, 8] f32.",
    ),
    (
        "dgrad_out_grad",
        {"dgrad_out": torch.ones(T, 2 * F, requires_grad=True)},
        ValueError,
        "dgrad_out must not require grad: it is memory to write into; got a tensor that does. Pass dgrad_out.detach().",
    ),
    (
        "dgrad_out_is_h",
        {"h": SHARED.view(4, 16), "dgrad_out": SHARED.view(4, 16), "row_scale": torch.ones(4), "out": torch.ones(4, F)},
        ValueError,
        "dgrad_out must not overlap h; got memory that they share. Pass memory of its own.",
    ),
]


@pytest.mark.parametrize(
    ("changes", "error", "message"), [row[1:] for row in ACTIVATION_TABLE], ids=[row[0] for row in ACTIVATION_TABLE]
)
def test_activation(changes, error, message):
    arguments = activation_arguments(**changes)
    before = {name: t.detach().clone() for name, t in arguments.items()}
    with pytest.raises(error) as caught:
        grouped_activation(**arguments)
    assert type(caught.value) is error
    assert str(caught.value) == message
    for name, t in arguments.items():
        assert torch.equal(t, before[name]), f"{name} was written"


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        (grouped_linear, {"weight_layout": "nkg"}, 'weight_layout must be one of "gnk", "gkn"; got \'nkg\'.'),
        (
            grouped_activation,
            {"kind": "relu"},
            'kind must be one of "swiglu", "clamped_swiglu", "geglu", "squared_relu"; got \'relu\'.',
        ),
        (
            grouped_activation,
            {"gate_layout": 1},
            'gate_layout must be one of "concatenated", "interleaved"; got 1.',
        ),
    ],
    ids=["weight_layout", "kind", "gate_layout"],
)
def test_names(function, argument, message):
    arguments = linear_arguments() if function is grouped_linear else activation_arguments()
    with pytest.raises(ValueError) as caught:
        function(**arguments, **argument)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([3, -1], "group_sizes[1] = -1 is negative. A group holds 0 rows or more."),
        (
            [3, 4],
            "group_sizes[1] = 4 does not fit: group 1 begins at row 3 of T=6, so 3 rows are left. "
            "sum(group_sizes) must be at most T.",
        ),
    ],
    ids=["negative", "too_large"],
)
@pytest.mark.parametrize("form", [list, torch.tensor], ids=["list", "tensor"])
def test_sizes_that_do_not_fit(form, sizes, message):
    arguments = linear_arguments(group_sizes=form(sizes))
    with pytest.raises(ValueError) as caught:
        grouped_linear(**arguments)
    assert str(caught.value) == message
    for name in ("out", "dgrad_out", "wgrad_out"):
        assert (arguments[name] == 7).all(), f"{name} was written"
    with pytest.raises(ValueError) as caught:
        grouped_activation(**activation_arguments(group_sizes=form(sizes)))
    assert str(caught.value) == message


def test_list_of_other_numbers_is_refused():
    # Not silently cut to [2, 2].
    with pytest.raises(TypeError) as caught:
        grouped_linear(**linear_arguments(group_sizes=[2.9, 2.9]))
    assert str(caught.value) == (
        "group_sizes must be integers, one for each group; got [2.9, 2.9]. Pass a list of ints, or an int32 or int64 "
        "tensor."
    )


@pytest.mark.parametrize("sizes", [None, 3])
def test_what_is_no_list_at_all_is_refused(sizes):
    with pytest.raises(TypeError, match=r"^group_sizes must be integers, one for each group; got "):
        grouped_linear(**linear_arguments(group_sizes=sizes))


@pytest.mark.parametrize("name", ["weight", "bias", "out"])
def test_a_tensor_without_memory_is_refused_as_such(name):
    """On meta, as a module's weight is until it is materialised."""
    arguments = linear_arguments()
    with pytest.raises(ValueError) as caught:
        grouped_linear(**{**arguments, name: arguments[name].to("meta")})
    assert str(caught.value) == f"{name} must be on cpu, as x is; got meta. Move it before the call."


def test_meta_is_not_the_first_gpu():
    """Beside tensors of cuda:0 too, where the operator would else be that of meta tensors, which writes nothing."""
    with FakeTensorMode():
        arguments = {name: t.to("cuda:0") for name, t in linear_arguments().items()}
        with pytest.raises(ValueError, match=r"^weight must be on cuda:0, as x is; got meta\. Move it"):
            grouped_linear(**{**arguments, "weight": arguments["weight"].to("meta")})


@pytest.mark.parametrize("scale_needs_grad", [False, True])
def test_gradient_that_overlaps_dgrad_out_is_refused_in_backward(scale_needs_grad):
    arguments = linear_arguments(x=torch.ones(T, K, requires_grad=True), out=None, wgrad_out=None)
    arguments["weight"] = torch.ones(G, K, K, requires_grad=True)
    arguments["bias"] = torch.ones(G, K)
    arguments["row_scale"] = torch.full((T,), 2.0, requires_grad=scale_needs_grad)
    dgrad_out = arguments["dgrad_out"]
    y = grouped_linear(**arguments)
    with pytest.raises(ValueError) as caught:
        y.backward(dgrad_out)
    assert str(caught.value) == ("dgrad_out must not overlap dy; got memory that they share. Pass memory of its own.")
    assert (dgrad_out == 7).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("linear", r"^weight must be \[G, K=8, N\] f32; got \[0\] f32\."),
        ("scaled", r"^weight must be \[G, K=8, N\] f32; got \[0\] f32\."),
        ("mlp", r"^wgrad_out must be \[G=2, N=8, K=4\] .*; got \[0\] f32\."),  # made like the weight
    ],
)
def test_weight_that_was_freed_before_backward(call, message):
    """As data parallelism does that shards a weight after forward and does not gather it again."""
    x, sizes = torch.ones(T, K, requires_grad=True), torch.tensor([3, 2])
    weight, scale = torch.nn.Parameter(torch.ones(G, N, K)), torch.ones(T, requires_grad=True)
    if call == "mlp":
        y = grouped_mlp(x, weight, torch.ones(G, K, N), sizes, activation="squared_relu")
    else:
        y = grouped_linear(x, weight, sizes, row_scale=scale if call == "scaled" else None)
    weight.data = torch.empty(0)
    with pytest.raises(ValueError, match=message):
        y.backward(torch.ones_like(y))


def test_gradient_that_overlaps_the_activations_dgrad_out_is_refused_in_backward():
    arguments = activation_arguments(h=torch.ones(T, F, requires_grad=True), kind="squared_relu", out=None)
    arguments["dgrad_out"] = dgrad_out = torch.full((T, F), 7.0)
    y = grouped_activation(**arguments)
    with pytest.raises(ValueError, match=r"^dgrad_out must not overlap dy; got memory that they share"):
        y.backward(dgrad_out)
    assert (dgrad_out == 7).all()


def test_every_torch_dtype_has_the_cores_name():
    expected = {"torch.bool": "bool", "torch.uint16": "u16", "torch.uint32": "u32", "torch.uint64": "u64"}
    for dtype, word in expected.items():
        x = torch.ones(T, K).to(getattr(torch, dtype.partition(".")[2]))
        with pytest.raises(TypeError, match=rf"got \[6, 4\] {word}\.$"):
            grouped_linear(x, torch.ones(G, N, K), [3, 2])
    described = describe(bf16(1))
    assert described is not None
    assert described[2] == DType.BF16
