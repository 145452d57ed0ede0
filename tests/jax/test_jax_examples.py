# SPDX-License-Identifier: Apache-2.0
"""examples/jax_*.py: each prints checks that hold, and its compiled step copies none of its buffers."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_grouped import grouped_mlp

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("jax_*.py"))
# Where a model is written with a package that need not be installed.
NEEDS = {"jax_flax": "flax", "jax_equinox": "equinox"}
BARRIER_HOLDS = jax.__version_info__ >= (0, 11)
SCOPES = ("dispatch", "combine")


def skip_without_package(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("default::DeprecationWarning")  # of the packages that an example uses
def test_every_check_holds(name, capsys) -> None:
    skip_without_package(name)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r".+: True", line)] == []


def module_of(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def buffers_in(name: str, arguments: tuple) -> list[Any]:
    """What the example donates to be written in place, or holds in Refs; of Refs, arrays alike."""
    found = {
        "jax_train_step": lambda params, out, dgrad_out, *rest: [out, dgrad_out],
        "jax_scan_layers": lambda params, out, dgrad_out, *rest: [out, dgrad_out],
        "jax_microbatches": lambda buffers, *rest: list(buffers.values()),
        "jax_refs": lambda embed, weight, refs, *rest: [refs[n] for n in _without_weights_copy(refs)],
        "jax_shard_map": lambda params, out, dgrad_out, *rest: [out, dgrad_out],
    }[name](*arguments)
    return [b[...] if isinstance(b, jax.Ref) else b for b in found]


def _without_weights_copy(refs: dict[str, jax.Ref]) -> list[str]:
    """XLA of jax 0.10 drops the barrier too early on CPU and copies the weight, which looks like its gradient."""
    return [name for name in refs if BARRIER_HOLDS or name != "wgrad_out"]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("jax_donation", *NEEDS)])
def test_no_buffer_is_copied(name) -> None:
    example = module_of(name)
    arguments = example.start()
    # In a scan over layers each gets its slice of what forward kept: rows, not a buffer. And the weight that is
    # updated from its gradient's Ref has the Ref's shape.
    own = {"jax_scan_layers": ("dynamic_slice",), "jax_refs": ("sub",)}
    scopes = (*SCOPES, *own.get(name, ()))
    hlo.assert_no_copy(example.step.lower(*arguments).compile(), buffers_in(name, arguments), scopes)


def test_a_barrier_keeps_donated_weights_in_place() -> None:
    """The documented way: XLA copies a donated weight whose update it cannot order behind backward."""
    if not BARRIER_HOLDS:
        pytest.skip("XLA of jax 0.10 drops the barrier too early on CPU")
    example = module_of("jax_train_step")
    arguments = example.start()
    params = arguments[0]
    found = hlo.faults(example.step.lower(*arguments).compile(), [params["fc1"], params["fc2"]], ("sub", *SCOPES))
    assert found.keys() <= {hlo.CALL}, found  # the gradients are memory of their own


def test_shard_map_example_has_the_gradients_of_one_device() -> None:
    """Sharded experts, shared router and embedding: a step changes the parameters as it does without devices."""
    example = module_of("jax_shard_map")
    params, _, _, tokens, target = example.start()
    params = {name: np.asarray(p) for name, p in params.items()}

    def loss(params):
        x = tokens @ params["embed"]
        probability, expert = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), example.TOP)
        order = jnp.argsort(expert.ravel(), stable=True)
        sizes = jnp.bincount(expert.ravel(), length=example.EXPERTS_EACH * example.DEVICES)
        scale = probability.ravel()[order]
        y = grouped_mlp(x[order // example.TOP], params["fc1"], params["fc2"], sizes, row_scale=scale)
        return jnp.mean((x + jnp.zeros_like(x).at[order // example.TOP].add(y) - target) ** 2)

    expected = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    after = example.step(*example.start())[0]
    for name, old in params.items():
        found = (old - np.asarray(after[name])) / 0.1
        # Sums in another order, and the rounding of the update that is taken back here.
        allowed = 1e-5 * (np.abs(old).max() + np.abs(expected[name]).max())
        assert np.abs(found - np.asarray(expected[name])).max() < allowed, name
