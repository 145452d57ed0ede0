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


def test_forced_kernels_that_no_log_names_fail(run: ModuleType) -> None:
    logs = {
        name: f"grouped: grouped_wgrad [G,N,K] K=64 N=64 G=2: sm90 {words}, on demand"
        for name, words in run.FORCED.items()
    }
    assert run.forced_kernels(logs)["failed"] == 0
    found = run.forced_kernels({**logs, "lines": logs["share"]})
    assert (found["failed"], found["verdict"]) == (1, ["never taken: lines"])


def test_the_logs_words_are_those_of_the_choice(run: ModuleType) -> None:
    cuda = Path(__file__).parents[2] / "ffi" / "cuda"
    sources = (cuda / "sm90" / "heuristic.h").read_text() + (cuda / "portable" / "backend.cu").read_text()
    assert [words for words in run.FORCED.values() if words.removeprefix(": ") not in sources] == []
