# SPDX-License-Identifier: Apache-2.0
"""Every adapter computes the operation that it is timed for. Libraries that need a GPU are stood in for here by what
their documentation says they do, so that the padding and the arguments around them are tested.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import checking, operations, prebuild
from benchmarks.__main__ import _parser
from benchmarks.operations import OPERATIONS, applies
from benchmarks.peers import registry
from benchmarks.peers.base import BOUND, OURS, PART, Skip
from benchmarks.peers.cudnn_moe import CudnnMoe
from benchmarks.peers.deepgemm import DeepGemm, DeepGemmPadding
from benchmarks.peers.ours_torch import TorchGrouped
from benchmarks.peers.pallas_mgpu import RaggedDotMgpu
from benchmarks.peers.quack_gemm import CONFIGS, Quack
from benchmarks.peers.tokamax_ops import Tokamax
from benchmarks.problem import Case, Problem
from benchmarks.shapes import BY_NAME, EMPTY, EVEN, ONE, PRIMARY, ROWS, SHAPES, TAIL, ZIPF, Shape

CPU = torch.device("cpu")
SHAPE = Shape("small-up", 5, 300, 16, 32)  # rows of 16 bytes everywhere: torch grouped_mm wants them
HOST = BY_NAME["tiny-8x16"]


def _problem(op: str, draw: str, dtype: str) -> Problem:
    shape = SHAPE if applies(op, SHAPE) else HOST
    # A cache so large that there are several sets: the second call must read the second.
    return Problem(Case(shape, op, draw, dtype), CPU, cache_bytes=1 << 20)


def _checked(peer, p: Problem) -> float:
    """The multiple of the error bound of the first call."""
    call = peer.prepare(p)
    call.reset()
    result = call.run(0)
    if call.wait is not None:
        call.wait(result)
    call.follow(result)  # and keeps nothing that the next call donates
    found = [t.clone() for t in call.outputs(result)]
    again = call.run(1)
    second = call.outputs(again)
    if len(p.sets) > 1:
        assert not all(torch.equal(a, b) for a, b in zip(found, second, strict=True)), "the sets do not rotate"
    times, _ = checking.times_bound(p, found, checking.reference(p), call.through)
    return times


def _pairs():
    for peer in registry.all_peers():
        if "cpu" in peer.devices and peer.role not in (BOUND, PART):
            for op in OPERATIONS:
                if getattr(peer, op, None) is not None:
                    yield pytest.param(peer, op, id=f"{peer.name}-{op}")


@pytest.mark.parametrize(("peer", "op"), list(_pairs()))
@pytest.mark.parametrize(("draw", "dtype"), [(EMPTY, "f32"), (ZIPF, "bf16")])
def test_adapter_computes_its_operation(peer, op, draw, dtype):
    reason = peer.missing(CPU)
    if reason is not None:
        pytest.skip(reason)
    times = _checked(peer, _problem(op, draw, dtype))
    assert times <= (1.0 if peer.role == OURS else checking.LOOSE)


WITH_TAIL = [(n, op) for n in ("torch_grouped", "jax_grouped") for op in ("fwd", "dgrad", "wgrad", "linear", "mlp")]


@pytest.mark.parametrize(("name", "op"), [*WITH_TAIL, ("torch_grouped without a buffer", "fwd")])
def test_rows_past_the_last_group_are_no_part_of_a_case_with_a_tail(name, op):
    (peer,) = (p for p in registry.all_peers() if p.name == name)
    p = _problem(op, TAIL, "bf16")
    reason = peer.missing(CPU)
    if reason is not None:
        pytest.skip(reason)
    assert p.S == SHAPE.T // 2
    assert p.work.flops == operations.work(op, dataclasses.replace(SHAPE, T=p.S), p.sizes_host, 2).flops
    for s in p.sets:  # whoever reads the tail shows it
        for rows in (s.x, s.dy):
            rows[p.S :] = float("nan")
    assert _checked(peer, p) <= 1


@pytest.mark.parametrize("op", ["fwd", "dgrad", "wgrad"])
def test_without_the_tail_the_same_is_computed(op):
    (peer,) = (p for p in registry.all_peers() if p.name == "torch_grouped without the tail")
    p = _problem(op, TAIL, "f32")
    whole, short = TorchGrouped().prepare(p), peer.prepare(p)
    for call in (whole, short):
        call.reset()
    (a,), (b,) = whole.outputs(whole.run(0)), short.outputs(short.run(0))
    assert a.shape[0] == (p.G if op == "wgrad" else p.T)
    assert torch.equal(a[: b.shape[0]], b)
    assert "there is no tail" in str(peer.declines(_problem(op, EVEN, "f32").case, CPU))


@pytest.mark.parametrize(("op", "draw"), [("dgrad", TAIL), ("wgrad", EVEN), ("fwd", EVEN)])
def test_without_a_buffer_is_measured_where_its_tail_is_what_differs(op, draw):
    (peer,) = (p for p in registry.all_peers() if p.name == "torch_grouped without a buffer")
    with pytest.raises(Skip, match="forward with a tail alone"):
        peer.prepare(_problem(op, draw, "f32"))


def test_others_decline_a_tail():
    case = _problem("fwd", TAIL, "bf16").case
    accepting = {p.name for p in registry.all_peers() if p.declines(case, CPU) is None}
    assert accepting == {
        "torch_grouped",
        "jax_grouped",
        "torch_grouped without the tail",
        "torch_grouped without a buffer",
    }


def test_every_operation_has_ours_in_both_frameworks():
    ours = [p for p in registry.all_peers() if p.role == OURS]
    assert [p.name for p in ours] == ["torch_grouped", "jax_grouped"]
    assert not [(p.name, op) for p in ours for op in OPERATIONS if getattr(p, op, None) is None]


def _deep_gemm() -> ModuleType:
    """The three functions on a CPU, strict about what the library asks for."""
    module: Any = ModuleType("deep_gemm")

    def rows(a, weight_of, d, group):
        assert a.shape[0] % 128 == 0
        assert d.shape[0] == a.shape[0]
        for block in range(0, a.shape[0], 128):
            ids = set(group[block : block + 128].tolist()) - {-1}
            assert len(ids) == 1, "a block of 128 rows must belong to one group"
            d[block : block + 128] = (a[block : block + 128].float() @ weight_of(ids.pop())).to(d.dtype)

    module.m_grouped_bf16_gemm_nt_contiguous = lambda a, b, d, group: rows(a, lambda g: b[g].float().t(), d, group)
    module.m_grouped_bf16_gemm_nn_contiguous = lambda a, b, d, group: rows(a, lambda g: b[g].float(), d, group)

    def gradient(a, b, d, sizes, sizes_on_device, c):
        assert c is d, "it adds to its result"
        assert d.dtype == torch.float32
        assert sizes == sizes_on_device.tolist()
        assert not [n for n in sizes if n % 128]
        begin = 0
        for g, n in enumerate(sizes):
            d[g] += a[begin : begin + n].float().t() @ b[begin : begin + n].float()
            begin += n
        assert begin == a.shape[0] == b.shape[0]

    module.k_grouped_bf16_gemm_tn_contiguous = gradient
    return module


@pytest.mark.parametrize("op", ["fwd", "dgrad", "wgrad", "wgrad_acc"])
@pytest.mark.parametrize("draw", [EVEN, ZIPF, ONE, EMPTY])
def test_deep_gemm_gets_padded_rows_and_gives_the_useful_ones(monkeypatch, op, draw):
    monkeypatch.setitem(sys.modules, "deep_gemm", _deep_gemm())
    p = _problem(op, draw, "bf16")
    assert _checked(DeepGemm(), p) <= 1
    if draw != ONE and op == "fwd":
        assert "padded beforehand" in DeepGemm().prepare(p).note


def test_deep_gemm_padding_copy_places_every_row_and_zeros_the_rest():
    p = _problem("wgrad", ZIPF, "bf16")
    rows = DeepGemmPadding()._copy(p, "x").run(0)
    sizes = [-(-n // 128) * 128 for n in p.sizes_host]
    assert rows.shape[0] == sum(sizes)
    starts = np.cumsum([0, *sizes[:-1]])
    for (begin, end), start, size in zip(p.spans(), starts, sizes, strict=True):
        assert torch.equal(rows[start : start + end - begin], p.set(0).x[begin:end])
        assert not rows[start + end - begin : start + size].any()


def test_deep_gemm_is_skipped_for_other_dtypes():
    with pytest.raises(Skip, match="bf16 only"):
        DeepGemm().prepare(_problem("fwd", EVEN, "f32"))


def _quack(seen: list) -> dict[str, ModuleType]:
    """quack.gemm_interface.gemm_tuned.fn as version 0.4.1 describes it: B is [G, K, N], or [total, N] for varlen_k."""
    config: Any = ModuleType("quack.gemm_config")
    interface: Any = ModuleType("quack.gemm_interface")
    config.GemmConfig = lambda **options: SimpleNamespace(**options)

    def gemm(A, B, out, *, config, cu_seqlens_m=None, cu_seqlens_k=None, add_to_output=False):
        seen.append(config)
        starts = cu_seqlens_m if cu_seqlens_k is None else cu_seqlens_k
        assert starts is not None
        ends = starts.tolist()
        assert ends[0] == 0
        for g, (a, b) in enumerate(pairwise(ends)):
            if cu_seqlens_m is not None:
                out[a:b] = (A[a:b].float() @ B[g].float()).to(out.dtype)
            else:
                product = A[:, a:b].float() @ B[a:b].float()
                out[g] = product.to(out.dtype) + (out[g] if add_to_output else 0)

    interface.gemm_tuned = SimpleNamespace(fn=gemm)
    return {"quack.gemm_config": config, "quack.gemm_interface": interface}


@pytest.mark.parametrize("op", ["fwd", "dgrad", "wgrad", "wgrad_acc"])
@pytest.mark.parametrize("config", CONFIGS)
def test_quack_gets_its_layouts_and_its_configuration(monkeypatch, config, op):
    seen = []
    for name, module in _quack(seen).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert _checked(Quack(config), _problem(op, EMPTY, "bf16")) <= 1
    assert {(c.tile_m, c.tile_n, c.pingpong) for c in seen} == {CONFIGS[config]}
    assert {(c.cluster_m, c.cluster_n, c.is_dynamic_persistent) for c in seen} == {(2, 1, False)}


def test_a_peer_that_is_not_installed_tells_the_reason():
    peer = Quack("coop 128x256")
    assert peer.missing(CPU) == "runs on cuda only"
    peer.devices, peer.module = ("cpu",), "no_such_library_anywhere"
    assert peer.missing(CPU) == "no_such_library_anywhere is not installed"


def test_a_peer_whose_library_does_not_work_tells_the_reason(monkeypatch):
    """As those that find out by importing it."""

    def broken(name: str) -> Any:
        raise OSError(f"{name} wants another library")

    for peer in (CudnnMoe(), Tokamax(), RaggedDotMgpu("128x128")):
        monkeypatch.setattr(f"{type(peer).__module__}.import_module", broken)
        peer.devices, peer.module = ("cpu",), ""
        assert re.fullmatch("OSError: .* wants another library", peer.missing(CPU) or "")


def test_peers_are_selected_by_role_family_or_name():
    def chosen(*patterns: str, device: str = "cuda") -> set[str]:
        return {p.name for p in registry.select(list(patterns), torch.device(device))}

    ours = {"torch_grouped", "jax_grouped"}
    assert chosen("ours") == ours
    assert chosen("quack coop") == {"QuACK coop 128x256", "QuACK coop 256x128"} | ours
    assert chosen("jax_grouped", "dense") == {"jax_grouped", "dense"}
    assert chosen("native") > ours | {"jax.lax.ragged_dot", "Pallas ragged_dot_mgpu 128x128"}
    assert chosen("second") == {"tokamax", "cuDNN moe_grouped_matmul"} | ours
    assert not chosen("native") & chosen() - ours
    assert chosen(device="cpu") == {p.name for p in registry.all_peers()}
    with pytest.raises(ValueError, match="'cutlass'"):
        registry.select(["ours", "cutlass"], CPU)


def test_prebuild_has_one_item_for_each_kernel(monkeypatch):
    monkeypatch.setattr(DeepGemm, "missing", lambda self, device: None)
    monkeypatch.setattr(Quack, "missing", lambda self, device: None)
    arguments = _parser().parse_args(["prebuild", "--device", "cuda"])
    items = prebuild._items(arguments, torch.device("cuda"))
    default = [s for s in SHAPES if {PRIMARY, ROWS} & set(s.tags)]
    deep_gemm = [(c.op, c.shape) for p, c in items if isinstance(p, DeepGemm)]
    assert set(deep_gemm) == {(op, s) for op in ("fwd", "dgrad", "wgrad") for s in default} | {
        ("host", BY_NAME["small-8x256"])
    }
    assert len(deep_gemm) == 3 * len(default) + 1
    quack = sorted((p.name, c.op) for p, c in items if isinstance(p, Quack))
    assert quack == sorted((f"QuACK {n}", op) for n in CONFIGS for op in ("fwd", "dgrad", "wgrad", "wgrad_acc"))
