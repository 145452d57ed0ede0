# SPDX-License-Identifier: Apache-2.0
"""A whole JAX step inside XLA command buffers (CUDA graphs): replayed with new sizes, on buffers that stay.

A host synchronisation in a call would make its capture fail, and a size read on the host would be replayed as it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

IN_GRAPHS = "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUSTOM_CALL --xla_gpu_graph_min_graph_size=1"
WITHOUT = "--xla_gpu_enable_command_buffer="

PROGRAM = """
    import hashlib
    import jax, jax.numpy as jnp, numpy as np
    from jax_grouped import grouped_mlp

    T, K, F, N, G = 512, 256, 128, 192, 8
    draw = np.random.default_rng(0).standard_normal
    x, w1, w2, dy = (jnp.asarray(draw(s), jnp.bfloat16) for s in ((T, K), (G, K, 2 * F), (G, F, N), (T, N)))
    scale = jnp.asarray(draw(T), jnp.float32)
    NAMES = ("dgrad_out", "fc1_wgrad_out", "fc2_wgrad_out")

    def call(x, scale, out, buffers, sizes):
        return grouped_mlp(x, w1, w2, sizes, row_scale=scale, out=out, **buffers)

    @jax.jit
    def with_refs(out, buffers, scale, sizes):
        _, pull_back = jax.vjp(lambda x, scale: call(x, scale, out, buffers, sizes), x, scale)
        return pull_back(dy)[1]

    def with_arrays(out, buffers, scale, sizes):
        y, pull_back = jax.vjp(lambda scale, buffers: call(x, scale, out, buffers, sizes), scale, buffers)
        d_scale, buffers = pull_back(dy)
        return y, buffers, d_scale

    with_arrays = jax.jit(with_arrays, donate_argnums=(0, 1))
    shapes = {"out": ((T, N), jnp.bfloat16), "dgrad_out": ((T, K), jnp.bfloat16)}
    shapes |= {"fc1_wgrad_out": (w1.shape, jnp.float32), "fc2_wgrad_out": (w2.shape, jnp.float32)}
    make = lambda: {name: jnp.full(shape, 7.0, dtype) for name, (shape, dtype) in shapes.items()}
    arrays, refs = make(), {name: jax.new_ref(a) for name, a in make().items()}
    pointers = lambda buffers: [buffers[name].unsafe_buffer_pointer() for name in shapes]
    before = pointers(arrays), pointers(refs)

    def digest(sizes, buffers, d_scale):
        S, found = sum(sizes), hashlib.sha256()
        for name in shapes:
            a = np.array(buffers[name][...])
            found.update((a[:S] if name in ("out", "dgrad_out") else a).tobytes())
        found.update(np.array(d_scale).tobytes())
        return found.hexdigest()

    EVERY = ([64] * 8, [512, 0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8], [0] * 8, [100, 0, 31, 200, 0, 1, 90, 17])
    for sizes in EVERY * 3:  # again and again: first runs, capture, replays
        given = jnp.array(sizes, jnp.int32)
        out, rest, d_scale = with_arrays(arrays["out"], {n: arrays[n] for n in NAMES}, scale, given)
        arrays = {"out": out, **rest}
        d_scale_of_refs = with_refs(refs["out"], {n: refs[n] for n in NAMES}, scale, given)
        digests = digest(sizes, arrays, d_scale), digest(sizes, refs, d_scale_of_refs)
        assert digests[0] == digests[1], (sizes, "arrays and Refs differ")
        assert (pointers(arrays), pointers(refs)) == before, (sizes, "a buffer moved")
        print("digest", digests[0])
"""


def run(flags: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [line for line in result.stdout.splitlines() if line.startswith("digest")]


def test_replays_have_the_bits_of_plain_launches():
    plain, replayed = run(WITHOUT), run(IN_GRAPHS)
    assert len(plain) == 15
    assert len(set(plain)) == 5, "each of the sizes has results of its own, the same every time"
    assert replayed == plain


def test_our_calls_are_in_command_buffers(tmp_path: Path):
    """Or the test above would compare plain launches with plain launches."""
    run(f"{IN_GRAPHS} --xla_dump_to={tmp_path} --xla_dump_hlo_as_text")
    texts = [path.read_text(errors="replace") for path in tmp_path.iterdir() if path.suffix == ".txt"]
    assert texts
    if not any("grouped_wgrad_v1" in text for text in texts):
        pytest.fail("the dump does not show our calls")
    words = ("command_buffer", "CommandBuffer", "COMMAND_BUFFER")
    assert any(word in text for text in texts for word in words), "XLA made no command buffer of this step"
