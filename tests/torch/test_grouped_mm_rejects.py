# SPDX-License-Identifier: Apache-2.0
"""Calls of functional.grouped_mm that are refused: the exception's type and its words, before anything runs."""

from __future__ import annotations

import pytest
import torch

from grouped_core import Op, call_count
from torch_grouped import functional

T, K, N, G = 6, 4, 8, 2
OFFS = torch.tensor([3, 5], dtype=torch.int32)
REFUSED = [
    ("rank", {"a": torch.ones(K)}, ValueError, "a and b must have two or three dimensions; got 1 and 3."),
    ("rank_b", {"b": torch.ones(1, G, K, N)}, ValueError, "a and b must have two or three dimensions; got 2 and 4."),
    ("no_offs", {"offs": None}, ValueError, "offs must be given unless a and b both have three dimensions; got none"),
    ("offs", {"a": torch.ones(G, T, K)}, ValueError, "offs must be given unless a and b both have three dimensions;"),
    ("k", {"b": torch.ones(G, N, K)}, ValueError, "b must have as many rows as a has columns; got [6, 4] @ [2, 8, 4]."),
    ("dtype", {"b": torch.ones(G, K, N).double()}, TypeError, "b must have the dtype of a; got torch.float32 @ "),
    ("int", {"a": torch.ones(T, K).int(), "b": torch.ones(G, K, N).int()}, TypeError, "a must be [T=6, K=4] f16, "),
    ("offs_length", {"offs": torch.tensor([1, 2, 3])}, ValueError, "offs must be [G=2] i32 or i64; got [3] i64."),
    ("offs_dtype", {"offs": torch.tensor([1.0, 2.0])}, TypeError, "offs must be [G=2] i32 or i64; got [2] f32."),
    (
        "batch",
        {"a": torch.ones(3, T, K), "offs": None},
        ValueError,
        "b must have as many groups as a; got 2 beside 3. Pass one matrix for each group.",
    ),
    ("bias", {"bias": torch.ones(N)}, ValueError, "bias must be [G=2, N=8] f32; got [8] f32."),
    (
        "bias_of_contraction",
        {"a": torch.ones(K, T), "b": torch.ones(T, N), "bias": torch.ones(G, N)},
        ValueError,
        "bias must be None unless a is [T, K] and b is [G, K, N]; got one. Add it to the result.",
    ),
    ("out_dtype", {"out_dtype": torch.float16}, TypeError, "out must be [T=6, N=8] f32"),
    ("out", {"out": torch.ones(T, K)}, ValueError, "out must be [T=6, N=8] f32"),
    ("out_grad", {"out": torch.ones(T, N, requires_grad=True)}, ValueError, "out must not require grad:"),
    ("out_columns", {"out": torch.ones(N, T).t()}, ValueError, "out must be contiguous; got shape [6, 8] with strides"),
    ("out_shifted", {"out": torch.ones(T * N + 1)[1:].view(T, N)}, ValueError, "out must be 16-byte aligned;"),
    (
        "out_rows",
        {"a": torch.ones(G, N, K), "b": torch.ones(K, T), "out": torch.ones(N, T)},
        ValueError,
        "out.mT must be contiguous; got shape [6, 8] with strides [1, 6].",
    ),
    (
        "out_of_contraction",
        {"a": torch.ones(K, T), "b": torch.ones(T, N), "out": torch.ones(G, N, K)},
        ValueError,
        "out must be [G=2, K=4, N=8] f32",
    ),
    (
        "out_of_batch",
        {"a": torch.ones(G, T, K), "offs": None, "out": torch.ones(G, N, T)},
        ValueError,
        "out must be [G=2, M=6, N=8], contiguous; got [2, 8, 6] with strides [48, 6, 1].",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(changes, error, message):
    arguments = {"a": torch.ones(T, K), "b": torch.ones(G, K, N), "offs": OFFS, **changes}
    before = [call_count(op) for op in Op]
    with pytest.raises(error) as caught:
        functional.grouped_mm(**arguments)
    assert type(caught.value) is error
    assert str(caught.value).startswith(message)
    assert [call_count(op) for op in Op] == before


def test_out_that_overlaps_an_operand_is_refused():
    memory = torch.ones(64)
    with pytest.raises(ValueError, match="out must not overlap a; got memory that they share"):
        functional.grouped_mm(memory[:24].view(T, K), torch.ones(G, K, N), offs=OFFS, out=memory[:48].view(T, N))


def test_ends_past_the_rows_are_refused_on_cpu():
    with pytest.raises(ValueError, match="does not fit"):
        functional.grouped_mm(torch.ones(T, K), torch.ones(G, K, N), offs=torch.tensor([3, 7]))
