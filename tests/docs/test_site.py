# SPDX-License-Identifier: Apache-2.0
"""The site is true: tables come from the core and the results, links lead somewhere, figures are current."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import grouped_core
from grouped_core import Op

ROOT = Path(__file__).resolve().parents[2]
make_site, core_rules, python_messages = map(import_module, ("make_site", "core_rules", "python_messages"))
FILES = ROOT / "benchmarks" / "results"
RESULTS, H200 = (json.loads((FILES / name).read_text()) for name in ("h100.json", "h200.json"))


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    known, made = make_site.pages(), make_site.tables()
    return {place: make_site.render(place, (ROOT / place).read_text(), known, made) for place in known}


def test_every_page_renders_and_the_navigation_reaches_it(rendered):
    assert {"docs/index.md", "docs/contract.md", "docs/performance.md", "CHANGELOG.md"} <= set(rendered)
    assert not [place for place, text in rendered.items() if re.search(r"<!-- (table|figure)", text)]
    names = {line for line in make_site.contents(make_site.pages()).splitlines()}
    assert not [n for place, n in make_site.pages().items() if place != "docs/index.md" and n[:-3] not in names]


def test_a_page_that_does_not_exist_yet_is_left_out(monkeypatch):
    monkeypatch.setitem(make_site.SECTIONS, "Use it", ["docs/no-such-page.md", *make_site.SECTIONS["Use it"]])
    assert "docs/no-such-page.md" not in make_site.pages()
    assert "no-such-page" not in make_site.contents(make_site.pages())


def test_a_link_to_nothing_stops_the_build():
    with pytest.raises(make_site.BrokenLink, match=r"nowhere\.md"):
        make_site.render("docs/index.md", "[x](nowhere.md)", make_site.pages(), {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[p](../benchmarks/protocol.md#rules)", "[p](protocol.md#rules)"),
        ("[`Makefile`](../Makefile)", "`Makefile`"),
        ("[the rules](../ffi/core/rules.cc)", "the rules (`ffi/core/rules.cc`)"),
        ("![a](img/rooms.svg)", "![a](img/rooms.svg)"),
        ("[w](https://example.org)", "[w](https://example.org)"),
        ("[s](#here)", "[s](#here)"),
        ("```\n[not a](link.md)\n```\n", "```\n[not a](link.md)\n```\n"),
    ],
)
def test_links_out_of_the_site_become_paths(text, expected):
    assert make_site.render("docs/index.md", text, make_site.pages(), {}) == expected


@pytest.mark.parametrize("op", Op)
def test_every_argument_of_every_operation_has_its_rule(rendered, op):
    title = core_rules.PUBLIC.get(op, f"grouped_{op.name.lower()}")
    section = re.search(rf"^### `{title}`.*?\n\n(.*?)\n\n", rendered["docs/troubleshooting.md"], re.M | re.S)
    assert section is not None
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", section.group(1), re.M)
    assert [name for name, _ in listed] == [name for name, _ in grouped_core.argument_dims(op, 0)]
    for (name, rule), (_, letters) in zip(listed, grouped_core.argument_dims(op, 0), strict=True):
        shown = ", ".join("2F" if c == "H" else c for c in letters)
        assert rule.startswith(f"[{shown}] "), (name, rule)


def _sites(*paths: str, pattern: str) -> list[str]:
    return [found for path in paths for found in re.findall(pattern, (ROOT / path).read_text())]


def test_every_refusal_of_the_checker_is_listed_once():
    """A rule that is added to the checker needs an example and a cause in docs/site/core_rules.py."""
    in_checker = _sites("ffi/core/rules.cc", pattern=r"return (?:Status|refuse|[^;]*?fail)\(GROUPED_BAD_\w+")
    of_sizes = _sites("ffi/core/offsets.cc", pattern=r"return at \+")
    listed = core_rules.refusals()
    assert len(listed) == len(in_checker) + len(of_sizes)
    assert len({r.message for r in listed}) == len(listed)
    assert all(r.cause.endswith(".") for r in listed)


def test_every_other_message_of_the_core_is_on_the_page():
    page = (ROOT / "docs" / "troubleshooting.md").read_text().replace("\n", " ")
    sources = [*(ROOT / "ffi").glob("**/*.cc"), *(ROOT / "ffi" / "cuda").glob("**/*.cu*")]
    found = []
    for path in sources:
        if path.name in ("rules.cc", "offsets.cc"):
            continue
        joined = re.sub(r"\"\s*\"", "", path.read_text())  # a literal over several lines is one
        for text in re.findall(r"Status\(\s*GROUPED_\w+,\s*((?:[^;\"]|\"[^\"]*\")*);", joined):
            found += [(path.name, max(re.findall(r"\"([^\"]*)\"", text), key=len, default=""))]
    assert len(found) >= 7
    for name, literal in found:
        longest = max(re.split(r"[;.:]", literal), key=len).strip()
        assert longest in page, f"{name} says {literal!r}: name its cause in docs/troubleshooting.md"


def test_messages_of_the_packages_are_read_out_of_their_sources(tmp_path, monkeypatch):
    listed = [text for _, _, text in python_messages.raised()]
    assert any("{name} must be one of {choices}" in text for text in listed)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "m.py").write_text('raise ValueError(f"a must be {b}; " + "got c.")\nraise\nraise KeyError\n')
    monkeypatch.setattr(python_messages, "ROOT", tmp_path)
    monkeypatch.setattr(python_messages, "PACKAGES", ("pack",))
    assert list(python_messages.raised()) == [("pack/m.py", "ValueError", "a must be {b}; got c.")]


def test_figures_are_of_the_committed_results():
    """`make figures` draws them anew."""
    source = f"{RESULTS['name']} · commit {RESULTS['commit'][:9]} · {RESULTS['date'][:10]}"
    drawn = [p for p in (ROOT / "docs" / "img").glob("*.svg") if p.name != "rooms.svg"]
    assert len(drawn) >= 5
    stale = [p.name for p in drawn if f"<dc:source>{source}</dc:source>" not in p.read_text()]
    assert stale == []


def test_numbers_on_the_performance_page_are_those_of_the_file(rendered):
    page = rendered["docs/performance.md"]
    for results in (RESULTS, H200):
        assert results["commit"][:9] in page
        assert f"{results['copy_bytes_per_second'] * 1e-9:.0f} GB/s" in page
    typed = re.sub(r"<!--.*?-->|\]\([^)]*\)|`[^`]*`", "", (ROOT / "docs" / "performance.md").read_text())
    assert re.findall(r"\d+(?:\.\d+)? ?(?:%|TF|TFLOP|GB|us\b|ms\b|times)", typed) == []


def test_the_site_builds_without_a_warning():
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    command = [sys.executable, str(ROOT / "docs" / "site" / "make_site.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (ROOT / "build" / "docs" / "index.html").exists()
