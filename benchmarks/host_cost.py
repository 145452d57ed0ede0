# SPDX-License-Identifier: Apache-2.0
"""What a call costs the host: microseconds until it returns, beside torch's own grouped_mm and a loop of nn.Linear.

On a GPU the device is idle when a sample begins, and a sample is short enough that its queue never fills, so that the
host waits for nothing; 8 groups of 256 rows, 256 x 256, bf16. On a CPU the product itself is in the time, and is made
as small as it can be: 8 groups of one row, 8 x 8, f32.

Rows that begin with "floor" do none of our work: new memory for a result, and what torch's engine takes for a view, for
an autograd.Function without content and for one nn.Linear. They tell what is left of a number to whoever would lower
it, and how fast the host is, on which every number here depends.

Samples of all candidates are interleaved; a number is the median, with the least beside it. Exits 1 if a goal of the
project is missed on a GPU. `--json FILE` keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import torch_grouped
from benchmarks.machine import describe
from torch_grouped import GroupedLinear, functional

GROUPS = 8
SAMPLES, CALLS = 60, 40
# Microseconds on a GPU.
GOALS = {"functional.grouped_mm": 15.0, "GroupedLinear, forward and backward": 60.0}


class _NoContent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        return dy


class Problem:
    """Operands of one size on one device, and the calls that are measured."""

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        rows, width = (256, 256) if cuda else (1, 8)
        options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16 if cuda else torch.float32}
        self.x = torch.randn(GROUPS * rows, width, **options)
        self.weight = torch.randn(GROUPS, width, width, **options)
        self.dy = torch.randn(GROUPS * rows, width, **options)
        self.out, self.dgrad_out = torch.empty_like(self.dy), torch.empty_like(self.x)
        self.sizes = torch.full((GROUPS,), rows, dtype=torch.int32, device=device)
        self.offs = self.sizes.cumsum(0).int()
        self.module = GroupedLinear(GROUPS, width, width, bias=False, params_dtype=options["dtype"], device=device)
        self.layers = [nn.Linear(width, width, bias=False, **options) for _ in range(GROUPS)]
        self.parts = self.x.split(rows)
        self.rows = rows
        self.leaf = self.x.clone().requires_grad_()
        self.parameter = self.weight.clone().requires_grad_()

    def candidates(self) -> dict[str, Callable[[], object]]:
        """By name; "installed" is torch's own function on the core."""
        x, w, sizes, offs, leaf, parameter = self.x, self.weight, self.sizes, self.offs, self.leaf, self.parameter
        w_t, parameter_t = w.mT, parameter.mT
        one_layer = self.layers[0]
        new = {"dtype": x.dtype, "device": x.device}

        def backward(y: torch.Tensor) -> None:
            y.backward(self.dy)
            leaf.grad = parameter.grad = self.module.weight.grad = one_layer.weight.grad = None

        def loop() -> None:
            parts = leaf.split(self.rows)
            y = torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)])
            y.backward(self.dy)
            leaf.grad = None
            for layer in self.layers:
                layer.weight.grad = None

        return {
            "functional.grouped_mm": _no_grad(lambda: functional.grouped_mm(x, w_t, offs=offs)),
            "functional.grouped_linear": _no_grad(lambda: functional.grouped_linear(x, w, sizes)),
            "functional.grouped_linear, out": _no_grad(lambda: functional.grouped_linear(x, w, sizes, out=self.out)),
            "GroupedLinear": _no_grad(lambda: self.module(x, sizes)),
            "F.grouped_mm": _no_grad(lambda: F.grouped_mm(x, w_t, offs=offs)),
            "F.grouped_mm, installed": _no_grad(lambda: F.grouped_mm(x, w_t, offs=offs)),
            "loop of nn.Linear": _no_grad(
                lambda: torch.cat([m(p) for m, p in zip(self.layers, self.parts, strict=True)])
            ),
            "functional.grouped_mm, forward and backward": lambda: backward(
                functional.grouped_mm(leaf, parameter_t, offs=offs)
            ),
            "functional.grouped_linear, forward and backward": lambda: backward(
                functional.grouped_linear(leaf, parameter, sizes)
            ),
            "GroupedLinear, forward and backward": lambda: backward(self.module(leaf, sizes)),
            "GroupedLinear, buffers, forward and backward": lambda: backward(
                self.module(leaf, sizes, out=self.out, dgrad_out=self.dgrad_out)
            ),
            "F.grouped_mm, forward and backward": lambda: backward(F.grouped_mm(leaf, parameter_t, offs=offs)),
            "F.grouped_mm, installed, forward and backward": lambda: backward(
                F.grouped_mm(leaf, parameter_t, offs=offs)
            ),
            "loop of nn.Linear, forward and backward": loop,
            "floor: torch.empty": _no_grad(lambda: torch.empty(x.shape, **new)),
            "floor: a view, forward and backward": lambda: backward(leaf.view(leaf.shape)),
            "floor: a Function without content, forward and backward": lambda: backward(_NoContent.apply(leaf)),
            "floor: one nn.Linear, forward and backward": lambda: backward(one_layer(leaf)),
        }


def _no_grad(function: Callable[[], object]) -> Callable[[], object]:
    def call() -> None:
        function()

    call.without_grad = True  # pyright: ignore[reportFunctionMemberAccess]
    return call


def _sample(name: str, function: Callable[[], object], device: torch.device) -> float:
    """Microseconds a call, of `CALLS` one after another on an idle device."""
    if "installed" in name:
        torch_grouped.install(device.type)
    with torch.set_grad_enabled(not hasattr(function, "without_grad")):
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        for _ in range(CALLS):
            function()
        seconds = time.perf_counter() - begin
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    torch_grouped.uninstall()
    return seconds / CALLS * 1e6


def measure(device: torch.device, samples: int = SAMPLES) -> dict[str, dict[str, float]]:
    """{candidate: median and least microseconds}."""
    candidates = Problem(device).candidates()
    for name, function in candidates.items():  # compile, load and cache what is compiled, loaded and cached once
        for _ in range(3):
            _sample(name, function, device)
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(samples):
        for name, function in candidates.items():
            found[name].append(_sample(name, function, device))
    return {
        name: {"median_us": round(statistics.median(times), 2), "least_us": round(min(times), 2)}
        for name, times in found.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Measures, prints, keeps; 1 if a goal is missed on a GPU."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_cost", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--json", type=Path, help="keep the numbers in this file")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    costs = measure(device, arguments.samples)
    for name, cost in costs.items():
        print(f"{name:56} {cost['median_us']:8.1f} us   least {cost['least_us']:8.1f}")
    missed = [name for name, goal in GOALS.items() if costs[name]["median_us"] >= goal]
    if arguments.json is not None:
        record = {"unit": "us of host time a call", "machine": describe(device), "goals_us": GOALS, "cases": costs}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    if device.type == "cpu":
        return 0
    for name in missed:
        print(f"goal missed: {name} below {GOALS[name]} us")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
