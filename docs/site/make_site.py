# SPDX-License-Identifier: Apache-2.0
"""`make docs`: the documentation as a site in build/docs, any warning an error.

Pages are Markdown that reads well where it lies. They are copied to build/docs-source, a comment `<!-- table: NAME -->`
is replaced by a table made from the core or from the results file, `<!-- figure: NAME -->` by a figure if there is data
for it, and links that lead out of the site become the path they lead to.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import core_rules
import python_messages
import result_tables

ROOT = Path(__file__).resolve().parents[2]
DOCS, SOURCE, SITE = ROOT / "docs", ROOT / "build" / "docs-source", ROOT / "build" / "docs"
RESULTS = ROOT / "benchmarks" / "results" / "h100.json"
# Pages in the order of the site, by their place in the repository; those that do not exist are left out.
SECTIONS = {
    "Use it": [
        "docs/running.md",
        "docs/jax.md",
        "docs/jax-ragged-dot.md",
        "docs/tokamax.md",
        "docs/torch.md",
        "docs/contract.md",
        "docs/troubleshooting.md",
    ],
    "How it is built": ["docs/architecture.md", "docs/extending.md", "docs/decisions.md"],
    "How fast it is": ["docs/performance.md", "benchmarks/protocol.md", "docs/kernel-log.md"],
    "Project": ["CHANGELOG.md", "CONTRIBUTING.md"],
}
_LINK = re.compile(r"(!?)\[((?:[^\]\[`]|`[^`]*`|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FIGURE = re.compile(r"^<!-- figure: (\w+) -->$", re.MULTILINE)
_TABLE = re.compile(r"^<!-- table: ([\w-]+) -->$", re.MULTILINE)


class BrokenLink(Exception):
    """A page points to something that is not there."""


def pages() -> dict[str, str]:
    """Place in the repository -> name in the site, of every page that exists."""
    listed = [place for places in SECTIONS.values() for place in places]
    others = sorted(str(p.relative_to(ROOT)) for p in DOCS.glob("*.md"))
    found = [place for place in dict.fromkeys([*listed, *others]) if (ROOT / place).exists()]
    return {place: Path(place).name.lower() for place in found}


def tables() -> dict[str, str]:
    """Every table by its name."""
    data = json.loads(RESULTS.read_text())
    made = {name: make(data) for name, make in result_tables.TABLES.items()}
    made["argument-rules"] = core_rules.rules_page()
    made["public-rules"] = core_rules.rules_page(public_only=True)
    made["refusals"] = core_rules.refusals_page()
    made["python-messages"] = python_messages.page()
    return made


def render(place: str, text: str, known: dict[str, str], made: dict[str, str]) -> str:
    """A page as the site has it.

    Raises:
      BrokenLink: a link to nothing.
      KeyError: a table that nobody makes.
    """
    text = _TABLE.sub(lambda found: made[found.group(1)], text)
    text = _FIGURE.sub(lambda found: _figure(found.group(1)), text)

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return found.group(0)
        absolute = ((ROOT / place).parent / path).resolve()
        if not absolute.exists():
            raise BrokenLink(f"{place} links to {target}, which is not there.")
        inside = str(absolute.relative_to(ROOT))
        if inside in known:
            return f"{picture}[{words}]({known[inside]}{'#' + anchor if anchor else ''})"
        if inside.startswith("docs/img/"):
            return f"{picture}[{words}]({inside.removeprefix('docs/')})"
        plain = words.strip("`")
        return f"`{inside}`" if plain == inside or plain == Path(inside).name else f"{words} (`{inside}`)"

    parts = re.split(r"(^```.*?^```\s*$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def _figure(name: str) -> str:
    """A figure that a results file may not have data for."""
    there = (DOCS / "img" / f"{name}.svg").exists()
    return f"![{name}](img/{name}.svg)" if there else "*No figure: not in this results file.*"


def contents(known: dict[str, str]) -> str:
    """The site's navigation, below its first page."""
    blocks = []
    for title, places in SECTIONS.items():
        names = "\n".join(known[place].removesuffix(".md") for place in places if place in known)
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{names}\n```")
    listed = {place for places in SECTIONS.values() for place in places} | {"docs/index.md"}
    rest = "\n".join(name.removesuffix(".md") for place, name in known.items() if place not in listed)
    if rest:
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: More\n\n{rest}\n```")
    return "\n\n".join(blocks)


def stage() -> Path:
    """All sources of the site in one folder."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    shutil.copytree(DOCS / "img", SOURCE / "img")
    shutil.copy2(DOCS / "site" / "conf.py", SOURCE)
    known, made = pages(), tables()
    for place, name in known.items():
        text = render(place, (ROOT / place).read_text(), known, made)
        if place == "docs/index.md":
            text += "\n" + contents(known) + "\n"
        (SOURCE / name).write_text(text)
    return SOURCE


def main() -> int:
    """Sphinx's exit code."""
    stage()
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(SOURCE), str(SITE)]
    code = subprocess.run(command).returncode
    if code == 0:
        print(f"{SITE / 'index.html'}: {len(list(SITE.glob('*.html')))} pages")
    return code


if __name__ == "__main__":
    sys.exit(main())
