# SPDX-License-Identifier: Apache-2.0
"""grouped_mlp under shard_map, on numbers that every sum represents exactly: devices must agree with one, bit for bit.

Experts sharded: each device has its own experts and rows, the latter with a tail. Tokens sharded: each has rows of all
experts, whose weights are on all devices, and the weights' gradients are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import SENTINEL
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from jax_grouped import grouped_mlp

K, F, N, ROWS = 64, 5, 95, 48  # ROWS: of one device, the tail included
EXPERTS = 3  # of one device where they are sharded, of all where tokens are
RESULTS = ("out", "dgrad_out", "fc1_weight", "fc2_weight", "row_scale")


def one_step(out, dgrad_out, x, fc1_weight, fc2_weight, sizes, row_scale, dy) -> tuple:
    """The filled buffers, and the gradients of the weights and of row_scale. dy is flat, so that it costs no copy."""

    def loss(fc1_weight, fc2_weight, row_scale, dgrad_out):
        y = grouped_mlp(
            *(x, fc1_weight, fc2_weight, sizes),
            activation="squared_relu",
            row_scale=row_scale,
            out=out,
            dgrad_out=dgrad_out,
        )
        return jnp.vdot(y.ravel(), dy), y

    differentiate = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    (d_fc1, d_fc2, d_scale, dgrad_out), y = differentiate(fc1_weight, fc2_weight, row_scale, dgrad_out)
    return y, dgrad_out, d_fc1, d_fc2, d_scale


@dataclass(frozen=True)
class Sharded:
    """Inputs of every device in the order of `one_step`, buffers apart. Shared weights are those of the first."""

    devices: list[list[NDArray]]
    weights_are_shared: bool

    @property
    def specs(self) -> tuple[P, ...]:
        weight = P() if self.weights_are_shared else P("d")
        return (P("d"), weight, weight, P("d"), P("d"), P("d"))

    def step(self, mesh: Mesh, check_vma: bool) -> Callable:
        """`one_step` on every device of the mesh, gradients of shared weights added up."""
        own = P() if self.weights_are_shared else P("d")

        def step(*arguments):
            y, dgrad_out, *d_weights, d_scale = one_step(*arguments)
            if self.weights_are_shared and not check_vma:  # else JAX adds them up itself
                d_weights = [jax.lax.psum(d, "d") for d in d_weights]
            return y, dgrad_out, *d_weights, d_scale

        return jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P("d"), P("d"), *self.specs),
            out_specs=(P("d"), P("d"), own, own, P("d")),
            check_vma=check_vma,
        )

    def arrays(self, mesh: Mesh) -> tuple[list[Any], list[Any]]:
        """The buffers, and the inputs, each where the step wants it."""
        n = len(self.devices)
        put = [
            jax.device_put(parts[0] if spec == P() else np.concatenate(parts), NamedSharding(mesh, spec))
            for parts, spec in zip(zip(*self.devices, strict=True), self.specs, strict=True)
        ]
        # Copied, because device_put may share numpy's memory, which XLA does not take.
        sharding = NamedSharding(mesh, P("d"))
        make = partial(np.full, fill_value=SENTINEL, dtype=np.float32)
        return [jnp.copy(jax.device_put(make((n * ROWS, width)), sharding)) for width in (N, K)], put

    def expected(self) -> dict[str, NDArray]:
        """What one device computes of it, part for part."""
        parts = []
        for inputs in self.devices:
            buffers = [jnp.full((ROWS, width), SENTINEL) for width in (N, K)]
            parts.append([np.asarray(a) for a in jax.jit(one_step)(*buffers, *inputs)])
        join: dict[str, Any] = {name: np.concatenate for name in RESULTS}
        if self.weights_are_shared:
            join["fc1_weight"] = join["fc2_weight"] = sum
        return {name: join[name](list(p)) for name, p in zip(RESULTS, zip(*parts, strict=True), strict=True)}


def sharded_problem(rng: np.random.Generator, devices: int, *, weights_are_shared: bool) -> Sharded:
    """Integers from -1 to 1; rows past each device's groups are NaN, and so is the gradient there."""

    def draw(*shape: int) -> NDArray:
        return rng.integers(-1, 2, shape).astype(np.float32)

    weights = [draw(EXPERTS, K, F), draw(EXPERTS, F, N)]
    parts = []
    for device in range(devices):
        sizes = rng.integers(0, ROWS // EXPERTS, EXPERTS).astype(np.int32)
        sizes[device % EXPERTS] = 0
        rows = [draw(ROWS, K), rng.integers(1, 3, ROWS).astype(np.float32), draw(ROWS, N)]
        for a in rows:
            a[sizes.sum() :] = np.nan
        own = weights if weights_are_shared else [draw(*w.shape) for w in weights]
        parts.append([rows[0], *own, sizes, rows[1], rows[2].ravel()])
    return Sharded(parts, weights_are_shared)
