# SPDX-License-Identifier: Apache-2.0
"""call_count counts launches: once for a run, never for a check or for a call that was refused."""

from __future__ import annotations

import numpy as np
import pytest
from cases import BY_NAME
from core_call import describe, in_order, run
from core_operations import every_operation

import grouped_core
from grouped_core import Op, Options

CALLS = {
    Op.MM: "mm",
    Op.WGRAD: "wgrad",
    Op.BIAS_GRAD: "bias_grad",
    Op.ACTIVATION: "geglu",
    Op.ACTIVATION_GRAD: "geglu_grad",
    Op.ROW_SCALE: "row_scale",
    Op.ROW_DOT: "row_dot",
}


def counts():
    return [grouped_core.call_count(op) for op in Op]


def grown(before):
    return {op: now - then for op, now, then in zip(Op, counts(), before, strict=True) if now != then}


@pytest.mark.parametrize("op", list(CALLS), ids=lambda op: op.name.lower())
@pytest.mark.parametrize("num_threads", [1, 4])
def test_run_counts_once(rng, op, num_threads):
    _, arrays, options = every_operation(rng, BY_NAME["crosses_tiles"], "f32")[CALLS[op]]
    before = counts()
    run(op, arrays, num_threads=num_threads, **options)
    assert grown(before) == {op: 1}


@pytest.mark.parametrize("op", list(CALLS), ids=lambda op: op.name.lower())
def test_check_counts_nothing(rng, op):
    _, arrays, options = every_operation(rng, BY_NAME["tail"], "f32")[CALLS[op]]
    tensors = tuple(describe(a) for a in in_order(op, arrays))
    before = counts()
    grouped_core.check(op, tensors, tuple(Options(**options)))
    assert grown(before) == {}


def test_a_refused_run_counts_nothing(rng):
    _, arrays, _ = every_operation(rng, BY_NAME["tail"], "f32")["mm"]
    before = counts()
    with pytest.raises(ValueError, match="weight must be"):
        run(Op.MM, {**arrays, "weight": arrays["weight"][..., 1:]})
    assert grown(before) == {}


def test_an_unknown_operation_has_no_count():
    assert grouped_core.call_count(-1) == 0
    assert grouped_core.call_count(len(Op)) == 0


def test_no_rows_still_count(rng):
    _, arrays, _ = every_operation(rng, BY_NAME["no_rows"], "f32")["mm"]
    before = counts()
    assert run(Op.MM, arrays)["out"].dtype == np.float32
    assert grown(before) == {Op.MM: 1}
