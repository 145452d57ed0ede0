# SPDX-License-Identifier: Apache-2.0
"""What TransformerEngine's GroupedLinear has in another form: parameters one by one, and options of its own engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_WAYS_OUT = {
    "ub_overlap_rs": "Communication that overlaps with the product is not part of this layer.",
    "ub_overlap_ag": "Communication that overlaps with the product is not part of this layer.",
}


def refuse_other_engines(*, tp_size: int, parallel_mode: str | None, **flags: bool) -> None:
    """ValueError for an option that this layer does not have, with the way out."""
    if tp_size != 1:
        raise ValueError(
            f"tp_size must be 1; got {tp_size}. Pass in_features or out_features of this rank's shard and communicate "
            "outside of the layer."
        )
    if parallel_mode not in (None, "column", "row"):
        raise ValueError(f'parallel_mode must be one of None, "column", "row"; got {parallel_mode!r}.')
    for name, value in flags.items():
        if value:
            raise ValueError(f"{name} must be False; got {value!r}. {_WAYS_OUT[name]}")


def te_state_dict(parameters: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Each layer's part under the parameter's name and the layer's number."""
    return {
        f"{prefix}{name}{i}": part
        for name, parameter in parameters.items()
        for i, part in enumerate(parameter.detach().unbind(0))
    }


def stack_separate_parameters(
    state_dict: dict[str, Any], prefix: str, parameters: Mapping[str, Tensor | None], count: int
) -> None:
    """Puts "weight" in the place of "weight0" to "weight{count-1}" where all of these are there, and so for bias.

    What is missing or has another shape is left as it is, for the module to report by its name. TransformerEngine's
    extra state, of quantisation, is dropped.
    """
    state_dict.pop(f"{prefix}_extra_state", None)
    for name in parameters:
        keys = [f"{prefix}{name}{i}" for i in range(count)]
        if prefix + name in state_dict or not keys or not all(key in state_dict for key in keys):
            continue
        if len({state_dict[key].shape for key in keys}) == 1:
            state_dict[prefix + name] = torch.stack([state_dict.pop(key) for key in keys])
