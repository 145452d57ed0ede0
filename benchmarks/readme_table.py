# SPDX-License-Identifier: Apache-2.0
"""The README's numbers, made from a committed result file: `python -m benchmarks.readme_table FILE [--means]`.

Of a file of `benchmarks.jax_step` a sentence, of any other a table; with `--means` a sentence of its means alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.ratios import means, rows

SHAPES = ("dsv3-ep32-up", "dsv3-ep32-down", "qwen3-235b-up", "qwen3-30b-up", "olmoe-down", "mixtral-up")
OPERATIONS = ("fwd", "dgrad", "wgrad")
OURS, JAX_OURS, JAX_NATIVE = "torch_grouped", "jax_grouped", "jax.lax.ragged_dot"


def _speed(case: dict[str, Any], peer: str) -> float | None:
    found = case["peers"].get(peer, {})
    return found["tflops"] if found.get("status") == "ok" else None


def _best_peer(case: dict[str, Any]) -> float:
    rivals = [p["tflops"] for p in case["peers"].values() if p["role"] == "peer" and p.get("status") == "ok"]
    return max(rivals)


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a shape, then the geometric means over all shapes of the default table."""
    even = {(c["shape"]["name"], c["op"]): c for c in results["cases"].values() if c["draw"] == "even"}
    # JAX's own operation has a process of its own, which a file need not have.
    has_jax = any(_speed(case, JAX_NATIVE) for case in results["cases"].values())
    head = ["bf16, even sizes, TF/s", "G, T, K, N", "fwd: ours / best peer", "dgrad", "wgrad"]
    if has_jax:
        head.append("JAX fwd: ours / `lax.ragged_dot`")
    table = [head, ["---"] * len(head)]
    for name in SHAPES:
        shape = even[name, "fwd"]["shape"]
        row = [name, ", ".join(str(shape[letter]) for letter in "GTKN")]
        row += [f"{_speed(even[name, op], OURS):.0f} / {_best_peer(even[name, op]):.0f}" for op in OPERATIONS]
        if has_jax:
            ours, native = (_speed(even[name, "fwd"], peer) for peer in (JAX_OURS, JAX_NATIVE))
            row.append(f"{ours:.0f} / " + ("out of memory or not run" if native is None else f"{native:.0f}"))
        table.append(row)
    by_group = means([row for row in rows(results, OURS) if row.is_primary])
    for draw in ("even", "zipf"):
        found = [by_group.get((op, draw)) for op in OPERATIONS]
        texts = ["not run" if f is None else f"{f[0]:.2f} ({f[1]} shapes)" for f in found]
        table.append([f"ours / best peer, geometric mean, {draw}", "", *texts] + [""] * has_jax)
    return "\n".join("|" + "|".join(cell if cell == "---" else f" {cell} " for cell in row) + "|" for row in table)


def means_sentence(results: dict[str, Any]) -> str:
    """The geometric means over all shapes of the default table, and the lowest case."""
    draws = ("even", "zipf")
    judged = [r for r in rows(results, OURS) if r.is_primary and r.op in OPERATIONS and r.draw in draws]
    by_group = means(judged)
    parts = []
    for op in OPERATIONS:
        (even, shapes), (zipf, _) = (by_group[op, draw] for draw in draws)
        parts.append(f"{op} {even:.2f} with even and {zipf:.2f} with zipf sizes")
    lowest = min(judged, key=lambda row: row.ratio)
    name = f"{lowest.case_id.partition('/')[0]} {lowest.op} {lowest.draw}"
    return (
        f"{results['name']}, ours / best peer, geometric mean of {shapes} shapes: {', '.join(parts)}; "
        f"the lowest of {len(judged)} cases {lowest.ratio:.2f} ({name})."
    )


def step_time(peer: dict[str, Any], digits: int) -> str:
    """Milliseconds of a step of `benchmarks.jax_step`, or why there are none."""
    if peer["status"] == "ok":
        return f"{peer['us']['median'] / 1e3:.{digits}f} ms"
    return "out of memory" if peer["reason"].startswith("RESOURCE_EXHAUSTED") else "failed"


def sentence(results: dict[str, Any]) -> str:
    """The whole training steps in JAX."""
    parts = []
    for case in sorted(results["cases"].values(), key=lambda c: c["shape"]["tokens"]):
        shape, peers = case["shape"], case["peers"]
        times = {name: step_time(peer, 1) for name, peer in peers.items()}
        parts.append(
            f"{shape['tokens']} tokens to {shape['top_k']} of {shape['experts']} experts: {times[JAX_NATIVE]} with "
            f"`{JAX_NATIVE}`, {times['ragged_dot after install()']} after `install()`, "
            f"{times['grouped_mlp, donated buffers']} with `grouped_mlp` and donated buffers"
        )
    return "; ".join(parts) + "."


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_text())
    is_step = any(case["op"] == "step" for case in results["cases"].values())
    if sys.argv[2:] == ["--means"]:
        print(means_sentence(results))
    else:
        print(sentence(results) if is_step else table(results))


if __name__ == "__main__":
    main()
