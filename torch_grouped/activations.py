# SPDX-License-Identifier: Apache-2.0
"""The activations between two grouped linear layers as modules, under TransformerEngine's names where it has one.

The scaled ones multiply each row by its probability, which gets a gradient: expert outputs then need no weighting
after fc2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from grouped_core import Activation, activation_options
from torch_grouped._rows import as_rows, in_form_of
from torch_grouped._sizes import GroupSizes
from torch_grouped.functional import grouped_activation

__all__ = [
    "GEGLU",
    "ClampedSwiGLU",
    "GroupedActivation",
    "SReLU",
    "ScaledClampedQGeGLU",
    "ScaledGEGLU",
    "ScaledSReLU",
    "ScaledSwiGLU",
    "SwiGLU",
]


class GroupedActivation(nn.Module):
    """An activation of the core on rows ``[..., H]``: ``H = 2F`` where it has a gate, else ``H = F``.

    Use one of its kinds. `forward` raises what `torch_grouped.functional.grouped_activation` raises, whose contracts
    on tail, aliasing and determinism hold.

    Args:
      glu_interleave_size: None: the row is [gate | up]; 1: gate0, up0, gate1, up1, ...
      activation_recompute_in_mlp: where this runs inside a fused grouped MLP, compute it again in backward instead
        of keeping its result; without effect elsewhere. Same bits.

    Raises:
      ValueError: another glu_interleave_size; nothing here reads blocks.
    """

    kind: ClassVar[str]
    scaled: ClassVar[bool] = False

    def __init__(
        self,
        glu_interleave_size: int | None = None,
        *,
        activation_recompute_in_mlp: bool = False,
        alpha: float = 1.702,
        limit: float = 7.0,
        glu_linear_offset: float = 1.0,
    ) -> None:
        super().__init__()
        if glu_interleave_size not in (None, 1):
            raise ValueError(
                f"glu_interleave_size must be None (gates first, then ups) or 1 (gate, up, gate, up, ...); got "
                f"{glu_interleave_size!r}. Reorder fc1's weight once, at load time."
            )
        self.gate_layout = "concatenated" if glu_interleave_size is None else "interleaved"
        self.activation_recompute_in_mlp = activation_recompute_in_mlp
        self.alpha, self.limit, self.glu_linear_offset = alpha, limit, glu_linear_offset
        self.choice()  # an unknown name is told here

    @property
    def num_extra_inputs(self) -> int:
        """How many inputs `forward` takes beside the rows, sizes aside: the probabilities, or none."""
        return int(self.scaled)

    def choice(self) -> Activation:
        """As the core takes it."""
        return activation_options(self.kind, self.gate_layout, self.alpha, self.limit, self.glu_linear_offset)

    def _apply_to(
        self,
        inp: Tensor,
        probs: Tensor | None,
        m_splits: GroupSizes | None,
        out: Tensor | None,
        dgrad_out: Tensor | None,
    ) -> Tensor:
        h = as_rows(inp)
        if m_splits is None:
            # All rows are of one group: a fill on the device, not an upload.
            m_splits = h.new_full((1,), h.shape[0] if h.dim() else 0, dtype=torch.int64)
        y = grouped_activation(
            h,
            m_splits,
            self.kind,
            row_scale=None if probs is None else probs.reshape(-1),
            gate_layout=self.gate_layout,
            alpha=self.alpha,
            limit=self.limit,
            offset=self.glu_linear_offset,
            out=out,
            dgrad_out=dgrad_out,
        )
        return in_form_of(inp, y)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        clamp = f", alpha={self.alpha}, limit={self.limit}, offset={self.glu_linear_offset}"
        return f'gate_layout="{self.gate_layout}"' + (clamp if self.kind == "clamped_swiglu" else "")


class _Plain(GroupedActivation):
    def forward(
        self,
        inp: Tensor,
        m_splits: GroupSizes | None = None,
        out: Tensor | None = None,
        dgrad_out: Tensor | None = None,
        *,
        probs: Tensor | None = None,
    ) -> Tensor:
        """Applies the activation.

        Args:
          inp: ``[..., H]``; leading dimensions are flattened to ``T`` rows.
          m_splits: as for `GroupedLinear`; rows past their sum are the tail. None: there is no tail.
          out: ``[T, F]`` buffer; the result aliases it.
          dgrad_out: ``[T, H]`` buffer for the gradient of inp.
          probs: as the scaled kinds take them, for one who decides at each call.

        Returns:
          ``[..., F]``.
        """
        return self._apply_to(inp, probs, m_splits, out, dgrad_out)


class _Scaled(GroupedActivation):
    scaled = True

    def forward(
        self,
        inp: Tensor,
        probs: Tensor,
        m_splits: GroupSizes | None = None,
        out: Tensor | None = None,
        dgrad_out: Tensor | None = None,
    ) -> Tensor:
        """Applies the activation and multiplies each row by its probability.

        Args:
          inp: ``[..., H]``; leading dimensions are flattened to ``T`` rows.
          probs: one number for each row: ``T`` in any shape, dtype of inp, or f32 beside 16-bit inp.
          m_splits: as for `GroupedLinear`; rows past their sum are the tail. None: there is no tail.
          out: ``[T, F]`` buffer; the result aliases it.
          dgrad_out: ``[T, H]`` buffer for the gradient of inp.

        Returns:
          ``[..., F]``.
        """
        return self._apply_to(inp, probs, m_splits, out, dgrad_out)


class SwiGLU(_Plain):
    """``silu(gate) * up``."""

    kind = "swiglu"


class ClampedSwiGLU(_Plain):
    """gpt-oss: ``gate * sigmoid(alpha * gate) * (up + glu_linear_offset)``, gate and up clamped at ``limit``."""

    kind = "clamped_swiglu"


class GEGLU(_Plain):
    """``gelu(gate) * up``, gelu in its tanh form."""

    kind = "geglu"


class SReLU(_Plain):
    """``relu(h)`` squared; there is no gate."""

    kind = "squared_relu"


class ScaledSwiGLU(_Scaled):
    """`SwiGLU` times the probability of each row."""

    kind = "swiglu"


class ScaledClampedQGeGLU(_Scaled):
    """`ClampedSwiGLU` times the probability of each row. The name is TransformerEngine's."""

    kind = "clamped_swiglu"


class ScaledGEGLU(_Scaled):
    """`GEGLU` times the probability of each row."""

    kind = "geglu"


class ScaledSReLU(_Scaled):
    """`SReLU` times the probability of each row."""

    kind = "squared_relu"
