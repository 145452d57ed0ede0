# SPDX-License-Identifier: Apache-2.0
"""How calls run on a GPU: no synchronisation, CUDA graphs, command buffers, bad sizes, many groups, large tensors."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import reference
import torch
from cases import SENTINEL, draw
from frameworks import Guarded, from_jax, from_torch, grad_of, to_jax, to_torch
from tolerances import assert_bits, assert_close

import jax_grouped
from torch_grouped import GroupedLinear, functional


def _setup(rng, T=300, K=64, N=96, G=6):
    return draw(rng, (T, K), "bf16"), draw(rng, (G, N, K), "bf16"), draw(rng, (T, N), "bf16")


def test_no_synchronisation(rng):
    x, w, dy = (to_torch(a) for a in _setup(rng))
    sizes = torch.tensor([40, 0, 100, 60, 1, 50], device="cuda")
    w.requires_grad_()
    x.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        functional.grouped_linear(x, w, sizes).backward(dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(grad_of(x)).all())


def test_host_sizes_are_uploaded_and_refused_during_capture(rng):
    x, w, _ = (to_torch(a) for a in _setup(rng))
    sizes = [40, 0, 100, 60, 1, 50]
    on_device = functional.grouped_linear(x, w, torch.tensor(sizes, device="cuda"))
    assert_bits(from_torch(functional.grouped_linear(x, w, sizes)), from_torch(on_device))
    graph = torch.cuda.CUDAGraph()
    expected = pytest.raises(RuntimeError, match="group_sizes must be on the device while a CUDA graph")
    with expected, torch.cuda.graph(graph):
        functional.grouped_linear(x, w, sizes)
    torch.cuda.synchronize()


def test_cuda_graph_replays_with_new_sizes(rng):
    x, w, dy = _setup(rng)
    layer = GroupedLinear(w.shape[0], w.shape[2], w.shape[1], bias=False, params_dtype=torch.bfloat16, device="cuda")
    with torch.no_grad():
        layer.weight.copy_(to_torch(w))
    static_x = to_torch(x).requires_grad_()
    static_dy = to_torch(dy)
    sizes = torch.tensor([50] * 6, device="cuda")
    out, dgrad = Guarded(dy.shape, torch.bfloat16), Guarded(x.shape, torch.bfloat16)

    def step():
        static_x.grad = layer.weight.grad = None
        layer(static_x * 1, sizes, out=out.tensor, dgrad_out=dgrad.tensor).backward(static_dy)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for new in ([50] * 6, [300, 0, 0, 0, 0, 0], [0, 7, 0, 93, 100, 3], [0] * 6):
        sizes.copy_(torch.tensor(new))
        out.tensor.fill_(SENTINEL)
        dgrad.tensor.fill_(SENTINEL)
        graph.replay()
        S = sum(new)
        assert_close(from_torch(out.tensor[:S]), _rows(reference.grouped_mm(x, w, new), S), w.shape[2])
        assert bool((out.tensor[S:] == SENTINEL).all())
        assert bool((dgrad.tensor[S:] == SENTINEL).all())
        back = reference.grouped_mm(dy, w, new, layout="gkn")
        assert_close(from_torch(dgrad.tensor[:S]), _rows(back, S), w.shape[1])
        assert_close(from_torch(grad_of(layer.weight)), reference.grouped_wgrad(x, dy, new), max(new))
        out.check()
        dgrad.check()


def _rows(pair, S):
    return pair[0][:S], pair[1][:S]


def test_jax_donated_buffers_keep_their_addresses(rng):
    x, w, dy = _setup(rng)

    @jax.jit
    def warm(a):
        return a + 0

    def loss(w, out, dgrad, sizes):
        y = jax_grouped.grouped_linear(warm(to_jax(x)), w, sizes, out=out, dgrad_out=dgrad, weight_layout="gnk")
        return (y.astype(np.float32) * dy.astype(np.float32)).sum(), y

    def step(w, out, dgrad, sizes):
        (dw, dgrad), y = jax.grad(loss, argnums=(0, 2), has_aux=True)(w, out, dgrad, sizes)
        return dw, y, dgrad

    step = jax.jit(step, donate_argnums=(1, 2))
    out = jax.block_until_ready(jax.numpy.full(dy.shape, SENTINEL, dy.dtype))
    dgrad = jax.block_until_ready(jax.numpy.full(x.shape, SENTINEL, x.dtype))
    pointers = out.unsafe_buffer_pointer(), dgrad.unsafe_buffer_pointer()
    # Enough executions for XLA to have captured and replayed its command buffers, with other sizes each time.
    for new in ([50] * 6, [0, 7, 0, 93, 100, 3], [300, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [20] * 6):
        dw, out, dgrad = step(to_jax(w), out, dgrad, to_jax(np.array(new, np.int32)))
        assert (out.unsafe_buffer_pointer(), dgrad.unsafe_buffer_pointer()) == pointers
        S = sum(new)
        # A copy on the device: a view from the host would stop the next donation.
        y = from_jax(warm(out))
        assert_close(y[:S], _rows(reference.grouped_mm(x, w, new), S), w.shape[2])
        assert_close(from_jax(dw), reference.grouped_wgrad(x, dy, new), max(new))


def test_xla_command_buffers():
    """In a process of its own, because XLA reads its flags once: capture even a single call, replay it."""
    program = """
        import jax, jax.numpy as jnp, numpy as np, jax_grouped
        x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 32)), jnp.bfloat16)
        w = jnp.asarray(np.random.default_rng(1).standard_normal((4, 32, 48)), jnp.bfloat16)
        f = jax.jit(lambda x, w, s: jax_grouped.grouped_linear(jax_grouped.grouped_linear(x, w, s)[:, :32], w, s))
        for sizes in ([16] * 4, [64, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0], [10, 20, 30, 4]):
            s = jnp.array(sizes, jnp.int32)
            plain = jax_grouped.grouped_linear(jax_grouped.grouped_linear(x, w, s)[:, :32], w, s)
            assert bool((f(x, w, s) == plain).all()), sizes
        print("replayed")
    """
    flags = "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUSTOM_CALL --xla_gpu_graph_min_graph_size=1"
    result = _run(program, {"XLA_FLAGS": flags})
    assert "replayed" in result.stdout, result.stderr[-2000:]


def _run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def test_grouped_check_names_the_group():
    program = """
        import torch, jax, jax.numpy as jnp, jax_grouped
        from torch_grouped import functional
        x, w = torch.zeros(10, 8, device="cuda"), torch.zeros(3, 4, 8, device="cuda")
        for sizes in ([3, -1, 2], [3, 4, 5]):
            try:
                functional.grouped_linear(x, w, torch.tensor(sizes, device="cuda"))
            except ValueError as e:
                print(e)
            try:
                jax.block_until_ready(
                    jax_grouped.grouped_linear(jnp.zeros((10, 8)), jnp.zeros((3, 8, 4)), jnp.array(sizes)))
            except jax.errors.JaxRuntimeError as e:
                print(e)
        functional.grouped_linear(x, w, torch.tensor([3, 3, 4], device="cuda"))
    """
    result = _run(program, {"GROUPED_CHECK": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("group_sizes[1] = -1 is negative") == 2, result.stdout
    assert result.stdout.count("group_sizes[2] = 5 does not fit") == 2, result.stdout


@pytest.mark.parametrize("sizes", [[-5, 20, 3], [1000, 3, 3], [2**31 - 1, 2**31 - 1, 5], [0, 10, -(2**31)]])
def test_sizes_that_do_not_fit_write_nothing_outside(rng, sizes):
    T, K, N = 40, 24, 56
    x, w = to_torch(draw(rng, (T, K), "bf16")), to_torch(draw(rng, (3, N, K), "bf16"))
    given = torch.tensor(sizes, dtype=torch.int32, device="cuda")
    out = Guarded((T, N), torch.bfloat16)
    functional.grouped_linear(x, w, given, out=out.tensor)
    out.check()
    # Clamped: negative counts as 0, ends stop at T.
    ends = np.minimum(np.cumsum(np.maximum(sizes, 0)), T)
    clamped = np.diff(ends, prepend=0)
    S = int(ends[-1])
    assert_close(from_torch(out.tensor[:S]), _rows(reference.grouped_mm(from_torch(x), from_torch(w), clamped), S), K)
    assert bool((out.tensor[S:] == SENTINEL).all())


@pytest.mark.parametrize("G", [65, 1025, 5000])
def test_many_groups(rng, G):
    sizes = rng.integers(0, 4, G)
    T, K, N = int(sizes.sum()), 16, 24
    x, w, dy = draw(rng, (T, K), "bf16"), draw(rng, (G, N, K), "bf16"), draw(rng, (T, N), "bf16")
    layer_w = to_torch(w).requires_grad_()
    y = functional.grouped_linear(to_torch(x), layer_w, to_torch(sizes))
    y.backward(to_torch(dy))
    assert_close(from_torch(y), reference.grouped_mm(x, w, sizes), K)
    assert_close(from_torch(grad_of(layer_w)), reference.grouped_wgrad(x, dy, sizes), 4)


def test_repeatable_beside_a_busy_stream(rng):
    x, w, dy = _setup(rng, T=2000, K=256, N=512)
    sizes = torch.tensor([333, 0, 700, 5, 900, 62], device="cuda")
    xt, wt, dyt = to_torch(x).requires_grad_(), to_torch(w).requires_grad_(), to_torch(dy)
    busy = torch.cuda.Stream()
    noise = torch.randn(2048, 2048, device="cuda")
    first = None
    for _ in range(50):
        with torch.cuda.stream(busy):
            noise = noise @ noise * 1e-3
        xt.grad = wt.grad = None
        y = functional.grouped_linear(xt, wt, sizes)
        y.backward(dyt)
        now = [from_torch(t) for t in (y, grad_of(xt), grad_of(wt))]
        first = first or now
        for what, a, b in zip(("y", "dx", "dW"), first, now, strict=True):
            assert_bits(a, b, what)


def test_more_than_2_to_31_elements():
    """Rows whose offset does not fit 32 bits, with an odd number of columns."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    T, K, N = 70_001, 16, 32_771
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(T, K, device="cuda", dtype=torch.bfloat16, generator=generator)
    w = torch.randn(2, N, K, device="cuda", dtype=torch.bfloat16, generator=generator)
    sizes = torch.tensor([69_000, 1_001], device="cuda")
    y = functional.grouped_linear(x, w, sizes)
    last = functional.grouped_linear(x[-1001:].contiguous(), w, torch.tensor([0, 1001], device="cuda"))
    assert torch.equal(y[-1001:], last)
    del y
    dy = torch.randn(T, N, device="cuda", dtype=torch.bfloat16, generator=generator)
    w.requires_grad_()
    functional.grouped_linear(x, w, sizes).backward(dy)
    whole = grad_of(w)[1].clone()
    w.grad = None
    functional.grouped_linear(x[-1001:].contiguous(), w, torch.tensor([0, 1001], device="cuda")).backward(
        dy[-1001:].contiguous()
    )
    assert torch.equal(whole, grad_of(w)[1])
