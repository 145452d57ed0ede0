# SPDX-License-Identifier: Apache-2.0
"""GroupedLinear's weight gradient in main_grad, with the flags of data parallelism, at once or later."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from cases import BY_NAME
from problems import linear_problem
from test_module import module_for
from tolerances import assert_bits, assert_close
from torch_calls import to_numpy, to_torch

from grouped_core import Op, call_count

HARD = BY_NAME["empty_middle"]


@pytest.fixture
def problem(rng):
    return linear_problem(rng, HARD, "f32", row_scale=False, layout="gnk")


@pytest.fixture
def given(problem):
    return to_torch(problem.x), to_torch(problem.sizes), to_torch(problem.dy)


def fused(problem, *, delayed=False, **attributes):
    module = module_for(problem, fuse_wgrad_accumulation=True, delay_wgrad_compute=delayed)
    module.weight.main_grad = torch.ones(problem.weight.shape)
    for name, value in attributes.items():
        setattr(module.weight, name, value)
    return module


def step(module, given, **arguments):
    x, sizes, dy = given
    module(x, sizes, **arguments).backward(dy)
    while module.need_backward_dw():
        module.backward_dw()


every_time = pytest.mark.parametrize("delayed", [False, True], ids=["", "delayed"])


def assert_main_grad(module, problem, *, old):
    expected, terms = problem.expected(old_wgrad=np.ones(problem.weight.shape, np.float32) if old else None)["weight"]
    assert_close(to_numpy(module.weight.main_grad), expected, terms)


@every_time
@pytest.mark.parametrize("first", [None, False, True])
def test_first_microbatch_overwrites(problem, given, delayed, first):
    module = fused(problem, delayed=delayed)
    step(module, given, is_first_microbatch=first)
    assert_main_grad(module, problem, old=not first)
    assert module.weight.grad is None


@every_time
@pytest.mark.parametrize("overwrite", [False, True])
def test_overwrite_main_grad(problem, given, delayed, overwrite):
    module = fused(problem, delayed=delayed, overwrite_main_grad=overwrite)
    step(module, given)
    assert_main_grad(module, problem, old=not overwrite)


def test_overwrite_main_grad_is_read_in_backward(problem, given):
    module, (x, sizes, dy) = fused(problem, overwrite_main_grad=False), given
    y = module(x, sizes)
    module.weight.overwrite_main_grad = True
    y.backward(dy)
    assert_main_grad(module, problem, old=False)


@pytest.mark.parametrize("zero", [None, False, True])
def test_gradient_that_was_added_is_announced(problem, given, zero):
    attributes = {} if zero is None else {"zero_out_wgrad": zero}
    module, (x, sizes, dy) = fused(problem, grad_added_to_main_grad=False, **attributes), given
    arrived = []
    module.weight.register_post_accumulate_grad_hook(lambda p: arrived.append(p.grad_added_to_main_grad))
    y = module(x, sizes)
    assert module.weight.grad_added_to_main_grad is False
    y.backward(dy)
    assert module.weight.grad_added_to_main_grad is True
    assert arrived == [True]
    assert_main_grad(module, problem, old=True)
    # Something for data parallelism to see; zeros only where it will be added.
    assert module.weight.grad.shape == module.weight.shape
    if zero:
        assert not module.weight.grad.any()


def test_get_main_grad_is_asked_in_backward(problem, given):
    module, (x, sizes, dy) = fused(problem), given
    buffer, asked = torch.ones(problem.weight.shape), []
    del module.weight.main_grad

    def get_main_grad():
        asked.append(True)
        return buffer

    module.weight.get_main_grad = get_main_grad
    y = module(x, sizes)
    assert not asked
    y.backward(dy)
    assert asked
    assert module.weight.main_grad is buffer
    assert_main_grad(module, problem, old=True)


def test_no_main_grad_is_needed_where_no_gradient_is(problem, given):
    module, (x, sizes, _) = module_for(problem, fuse_wgrad_accumulation=True), given
    with torch.no_grad():
        module(x, sizes)
    module.weight.requires_grad_(False)
    module(x, sizes)


def test_fused_accumulation_over_shared_microbatches(problem, given):
    module = fused(problem, grad_added_to_main_grad=False)
    for _ in range(3):
        step(module, given)
    one = fused(problem)
    for _ in range(3):
        step(one, given)
    assert_bits(to_numpy(module.weight.main_grad), to_numpy(one.weight.main_grad))


# --- delayed gradients -----------------------------------------------------------------------------------------------


def test_delayed_gradient_has_the_bits_of_the_other(problem, given):
    delayed, plain = module_for(problem, delay_wgrad_compute=True), module_for(problem)
    x, sizes, dy = given
    counts = call_count(Op.WGRAD)
    leaf = x.clone().requires_grad_()
    delayed(leaf, sizes).backward(dy)
    assert call_count(Op.WGRAD) == counts
    assert delayed.weight.grad is None
    assert delayed.bias.grad is not None
    assert leaf.grad is not None
    assert delayed.need_backward_dw()
    delayed.backward_dw()
    assert not delayed.need_backward_dw()
    plain(x, sizes).backward(dy)
    assert_bits(to_numpy(delayed.weight.grad), to_numpy(plain.weight.grad))


def test_delayed_gradients_come_in_the_order_of_backwards(problem, given):
    module, (x, sizes, dy) = module_for(problem, delay_wgrad_compute=True), given
    alone = []
    for factor in (1, 2):
        module(x * factor, sizes).backward(dy)
    for _ in range(2):
        module.weight.grad = None
        module.backward_dw()
        alone.append(module.weight.grad)
    assert torch.equal(alone[0] * 2, alone[1])  # exact: a power of two


def test_delayed_gradients_add_up_in_grad(problem, given):
    module, (x, sizes, dy) = module_for(problem, delay_wgrad_compute=True), given
    for _ in range(2):
        module(x, sizes).backward(dy)
    module.backward_dw()
    first = module.weight.grad.clone()
    module.backward_dw()
    assert torch.equal(module.weight.grad, first * 2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_owes_no_gradient(problem, given, copied):
    """What waits for backward_dw is the gradient of the weight that was used, not of a copy's."""
    module = module_for(problem, delay_wgrad_compute=True)
    x, sizes, dy = given
    module(x, sizes).backward(dy)
    copy_of_it = copied(module)
    assert module.need_backward_dw()
    assert not copy_of_it.need_backward_dw()
    step(copy_of_it, given)
    module.backward_dw()
    assert_bits(to_numpy(module.weight.grad), to_numpy(copy_of_it.weight.grad))


def test_nothing_to_compute(problem, given):
    module = module_for(problem, delay_wgrad_compute=True)
    assert not module.need_backward_dw()
    with pytest.raises(RuntimeError, match=r"backward_dw\(\) needs a backward whose weight gradient is not computed"):
        module.backward_dw()
    module_for(problem).backward_dw()  # without the option there is nothing to do


@pytest.mark.parametrize("which", ["inp", "dy"])
def test_delayed_gradient_of_an_operand_that_was_written_again(problem, given, which):
    module, (x, sizes, dy) = module_for(problem, delay_wgrad_compute=True), given
    x = x.clone()
    y = module(x, sizes)
    y.backward(dy)
    (x if which == "inp" else dy).zero_()
    with pytest.raises(RuntimeError, match=f"^{which} must keep its content until backward_dw"):
        module.backward_dw()


def test_hooks_after_a_delayed_gradient(problem, given):
    module, (x, sizes, dy) = fused(problem, delayed=True, grad_added_to_main_grad=False), given
    seen = []
    module.register_wgrad_accumulation_and_reduce_hooks(lambda: seen.append(module.weight.grad_added_to_main_grad))
    module(x, sizes).backward(dy)
    assert seen == []
    module.backward_dw()
    assert seen == [True]


@pytest.mark.parametrize("option", ["delay_wgrad_compute", "grad_added_to_main_grad"])
def test_what_cannot_be_compiled_says_so(problem, given, option):
    torch._dynamo.reset()
    if option == "delay_wgrad_compute":
        module = module_for(problem, delay_wgrad_compute=True)
    else:
        module = fused(problem, grad_added_to_main_grad=False)
    x, sizes, _ = given
    compiled = torch.compile(lambda x: module(x, sizes), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="A compiled backward cannot set attributes of a parameter"):
        compiled(x)
    torch._dynamo.reset()
