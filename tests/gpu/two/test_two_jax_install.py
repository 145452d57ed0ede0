# SPDX-License-Identifier: Apache-2.0
"""install() on two GPUs: served inside shard_map, left to JAX where XLA would partition the program itself."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import linear_problem
from tolerances import assert_bits

from jax_grouped import install


def step(lhs, rhs, sizes, dy):
    y, pull = jax.vjp(lambda a, b: jax.lax.ragged_dot(a, b, sizes), lhs, rhs)
    return y, *pull(dy)


@pytest.mark.skipif("len(jax.devices()) < 2", reason="needs two GPUs")
def test_shard_map_and_automatic_sharding(rng):
    case = BY_NAME["crosses_tiles"]
    parts = []
    for _ in range(2):
        p = linear_problem(rng, case, "bf16", bias=False, row_scale=False)
        parts.append(tuple(np.nan_to_num(a) for a in (p.x, p.weight, p.sizes, p.dy)))
    mesh = jax.make_mesh((2,), ("experts",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    experts = NamedSharding(mesh, P("experts"))
    whole = [jax.device_put(np.concatenate(a), experts) for a in zip(*parts, strict=True)]

    def targets(compiled):
        return sorted(re.findall(r'custom_call_target="(grouped_\w+)"', str(compiled.as_text())))

    with install():
        mapped = jax.shard_map(step, mesh=mesh, in_specs=(P("experts"),) * 4, out_specs=(P("experts"),) * 3)
        compiled = jax.jit(mapped).lower(*whole).compile()
        assert targets(compiled) == ["grouped_mm_v1", "grouped_mm_v1", "grouped_wgrad_v1"]
        found = compiled(*whole)
        alone = [jax.jit(step)(*map(jnp.asarray, p)) for p in parts]
        for value, pieces in zip(found, zip(*alone, strict=True), strict=True):
            assert_bits(np.asarray(value), np.concatenate([np.asarray(a) for a in pieces]))
        rows = jax.device_put(parts[0][0], experts)
        automatic = jax.jit(jax.lax.ragged_dot).lower(rows, *parts[0][1:3]).compile()
        assert targets(automatic) == []
