# SPDX-License-Identifier: Apache-2.0
"""GroupedMLP: the feed-forward layers of all experts as one module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_grouped import activations
from torch_grouped._fusion import run_as_one
from torch_grouped._mlp import check_activation
from torch_grouped._sizes import GroupSizes
from torch_grouped.grouped_linear import GroupedLinear

__all__ = ["GroupedMLP"]

_MODULES: dict[str, type[activations.GroupedActivation]] = {
    "swiglu": activations.SwiGLU,
    "clamped_swiglu": activations.ClampedSwiGLU,
    "geglu": activations.GEGLU,
    "squared_relu": activations.SReLU,
}


class GroupedMLP(nn.Module):
    """``num_gemms`` feed-forward layers, each applied to its own rows: linear layer, activation, linear layer.

    The parameters are those of ``fc1`` and ``fc2``, two `GroupedLinear`: ``fc1.weight`` ``[G, 2F, K]`` (F where the
    activation has no gate), ``fc2.weight`` ``[G, K, F]``, and their biases. The three run as one step of autograd
    where nothing tells them apart; with hooks on fc1, activation or fc2, or options of theirs that the one step does
    not know, they are called in turn. Bits and buffers are the same.

    Args:
      num_gemms: G, how many experts.
      hidden_size: K, features of input and result.
      ffn_hidden_size: F, features between.
      activation: ``"swiglu"``, ``"clamped_swiglu"`` (gpt-oss), ``"geglu"`` or ``"squared_relu"``.
      glu_interleave_size: None: fc1 gives [gate | up]; 1: gate0, up0, gate1, up1, ...
      alpha: slope inside the sigmoid, of the clamped kind alone.
      limit: clamp of gate (from above) and up (both sides), of the clamped kind alone.
      glu_linear_offset: added to up, of the clamped kind alone.
      activation_recompute: keep fc1's result alone for backward and compute the activation again.
      bias, params_dtype, device, init_method, fuse_wgrad_accumulation: as for `GroupedLinear`, of both layers.

    Raises:
      ValueError: an unknown activation or glu_interleave_size.

    The contracts on tail, empty groups, aliasing and determinism are those of
    `torch_grouped.functional.grouped_mlp`.
    """

    def __init__(
        self,
        num_gemms: int,
        hidden_size: int,
        ffn_hidden_size: int,
        *,
        activation: str = "swiglu",
        glu_interleave_size: int | None = None,
        alpha: float = 1.702,
        limit: float = 7.0,
        glu_linear_offset: float = 1.0,
        activation_recompute: bool = False,
        bias: bool = True,
        params_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        init_method: Callable[[Tensor], object] | None = None,
        fuse_wgrad_accumulation: bool = False,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.activation = _MODULES[activation](
            glu_interleave_size,
            activation_recompute_in_mlp=activation_recompute,
            alpha=alpha,
            limit=limit,
            glu_linear_offset=glu_linear_offset,
        )
        columns = ffn_hidden_size * (2 if self.activation.choice().gated else 1)
        shared = {
            "bias": bias,
            "params_dtype": params_dtype,
            "device": device,
            "init_method": init_method,
            "fuse_wgrad_accumulation": fuse_wgrad_accumulation,
        }
        self.fc1 = GroupedLinear(num_gemms, hidden_size, columns, **shared)
        self.fc2 = GroupedLinear(num_gemms, ffn_hidden_size, hidden_size, **shared)

    def reset_parameters(self) -> None:
        """Draws the parameters of both layers anew."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    def forward(
        self,
        inp: Tensor,
        m_splits: GroupSizes,
        probs: Tensor | None = None,
        is_first_microbatch: bool | None = None,
        out: Tensor | None = None,
        dgrad_out: Tensor | None = None,
    ) -> Tensor:
        """Applies expert g to the g-th run of rows.

        Args:
          inp: ``[..., K]``, dtype of the weights; leading dimensions are flattened to ``T`` rows.
          m_splits: ``[G]`` rows of each expert: a tensor on inp's device (never synchronises), a CPU tensor or a
            list.
          probs: the router's probability of each row, ``T`` in any shape: multiplies the activation, and gets a
            gradient. None: rows are not weighted.
          is_first_microbatch: as for `GroupedLinear`, of both layers.
          out: ``[T, K]`` buffer that fc2 writes; the result aliases it.
          dgrad_out: ``[T, K]`` buffer that fc1's backward writes the gradient of inp into.

        Returns:
          ``[..., K]``.

        Raises:
          ValueError, TypeError: as `torch_grouped.functional.grouped_mlp`.
        """
        fc1, activation, fc2 = self.fc1, self.activation, self.fc2
        y = run_as_one(
            fc1,
            activation,
            fc2,
            inp,
            m_splits,
            probs,
            is_first_microbatch=is_first_microbatch,
            out=out,
            dgrad_out=dgrad_out,
        )
        if y is not None:
            return y
        h = fc1(inp, m_splits, is_first_microbatch, dgrad_out=dgrad_out)
        return fc2(activation(h, m_splits, probs=probs), m_splits, is_first_microbatch, out=out)
