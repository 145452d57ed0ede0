# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a whole JAX training step: it runs, its forms agree, and its file is a result file."""

from __future__ import annotations

import pytest

pytest.importorskip("jax")
pytest.importorskip("torch")

from benchmarks import jax_step
from benchmarks.readme_table import step_time
from benchmarks.results import load


def test_quick_run(tmp_path, capsys):
    path = tmp_path / "step.json"
    assert jax_step.main(["--quick", "--out", str(path)]) == 0
    data = load(path)
    assert data["device"] == "cpu"
    assert data["commit"]
    peers = data["cases"]["moe-step-64"]["peers"]
    assert set(peers) == {"grouped_mlp, donated buffers", "ragged_dot after install()", "jax.lax.ragged_dot"}
    table = capsys.readouterr().out
    for name, record in peers.items():
        assert name in table
        if "install" not in name:
            assert record["status"] == "ok"
            assert record["us"]["median"] > 0
            assert record["us"]["n"] >= 2


def test_a_wrong_form_is_not_timed(tmp_path, capsys, monkeypatch):
    right = jax_step.experts_of_jax
    monkeypatch.setattr(jax_step, "experts_of_jax", lambda *arguments: right(*arguments) * 1.1)
    path = tmp_path / "step.json"
    assert jax_step.main(["--quick", "--out", str(path)]) == 1
    assert "the losses of the first step differ" in capsys.readouterr().out
    assert not path.exists()


@pytest.mark.parametrize(
    ("reason", "told"), [("RESOURCE_EXHAUSTED: Out of memory while ...", "out of memory"), ("INTERNAL: oops", "failed")]
)
def test_only_memory_is_told_as_memory(reason, told):
    assert step_time({"status": "missing", "reason": reason}, 1) == told
