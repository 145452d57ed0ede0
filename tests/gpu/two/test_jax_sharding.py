# SPDX-License-Identifier: Apache-2.0
"""Two GPUs in one process: shard_map over experts and over tokens, and a thread for each GPU."""

from __future__ import annotations

import os

# Multicast between GPUs needs rights that containers often lack, and nothing here is faster for it.
os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax_sharded import RESULTS, sharded_problem
from problems import linear_problem
from tolerances import assert_bits

from jax_grouped import grouped_linear, grouped_mlp


def gpus() -> list:
    try:
        return jax.devices("gpu")[:2]
    except RuntimeError:
        return []


pytestmark = pytest.mark.skipif(len(gpus()) < 2, reason="needs two GPUs")


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(np.array(gpus()), ("d",))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("shared", [False, True], ids=["experts", "tokens"])
def test_mlp_in_place_with_the_bits_of_one_device(rng, mesh, shared, check_vma):
    problem = sharded_problem(rng, 2, weights_are_shared=shared)
    buffers, inputs = problem.arrays(mesh)
    compiled = hlo.compile_donating(problem.step(mesh, check_vma), buffers, *inputs)
    # The kernels' workspace is larger than these small buffers, so temporaries say nothing.
    assert hlo.faults(compiled, buffers).keys() <= {hlo.TEMPORARY}, hlo.faults(compiled, buffers)
    results = hlo.run_in_place(compiled, buffers, *inputs)
    for name, value, expected in zip(RESULTS, results, problem.expected().values(), strict=True):
        assert_bits(value, expected, name)


def test_automatic_sharding_is_refused(mesh):
    x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, P("d")))
    with pytest.raises(ValueError, match="this program is for 2 devices"):
        jax.jit(grouped_linear)(x, jnp.ones((2, 4, 6)), jnp.array([3, 5], jnp.int32))


def test_two_gpus_from_two_threads(rng):
    """Each with data and donated buffers of its own, at the same time; the bits of the other GPU on the same data."""
    p: Any = linear_problem(rng, BY_NAME["crosses_tiles"], "bf16", bias=False, row_scale=False)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(out, dgrad_out, x, weight, sizes, dy):
        y, pull_back = jax.vjp(lambda d: grouped_linear(x, weight, sizes, out=out, dgrad_out=d), dgrad_out)
        return y, *pull_back(dy)

    def work(device) -> list[np.ndarray]:
        put = partial(jax.device_put, device=device)
        inputs = [put(a) for a in (p.x, p.weight, p.sizes, p.dy)]
        buffers = [jnp.full(a.shape, 7.0, a.dtype, device=device) for a in (p.dy, p.x)]
        before = [hlo.pointers(b) for b in buffers]
        for _ in range(50):
            buffers = list(step(*buffers, *inputs))
            assert [b.devices() for b in buffers] == [{device}] * 2
        jax.block_until_ready(buffers)
        assert [hlo.pointers(b) for b in buffers] == before
        return [np.array(b) for b in buffers]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, gpus())
    for name, a, b in zip(("y", "dx"), first, second, strict=True):
        assert_bits(a, b, name)
        assert (a[p.S :].astype(np.float32) == 7.0).all()


def test_refs_of_two_gpus(mesh):
    """A sharded Ref is written on both."""
    spec = NamedSharding(mesh, P("d"))
    rows = jax.device_put(np.ones((16, 8), np.float32), spec)
    weights = [jax.device_put(np.ones(s, np.float32), spec) for s in ((4, 8, 6), (4, 6, 5))]
    sizes = jax.device_put(np.array([3, 5, 0, 8], np.int32), spec)
    out = jax.new_ref(jnp.copy(jax.device_put(np.full((16, 5), 7.0, np.float32), spec)))

    @jax.jit
    def step(out, *inputs):
        def each(out, *inputs):
            return grouped_mlp(*inputs, activation="squared_relu", out=out).sum()[None]

        return jax.shard_map(each, mesh=mesh, in_specs=(P("d"),) * 5, out_specs=P("d"))(out, *inputs)

    step(out, rows, *weights, sizes)
    assert (np.asarray(out[...]) == 6 * 64).all()
