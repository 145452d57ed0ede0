# SPDX-License-Identifier: Apache-2.0
"""What a call keeps until its gradient is made: no more than it needs, and nothing that may change unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import assert_bits
from torch_calls import to_numpy

from torch_grouped import GroupedLinear
from torch_grouped.functional import grouped_linear, grouped_mm

SIZES = torch.tensor([2, 0, 3])


def operands(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 4, dtype=dtype), torch.randn(3, 5, 4, dtype=dtype)


def test_a_frozen_weight_keeps_no_rows():
    x, weight = operands()
    x.requires_grad_()
    inner = x * 1
    y = grouped_linear(inner, weight, SIZES)
    with torch.no_grad():
        inner.zero_()  # a buffer used again: nothing needs it
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert_bits(to_numpy(dx[:2]), to_numpy(torch.ones(2, 5) @ weight[0]))


def test_a_frozen_matrix_keeps_no_rows():
    a, b = torch.randn(6, 4, requires_grad=True), torch.randn(3, 4, 5)
    inner = a * 1
    y = grouped_mm(inner, b, offs=torch.tensor([2, 2, 5], dtype=torch.int32))
    with torch.no_grad():
        inner.zero_()
    torch.autograd.grad(y, a, torch.ones_like(y))


def test_delayed_gradient_notices_new_sizes():
    module = GroupedLinear(3, 4, 5, bias=False, delay_wgrad_compute=True)
    sizes = SIZES.clone()
    module(torch.randn(6, 4), sizes).sum().backward()
    sizes.copy_(torch.tensor([3, 1, 1]))
    with pytest.raises(RuntimeError, match=r"^m_splits must keep its content until backward_dw\(\)"):
        module.backward_dw()


def test_delayed_gradient_of_another_weight_is_not_lost():
    module = GroupedLinear(3, 4, 5, bias=False, delay_wgrad_compute=True)
    y = module(torch.randn(6, 4), SIZES)
    other = torch.nn.Parameter(torch.randn(3, 5, 4))
    torch.func.functional_call(module, {"weight": other}, (torch.randn(6, 4), SIZES))
    y.sum().backward()
    assert module.need_backward_dw()
    module.backward_dw()
    assert module.weight.grad is not None
    assert other.grad is None


def test_delayed_gradient_is_refused_in_torch_func():
    module = GroupedLinear(3, 4, 5, bias=False, delay_wgrad_compute=True)

    def loss(parameters: dict[str, Any]) -> torch.Tensor:
        return torch.func.functional_call(module, parameters, (torch.ones(6, 4), SIZES)).sum()

    with pytest.raises(NotImplementedError, match="must not be used inside"):
        torch.func.grad(loss)(dict(module.named_parameters()))


def test_ends_made_under_a_fake_mode_are_not_kept():
    a, b = torch.randn(7, 3, 4), torch.randn(7, 4, 5)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        grouped_mm(a, b)
    torch.testing.assert_close(grouped_mm(a, b), a @ b)


def test_a_product_by_columns_may_be_written_in_place():
    a, b = torch.randn(3, 4, 6, requires_grad=True), torch.randn(6, 5)
    y = grouped_mm(a, b, offs=torch.tensor([2, 2, 5], dtype=torch.int32))
    y.mul_(2)
    y.sum().backward()


def test_freed_storage_is_refused():
    x, weight = operands()
    weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"^weight must have memory; got a tensor whose storage was freed"):
        grouped_linear(x, weight, SIZES)


def test_vmap_over_any_dimension():
    x, weight = torch.randn(6, 3, 4), torch.randn(3, 5, 4)
    found = torch.vmap(lambda x: grouped_linear(x, weight, SIZES), in_dims=1)(x)
    for i in range(3):
        assert_bits(to_numpy(found[i]), to_numpy(grouped_linear(x[:, i].contiguous(), weight, SIZES)))
