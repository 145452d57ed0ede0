# SPDX-License-Identifier: Apache-2.0
"""The CPU core on one thread against torch.mm, a loop of it over groups, and jax.lax.ragged_dot.

Interleaved, minimum of the repeats (the machine's noise only adds), fresh normal data. Prints one line a case and
the ratios that the project promises: at least torch.mm for one group, no slower than the loop over 8 groups,
several times jax.lax.ragged_dot. Exits 1 if one does not hold. `--json FILE` keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

# One thread each: set before the frameworks read it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
import torch

from grouped_core import __version__
from torch_grouped import functional

torch.set_num_threads(1)
REPEATS = 20


def _best(candidates: dict, repeats: int = REPEATS) -> dict[str, float]:
    """Seconds of each candidate: the minimum over interleaved repeats, after one warm-up."""
    for run in candidates.values():
        run()
    seconds = dict.fromkeys(candidates, float("inf"))
    order = list(candidates.items())
    for _ in range(repeats):
        # Another one first each time: whoever follows a candidate with large temporaries finds the caches cold.
        order.append(order.pop(0))
        for name, run in order:
            begin = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def _case(name: str, G: int, rows: int, K: int, N: int, dtype: torch.dtype, ragged: bool) -> dict[str, float]:
    """Throughput in GFLOP/s of every candidate."""
    T = G * rows
    x = torch.randn(T, K).to(dtype)
    w = torch.randn(G, N, K).to(dtype)
    transposed = w.transpose(1, 2).contiguous()
    sizes = torch.full((G,), rows)
    out = torch.empty(T, N, dtype=dtype)
    candidates = {
        "ours [G,N,K]": lambda: functional.grouped_linear(x, w, sizes, out=out),
        "ours [G,K,N]": lambda: functional.grouped_linear(x, transposed, sizes, weight_layout="gkn", out=out),
        "torch.mm loop": lambda: [
            torch.mm(x[g * rows : (g + 1) * rows], w[g].t(), out=out[g * rows : (g + 1) * rows]) for g in range(G)
        ],
    }
    if ragged:
        jax_x, jax_w = jnp.asarray(x.float().numpy()), jnp.asarray(transposed.float().numpy())
        jax_sizes = jnp.asarray(np.full(G, rows, np.int32))
        dot = jax.jit(jax.lax.ragged_dot)
        candidates["jax ragged_dot"] = lambda: dot(jax_x, jax_w, jax_sizes).block_until_ready()
    found = {k: 2e-9 * T * K * N / s for k, s in _best(candidates).items()}
    print(f"{name:34}" + "".join(f"{k}: {v:6.1f}  " for k, v in found.items()), flush=True)
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print("GFLOP/s, one thread")
    with torch.inference_mode():
        cases = {
            name: _case(name, G, rows, 1024, 1024, dtype, dtype == torch.float32)
            for name, G, rows, dtype in (
                ("f32, 1 group of 512, 1024x1024", 1, 512, torch.float32),
                ("f32, 8 groups of 512, 1024x1024", 8, 512, torch.float32),
                ("f32, 8 groups of 16, 1024x1024", 8, 16, torch.float32),
                ("bf16, 8 groups of 512, 1024x1024", 8, 512, torch.bfloat16),
            )
        }
    one, eight = (cases[f"f32, {n} of 512, 1024x1024"] for n in ("1 group", "8 groups"))
    ratios = {
        "one group / torch.mm (>= 1)": (one["ours [G,N,K]"] / one["torch.mm loop"], 1.0),
        "8 groups / torch.mm loop (>= 1)": (eight["ours [G,N,K]"] / eight["torch.mm loop"], 1.0),
        "8 groups / jax.lax.ragged_dot (>= 3)": (eight["ours [G,K,N]"] / eight["jax ragged_dot"], 3.0),
    }
    for name, (ratio, least) in ratios.items():
        print(f"{name:40} {ratio:5.2f}  {'ok' if ratio >= least else 'MISSED'}")
    if arguments.json is not None:
        versions = {"grouped": __version__, "torch": torch.__version__, "jax": jax.__version__}
        found = {
            "unit": "GFLOP/s, one thread, best of interleaved repeats",
            "processor": _processor(),
            "versions": versions,
            "cases": {name: {k: round(v, 1) for k, v in case.items()} for name, case in cases.items()},
            "ratios": {name: round(ratio, 2) for name, (ratio, _) in ratios.items()},
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(ratio >= least for ratio, least in ratios.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
