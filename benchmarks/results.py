# SPDX-License-Identifier: Apache-2.0
"""The artifact of a run: one JSON file, written anew after each case, so that a run can stop and go on anywhere."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

FORMAT = 1
FOLDER = Path(__file__).resolve().parent / "results"
# Results may share a file only where these agree.
_IDENTITY = ("commit", "source_hash", "binary_hash", "device", "name")


class Results:
    """The head and the cases of one file."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {"format": FORMAT, **head, "cases": {}}
        self._lines: dict[str, str] = {}

    @classmethod
    def open(cls, path: Path, head: dict[str, Any], fresh: bool = False) -> Results:
        """A new file, or the one that is there, to go on with.

        Raises:
          ValueError: the file was measured on other sources or another machine.
        """
        results = cls(path, head)
        if path.exists() and not fresh:
            old = load(path)
            different = [key for key in _IDENTITY if old.get(key) != head.get(key)]
            # A later sitting may have other peers installed; what both have must be the same.
            before, now = old.get("versions", {}), head.get("versions", {})
            different += [f"version of {name}" for name in before.keys() & now.keys() if before[name] != now[name]]
            if different:
                raise ValueError(
                    f"{path} was measured with another {', '.join(different)}. Name another file, or start it anew "
                    f"with --fresh."
                )
            results.data = {**old, "versions": {**before, **now}}
        return results

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        """By id."""
        return self.data["cases"]

    def add(self, case_id: str, record: dict[str, Any]) -> None:
        """Puts a case in and saves the file."""
        self.cases[case_id] = record
        self._lines.pop(case_id, None)
        self.save()

    def save(self) -> None:
        """Atomically: a run that is killed leaves the file of the case before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(self._text())
        os.replace(part, self.path)

    def _text(self) -> str:
        """JSON with a line for each case, each encoded once: a file that grows by a case is not made anew."""
        head = json.dumps({k: v for k, v in self.data.items() if k != "cases"}, indent=1)
        for case_id, record in self.cases.items():
            if case_id not in self._lines:
                self._lines[case_id] = f"  {json.dumps(case_id)}: {json.dumps(record)}"
        cases = ",\n".join(self._lines[case_id] for case_id in self.cases)
        return head.removesuffix("\n}") + f',\n "cases": {{\n{cases}\n }}\n}}\n'


def load(path: Path) -> dict[str, Any]:
    """A file's content.

    Raises:
      ValueError: it is not a result of this format.
    """
    data = json.loads(path.read_text())
    if data.get("format") != FORMAT or "cases" not in data:
        raise ValueError(f"{path} is not a benchmark result of format {FORMAT}.")
    return data


def default_path(head: dict[str, Any]) -> Path:
    """By machine, day and commit."""
    name = re.sub(r"[^a-z0-9]+", "-", str(head["name"]).lower()).strip("-")
    commit = str(head["commit"]).rstrip("+")[:9]
    return FOLDER / f"{name}_{head['date'][:10]}_{commit}.json"
