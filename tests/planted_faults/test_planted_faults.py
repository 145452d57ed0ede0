# SPDX-License-Identifier: Apache-2.0
"""Tests of the tests: a core with one line wrong must fail the suite of the core, a core without must pass it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow_build


@dataclass(frozen=True)
class Fault:
    """One edit below ffi/, and a test of tests/core that must see it."""

    name: str
    file: str
    old: str
    new: str
    seen_by: str

    def __str__(self) -> str:
        return self.name


FAULTS = (
    Fault(
        "group_begins_a_row_late",
        "core/offsets.cc",
        "offset = next_offset(offset, value, sizes.are_ends, sizes.rows);",
        "offset = next_offset(offset, value + 1, sizes.are_ends, sizes.rows);",
        "test_mm.py::test_product",
    ),
    Fault(
        "tail_begins_a_row_late",
        "cpu/matmul.cc",
        "const int64_t begin = offsets[p.G] + tail.begin(i - tiles);",
        "const int64_t begin = offsets[p.G] + tail.begin(i - tiles) + 1;",
        "test_mm.py::test_zero_tail",
    ),
    Fault(
        "storages_swapped",
        "core/make_problem.cc",
        "args.weight_layout == GROUPED_GKN,\n              args.tail == GROUPED_TAIL_ZERO,",
        "args.weight_layout != GROUPED_GKN,\n              args.tail == GROUPED_TAIL_ZERO,",
        "test_mm.py::test_product",
    ),
    Fault(
        "wgrad_overwrites_when_told_to_add",
        "core/make_problem.cc",
        "args.weight_layout == GROUPED_GKN,\n              args.accumulate != 0,",
        "args.weight_layout == GROUPED_GKN,\n              false,",
        "test_wgrad.py::test_accumulate",
    ),
    Fault(
        "sizes_past_the_rows_are_accepted",
        "core/offsets.cc",
        ": value >= 0 && value <= sizes.rows - offset;",
        ": value >= 0 && value <= sizes.rows;",
        "test_rules_values.py::test_sizes_that_do_not_fit",
    ),
    Fault(
        "overlap_unseen_where_the_buffer_comes_first",
        "core/rules.cc",
        "if (begin < other_end && other_begin < end) {",
        "if (other_begin < begin && begin < other_end && begin < end) {",
        "test_rules_walk.py::test_every_buffer_stands_apart_from_every_other_argument",
    ),
)


def tool(name: str) -> str | None:
    """Beside this Python, where pip puts it, or on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def succeed(*command: str) -> None:
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{found.stdout[-4000:]}\n{found.stderr[-4000:]}")


class Build:
    """A copy of the sources, built without CUDA; `edit` and `rebuild` as often as wanted."""

    def __init__(self, folder: Path, cmake: str) -> None:
        self.cmake, self.source, self.build = cmake, folder / "source", folder / "build"
        self.packages = folder / "packages"
        self.source.mkdir()
        shutil.copy(REPOSITORY / "CMakeLists.txt", self.source)
        for part in ("cmake", "ffi"):
            shutil.copytree(REPOSITORY / part, self.source / part)
        ninja = tool("ninja")
        generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ("-G", "Unix Makefiles")
        options = ("-DGROUPED_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}")
        succeed(cmake, "-S", str(self.source), "-B", str(self.build), *generator, *options)
        self.rebuild()
        shutil.copytree(
            self.source / "ffi/python/grouped_core",
            self.packages / "grouped_core",
            ignore=shutil.ignore_patterns("_core*", "__pycache__"),
        )
        (module,) = (self.build / "ffi/python").glob("_core*.so")
        (self.packages / "grouped_core" / module.name).symlink_to(module)

    def rebuild(self) -> None:
        succeed(self.cmake, "--build", str(self.build), "--parallel", str(os.cpu_count() or 1))

    def python(self, *arguments: str) -> subprocess.CompletedProcess:
        # Settings of the pytest that runs this file are not meant for the one below it.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment["PYTHONPATH"] = str(self.packages)
        command = (sys.executable, *arguments)
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)

    def run_tests(self, *tests: str) -> subprocess.CompletedProcess:
        paths = [str(REPOSITORY / "tests/core" / test) for test in tests]
        return self.python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Build:
    cmake = tool("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    if find_spec("nanobind") is None or find_spec("jaxlib") is None:
        pytest.skip("nanobind, or jaxlib with XLA's headers, is not installed")
    built = Build(tmp_path_factory.mktemp("planted"), cmake)
    imported = built.python("-c", "import grouped_core; print(grouped_core.__file__)").stdout.strip()
    if not imported.startswith(str(built.packages)):
        pytest.skip(f"an editable install hides the build under test: {imported}")
    return built


def test_without_a_fault(build) -> None:
    """Or every fault below would be seen."""
    found = build.run_tests(*dict.fromkeys(fault.seen_by for fault in FAULTS))
    assert found.returncode == 0, found.stdout[-4000:]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_seen(build, fault) -> None:
    file = build.source / "ffi" / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        pytest.fail(f"ffi/{fault.file} holds {text.count(fault.old)} times, not once: {fault.old!r}. Plant it anew.")
    file.write_text(text.replace(fault.old, fault.new))
    try:
        build.rebuild()
        found = build.run_tests(fault.seen_by)
    finally:
        file.write_text(text)
    # 1 says that tests ran and failed; anything else, that they could not be run.
    assert found.returncode == 1, f"exit code {found.returncode}\n{found.stdout[-4000:]}{found.stderr[-2000:]}"
    assert f"FAILED tests/core/{fault.seen_by}" in found.stdout
