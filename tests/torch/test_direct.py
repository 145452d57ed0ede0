# SPDX-License-Identifier: Apache-2.0
"""Calls that go past torch's dispatcher: the same bits and words, and only where nothing listens to operators."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import BY_NAME
from problems import activation_problem, linear_problem
from test_ops import WRITTEN, arguments_of, spoiled
from test_ops import every_core_op as every_op
from tolerances import assert_bits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch_calls import leaves, to_numpy, to_torch

from grouped_core import DirectCalls, Op, call_count
from torch_grouped import _direct, _ops
from torch_grouped.functional import grouped_activation, grouped_linear, grouped_mlp, grouped_mm

OPERATORS = torch.ops.grouped_ffi


class Recorded:
    """In the place of `_direct.calls`: the real one, and whether each call was served."""

    def __init__(self, real):
        self.real, self.served, self.created = real, [], []

    def check(self, *arguments):
        self.served.append(self.real.check(*arguments))
        return self.served[-1]

    def run(self, *arguments):
        self.served.append(self.real.run(*arguments))
        return self.served[-1]

    def create(self, *arguments):
        result = self.real.create(*arguments)
        self.served.append(result is not None)
        if result is not None:
            self.created.append(arguments[0])
        return result


@pytest.fixture
def direct(monkeypatch):
    recorded = Recorded(_direct.calls)
    monkeypatch.setattr(_direct, "calls", recorded)
    return recorded


class SeenOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_torch_offers_the_interface():
    assert _direct.calls is not None


@every_op
def test_same_bits_and_versions_as_the_operator(rng, direct, name):
    dispatched = arguments_of(rng)[name]
    own = [a.clone() if isinstance(a, torch.Tensor) else a for a in dispatched]
    before = [a._version if isinstance(a, torch.Tensor) else 0 for a in own]
    counts = [call_count(op) for op in Op]
    getattr(OPERATORS, name).default(*dispatched)
    once = [call_count(op) - n for op, n in zip(Op, counts, strict=True)]
    assert not direct.served
    getattr(_ops, name)(*own)
    assert direct.served
    assert all(direct.served)
    assert [call_count(op) - n for op, n in zip(Op, counts, strict=True)] == [2 * n for n in once]
    for i in WRITTEN[name]:
        assert_bits(to_numpy(own[i]), to_numpy(dispatched[i]))
    changed = [i for i, a in enumerate(own) if isinstance(a, torch.Tensor) and a._version != before[i]]
    assert changed == WRITTEN[name]


@every_op
def test_refuses_in_the_operators_words(rng, direct, name):
    for bad in spoiled(name, arguments_of(rng)[name]):
        with pytest.raises((ValueError, TypeError)) as real:
            getattr(OPERATORS, name).default(*bad)
        direct.served.clear()
        with pytest.raises(type(real.value)) as caught:
            getattr(_ops, name)(*bad)
        assert str(caught.value) == str(real.value)
        assert direct.served[-1] is False


@every_op
def test_buffer_that_requires_grad_is_refused(rng, direct, name):
    arguments = list(arguments_of(rng)[name])
    arguments[WRITTEN[name][0]].requires_grad_()
    with pytest.raises(ValueError, match="must not require grad"):
        getattr(_ops, name)(*arguments)
    assert direct.served == [False]


@every_op
def test_inference_tensors(rng, direct, name):
    with torch.inference_mode():
        arguments = arguments_of(rng)[name]
        getattr(_ops, name)(*arguments)
    assert all(direct.served)


@every_op
def test_a_dispatch_mode_sees_the_operator(rng, direct, name):
    with SeenOperators() as seen:
        getattr(_ops, name)(*arguments_of(rng)[name])
    assert f"grouped_ffi::{name}" in seen.names
    assert not direct.served


@pytest.fixture
def problem(rng):
    return linear_problem(rng, BY_NAME["even"], "f32", layout="gnk")


def test_a_function_mode_sees_the_operator(problem, direct):
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        grouped_linear(group_sizes=to_torch(problem.sizes), **leaves(problem.inputs))
    assert OPERATORS.linear.default in seen
    assert not direct.served


def test_a_profiler_sees_the_operator(problem):
    inputs, sizes = leaves(problem.inputs), to_torch(problem.sizes)
    with torch.profiler.profile() as profile:
        grouped_linear(group_sizes=sizes, **inputs)
    assert "grouped_ffi::linear" in {event.key for event in profile.key_averages()}


def test_a_tracer_sees_the_operators(problem, direct):
    inputs = leaves(problem.inputs)

    def gradient(x, weight, sizes):
        return torch.autograd.grad(grouped_linear(x, weight, sizes).sum(), [x, weight])

    traced = make_fx(gradient)(inputs["x"], inputs["weight"], to_torch(problem.sizes))
    seen = {node.target for node in traced.graph.nodes}
    assert {OPERATORS.linear.default, OPERATORS.dgrad.default, OPERATORS.wgrad.default} <= seen
    assert not direct.served


def test_fake_tensors_outside_of_their_mode(problem, direct):
    mode = FakeTensorMode()
    x, weight, sizes = (mode.from_tensor(to_torch(a)) for a in (problem.x, problem.weight, problem.sizes))
    before = call_count(Op.MM)
    assert grouped_linear(x, weight, sizes).shape == problem.dy.shape
    assert call_count(Op.MM) == before
    assert not any(direct.served)


class Marked(torch.Tensor):
    pass


def test_instances_of_a_subclass_are_not_served(problem, direct):
    x = to_torch(problem.x).as_subclass(Marked)
    expected = grouped_linear(to_torch(problem.x), to_torch(problem.weight), to_torch(problem.sizes))
    direct.served.clear()
    found = grouped_linear(x, to_torch(problem.weight), to_torch(problem.sizes))
    assert_bits(to_numpy(found.as_subclass(torch.Tensor)), to_numpy(expected))
    assert not any(direct.served)


def test_transforms_of_functorch(problem):
    x, weight, sizes = to_torch(problem.x), to_torch(problem.weight), to_torch(problem.sizes)
    found = torch.func.grad(lambda x: grouped_linear(x, weight, sizes).sum())(x)
    x.requires_grad_()
    grouped_linear(x, weight, sizes).sum().backward()
    assert_bits(to_numpy(found), to_numpy(x.grad))


# Forward mode loads torch's own decompositions, which are scripted.
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_forward_mode_is_refused_and_not_forgotten(problem):
    x, weight, sizes = to_torch(problem.x), to_torch(problem.weight), to_torch(problem.sizes)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        grouped_linear(forward_ad.make_dual(x, torch.ones_like(x)), weight, sizes)


def test_meta_tensors_are_checked_and_nothing_runs(problem):
    x, weight, sizes = (to_torch(a).to("meta") for a in (problem.x, problem.weight, problem.sizes))
    before = call_count(Op.MM)
    assert grouped_linear(x, weight, sizes).is_meta
    assert call_count(Op.MM) == before


def test_imaginary_part_of_a_conjugate(direct):
    # One element, so contiguous: only a flag says that what lies in memory is the negative.
    x = torch.tensor([[3 + 2j]]).conj().imag
    assert x.is_neg()
    assert grouped_linear(x, torch.ones(1, 1, 1), [1]).item() == -2
    assert not any(direct.served)


def test_an_operand_on_another_device_is_refused_in_the_cores_words(problem, direct):
    x, weight, sizes = to_torch(problem.x), to_torch(problem.weight), to_torch(problem.sizes)
    with pytest.raises(ValueError, match="must be on"):
        grouped_linear(x, weight.to("meta"), sizes)
    assert direct.served
    assert not any(direct.served)


def test_without_the_interface_everything_works_through_the_dispatcher(problem, monkeypatch):
    expected = grouped_linear(group_sizes=to_torch(problem.sizes), **leaves(problem.inputs))
    monkeypatch.setattr(_direct, "calls", None)
    found = grouped_linear(group_sizes=to_torch(problem.sizes), **leaves(problem.inputs))
    assert_bits(to_numpy(found), to_numpy(expected))


@pytest.mark.parametrize("with_grad", [False, True])
def test_new_results_are_made_natively(problem, direct, monkeypatch, with_grad):
    def results():
        with torch.set_grad_enabled(with_grad):
            inputs = {name: t for name, t in leaves(problem.inputs).items() if name in ("x", "weight")}
            sizes = to_torch(problem.sizes)
            matrices = inputs["weight"].mT
            found = [
                grouped_linear(inputs["x"], inputs["weight"], sizes),
                grouped_linear(inputs["x"], matrices.contiguous(), sizes, weight_layout="gkn"),
                grouped_mm(inputs["x"], matrices, offs=sizes.cumsum(0)),
                grouped_mm(inputs["x"], matrices.contiguous(), offs=sizes.cumsum(0)),
            ]
            gradients = [
                torch.autograd.grad(y, list(inputs.values()), to_torch(problem.dy)) for y in found if with_grad
            ]
        return [*found, *(t for pair in gradients for t in pair)]

    counts = call_count(Op.MM), call_count(Op.WGRAD)
    found = results()
    assert direct.created == ([Op.MM] * 4 + [Op.MM, Op.WGRAD] * 4 if with_grad else [Op.MM] * 4)
    assert all(direct.served)
    assert len(direct.served) == len(direct.created)
    assert (call_count(Op.MM) - counts[0], call_count(Op.WGRAD) - counts[1]) == ((8, 4) if with_grad else (4, 0))
    assert all(y.untyped_storage().resizable() and y.is_contiguous() for y in found[:4])
    monkeypatch.setattr(_direct, "calls", None)
    for f, e in zip(found, results(), strict=True):
        assert_bits(to_numpy(f), to_numpy(e))


@pytest.mark.parametrize("kind", ["clamped_swiglu", "squared_relu"])
def test_activation_and_mlp_are_made_natively(rng, direct, monkeypatch, kind):
    acted = activation_problem(rng, BY_NAME["tail"], "f32", kind)
    h, row_scale = map(to_torch, acted.inputs.values())
    sizes, width = to_torch(acted.sizes), h.shape[1]
    fc1, fc2 = torch.rand(len(sizes), width, 12) - 0.5, torch.rand(len(sizes), 5, acted.dy.shape[1]) - 0.5
    x = torch.rand(h.shape[0], 12) - 0.5

    def results():
        return (
            grouped_activation(h, sizes, kind, row_scale=row_scale),
            grouped_mlp(x, fc1, fc2, sizes, activation=kind, row_scale=row_scale),
        )

    found = results()
    assert direct.created == [Op.ACTIVATION, Op.MM, Op.ACTIVATION, Op.MM]
    assert all(direct.served)
    monkeypatch.setattr(_direct, "calls", None)
    for f, e in zip(found, results(), strict=True):
        assert_bits(to_numpy(f), to_numpy(e))


def test_no_result_is_made_of_what_does_not_fit(problem, direct):
    x, weight, sizes = to_torch(problem.x), to_torch(problem.weight), to_torch(problem.sizes)
    options, before = _ops._options(0, True), call_count(Op.MM)
    for operands, turned in [
        ((x, weight, None, None, None), -1),
        ((x, weight, sizes, None), -1),
        ((None, weight, sizes, None, None), -1),
        ((x, weight, sizes, None, None, None), -1),
        ((x, weight, sizes, None, None), 1),
        ((x, weight, sizes, None, None), 2),
        ((), -1),
    ]:
        assert direct.create(int(Op.MM), operands, options, 1, turned) is None
    assert call_count(Op.MM) == before


@pytest.mark.parametrize("enabled", [False, True])
def test_no_graph_is_built_where_nothing_asks_for_it(problem, enabled):
    x, weight, sizes = to_torch(problem.x), to_torch(problem.weight), to_torch(problem.sizes)
    bias = torch.zeros(problem.dy.shape[1]).expand(len(sizes), -1).contiguous().requires_grad_()
    with torch.set_grad_enabled(enabled):
        assert not grouped_linear(x, weight, sizes).requires_grad
        assert grouped_linear(x, weight, sizes, bias).requires_grad is enabled


def test_a_capsule_of_something_else_is_refused():
    with pytest.raises(ValueError, match="incorrect name"):
        DirectCalls(datetime.datetime_CAPI, (torch.Tensor,))
    with pytest.raises(TypeError):
        DirectCalls(torch.Tensor, (torch.Tensor,))  # pyright: ignore[reportArgumentType]


def test_ranges_of_a_profiler_are_set_around_operators(monkeypatch):
    assert _direct._make_calls() is not None
    monkeypatch.setenv("GROUPED_NVTX", "1")
    assert _direct._make_calls() is None


def test_an_interface_that_is_not_torchs_own_is_not_used(monkeypatch):
    monkeypatch.delattr(torch._C, "_dlpack_exchange_api")
    assert _direct._make_calls() is None


def _calls_with(quick_memory):
    exchange = torch.Tensor.__dlpack_c_exchange_api__  # pyright: ignore[reportAttributeAccessIssue]
    return DirectCalls(exchange, (torch.Tensor,), quick_memory)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3, 4), (0, 3, 4), (5, 0, 4), (5, 3, 1)], ids=str)
def test_results_are_the_same_wherever_their_memory_comes_from(monkeypatch, dtype, shape):
    rows, columns, depth = shape
    x, weight = torch.randn(rows, depth).to(dtype), torch.randn(2, columns, depth).to(dtype)
    sizes = torch.tensor([rows // 2, 0])
    real, on_cuda, current, dtypes = _direct._quick_memory()
    taken = []

    def on_cpu(*given):
        taken.append(given)
        return real(*given)

    found = []
    for quick_memory in (None, (on_cpu, on_cuda, current, dtypes)):
        monkeypatch.setattr(_direct, "calls", _calls_with(quick_memory))
        with torch.no_grad():
            found.append(grouped_linear(x, weight, sizes))
    assert taken == [((rows, columns), torch.empty(rows, columns).stride(), dtype)]
    plain, quick = found
    assert (quick.dtype, quick.shape, quick.stride()) == (plain.dtype, plain.shape, plain.stride())
    assert_bits(to_numpy(quick), to_numpy(plain))


@pytest.mark.parametrize("by_rows", [True, False])
def test_a_product_reads_its_second_operand_as_it_is_stored(direct, by_rows):
    rows, offs = torch.arange(12.0).view(4, 3), torch.tensor([1, 4])  # products of small integers are exact
    matrices = torch.arange(30.0).view(2, 3, 5) if by_rows else torch.arange(30.0).view(2, 5, 3).mT
    y = grouped_mm(rows, matrices, offs=offs)
    assert direct.created == [Op.MM]
    assert_bits(to_numpy(y), to_numpy(torch.cat([rows[:1] @ matrices[0], rows[1:] @ matrices[1]])))


@pytest.mark.parametrize("with_grad", [False, True])
def test_an_out_that_only_the_product_would_take_is_refused(with_grad):
    x, weight = torch.randn(4, 8, dtype=torch.bfloat16), torch.randn(2, 3, 8, dtype=torch.bfloat16)
    out = torch.full((4, 3), 7.0)  # the core's product takes fp32 beside 16 bits, the linear layer does not
    with pytest.raises(TypeError, match=r"out must be \[T=4, N=3\] bf16, contiguous.*; got \[4, 3\] f32"):
        grouped_linear(x.requires_grad_(with_grad), weight, torch.tensor([1, 3]), out=out)
    assert torch.all(out == 7)


def test_memory_that_is_refused_leaves_the_call_to_the_operator(monkeypatch, problem):
    def on_cpu(*given):
        raise RuntimeError("no memory")

    x, weight, sizes = to_torch(problem.x), to_torch(problem.weight), to_torch(problem.sizes)
    expected = grouped_linear(x, weight, sizes)
    calls = _calls_with((on_cpu, None, None, _direct._DTYPES))
    assert calls.create(Op.MM, (x, weight, sizes, None, None), _ops._options(), 1, -1) is None
    monkeypatch.setattr(_direct, "calls", calls)
    assert_bits(to_numpy(grouped_linear(x, weight, sizes)), to_numpy(expected))


def test_quick_memory_of_another_form_is_refused():
    with pytest.raises(ValueError, match="quick memory is"):
        _calls_with((None, None))


def test_threads_call_at_the_same_time(problem):
    inputs, sizes = leaves(problem.inputs), to_torch(problem.sizes)

    def gradients(_):
        own = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
        grouped_linear(group_sizes=sizes, **own).backward(to_torch(problem.dy))
        return [to_numpy(t.grad) for t in own.values()]

    expected = gradients(None)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(gradients, range(40)):
            for f, e in zip(found, expected, strict=True):
                assert_bits(f, e)
