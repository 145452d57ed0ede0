# SPDX-License-Identifier: Apache-2.0
"""When linear layer, activation and linear layer are one grouped MLP, and how they run as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from torch_grouped._mlp import run_mlp
from torch_grouped._rows import as_rows, in_form_of
from torch_grouped._sizes import GroupSizes
from torch_grouped.activations import GroupedActivation
from torch_grouped.grouped_linear import GroupedLinear

# What a module's call does beside its forward. Run as one, the parts are not called.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_plain(module: nn.Module) -> bool:
    # Accelerate and others put a forward of their own on the instance.
    return "forward" not in vars(module) and not any(getattr(module, name) for name in _HOOKS)


def _is_plain_linear(module: nn.Module) -> bool:
    # A subclass may do other things in forward; so does torch.nn.utils.parametrize, which makes one.
    return type(module) is GroupedLinear and _is_plain(module) and not module.return_bias


def _can_fuse(fc1: nn.Module, activation: nn.Module, fc2: nn.Module) -> bool:
    return (
        not _has_any_global_hook()
        and _is_plain_linear(fc1)
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


def run_as_one(
    fc1: Any,
    activation: Any,
    fc2: Any,
    inp: Tensor,
    m_splits: GroupSizes,
    probs: Tensor | None,
    *,
    is_first_microbatch: bool | None = None,
    out: Tensor | None = None,
    dgrad_out: Tensor | None = None,
) -> Tensor | None:
    """The three in one step of autograd, if nothing but the way there differs from calling them in turn; else None."""
    if not _can_fuse(fc1, activation, fc2):
        return None
    overwrite = bool(is_first_microbatch)
    places: list[Any] = [
        layer.place_of_wgrad(overwrite) if layer.fuse_wgrad_accumulation or layer.delay_wgrad_compute else (None, None)
        for layer in (fc1, fc2)
    ]
    x = as_rows(inp)
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
        wgrads_out=(places[0][1], places[1][1]),
        accumulate=(not overwrite, not overwrite),
        take_wgrads=(places[0][0], places[1][0]),
        recompute_activation=activation.activation_recompute_in_mlp,
    )
    return in_form_of(inp, y)
