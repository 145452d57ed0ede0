# SPDX-License-Identifier: Apache-2.0
"""PyTorch: the result and the input gradient in tensors that the caller owns."""

import torch

from torch_grouped import GroupedLinear

layer = GroupedLinear(3, 4, 5, bias=False)
x = torch.ones(8, 4, requires_grad=True)
sizes = torch.tensor([4, 0, 2])  # six rows belong to a group, two are the tail
out, dgrad_out = torch.full((8, 5), -1.0), torch.full((8, 4), -1.0)

y = layer(x, sizes, out=out, dgrad_out=dgrad_out)
dweight, dx = torch.autograd.grad((y[:6] ** 2).sum(), (layer.weight, x))

print("same memory:", y.data_ptr() == out.data_ptr() and dx.data_ptr() == dgrad_out.data_ptr())
print("tail untouched:", bool((out[6:] == -1).all() and (dgrad_out[6:] == -1).all()))
