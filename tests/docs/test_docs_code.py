# SPDX-License-Identifier: Apache-2.0
"""Every ```python block in docs/*.md runs, by itself, on a CPU.

A block that cannot is marked on the line before it: <!-- not run: the reason -->.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n+)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
# Packages whose absence skips a block. What else a block imports must be there.
OPTIONAL = ("jax", "torch", "flax", "equinox", "tokamax", "optax", "transformers")


class Block(NamedTuple):
    """Code and where its first line stands."""

    path: Path
    line: int
    code: str
    reason: str | None


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(path, line, match["code"], match["reason"]))
    return found


BLOCKS = [block for path in sorted(DOCS.glob("**/*.md")) for block in blocks_of(path)]


def is_there(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


@pytest.fixture
def _no_installation_left():
    """A block may give JAX or torch our lowering; the next must not find it."""
    yield
    for name in ("jax_grouped", "torch_grouped"):
        uninstall = getattr(sys.modules.get(name), "uninstall", None)
        if uninstall is not None:
            uninstall()


@pytest.mark.usefixtures("_no_installation_left")
@pytest.mark.filterwarnings("default")  # frameworks warn of their own
@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.path.stem}:{b.line}")
def test_block_runs(block, tmp_path, monkeypatch) -> None:
    code = compile("\n" * (block.line - 1) + block.code, str(block.path), "exec")  # lines as in the page
    if block.reason is not None:
        assert block.reason, f"{block.path}:{block.line} does not say why it is not run"
        return
    for package in OPTIONAL:
        uses = rf"^\s*(?:import|from) (?:{package}|{package}_grouped)\b"
        if re.search(uses, block.code, re.MULTILINE) and not is_there(package):
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})


def test_blocks_are_found() -> None:
    """Also behind a marker, and not where the fence is of another language."""
    page = "<!-- not run: needs a GPU -->\n```python\na = 1\n```\n\n```sh\nls\n```\n```python\nb = 2\n```\n"
    found = [(m["reason"], m["code"]) for m in _BLOCK.finditer(page)]
    assert found == [("needs a GPU", "a = 1\n"), (None, "b = 2\n")]
    fences = sum(path.read_text().count("```python") for path in DOCS.glob("**/*.md"))
    assert len(BLOCKS) == fences
