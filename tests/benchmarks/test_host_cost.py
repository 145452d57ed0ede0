# SPDX-License-Identifier: Apache-2.0
"""The benchmark of host cost runs, measures what its names say, and leaves torch as it was."""

from __future__ import annotations

import json

import pytest
import torch

import torch_grouped
from benchmarks import host_cost
from grouped_core import Op, call_count

OURS = ("functional.", "GroupedLinear", "installed")


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_candidate_runs_on_what_it_names():
    for name, function in host_cost.Problem(torch.device("cpu")).candidates().items():
        before = [call_count(op) for op in Op]
        host_cost._sample(name, function, torch.device("cpu"))
        grown = sum(call_count(op) for op in Op) - sum(before)
        products = 3 if "backward" in name else 1
        # One call to warm up, then those that are timed.
        assert grown == (products * (host_cost.CALLS + 1) if any(word in name for word in OURS) else 0), name
        assert torch_grouped.installed() == ()


def test_floors_leave_no_gradient_behind():
    problem = host_cost.Problem(torch.device("cpu"))
    floors = [function for name, function in problem.candidates().items() if name.startswith("floor")]
    assert len(floors) == 4
    for function in floors:
        function()
    leaves = (problem.leaf, problem.parameter, problem.module.weight, *(layer.weight for layer in problem.layers))
    assert all(leaf.grad is None for leaf in leaves)


def test_goals_are_of_candidates():
    assert set(host_cost.GOALS) <= set(host_cost.Problem(torch.device("cpu")).candidates())


def test_record(tmp_path, capsys):
    path = tmp_path / "cost.json"
    assert host_cost.main(["--device", "cpu", "--samples", "1", "--json", str(path)]) == 0
    cases = json.loads(path.read_text())["cases"]
    assert all(0 < cost["least_us"] <= cost["median_us"] for cost in cases.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in cases)
