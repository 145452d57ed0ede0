# SPDX-License-Identifier: Apache-2.0
"""The same network in plain PyTorch: a loop over experts with ordinary layers. The third curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_digits import config as c
from moe_digits.torch_model import Adam, load_balance, route, rows_per_expert


class Expert(nn.Module):
    """SwiGLU, scaled by the router's probability before the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c.WIDTH, 2 * c.HIDDEN, bias=False)
        self.fc2 = nn.Linear(c.HIDDEN, c.WIDTH, bias=False)

    def forward(self, rows: Tensor, probability: Tensor) -> Tensor:
        """``[n, D]`` and ``[n]`` to ``[n, D]``."""
        gate, up = self.fc1(rows).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * up * probability[:, None])


class PlainClassifier(nn.Module):
    """Embedding, a residual mixture of experts, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(c.PIXELS, c.WIDTH, bias=False)
        self.router = nn.Linear(c.WIDTH, c.EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(c.EXPERTS))
        self.head = nn.Linear(c.WIDTH, c.CLASSES, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits, the rows of each expert, and the load-balance loss."""
        x = self.embed(images)
        logits = self.router(x)
        probability, chosen = route(logits)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            # Where an expert's rows begin is known only to the device: on a GPU this waits for it, every time.
            token, rank = torch.where(chosen == number)
            mixed = mixed.index_add(0, token, expert(x[token], probability[token, rank]))
        sizes = rows_per_expert(chosen)
        return self.head(x + mixed), sizes, load_balance(logits, sizes)


class PlainModel:
    """Owns the module and the optimiser."""

    label = "plain PyTorch"

    def __init__(self, weights: dict[str, np.ndarray], device: torch.device) -> None:
        self.device = device
        self.module = PlainClassifier().to(device)
        with torch.no_grad():
            for name in ("embed", "router", "head"):
                getattr(self.module, name).weight.copy_(torch.from_numpy(weights[name]).mT)
            for name in ("fc1", "fc2"):
                for weight, expert in zip(weights[name], self.module.experts, strict=True):
                    getattr(expert, name).weight.copy_(torch.from_numpy(weight).mT)
        self.adam = Adam(list(self.module.parameters()))

    def step(self, images: np.ndarray, labels: np.ndarray) -> Any:
        """Trains on one batch; returns its loss, still on the device."""
        targets = torch.from_numpy(labels).to(self.device, torch.int64)
        logits, _, balance = self.module(torch.from_numpy(images).to(self.device))
        loss = F.cross_entropy(logits, targets) + c.BALANCE_WEIGHT * balance
        loss.backward()
        self.adam.step()
        return loss.detach()

    @torch.no_grad()
    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The class of each image and the rows of each expert."""
        logits, sizes, _ = self.module(torch.from_numpy(images).to(self.device))
        return logits.argmax(dim=-1).cpu().numpy(), sizes.cpu().numpy()
