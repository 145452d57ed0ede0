# SPDX-License-Identifier: Apache-2.0
"""A tensor on meta beside tensors of the first GPU: refused, not computed by the operator that writes nothing."""

from __future__ import annotations

import pytest
import torch
from frameworks import DEVICE

from torch_grouped import GroupedMLP
from torch_grouped.functional import grouped_linear

T, G, K, N = 64, 2, 32, 48


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_weight_on_meta_is_refused(with_out, needs_grad):
    x = torch.ones(T, K, dtype=torch.bfloat16, device=DEVICE, requires_grad=needs_grad)
    weight = torch.ones(G, N, K, dtype=torch.bfloat16, device="meta")
    sizes = torch.tensor([40, 20], device=DEVICE)
    out = torch.zeros(T, N, dtype=torch.bfloat16, device=DEVICE) if with_out else None
    with pytest.raises(ValueError, match=r"^weight must be on cuda:0, as x is; got meta\. Move it before the call\.$"):
        grouped_linear(x, weight, sizes, out=out)


def test_a_module_that_was_not_materialised_is_refused():
    experts = GroupedMLP(G, K, N, device="meta", params_dtype=torch.bfloat16)
    x = torch.ones(T, K, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match=r"^fc1_weight must be on cuda:0, as x is; got meta\."):
        experts(x, torch.tensor([40, 20], device=DEVICE))
