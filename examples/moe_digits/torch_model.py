# SPDX-License-Identifier: Apache-2.0
"""The mixture of experts in PyTorch, on `GroupedLinear` and `functional.grouped_activation`.

Every expert output and every gradient of an expert input lands in a tensor that the caller made once and passes to
each step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_digits import config as c
from torch_grouped import GroupedLinear
from torch_grouped.functional import grouped_activation

Tensors = dict[str, Tensor]
NO_BUFFERS = dict.fromkeys(c.OUT_SHAPES)


def route(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The TOP_K experts of each token and their probabilities; of equal logits the lower expert comes first."""
    # torch.topk promises no order among equals.
    ranked, experts = torch.sort(logits, dim=-1, descending=True, stable=True)
    return ranked[:, : c.TOP_K].softmax(dim=-1), experts[:, : c.TOP_K]


def rows_per_expert(experts: Tensor) -> Tensor:
    """``[G]`` int64 on the device. torch.bincount would make the host wait for the largest index."""
    return (experts.reshape(-1, 1) == torch.arange(c.EXPERTS, device=experts.device)).sum(dim=0)


def load_balance(logits: Tensor, sizes: Tensor) -> Tensor:
    """Switch Transformer: experts x sum over experts of (share of rows) x (mean probability); 1 when balanced."""
    share = sizes / (logits.shape[0] * c.TOP_K)
    return c.EXPERTS * (share * logits.softmax(dim=-1).mean(dim=0)).sum()


class Mixture(nn.Module):
    """Tokens ``[T, D]`` through their experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(c.WIDTH, c.EXPERTS, bias=False)
        self.fc1 = GroupedLinear(c.EXPERTS, c.WIDTH, 2 * c.HIDDEN, bias=False)
        self.fc2 = GroupedLinear(c.EXPERTS, c.HIDDEN, c.WIDTH, bias=False)

    def forward(self, x: Tensor, outs: dict, dgrads: dict) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens' new features, the rows of each expert, and the load-balance loss."""
        logits = self.router(x)
        probability, experts = route(logits)

        # One row for each (token, expert) pair, sorted by expert: pair p is token p // TOP_K. The sizes stay on
        # the device, so the host never waits to learn where an expert's rows begin.
        order = torch.argsort(experts.reshape(-1), stable=True)
        token = order // c.TOP_K
        sizes = rows_per_expert(experts)
        row_scale = probability.reshape(-1)[order]

        h = self.fc1(x[token], sizes, out=outs["fc1"], dgrad_out=dgrads["fc1"])
        a = grouped_activation(h, sizes, "swiglu", row_scale=row_scale, out=outs["swiglu"], dgrad_out=dgrads["swiglu"])
        y = self.fc2(a, sizes, out=outs["fc2"], dgrad_out=dgrads["fc2"])
        mixed = torch.zeros_like(x).index_add(0, token, y)
        return mixed, sizes, load_balance(logits, sizes)


class Classifier(nn.Module):
    """Embedding, a residual mixture of experts, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(c.PIXELS, c.WIDTH, bias=False)
        self.mixture = Mixture()
        self.head = nn.Linear(c.WIDTH, c.CLASSES, bias=False)

    def forward(self, images: Tensor, outs: dict, dgrads: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits, and what `Mixture` returns beside its features."""
        x = self.embed(images)
        mixed, sizes, balance = self.mixture(x, outs, dgrads)
        return self.head(x + mixed), sizes, balance


class Adam:
    """Adam in place, the arithmetic of the JAX model."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        self.mean = [torch.zeros_like(p) for p in params]
        self.square = [torch.zeros_like(p) for p in params]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Applies and drops the gradients."""
        self.steps += 1
        correct1, correct2 = 1 - c.BETA1**self.steps, 1 - c.BETA2**self.steps
        for p, m, v in zip(self.params, self.mean, self.square, strict=True):
            grad, p.grad = p.grad, None
            if grad is None:
                continue
            m += (1 - c.BETA1) * (grad - m)
            v.mul_(c.BETA2).add_((1 - c.BETA2) * grad * grad)
            p -= c.LEARNING_RATE * (m / correct1) / ((v / correct2).sqrt() + c.EPSILON)


class TorchModel:
    """Owns the module, the optimiser and the buffers."""

    label = "torch_grouped"

    def __init__(self, weights: dict[str, np.ndarray], device: torch.device) -> None:
        self.device = device
        self.module = Classifier().to(device)
        layers = {"embed": self.module.embed, "head": self.module.head}
        layers |= {name: getattr(self.module.mixture, name) for name in ("router", "fc1", "fc2")}
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(torch.from_numpy(weights[name]).mT)
        self.adam = Adam(list(self.module.parameters()))
        # NaN, so that a row which is read before it is written cannot pass unnoticed.
        self.outs = {n: torch.full(s, torch.nan, device=device) for n, s in c.OUT_SHAPES.items()}
        self.dgrads = {n: torch.full(s, torch.nan, device=device) for n, s in c.DGRAD_SHAPES.items()}

    def step(self, images: np.ndarray, labels: np.ndarray) -> Any:
        """Trains on one batch; returns its loss, still on the device."""
        targets = torch.from_numpy(labels).to(self.device, torch.int64)
        logits, _, balance = self.module(torch.from_numpy(images).to(self.device), self.outs, self.dgrads)
        loss = F.cross_entropy(logits, targets) + c.BALANCE_WEIGHT * balance
        loss.backward()
        self.adam.step()
        return loss.detach()

    @torch.no_grad()
    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The class of each image and the rows of each expert; without buffers the same calls allocate."""
        logits, sizes, _ = self.module(torch.from_numpy(images).to(self.device), NO_BUFFERS, NO_BUFFERS)
        return logits.argmax(dim=-1).cpu().numpy(), sizes.cpu().numpy()
