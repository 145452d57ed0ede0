# SPDX-License-Identifier: Apache-2.0
"""One whole training step of a mixture of experts in JAX, three times: python -m benchmarks.jax_step [--quick].

A dense layer, router, sort and gather, experts with SwiGLU, weighted sum, loss, all gradients, SGD; parameters are
donated. The experts are computed
  - by `jax.lax.ragged_dot` as JAX lowers it (its flags for Hopper make it slower or do not load),
  - by the same function compiled under `jax_grouped.install()`,
  - by `jax_grouped.grouped_mlp`, with all results and gradients of the experts in donated buffers.
All three start from the same weights, must agree on the loss before they are timed, and take turns while they are.
Measured with as many tokens as a rank has in training, and with a quarter of them: JAX's own lowering holds as many
copies of the rows as there are experts, so that it may not fit into memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import torch

import jax_grouped
from benchmarks import machine, stats
from benchmarks.peers.base import HOST_CLOCK, Call
from benchmarks.results import FOLDER, Results
from benchmarks.timing import Plan, Stopwatch, Timed, warm_up

RATE = 1e-2


@dataclass(frozen=True)
class Shape:
    """Of the model."""

    tokens: int = 4096
    top_k: int = 8
    experts: int = 64
    features: int = 2048
    hidden: int = 1408
    dtype: str = "bfloat16"

    @property
    def rows(self) -> int:
        """Of all experts together."""
        return self.tokens * self.top_k

    @property
    def flops(self) -> int:
        """Of the experts' products, forward and backward: gate, up and down."""
        return 3 * 2 * self.rows * self.features * 3 * self.hidden


FULL = (Shape(), Shape(tokens=1024))
QUICK = (Shape(tokens=64, top_k=2, experts=4, features=32, hidden=24, dtype="float32"),)


def parameters(shape: Shape) -> dict[str, Any]:
    """Drawn on the device; the same at each call."""
    D, F, G = shape.features, shape.hidden, shape.experts
    shapes = {"dense": (D, D), "router": (D, G), "fc1": (G, D, 2 * F), "fc2": (G, F, D)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, s, shape.dtype) * jnp.asarray(s[-2] ** -0.5, shape.dtype)
        for (name, s), key in zip(shapes.items(), keys, strict=True)
    }


def experts_of_jax(params: dict, rows: Any, sizes: Any, scale: Any, buffers: dict) -> Any:
    """As a JAX model has them today."""
    h = jax.lax.ragged_dot(rows, params["fc1"], sizes)
    gate, up = jnp.split(h.astype(jnp.float32), 2, axis=-1)
    a = (jax.nn.silu(gate) * up * scale[:, None]).astype(rows.dtype)
    return jax.lax.ragged_dot(a, params["fc2"], sizes)


def experts_of_ours(params: dict, rows: Any, sizes: Any, scale: Any, buffers: dict) -> Any:
    """One call, into the buffers."""
    return jax_grouped.grouped_mlp(rows, params["fc1"], params["fc2"], sizes, row_scale=scale, **buffers)


def model(experts: Callable, shape: Shape, params: dict, x: Any, buffers: dict) -> tuple[Any, Any]:
    """The tokens' features, and the experts' result."""
    x = jax.nn.silu(x @ params["dense"])
    logits = (x @ params["router"]).astype(jnp.float32)
    probability, expert = jax.lax.top_k(jax.nn.softmax(logits), shape.top_k)
    order = jnp.argsort(expert.ravel(), stable=True)
    sizes = jnp.bincount(expert.ravel(), length=shape.experts).astype(jnp.int32)
    token = order // shape.top_k
    y = experts(params, x[token], sizes, probability.ravel()[order], buffers)
    return x + jnp.zeros_like(x).at[token].add(y), y


def step(experts: Callable, shape: Shape, params: dict, buffers: dict, x: Any, target: Any) -> tuple:
    """New parameters, the buffers filled, the loss."""
    gradient_buffers = {name: b for name, b in buffers.items() if name != "out"}

    def loss(params: dict, gradient_buffers: dict) -> tuple[Any, Any]:
        given = {**gradient_buffers, **({"out": buffers["out"]} if "out" in buffers else {})}
        found, y = model(experts, shape, params, x, given)
        return jnp.mean((found.astype(jnp.float32) - target) ** 2), y

    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, y), (grads, filled) = differentiate(params, gradient_buffers)
    if filled:
        grads = {**grads, "fc1": filled["fc1_wgrad_out"], "fc2": filled["fc2_wgrad_out"]}
    # Backward before every update, or XLA copies the donated weights: see docs/jax.md.
    grads = jax.lax.optimization_barrier(grads)
    params = {name: p - jnp.asarray(RATE, p.dtype) * grads[name] for name, p in params.items()}
    if filled:
        filled = {**filled, "fc1_wgrad_out": grads["fc1"], "fc2_wgrad_out": grads["fc2"]}
    return params, {**filled, "out": y} if buffers else {}, value


def buffers_of(shape: Shape) -> dict[str, Any]:
    """Results and gradients of the experts."""
    D, F, G = shape.features, shape.hidden, shape.experts
    shapes = {"out": (shape.rows, D), "dgrad_out": (shape.rows, D)}
    shapes |= {"fc1_wgrad_out": (G, D, 2 * F), "fc2_wgrad_out": (G, F, D)}
    return {name: jnp.full(s, jnp.nan, shape.dtype) for name, s in shapes.items()}


class Form:
    """A compiled step and its state."""

    def __init__(self, experts: Callable, shape: Shape, data: tuple, buffers: dict) -> None:
        self.state = [parameters(shape), buffers]
        self.data = data
        begin = time.perf_counter()
        traced = jax.jit(partial(step, experts, shape), donate_argnums=(0, 1))
        self.compiled = traced.lower(*self.state, *data).compile()
        self.compile_seconds = time.perf_counter() - begin
        self.first_loss = float(self.run(0))

    def run(self, _: int) -> Any:
        """A step; its loss, still on the device."""
        *self.state, value = self.compiled(*self.state, *self.data)
        return value


def make_forms(shape: Shape, data: tuple) -> tuple[dict[str, Form], dict[str, str]]:
    """Those that run here, and of the others why not."""
    platform = "cpu" if jax.default_backend() == "cpu" else "cuda"
    forms: dict[str, Form] = {}
    missing: dict[str, str] = {}

    def add(name: str, experts: Callable, buffers: dict) -> None:
        try:
            forms[name] = Form(experts, shape, data, buffers)
        except jax.errors.JaxRuntimeError as error:  # out of memory, above all
            missing[name] = str(error).splitlines()[0][:200]

    add("grouped_mlp, donated buffers", experts_of_ours, buffers_of(shape))
    with jax_grouped.install((platform,)):
        add("ragged_dot after install()", experts_of_jax, {})
    add("jax.lax.ragged_dot", experts_of_jax, {})
    return forms, missing


def wrong(forms: dict[str, Form], tolerance: float) -> str | None:
    """Who does not agree with the first on the loss of the first step."""
    losses = {name: form.first_loss for name, form in forms.items()}
    middle = next(iter(losses.values()), 0.0)
    if any(not abs(value - middle) <= tolerance * abs(middle) for value in losses.values()):
        return f"the losses of the first step differ: {losses}"
    return None


def measure(forms: dict[str, Form], device: torch.device, quick: bool) -> list[Timed]:
    """Interleaved samples of each."""
    plan = Plan(rounds=2, least=2, sample=1e-3, host_sample=1e-3) if quick else Plan(rounds=15, share=2.0)
    timed = [Timed(name, Call(form.run, wait=jax.block_until_ready), HOST_CLOCK) for name, form in forms.items()]
    warm_up(device, 0.0 if quick else 2.0)
    Stopwatch(device, plan).measure(timed)
    return timed


def measure_shape(shape: Shape, device: torch.device, quick: bool, results: Results) -> str | None:
    """Prints a table and keeps it; what is wrong with a result, if anything is."""
    keys = jax.random.split(jax.random.key(1))
    data = tuple(jax.random.normal(k, (shape.tokens, shape.features), shape.dtype) for k in keys)
    forms, missing = make_forms(shape, data)
    fault = wrong(forms, 1e-5 if shape.dtype == "float32" else 1e-2)
    if fault is not None:
        return fault
    timed = {t.name: t for t in measure(forms, device, quick)}

    peers: dict[str, dict] = {name: {"status": "missing", "reason": reason} for name, reason in missing.items()}
    title = f"{shape.tokens} tokens to {shape.top_k} of {shape.experts}"
    print(f"{title:32}{'ms a step':>10}{'spread':>8}{'TF/s of experts':>17}{'compile s':>11}")
    for name, t in timed.items():
        us = stats.summary(s * 1e6 for s in t.samples)
        peers[name] = {"status": "ok", "clock": t.clock, "first_loss": forms[name].first_loss, "us": us}
        peers[name]["compile_seconds"] = round(forms[name].compile_seconds, 2)
        print(
            f"{name:32}{us['median'] / 1e3:10.2f}{us['spread']:8.1%}{shape.flops / us['median'] / 1e6:17.1f}"
            f"{forms[name].compile_seconds:11.1f}"
        )
    for name, reason in missing.items():
        print(f"{name:32}not run: {reason}")
    case = {"shape": asdict(shape), "op": "step", "flops": shape.flops, "peers": peers}
    results.add(f"moe-step-{shape.tokens}", case)
    return None


def main(arguments: list[str]) -> int:
    """Prints tables and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model in two rounds: whether it runs at all")
    parser.add_argument("--out", type=Path, default=FOLDER / "jax_step.json")
    given = parser.parse_args(arguments)
    device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
    results = Results.open(given.out, machine.describe(device), fresh=True)
    for shape in QUICK if given.quick else FULL:
        fault = measure_shape(shape, device, given.quick, results)
        if fault is not None:
            print(fault)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
