# SPDX-License-Identifier: Apache-2.0
"""JAX: experts sharded over devices by `shard_map`, tokens on all of them. Runs on four CPU devices, too.

Each device sorts the rows of its own experts to the front; the others are the tail, which no kernel touches. What they
compute is added up over the devices. The experts are not the first layer, and every device owns its buffers.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_grouped import grouped_mlp

TOKENS, TOP, PIXELS, FEATURES, HIDDEN, EXPERTS_EACH = 24, 2, 10, 8, 12, 2
DEVICES = len(jax.devices())
MESH = jax.make_mesh((DEVICES,), ("experts",), axis_types=(jax.sharding.AxisType.Auto,))
SPECS = {"embed": P(), "router": P(), "fc1": P("experts"), "fc2": P("experts")}


def loss(params, dgrad_out, out, tokens, target):
    x = tokens @ params["embed"]
    probability, expert = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), TOP)
    own = expert.ravel() - EXPERTS_EACH * jax.lax.axis_index("experts")
    own = jnp.where((own >= 0) & (own < EXPERTS_EACH), own, EXPERTS_EACH)  # the last: not mine
    # JAX types the order of a sort as if it were the same on every device; untold, it would add up its gradients.
    order = jax.lax.pcast(jnp.argsort(own, stable=True), "experts", to="varying")
    sizes = jnp.bincount(own, length=EXPERTS_EACH)
    # What a buffer holds in its tail is no result: it is masked on the way in, for the gradients, and on the way out.
    mine = (jnp.arange(len(order)) < sizes.sum())[:, None]
    with jax.named_scope("dispatch"):
        rows = jnp.where(mine, x[order // TOP], 0)
    scale = probability.ravel()[order]
    y = grouped_mlp(rows, params["fc1"], params["fc2"], sizes, row_scale=scale, out=out, dgrad_out=dgrad_out)
    with jax.named_scope("combine"):
        x = x + jax.lax.psum(jnp.zeros_like(x).at[order // TOP].add(jnp.where(mine, y, 0)), "experts")
    return jnp.mean((x - target) ** 2), y


@jax.jit(donate_argnames=("params", "out", "dgrad_out"))
@jax.shard_map(
    mesh=MESH,
    in_specs=(SPECS, P("experts"), P("experts"), P(), P()),
    out_specs=(SPECS, P("experts"), P("experts"), P()),
)
def step(params, out, dgrad_out, tokens, target):
    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, out), (grads, dgrad_out) = differentiate(params, dgrad_out, out, tokens, target)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    return params, out, dgrad_out, value


def start():
    shapes = {"embed": (PIXELS, FEATURES), "router": (FEATURES, EXPERTS_EACH * DEVICES)}
    shapes |= {"fc1": (EXPERTS_EACH * DEVICES, FEATURES, 2 * HIDDEN), "fc2": (EXPERTS_EACH * DEVICES, HIDDEN, FEATURES)}
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    params = {n: jax.random.normal(k, s) / s[-2] ** 0.5 for (n, s), k in zip(shapes.items(), keys, strict=False)}
    params = {n: jax.device_put(p, NamedSharding(MESH, SPECS[n])) for n, p in params.items()}
    rows = NamedSharding(MESH, P("experts"))
    out, dgrad_out = (jnp.full((DEVICES * TOKENS * TOP, FEATURES), -1.0, device=rows) for _ in range(2))
    tokens, target = (jax.random.normal(k, (TOKENS, n)) for k, n in zip(keys[-2:], (PIXELS, FEATURES), strict=True))
    return params, out, dgrad_out, tokens, target


def addresses(*buffers):
    return [shard.data.unsafe_buffer_pointer() for b in buffers for shard in b.addressable_shards]


if __name__ == "__main__":
    params, out, dgrad_out, tokens, target = start()
    before, values = addresses(out, dgrad_out), []
    for _ in range(30):
        params, out, dgrad_out, value = step(params, out, dgrad_out, tokens, target)
        values.append(float(value))
    print("same memory on every device:", addresses(out, dgrad_out) == before)
    print("it learns:", values[-1] < 0.8 * values[0])
