# SPDX-License-Identifier: Apache-2.0
"""GroupedLinear as users of TransformerEngine's know it: constructor, buffers, state dicts."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from cases import BY_NAME, SENTINEL
from problems import linear_problem
from test_main_grad import assert_main_grad, fused, step
from test_module import module_for
from tolerances import assert_bits
from torch_calls import Witness, to_numpy, to_torch

from torch_grouped import GroupedLinear

HARD = BY_NAME["empty_middle"]
CONSTRUCTOR = [
    "num_gemms",
    "in_features",
    "out_features",
    "sequence_parallel",
    "fuse_wgrad_accumulation",
    "tp_group",
    "tp_size",
    "get_rng_state_tracker",
    "rng_tracker_name",
    "init_method",
    "bias",
    "return_bias",
    "params_dtype",
    "parallel_mode",
    "device",
    "ub_overlap_rs",
    "ub_overlap_ag",
    "ub_name",
    "delay_wgrad_compute",
    "save_original_input",
    "single_grouped_weight",
    "single_grouped_bias",
    "name",
    "use_grouped_tensor",
]


@pytest.fixture
def problem(rng):
    return linear_problem(rng, HARD, "f32", row_scale=False, layout="gnk")


@pytest.fixture
def given(problem):
    return to_torch(problem.x), to_torch(problem.sizes), to_torch(problem.dy)


def test_constructor_takes_their_arguments_in_their_order():
    assert list(inspect.signature(GroupedLinear.__init__).parameters)[1:] == CONSTRUCTOR


# What their own test of caller-provided buffers asserts: aliasing, the bits of an internal allocation, a tail that
# keeps its content, and an error for another shape. Their sizes, and a tail behind them.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("provided", [("out",), ("dgrad_out",), ("out", "dgrad_out")], ids="-".join)
@pytest.mark.parametrize("groups", [[64, 96, 80], [240]], ids=["three_groups", "one_group"])
def test_caller_provided_buffers(provided, dtype, groups):
    torch.manual_seed(1)
    S, T, K, N = 240, 320, 128, 128
    module = GroupedLinear(len(groups), K, N, bias=False, params_dtype=dtype)
    m_splits = torch.tensor(groups)
    x, dy = torch.randn(T, K, dtype=dtype), torch.randn(T, N, dtype=dtype)

    def step(**buffers):
        leaf, seen = x.clone().requires_grad_(), []
        y = module(Witness.apply(leaf, seen), m_splits, **buffers)
        y.backward(dy)
        return y, to_numpy(leaf.grad), seen

    expected_y, expected_dx, _ = step()
    buffers = {n: torch.full((T, K if n == "dgrad_out" else N), 7.0, dtype=dtype) for n in provided}
    y, dx, seen = step(**buffers)
    if "out" in buffers:
        assert y.data_ptr() == buffers["out"].data_ptr()
        assert (buffers["out"][S:] == 7).all()
    if "dgrad_out" in buffers:
        assert seen == [buffers["dgrad_out"].data_ptr()]
        assert (buffers["dgrad_out"][S:] == 7).all()
        assert_bits(to_numpy(buffers["dgrad_out"][:S]), expected_dx[:S])
    assert torch.equal(y[:S], expected_y[:S])
    assert_bits(dx[:S], expected_dx[:S])
    for name, buffer in buffers.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            step(**{name: torch.empty(T + 1, buffer.shape[1], dtype=dtype)})


@pytest.mark.parametrize("m_splits", [list, torch.tensor, lambda s: torch.tensor(s, dtype=torch.int32)])
def test_forms_of_m_splits(problem, given, m_splits):
    module, (x, sizes, _) = module_for(problem), given
    assert_bits(to_numpy(module(x, m_splits(list(HARD.sizes)))), to_numpy(module(x, sizes)))


ONE_RANK: list[dict[str, Any]] = [
    {"sequence_parallel": True},
    {"tp_group": object(), "parallel_mode": "column"},
    {"parallel_mode": "row"},
    {"ub_name": "fc1"},
    {"save_original_input": True},
    {"single_grouped_weight": True, "single_grouped_bias": True},
    {"use_grouped_tensor": True},
    {"use_grouped_tensor": False},
]


@pytest.mark.parametrize("options", ONE_RANK, ids=lambda o: "-".join(o))
def test_options_that_change_nothing_on_one_rank(problem, given, options):
    x, sizes, _ = given
    assert_bits(to_numpy(module_for(problem, **options)(x, sizes)), to_numpy(module_for(problem)(x, sizes)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp_size": 2}, r"^tp_size must be 1; got 2\. Pass in_features or out_features of this rank's shard"),
        ({"ub_overlap_rs": True}, r"^ub_overlap_rs must be False; got True\."),
        ({"ub_overlap_ag": True}, r"^ub_overlap_ag must be False; got True\."),
        ({"parallel_mode": "diagonal"}, r'^parallel_mode must be one of None, "column", "row"; got \'diagonal\'\.'),
    ],
    ids=["tp_size", "ub_overlap_rs", "ub_overlap_ag", "parallel_mode"],
)
def test_options_of_another_engine_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GroupedLinear(2, 4, 3, **options)


def test_parameters_are_drawn_inside_the_trackers_fork():
    inside = []

    class Tracker:
        @contextlib.contextmanager
        def fork(self, name="default"):
            inside.append(name)
            yield
            inside.append("left")

    def init(weight):
        assert inside[-1] != "left"

    GroupedLinear(2, 4, 3, get_rng_state_tracker=Tracker, init_method=init)
    GroupedLinear(2, 4, 3, get_rng_state_tracker=Tracker, rng_tracker_name="experts", init_method=init)
    assert inside == ["default", "left", "experts", "left"]


def test_return_bias_leaves_it_to_the_caller(problem, given):
    module, (x, sizes, _) = module_for(problem, return_bias=True), given
    y, biases = module(x, sizes)
    without = module_for(problem)
    without.bias.data.zero_()
    assert_bits(to_numpy(y), to_numpy(without(x, sizes)))
    assert len(biases) == HARD.G
    for i, bias in enumerate(biases):
        assert_bits(to_numpy(bias), problem.bias[i])
    torch.stack(biases).sum().backward()
    assert (module.bias.grad == 1).all()
    plain = GroupedLinear(2, 4, 3, bias=False, return_bias=True)
    assert plain(torch.ones(2, 4), [1, 1])[1] is None


# --- state dicts and copies ------------------------------------------------------------------------------------------


def separate(module, prefix=""):
    return {name: part.clone() for name, part in module.export_te_state_dict(prefix).items()}


def test_export(problem):
    module = module_for(problem)
    found = module.export_te_state_dict("layer.")
    assert list(found) == [f"layer.weight{i}" for i in range(HARD.G)] + [f"layer.bias{i}" for i in range(HARD.G)]
    for i in range(HARD.G):
        assert_bits(to_numpy(found[f"layer.weight{i}"]), problem.weight[i])
        assert_bits(to_numpy(found[f"layer.bias{i}"]), problem.bias[i])
        assert found[f"layer.weight{i}"].data_ptr() == module.weight[i].data_ptr()
        assert not found[f"layer.weight{i}"].requires_grad


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_load_of_separate_parameters(problem, nested, assign):
    source, target = module_for(problem), GroupedLinear(HARD.G, HARD.K, HARD.N)
    state = separate(source, "experts." if nested else "")
    state["experts._extra_state" if nested else "_extra_state"] = torch.zeros(3)
    (torch.nn.ModuleDict({"experts": target}) if nested else target).load_state_dict(state, assign=assign)
    for name, parameter in source.named_parameters():
        assert_bits(to_numpy(getattr(target, name)), to_numpy(parameter))
        assert isinstance(getattr(target, name), torch.nn.Parameter)
    assert f"{'experts.' if nested else ''}weight0" in state, "the caller's dictionary was changed"


def test_missing_and_unexpected_separate_parameters_are_named(problem):
    source, target = module_for(problem), GroupedLinear(HARD.G, HARD.K, HARD.N)
    state = separate(source)
    del state["weight2"]
    result = target.load_state_dict(state, strict=False)
    assert result.missing_keys == ["weight"]
    assert result.unexpected_keys == ["weight0", "weight1", "weight3"]
    state = separate(source)
    state[f"weight{HARD.G}"] = state["weight0"]
    with pytest.raises(RuntimeError, match=rf'Unexpected key\(s\) in state_dict: "weight{HARD.G}"'):
        target.load_state_dict(state)


def test_separate_parameters_of_another_shape_are_refused(problem):
    state = {name: part[..., :-1] for name, part in separate(module_for(problem)).items()}
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        GroupedLinear(HARD.G, HARD.K, HARD.N).load_state_dict(state)


def test_grouped_parameters_are_saved_and_win(problem):
    source, target = module_for(problem), GroupedLinear(HARD.G, HARD.K, HARD.N)
    assert set(source.state_dict()) == {"weight", "bias"}
    target.load_state_dict(source.state_dict())
    assert_bits(to_numpy(target.weight), problem.weight)


def test_copies_have_gradients_of_their_own(problem, given):
    module = fused(problem, grad_added_to_main_grad=False)
    step(module, given)
    other = copy.deepcopy(module)
    # torch copies no attributes of a parameter.
    other.weight.main_grad = torch.ones(problem.weight.shape)
    before = module.weight.main_grad.clone()
    step(other, given)
    assert torch.equal(module.weight.main_grad, before)
    assert_main_grad(other, problem, old=True)
    assert pickle.loads(pickle.dumps(module_for(problem))).weight.shape == module.weight.shape


def test_buffers_reach_the_core_with_every_option(problem, given):
    module = fused(problem, delayed=True)
    x, sizes, dy = given
    out, dgrad_out = torch.full_like(dy, SENTINEL), torch.full_like(x, SENTINEL)
    x = x.clone().requires_grad_()
    y = module(x, sizes, out=out, dgrad_out=dgrad_out)
    y.backward(dy)
    module.backward_dw()
    assert y.data_ptr() == out.data_ptr()
    for buffer in (out, dgrad_out):
        assert (buffer[HARD.S :] == SENTINEL).all()
        assert not (buffer[: HARD.S] == SENTINEL).all()
