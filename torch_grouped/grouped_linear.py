# SPDX-License-Identifier: Apache-2.0
"""GroupedLinear: the linear layers of all experts as one module."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_grouped._sizes import GroupSizes
from torch_grouped.functional import grouped_linear

__all__ = ["GroupedLinear"]


class GroupedLinear(nn.Module):
    """``num_gemms`` linear layers, each applied to its own rows of the input, in one call.

    Names and the order of `forward`'s arguments are TransformerEngine's. The parameters are one ``weight``
    ``[G, N, K]`` and, with ``bias``, one ``bias`` ``[G, N]``.

    Args:
      num_gemms: G, how many layers.
      in_features: K.
      out_features: N.
      bias: whether the layers add one.
      params_dtype: dtype of the parameters; torch's default dtype if None.
      device: where the parameters are made.
      init_method: called on each layer's ``[N, K]`` weight; if None, what ``nn.Linear`` does.
      fuse_wgrad_accumulation: backward adds the weight gradient to ``weight.main_grad`` ``[G, N, K]`` (fp32 or the
        weight's dtype), which the caller provides, and leaves ``weight.grad`` alone.

    The contracts on tail, empty groups, aliasing and determinism are those of
    `torch_grouped.functional.grouped_linear`.
    """

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        params_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        init_method: Callable[[Tensor], object] | None = None,
        fuse_wgrad_accumulation: bool = False,
    ) -> None:
        super().__init__()
        self.num_gemms = num_gemms
        self.in_features = in_features
        self.out_features = out_features
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self._init_method = init_method
        shape = (num_gemms, out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, dtype=params_dtype, device=device))
        if bias:
            self.bias = nn.Parameter(torch.empty(shape[:2], dtype=params_dtype, device=device))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew: the uniform bound 1/sqrt(K) of ``nn.Linear``, or ``init_method``."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        with torch.no_grad():
            if self._init_method is None:
                self.weight.uniform_(-bound, bound)
            else:
                for expert_weight in self.weight:
                    self._init_method(expert_weight)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)

    def forward(
        self,
        inp: Tensor,
        m_splits: GroupSizes,
        is_first_microbatch: bool | None = None,
        out: Tensor | None = None,
        dgrad_out: Tensor | None = None,
    ) -> Tensor:
        """Applies layer g to the g-th run of rows.

        Args:
          inp: ``[..., K]``, dtype of the weight; leading dimensions are flattened to ``T`` rows.
          m_splits: ``[G]`` rows of each layer: a tensor on inp's device (never synchronises), a CPU tensor or a
            list.
          is_first_microbatch: with ``fuse_wgrad_accumulation``, True overwrites ``main_grad`` instead of adding to
            it. Without, it says nothing: no weight is cached here.
          out: ``[T, N]`` buffer; the result aliases it.
          dgrad_out: ``[T, K]`` buffer for the gradient of inp.

        Returns:
          ``[..., N]``.

        Raises:
          ValueError, TypeError: as `torch_grouped.functional.grouped_linear`; ValueError also where
            ``main_grad`` is needed and missing.
        """
        wgrad_out = None
        if self.fuse_wgrad_accumulation:
            wgrad_out = getattr(self.weight, "main_grad", None)
            if wgrad_out is None:
                raise ValueError(
                    "weight.main_grad must be a tensor of the weight's shape with fuse_wgrad_accumulation=True; "
                    "got none. Set it before forward, or construct the module without."
                )
        as_given = inp.dim() in (0, 2)  # no dimension at all is for the core to refuse
        x = inp if as_given else inp.reshape(math.prod(inp.shape[:-1]), inp.shape[-1])
        y = grouped_linear(
            x,
            self.weight,
            m_splits,
            self.bias,
            out=out,
            dgrad_out=dgrad_out,
            wgrad_out=wgrad_out,
            accumulate_wgrad=not is_first_microbatch,
        )
        return y if as_given else y.view(*inp.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return (
            f"num_gemms={self.num_gemms}, in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
