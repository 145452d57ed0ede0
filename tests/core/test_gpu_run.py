# SPDX-License-Identifier: Apache-2.0
"""What `make gpu-test` concludes from its suites' output, where there is no GPU."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "gpu"))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    return import_module("run")


def ended(*verdict: str) -> dict:
    return {"passed": 1, "failed": 0, "skips": [], "exit_code": 0, "verdict": list(verdict)}


def test_runs_with_one_digest_have_the_same_bits(run: ModuleType) -> None:
    found = run.same_bits({"any": ended("digest of all results: 1"), "turns": ended("digest of all results: 1")})
    assert (found["passed"], found["failed"], found["verdict"]) == (2, 0, [])


@pytest.mark.parametrize("verdict", [["digest of all results: 2"], []], ids=["another", "none"])
def test_a_run_with_another_digest_or_none_fails(run: ModuleType, verdict: list[str]) -> None:
    found = run.same_bits({"any": ended("digest of all results: 1"), "turns": ended(*verdict)})
    assert (found["passed"], found["failed"], found["verdict"]) == (1, 1, ["other bits: turns"])


def test_without_any_digest_all_fail(run: ModuleType) -> None:
    assert run.same_bits({"any": ended(), "turns": ended()})["failed"] == 2
