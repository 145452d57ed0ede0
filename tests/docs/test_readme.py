# SPDX-License-Identifier: Apache-2.0
"""The README is true: its programs are those in examples/, they run, and its links and commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PROGRAMS = ("jax_donation", "torch_buffers")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_snippets_are_the_examples():
    sources = [(ROOT / "examples" / f"{name}.py").read_text() for name in PROGRAMS]
    quoted = blocks("python")
    assert len(quoted) == len(PROGRAMS)
    for source, block in zip(sources, quoted, strict=True):
        assert source.endswith(block)


@pytest.mark.parametrize("program", PROGRAMS)
def test_example_runs(program):
    command = [sys.executable, str(ROOT / "examples" / f"{program}.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "same memory: True\ntail untouched: True\n"


def test_links_lead_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


@pytest.mark.parametrize("arguments", [["h100"], ["h200", "--means"], ["jax_step"]], ids=lambda a: a[0])
def test_numbers_are_made_from_the_committed_result(arguments):
    name, *how = arguments
    command = [sys.executable, "-m", "benchmarks.readme_table", f"benchmarks/results/{name}.json", *how]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert made.strip()
    # Lines of a sentence are broken anywhere.
    assert " ".join(made.split()) in " ".join(README.split())


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^make ([\w-]+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert {"demo", "test"} <= set(commands)
    assert [c for c in commands if not re.search(rf"^{c}:", makefile, re.MULTILINE)] == []
