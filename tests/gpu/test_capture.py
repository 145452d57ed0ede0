# SPDX-License-Identifier: Apache-2.0
"""The very first call of each operation in a process, inside a CUDA graph capture: nothing may need a warm-up."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import torch
    import torch_grouped
    from torch_grouped import _ops
    from grouped_core import activation_options

    torch.manual_seed(0)
    T, K, N, G = 40, 32, 64, 3
    dtype = getattr(torch, "{dtype}")
    new = lambda *shape: torch.randn(*shape, device="cuda", dtype=dtype)
    x, w, dy, h, scale = new(T, K), new(G, N, K), new(T, N), new(T, 2 * N), new(T)
    sizes = torch.tensor([10, 0, 20], device="cuda")
    choice = activation_options("swiglu", "concatenated", 0, 0, 0)
    outs = [torch.empty_like(t) for t in (dy, x, w, w[:, :, 0], dy, h, scale, x, scale)]
    y, dx, dw, db, a, dh, ds, xs, dots = outs

    def calls():
        _ops.linear(x, w, sizes, None, None, y, None, None, 0, True)
        _ops.dgrad(dy, w, sizes, None, dx, None, 0, True)
        _ops.wgrad(x, dy, sizes, dw, 0, False)
        _ops.bias_grad(dy, sizes, db, False)
        _ops.activation(h, sizes, scale, a, None, *choice, True)
        _ops.activation_grad(h, dy, sizes, scale, dh, ds, *choice, True)
        _ops.row_scale(x, sizes, scale, xs, True)
        _ops.row_dot(x, x, sizes, None, None, dots, True)

    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    for t in outs:
        t.fill_(float("nan"))
    graph.replay()
    replayed = [t.clone() for t in outs]
    calls()
    assert all(torch.equal(a, b) for a, b in zip(replayed, outs))
    print("same")
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_first_calls_may_be_captured(dtype):
    program = textwrap.dedent(PROGRAM).replace("{dtype}", dtype)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert result.stdout.strip() == "same", result.stderr[-2000:]
