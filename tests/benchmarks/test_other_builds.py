# SPDX-License-Identifier: Apache-2.0
"""Another build of the core as a peer: here the installed one once more, so its bits are those of torch_grouped."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import __main__, ratios
from benchmarks.peers.other_builds import OtherBuild
from benchmarks.peers.ours_torch import TorchGrouped
from benchmarks.problem import Case, Problem
from benchmarks.results import load
from benchmarks.shapes import EMPTY, TAIL, Shape

CPU = torch.device("cpu")
LIBRARY = Path(str(getattr(find_spec("grouped_core._core"), "origin", None)))
OPERATIONS = ("fwd", "dgrad", "wgrad", "wgrad_acc")


def _results(peer, op: str, draw: str, dtype: str) -> list[torch.Tensor]:
    assert peer.missing(CPU) is None
    call = peer.prepare(Problem(Case(Shape("small-up", 5, 300, 16, 24), op, draw, dtype), CPU, cache_bytes=1 << 20))
    call.reset()
    call.run(0)
    return call.outputs(call.run(1))  # of another set of inputs


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("draw", [EMPTY, TAIL])
@pytest.mark.parametrize("op", OPERATIONS)
def test_same_bits(op, draw, dtype):
    build, installed = (_results(p, op, draw, dtype) for p in (OtherBuild(f"same={LIBRARY}"), TorchGrouped()))
    _assert_bits(build, installed)


def _assert_bits(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_a_wheel(tmp_path):
    wheel = tmp_path / "grouped_ffi.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(LIBRARY, f"grouped_core/{LIBRARY.name}")
    _assert_bits(*(_results(p, "fwd", EMPTY, "f32") for p in (OtherBuild(f"same={wheel}"), TorchGrouped())))


def test_what_cannot_be_loaded_is_missing(tmp_path):
    empty = tmp_path / "empty.whl"
    zipfile.ZipFile(empty, "w").close()
    assert "empty.whl has no grouped_core" in str(OtherBuild(f"old={empty}").missing(CPU))
    assert "nowhere.so" in str(OtherBuild("old=nowhere.so").missing(CPU))
    with pytest.raises(ValueError, match="NAME=PATH"):
        OtherBuild(str(LIBRARY))


def test_an_error_of_the_core_is_raised():
    build = OtherBuild(f"same={LIBRARY}")
    assert build.missing(CPU) is None
    x, sizes = torch.ones(4, 8), torch.tensor([4], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="weight"):
        build._core.mm(x, torch.ones(1, 3, 7), sizes, torch.empty(4, 3), 0)


def test_builds_are_compared_when_they_are_named(tmp_path):
    out = tmp_path / "builds.json"
    builds = [word for name in ("old", "again") for word in ("--build", f"{name}={LIBRARY}")]
    options = [
        "--device",
        "cpu",
        "--quick",
        "--shapes",
        "tiny-up",
        "--ops",
        "fwd",
        "--draws",
        "even",
        "--out",
        str(out),
    ]
    assert __main__.main(["run", *options, "--peers", "build,torch.mm loop", *builds]) == 0
    data = load(out)
    (case,) = data["cases"].values()
    assert {"build old", "build again"} <= case["peers"].keys()
    assert [row.best_name for row in ratios.rows(data, "build again", ["build old"])] == ["build old"]
    assert ratios.rows(data, "build again")[0].best_name.startswith("torch.mm")
