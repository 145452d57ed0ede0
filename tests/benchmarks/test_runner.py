# SPDX-License-Identifier: Apache-2.0
"""The command line: run, compare and plot on a CPU, and what a run does when it is cut short or a peer is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import compare, machine, ratios
from benchmarks.__main__ import _parser
from benchmarks.peers import registry
from benchmarks.peers.base import OURS, Call, Peer, Skip
from benchmarks.peers.tokamax_ops import Tokamax
from benchmarks.results import Results, load
from benchmarks.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def _command(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    environment = {**os.environ, "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", "")}
    if not environment["MPLCONFIGDIR"]:
        del environment["MPLCONFIGDIR"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)


def test_run_compare_and_plot_on_a_cpu(tmp_path):
    path = tmp_path / "results.json"
    ops, shapes, draws = "fwd,dgrad,wgrad,act,host", "tiny-up,tiny-8x16", "even,zipf,empty"
    filters = ["--ops", ops, "--shapes", shapes, "--draws", draws]
    run = _command("run", "--device", "cpu", "--quick", "--out", path, *filters)
    assert run.returncode == 0, run.stdout + run.stderr
    data = json.loads(path.read_text())
    assert len(data["cases"]) == 15
    for key in ("commit", "source_hash", "binary_hash", "name", "versions", "copy_bytes_per_second"):
        assert data[key], key
    assert "QuACK coop 128x256" in data["missing_peers"]
    for case_id, case in data["cases"].items():
        entry = case["peers"]["torch_grouped"]
        assert entry["status"] == "ok", case_id
        assert 0 < entry["us"]["min"] <= entry["us"]["median"] <= entry["us"]["max"]
        assert len(entry["samples_us"]) == entry["us"]["n"] >= 3
        assert entry["error_over_bound"] <= 1
    fwd = data["cases"]["tiny-up/fwd/empty/f32"]
    entry = fwd["peers"]["torch_grouped"]
    assert fwd["empty_groups"] == 1
    assert fwd["flops"] == 2 * 128 * 64 * 96
    assert entry["tflops"] == pytest.approx(fwd["flops"] / entry["us"]["median"] * 1e-6, rel=0.01, abs=2e-5)

    good = _command("compare", path, "--min-geomean", "*:*=0.000001", "--min-case", "0.000001")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "all thresholds hold" in good.stdout
    bad = _command("compare", path, "--min-geomean", "fwd:zipf=1000000")
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert "MISSED fwd:zipf" in bad.stdout

    plot = _command("plot", path, "--format", "png", "--out", tmp_path / "figures")
    assert plot.returncode == 0, plot.stdout + plot.stderr
    figures = {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()}
    expected = ("bars_fwd", "bars_dgrad", "bars_wgrad", "roofline", "skew", "jax", "activation", "host")
    assert set(figures) == {f"{name}.png" for name in expected}
    assert all(content.startswith(PNG) and len(content) > 10_000 for content in figures.values())


def _runner(path: Path, *options: str) -> Runner:
    fixed = ["run", "--device", "cpu", "--quick", "--out", str(path), "--shapes", "tiny-up", "--ops", "fwd"]
    return Runner(_parser().parse_args([*fixed, "--peers", "torch", *options]))


def test_a_run_goes_on_where_it_stopped(tmp_path, capsys):
    path = tmp_path / "results.json"
    assert _runner(path, "--draws", "even").run() == 0
    before = load(path)["cases"]["tiny-up/fwd/even/f32"]
    assert _runner(path, "--draws", "even,zipf").run() == 0
    cases = load(path)["cases"]
    assert list(cases) == ["tiny-up/fwd/even/f32", "tiny-up/fwd/zipf/f32"]
    assert cases["tiny-up/fwd/even/f32"] == before, "measured again"
    assert _runner(path, "--draws", "even", "--fresh").run() == 0
    assert list(load(path)["cases"]) == ["tiny-up/fwd/even/f32"]
    assert "[1/1" in capsys.readouterr().out.splitlines()[-2]


def test_a_budget_that_is_used_up_starts_no_case(tmp_path, capsys):
    path = tmp_path / "results.json"
    assert _runner(path, "--draws", "even,zipf", "--budget", "0.000001").run() == 0
    assert "2 cases left" in capsys.readouterr().out


class _Fake(Peer):
    """Forward that does as it is told."""

    def __init__(self, name: str, role: str, behaviour: str) -> None:
        self.name = self.family = name
        self.role = role
        self.behaviour = behaviour

    def fwd(self, p) -> Call:
        if self.behaviour == "skips":
            raise Skip("on Sundays")
        if self.behaviour == "breaks":
            raise RuntimeError("no such kernel\nand more")
        out = p.y()

        def run(i):
            if self.behaviour != "writes nothing":
                for g, (a, b) in enumerate(p.spans()):
                    out[a:b] = p.set(i).x[a:b] @ p.set(i).w[g].t()
            return out

        return Call(run, buffers=[out])


@pytest.mark.parametrize("role", [OURS, "peer"])
@pytest.mark.parametrize(
    ("behaviour", "status", "reason"),
    [
        ("works", "ok", None),
        ("writes nothing", "wrong", "inf times the error"),
        ("breaks", "failed", "RuntimeError: no such kernel"),
        ("skips", "skipped", "on Sundays"),
    ],
)
def test_only_right_results_are_timed(tmp_path, monkeypatch, role, behaviour, status, reason):
    peers = [_Fake("good", "peer", "works"), _Fake("x", role, behaviour)]
    monkeypatch.setattr(registry, "select", lambda patterns, device, builds: peers)
    path = tmp_path / "results.json"
    failed = role == OURS and status in ("wrong", "failed")
    assert _runner(path, "--draws", "even").run() == int(failed)
    entries = load(path)["cases"]["tiny-up/fwd/even/f32"]["peers"]
    assert entries["good"]["status"] == "ok"
    assert entries["x"]["status"] == status
    assert ("us" in entries["x"]) == (status == "ok")
    if reason is not None:
        assert entries["x"]["reason"].startswith(reason)
    assert bool(compare.unsound(load(path))) == failed


def test_a_later_sitting_adds_its_peers_beside_ours(tmp_path, monkeypatch):
    path = tmp_path / "results.json"

    def sit(*names: str) -> dict:
        peers = [_Fake("o", OURS, "works"), *(_Fake(n, "peer", "works") for n in names), _Fake("s", "peer", "skips")]
        monkeypatch.setattr(registry, "select", lambda patterns, device, builds: peers)
        assert _runner(path, "--draws", "even").run() == 0
        return load(path)["cases"]["tiny-up/fwd/even/f32"]["peers"]

    first = sit("a")
    second = sit("b")
    assert list(second) == ["o", "a", "s", "b"]
    assert second["o"] == first["o"], "as it was timed first"
    assert second["a"] == first["a"]
    assert set(second["b"]["beside"]) == {"o"}
    assert sit("a", "b") == second, "nothing is measured again"


def test_a_case_that_only_ours_would_run_is_left_out(tmp_path, monkeypatch):
    peers = [_Fake("o", OURS, "works"), Tokamax()]
    monkeypatch.setattr(registry, "select", lambda patterns, device, builds: peers)
    monkeypatch.setattr(Tokamax, "missing", lambda self, device: None)
    path = tmp_path / "results.json"
    assert _runner(path, "--draws", "zipf").run() == 0, "tokamax runs even sizes alone"
    assert not path.exists()


def test_a_tail_is_measured_though_no_peer_takes_one(tmp_path):
    path = tmp_path / "results.json"
    assert _runner(path, "--draws", "tail", "--ops", "fwd").run() == 0
    entries = load(path)["cases"]["tiny-up/fwd/tail/f32"]["peers"]
    for name in ("torch_grouped", "torch_grouped without the tail", "torch_grouped without a buffer"):
        assert entries[name]["status"] == "ok", entries[name]


def test_builds_of_ours_are_compared_where_no_peer_was_chosen(tmp_path, monkeypatch):
    names = [("o", OURS), ("other build", OURS), ("bound", "bound")]
    peers = [_Fake(name, role, "works") for name, role in names]
    monkeypatch.setattr(peers[2], "declines", lambda case, device: "not this one")
    monkeypatch.setattr(registry, "select", lambda patterns, device, builds: peers)
    path = tmp_path / "results.json"
    assert _runner(path, "--draws", "even").run() == 0
    entries = load(path)["cases"]["tiny-up/fwd/even/f32"]["peers"]
    assert [entries[name]["status"] for name in ("o", "other build")] == ["ok", "ok"]


def test_results_of_other_sources_are_not_mixed(tmp_path):
    head = {
        "commit": "a",
        "source_hash": "1",
        "binary_hash": "b",
        "device": "cpu",
        "name": "x",
        "versions": {"jax": "1"},
    }
    path = tmp_path / "results.json"
    first = Results.open(path, head)
    first.add("case", {"peers": {"p": {}}})
    assert "case" in Results.open(path, head).cases
    with pytest.raises(ValueError, match="another source_hash"):
        Results.open(path, {**head, "source_hash": "2"})
    with pytest.raises(ValueError, match="another version of jax"):
        Results.open(path, {**head, "versions": {"jax": "2"}})
    later = Results.open(path, {**head, "versions": {"tokamax": "3"}})
    assert later.data["versions"] == {"jax": "1", "tokamax": "3"}, "another sitting may have more installed"
    assert not Results.open(path, {**head, "source_hash": "2"}, fresh=True).cases


def test_a_file_holds_what_was_added_a_line_a_case(tmp_path):
    path = tmp_path / "results.json"
    results = Results(path, {"name": "x", "missing_peers": {"a": "b"}})
    results.save()
    assert load(path) == {"format": 1, "name": "x", "missing_peers": {"a": "b"}, "cases": {}}
    results.add('one "quoted"', {"peers": {}, "flops": 1})
    results.add("two", {"peers": {"p": {"samples_us": [1.5, 2.0]}}})
    results.add('one "quoted"', {"peers": {}, "flops": 2})
    data = load(path)
    assert data == results.data
    assert data["cases"]['one "quoted"']["flops"] == 2
    assert sum('"peers"' in line for line in path.read_text().splitlines()) == 2


def test_something_else_is_not_a_result(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a benchmark result"):
        load(path)


def test_the_source_hash_is_that_of_the_gpu_record(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    assert machine.source_hash() == import_module("source_hash").source_hash()


def _entry(role: str, family: str, microseconds: float) -> dict:
    return {"us": {"median": microseconds}, "status": "ok", "role": role, "family": family}


def _file(tmp_path: Path, name: str, **ratios: dict[str, float]) -> Path:
    """Ours always takes 10 us; `ratios` by op say how long the best peer takes for each case id's draw."""
    cases = {}
    for op, by_draw in ratios.items():
        for n, (draw, ratio) in enumerate(by_draw.items()):
            cases[f"s{n}/{op}/{draw}/bf16"] = {
                "op": op,
                "draw": draw.rstrip("'"),
                "flops": 1000,
                "bytes_bound_us": 4.0,
                "peers": {
                    "torch_grouped": _entry("ours", "torch_grouped", 10.0),
                    "B": _entry("peer", "b", 10 * ratio),
                    "A": _entry("peer", "a", 30 * ratio),
                    "part": _entry("part", "b", 0.1),
                    "dense": _entry("bound", "dense", 5.0),
                },
            }
    head = {"format": 1, "name": "x", "date": "d", "commit": "c", "source_hash": "h"}
    path = tmp_path / name
    path.write_text(json.dumps({**head, "cases": cases}))
    return path


def _compare(path: Path, *options: str) -> int:
    return compare.compare(_parser().parse_args(["compare", str(path), *options]))


def test_compare_takes_the_best_peer_and_no_bound_or_part(tmp_path, capsys):
    path = _file(tmp_path, "r.json", fwd={"even": 1.25, "zipf": 0.8, "zipf'": 1.25})
    table = ratios.rows(load(path), "torch_grouped")
    assert [(r.best_name, r.ratio) for r in table] == [("B", 1.25), ("B", 0.8), ("B", 1.25)]
    assert ratios.means(table)["fwd", "zipf"] == (pytest.approx(1.0), 2)
    assert ratios.rows(load(path), "torch_grouped", ["a"])[0].ratio == 3.75
    assert _compare(path) == 0
    out = capsys.readouterr().out
    assert "1.250" in out
    assert "50%" in out
    assert "40%" in out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--min-geomean", "fwd:even=1.02"], 0, "all thresholds hold"),
        (["--min-geomean", "fwd:even=1.25"], 0, "all thresholds hold"),
        (["--min-geomean", "fwd:even=1.26"], 1, "fwd:even: geometric mean 1.250 of 1 cases is below 1.26"),
        (["--min-geomean", "fwd:even=1.02", "fwd:zipf=0.85"], 1, "fwd:zipf: geometric mean 0.800"),
        (["--min-geomean", "*:*=0.79"], 0, "all thresholds hold"),
        (["--min-geomean", "wgrad:even=0.1"], 1, "wgrad:even: no case was measured"),
        (["--min-case", "0.8"], 0, "all thresholds hold"),
        (["--min-case", "0.81"], 1, "s1/fwd/zipf/bf16: 0.800 of B is below 0.81"),
        (["--against", "a", "--min-case", "2.4"], 0, "all thresholds hold"),
        (["--ours", "nobody", "--min-case", "0.1"], 1, "no case was measured"),
    ],
)
def test_compare_judges_by_thresholds(tmp_path, capsys, options, code, words):
    path = _file(tmp_path, "r.json", fwd={"even": 1.25, "zipf": 0.8})
    assert _compare(path, *options) == code
    assert words in capsys.readouterr().out


def test_compare_refuses_a_threshold_that_it_does_not_understand(tmp_path):
    path = _file(tmp_path, "r.json", fwd={"even": 1.25})
    with pytest.raises(ValueError, match="OP:DRAW=RATIO"):
        _compare(path, "--min-geomean", "fwd=1.0")


def test_compare_with_an_older_file(tmp_path, capsys):
    new, old = _file(tmp_path, "new.json", fwd={"even": 1.0}), _file(tmp_path, "old.json", fwd={"even": 1.0})
    data = load(old)
    data["cases"]["s0/fwd/even/bf16"]["peers"]["torch_grouped"]["us"]["median"] = 15.0
    old.write_text(json.dumps(data))
    assert _compare(new, "--baseline", str(old)) == 0
    assert "1.500" in capsys.readouterr().out.partition("old.json's time over this file's")[2]
