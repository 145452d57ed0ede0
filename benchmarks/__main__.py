# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m benchmarks run|prebuild|compare|plot`; `-h` behind each tells its options."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _add_filters(parser: argparse.ArgumentParser) -> None:
    device = "cuda" if shutil.which("nvidia-smi") else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device, help=f"default here: {device}")
    parser.add_argument("--shapes", type=_words, default=[], help="names, parts of names or tags, with commas; or all")
    parser.add_argument("--ops", type=_words, default=[], help="operations, with commas")
    parser.add_argument("--draws", type=_words, default=[], help="draws of the sizes, with commas")
    parser.add_argument(
        "--peers", type=_words, default=[], help="first, native, second; or parts of names, families, roles"
    )
    parser.add_argument("--dtype", choices=("bf16", "f16", "f32"), help="default: bf16 on a GPU, f32 on a CPU")
    parser.add_argument("--seed", type=int, default=0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="check and time every peer")
    _add_filters(run)
    run.add_argument("--out", type=Path, help="results file; goes on where it stopped (default: in benchmarks/results)")
    run.add_argument("--fresh", action="store_true", help="start the file anew")
    run.add_argument("--budget", type=float, default=0.0, help="start no case past so many seconds")
    run.add_argument("--rounds", type=int, default=40, help="samples of each peer at most")
    run.add_argument(
        "--xla-share", type=float, default=0.3, metavar="SHARE", help="of the GPU's memory that XLA takes at its start"
    )
    run.add_argument(
        "--build",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="another build of the core as a peer: its wheel or its library; may be given several times",
    )
    run.add_argument("--quick", action="store_true", help="few, short samples: a smoke test, not a measurement")
    run.add_argument("--warm-up", type=float, default=2.0, help="seconds of dense products before the first case")

    prebuild = commands.add_parser("prebuild", help="compile, in parallel, what peers would compile during a run")
    _add_filters(prebuild)
    prebuild.add_argument("--workers", type=int, default=8, help="processes, each with a few GB on the GPU")
    prebuild.add_argument("--budget", type=float, default=150.0, help="stop after so many seconds")
    prebuild.add_argument("--part", help=argparse.SUPPRESS)

    compare = commands.add_parser("compare", help="ratios to the best peer; exits 1 under a threshold")
    compare.add_argument("results", type=Path)
    compare.add_argument("--ours", default="torch_grouped", help="the peer that is judged")
    compare.add_argument("--against", type=_words, default=[], help="only these peers or families, with commas")
    compare.add_argument("--baseline", type=Path, help="an older file, to compare ours with ours")
    compare.add_argument(
        "--min-geomean", nargs="+", default=[], metavar="OP:DRAW=RATIO", help="* stands for every op or draw"
    )
    compare.add_argument("--min-case", type=float, default=0.0, metavar="RATIO")
    compare.add_argument(
        "--targets",
        type=_words,
        default=[],
        help="judge by the project's own: kernels, frameworks, or both with a comma",
    )

    plot = commands.add_parser("plot", help="draw the figures of a results file")
    plot.add_argument("results", type=Path)
    plot.add_argument("--out", type=Path, default=Path("docs/img"), help="folder for the images")
    plot.add_argument("--format", choices=("svg", "png"), default="svg")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; frameworks are imported only by those that need them, once their environment is set."""
    arguments = _parser().parse_args(argv)
    if arguments.command in ("run", "prebuild"):
        # Two frameworks share one GPU. A pool of XLA's that grows would keep for good what one call asked for.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if arguments.command == "run" else "false"
        os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # the same under an older name: both are an error
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(getattr(arguments, "xla_share", 0.1))
        # The frameworks number several GPUs each in its own way.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        if arguments.device == "cpu":
            _one_thread()
    if arguments.command == "run":
        from benchmarks.runner import Runner

        return Runner(arguments).run()
    if arguments.command == "prebuild":
        from benchmarks.prebuild import prebuild

        return prebuild(arguments)
    if arguments.command == "compare":
        from benchmarks.compare import compare

        return compare(arguments)
    from benchmarks.plot import plot

    return plot(arguments)


def _one_thread() -> None:
    """Before the frameworks read it: every peer on one thread of one core."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen=false {os.environ.get('XLA_FLAGS', '')}".strip()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
