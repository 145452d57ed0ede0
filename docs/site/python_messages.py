# SPDX-License-Identifier: Apache-2.0
"""The errors that the Python packages raise themselves, read out of their sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ffi/python/grouped_core", "jax_grouped", "torch_grouped")


def raised() -> Iterator[tuple[str, str, str]]:
    """(module, exception, message) of every `raise` with a text; what is filled in stands in braces."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).glob("**/*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                    text = _text(node.exc.args[0])
                    if text:
                        name = str(path.relative_to(ROOT)).removeprefix("ffi/python/")
                        yield name, ast.unparse(node.exc.func), text


def _text(node: ast.expr) -> str:
    """Of a string, an f-string or several joined by +; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else _text(part)
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return ""


def page() -> str:
    """Markdown, the messages of each package under its name."""
    lines, before = [], ""
    for module, error, text in raised():
        package = module.partition("/")[0]
        if package != before:
            lines += [f"### `{package}`", ""]
            before = package
        lines += [f"```text\n{error}: {text}\n```", "", f"Raised in `{module}`.", ""]
    return "\n".join(lines)
