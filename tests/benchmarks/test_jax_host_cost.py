# SPDX-License-Identifier: Apache-2.0
"""The benchmark of JAX's host cost measures what its names say."""

from __future__ import annotations

import jax
import pytest

from benchmarks import jax_host_cost
from grouped_core import Op, call_count

OURS = ("jax_grouped", "grouped_linear")


@pytest.fixture(scope="module")
def candidates():
    return jax_host_cost.candidates("cpu")


def test_ours_call_the_core_and_others_do_not(candidates):
    for name, function in candidates.items():
        before = call_count(Op.MM)
        for _ in range(3):
            function().block_until_ready()
        assert call_count(Op.MM) - before == (3 if name.startswith(OURS) else 0), name


def test_what_is_donated_is_written_in_place(candidates):
    for name, function in candidates.items():
        if name.endswith(", donated"):
            first = function().unsafe_buffer_pointer()
            assert {function().unsafe_buffer_pointer() for _ in range(3)} == {first}, name
        elif name.endswith("not donated"):
            kept = function()
            assert function().unsafe_buffer_pointer() != kept.unsafe_buffer_pointer(), name


def test_prints_every_candidate(candidates, capsys):
    assert jax_host_cost.main(["--samples", "1", "--calls", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in candidates)
    assert jax.__version__ in printed
