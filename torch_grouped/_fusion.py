# SPDX-License-Identifier: Apache-2.0
"""When linear layer, activation and linear layer are one grouped MLP, and how they run as one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torch_grouped._mlp import run_mlp
from torch_grouped._sizes import GroupSizes
from torch_grouped.activations import GroupedActivation
from torch_grouped.grouped_linear import GroupedLinear

# What a module's call does beside its forward. Run as one, the parts are not called.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Options of a linear layer under which its results are not plain products.
_OWN_WAYS = ("delay_wgrad_compute", "fuse_wgrad_accumulation", "return_bias", "save_original_input")


def _is_plain(module: nn.Module) -> bool:
    return not any(getattr(module, name) for name in _HOOKS)


def _is_plain_linear(module: nn.Module) -> bool:
    # A subclass may do other things in forward; so does torch.nn.utils.parametrize, which makes one.
    return type(module) is GroupedLinear and _is_plain(module) and not any(getattr(module, n, False) for n in _OWN_WAYS)


def can_fuse(fc1: nn.Module, activation: nn.Module, fc2: nn.Module) -> bool:
    """Whether the three may run as one grouped MLP: nothing but the result's path would differ."""
    return (
        _is_plain_linear(fc1)
        and isinstance(activation, GroupedActivation)
        and type(activation).__module__ == GroupedActivation.__module__
        and _is_plain(activation)
        and _is_plain_linear(fc2)
    )


def same_splits(one: GroupSizes, other: GroupSizes) -> bool:
    """Whether both are known to be the same sizes without asking a device."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return one is other
    return list(one) == list(other)


def run_fused(
    fc1: Any,
    activation: GroupedActivation,
    fc2: Any,
    inp: Tensor,
    m_splits: GroupSizes,
    probs: Tensor | None,
    out: Tensor | None = None,
    dgrad_out: Tensor | None = None,
) -> Tensor:
    """The three in one step of autograd; arguments and results are those of the modules in turn."""
    as_given = inp.dim() in (0, 2)  # no dimension at all is for the core to refuse
    x = inp if as_given else inp.reshape(math.prod(inp.shape[:-1]), inp.shape[-1])
    y = run_mlp(
        x,
        fc1.weight,
        fc2.weight,
        m_splits,
        fc1.bias,
        fc2.bias,
        None if probs is None else probs.reshape(-1),
        choice=activation.choice(),
        out=out,
        dgrad_out=dgrad_out,
        recompute_activation=activation.activation_recompute_in_mlp,
    )
    return y if as_given else y.view(*inp.shape[:-1], y.shape[-1])
