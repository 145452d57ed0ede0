# SPDX-License-Identifier: Apache-2.0
"""Who may know whom: the packages apart from each other, the core apart from every framework."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = ("torch", "jax", "jaxlib")

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
"""


def python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("package", "framework", "blocked"),
    [
        ("grouped_core", None, ["torch", "jax", "jaxlib", "jax_grouped", "torch_grouped"]),
        ("jax_grouped", "jax", ["torch", "torch_grouped"]),
        ("torch_grouped", "torch", ["jax", "jaxlib", "jax_grouped"]),
    ],
)
def test_imports_without_the_other_framework(package, framework, blocked, tmp_path):
    if framework:
        pytest.importorskip(framework)
    found = python(BLOCK.format(blocked=blocked) + f"import {package}\nprint({package}.__version__)", tmp_path)
    assert found.returncode == 0, found.stderr
    assert re.match(r"\d", found.stdout)


def test_the_blocker_blocks(tmp_path):
    pytest.importorskip("torch")
    found = python(BLOCK.format(blocked=["torch"]) + "import torch_grouped", tmp_path)
    assert "ImportError: blocked: torch" in found.stderr


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("jax_grouped", {"torch", "torch_grouped"}),
        ("torch_grouped", {"jax", "jaxlib", "jax_grouped"}),
        ("ffi/python/grouped_core", {"torch", "jax", "jaxlib", "jax_grouped", "torch_grouped"}),
    ],
)
def test_sources_import_no_neighbour(folder, forbidden):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        assert not forbidden & set(imported_modules(path)), path


INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
FOREIGN = re.compile(r"torch|ATen|c10/|xla|nanobind|Python\.h|pybind|jax", re.IGNORECASE)


def includes_of(folder):
    files = [p for p in sorted((ROOT / "ffi" / folder).rglob("*")) if p.suffix in {".h", ".cc", ".cu", ".cuh", ".inc"}]
    assert files, folder
    for path in files:
        for header in INCLUDE.findall(path.read_text()):
            yield path, header


@pytest.mark.parametrize("folder", ["include", "core", "cpu", "cuda", "doors"])
def test_core_and_kernels_include_no_framework(folder):
    for path, header in includes_of(folder):
        assert not FOREIGN.search(header), f"{path} includes {header}"


@pytest.mark.parametrize("folder", ["include", "core"])
def test_the_core_includes_no_kernel(folder):
    for path, header in includes_of(folder):
        assert not header.startswith(("cpu/", "cuda/", "doors/", "python/")), f"{path} includes {header}"
        assert folder != "include" or "/" not in header, f"{path} includes {header}"


def test_cpu_kernels_include_no_cuda():
    for path, header in includes_of("cpu"):
        assert not re.search(r"cuda|cute|cutlass", header), f"{path} includes {header}"


def test_doors_reach_the_core_through_the_public_header_only():
    for folder in ("xla", "python"):
        for path, header in includes_of(folder):
            assert not header.startswith(("core/", "cpu/", "cuda/")), f"{path} includes {header}"


def test_the_public_header_is_plain_c(tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = tmp_path / "user.c"
    source.write_text(
        "#include <grouped/grouped.h>\n"
        "int main(void) {\n"
        "  grouped_mm_args args = {0};\n"
        "  args.struct_size = sizeof(args);\n"
        "  return args.struct_size == 0 || GROUPED_ABI_VERSION < 1;\n"
        "}\n"
    )
    flags = ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror"]
    include = f"-I{ROOT / 'ffi' / 'include'}"
    built = subprocess.run(
        [compiler, *flags, include, "-c", "-o", tmp_path / "user.o", source], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
