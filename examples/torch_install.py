# SPDX-License-Identifier: Apache-2.0
"""PyTorch: a model that calls torch's own grouped_mm runs on the core, without a change to the model."""

import torch
import torch.nn.functional as F

import torch_grouped

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.ones(64, 16, dtype=torch.bfloat16, device=device)
weight = torch.ones(3, 24, 16, dtype=torch.bfloat16, device=device, requires_grad=True)
ends = torch.tensor([20, 20, 48], dtype=torch.int32, device=device)  # 48 rows belong to a group, 16 are the tail

with torch_grouped.install(device):
    y = F.grouped_mm(x, weight.mT, offs=ends)
    (dweight,) = torch.autograd.grad(y, weight, torch.ones_like(y))

print("tail is zero:", not y[48:].any().item())
print("gradient of the group without rows is zero:", not dweight[1].any().item())
