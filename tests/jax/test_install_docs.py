# SPDX-License-Identifier: Apache-2.0
"""docs/jax-ragged-dot.md is true: its programs run and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "jax-ragged-dot.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PRINTED = (
    "core: 2 calls\nsame: True ('cpu',)\n",
    "(8, 4) (3, 4, 5) (8, 4, 8, 4)\nsame memory: True tail kept: True\n",
    "True\n",
)


def test_every_program_is_here() -> None:
    assert len(PROGRAMS) == len(PRINTED)


@pytest.mark.parametrize("number", range(len(PRINTED)))
def test_program(number) -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAMS[number]], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == PRINTED[number]
