# SPDX-License-Identifier: Apache-2.0
"""GroupedLinear: the linear layers of all experts as one module."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torch_grouped._rows import as_rows, in_form_of
from torch_grouped._sizes import GroupSizes
from torch_grouped._te_form import refuse_other_engines, stack_separate_parameters, te_state_dict
from torch_grouped._weight_gradient import WeightGradient, main_grad_of
from torch_grouped.functional import linear_with

__all__ = ["GroupedLinear"]

_Result = Tensor | tuple[Tensor, list[Tensor] | None]


def _parameter(module: nn.Module, name: str) -> Any:
    # Asked for as an attribute it is searched for in the module and its classes first, each time.
    if name in module._parameters:
        return module._parameters[name]
    return getattr(module, name)  # what a parametrization made of it


class GroupedLinear(nn.Module):
    """``num_gemms`` linear layers, each applied to its own rows of the input, in one call.

    Names and orders of arguments are those of TransformerEngine's class. The parameters are one ``weight``
    ``[G, N, K]`` and, with ``bias``, one ``bias`` ``[G, N]``; ``load_state_dict`` also takes ``weight0`` to
    ``weight{G-1}``, ``bias0`` and so on, and `export_te_state_dict` gives them.

    Args:
      num_gemms: G, how many layers.
      in_features: K.
      out_features: N.
      fuse_wgrad_accumulation: backward adds the weight gradient to ``weight.main_grad`` ``[G, N, K]`` (fp32 or the
        weight's dtype), which the caller provides, and leaves ``weight.grad`` alone. Attributes of ``weight`` that are
        heeded when the gradient is there: ``get_main_grad()`` in the place of ``main_grad``; ``overwrite_main_grad``;
        ``grad_added_to_main_grad``, where it exists, is set and autograd gets a gradient without meaning, of zeros if
        ``zero_out_wgrad``.
      get_rng_state_tracker, rng_tracker_name: ``get_rng_state_tracker().fork(rng_tracker_name)`` is entered while
        parameters are drawn.
      init_method: called on each layer's ``[N, K]`` weight; if None, what ``nn.Linear`` does.
      bias: whether the layers add one.
      return_bias: `forward` leaves the bias to the caller and returns ``(y, biases)``, a list of G vectors or None.
      params_dtype: dtype of the parameters; torch's default dtype if None.
      device: where the parameters are made; torch's default device if None.
      delay_wgrad_compute: backward leaves the weight gradient to `backward_dw`.
      name: shown when printed.
      sequence_parallel, tp_group, parallel_mode: for one tensor-parallel rank they say nothing, as in
        TransformerEngine, which leaves communication outside of this layer too.
      ub_name: a name for what ``ub_overlap_rs`` and ``ub_overlap_ag`` would do.
      save_original_input, single_grouped_weight, single_grouped_bias, use_grouped_tensor: choices between ways that
        TransformerEngine has. Here there is one way: the input is saved as it is, parameters are grouped, sizes may be
        on the device.
      tp_size, ub_overlap_rs, ub_overlap_ag: only their defaults, see below.

    Raises:
      ValueError: ``tp_size`` above 1 (give the sizes of this rank's shard), ``ub_overlap_rs`` or ``ub_overlap_ag``
        (overlapped communication is not part of this layer), another ``parallel_mode`` than None, "column" and "row".

    The contracts on tail, empty groups, aliasing and determinism are those of
    `torch_grouped.functional.grouped_linear`.
    """

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable[[Tensor], object] | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: torch.device | str | None = None,
        ub_overlap_rs: bool = False,
        ub_overlap_ag: bool = False,
        ub_name: str | None = None,
        delay_wgrad_compute: bool = False,
        save_original_input: bool = False,
        single_grouped_weight: bool = False,
        single_grouped_bias: bool = False,
        name: str | None = None,
        use_grouped_tensor: bool | None = None,
    ) -> None:
        super().__init__()
        refuse_other_engines(
            tp_size=tp_size, parallel_mode=parallel_mode, ub_overlap_rs=ub_overlap_rs, ub_overlap_ag=ub_overlap_ag
        )
        self.num_gemms = num_gemms
        self.in_features = in_features
        self.out_features = out_features
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self.delay_wgrad_compute = delay_wgrad_compute
        self.return_bias = return_bias
        self.name = name
        self._init_method = init_method
        self._rng = get_rng_state_tracker, () if rng_tracker_name is None else (rng_tracker_name,)
        shape = (num_gemms, out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, dtype=params_dtype, device=device))
        if bias:
            self.bias = nn.Parameter(torch.empty(shape[:2], dtype=params_dtype, device=device))
        else:
            self.register_parameter("bias", None)
        self._weight_gradient = WeightGradient()
        self._after_wgrad: list[Callable[[], object]] = []
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew: the uniform bound 1/sqrt(K) of ``nn.Linear``, or ``init_method``."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        tracker, names = self._rng
        with torch.no_grad(), nullcontext() if tracker is None else tracker().fork(*names):
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
    ) -> _Result:
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
          ``[..., N]``; with ``return_bias`` a pair of it and the biases.

        Raises:
          ValueError, TypeError: as `torch_grouped.functional.grouped_linear`; ValueError also where
            ``main_grad`` is needed and missing.
          NotImplementedError: under torch.compile with ``delay_wgrad_compute`` or ``grad_added_to_main_grad``.
        """
        weight, bias = _parameter(self, "weight"), _parameter(self, "bias")
        rows = inp if inp.dim() == 2 else as_rows(inp)
        take_wgrad = wgrad_out = None
        overwrite = bool(is_first_microbatch)
        if self.fuse_wgrad_accumulation or self.delay_wgrad_compute:
            take_wgrad, wgrad_out = self.place_of_wgrad(overwrite)
        y = linear_with(
            take_wgrad,
            rows,
            weight,
            m_splits,
            None if self.return_bias else bias,
            None,
            out,
            dgrad_out,
            wgrad_out,
            not overwrite,
        )
        if rows is not inp:
            y = in_form_of(inp, y)
        if not self.return_bias:
            return y
        return y, None if bias is None else list(bias.unbind(0))

    def place_of_wgrad(self, overwrite: bool) -> tuple[Callable[..., Tensor | None] | None, Tensor | None]:
        """What takes the weight gradient, if autograd does not, and main_grad where it can be checked now.

        For whoever computes this layer's gradients in its place, as a fused MLP does.
        """
        weight, fused = self.weight, self.fuse_wgrad_accumulation
        if not (weight.requires_grad and torch.is_grad_enabled()):
            return None, None
        # A buffer that is made for backward is not asked for before.
        main_grad = main_grad_of(weight) if fused and not hasattr(weight, "get_main_grad") else None
        spoken_to = fused and any(
            hasattr(weight, n) for n in ("get_main_grad", "overwrite_main_grad", "grad_added_to_main_grad")
        )
        if not (spoken_to or self.delay_wgrad_compute):
            return None, main_grad
        if torch.compiler.is_compiling():
            raise NotImplementedError(
                "A compiled backward cannot set attributes of a parameter or leave work for later. Without "
                "delay_wgrad_compute and without get_main_grad, overwrite_main_grad and grad_added_to_main_grad on "
                "the weight fuse_wgrad_accumulation compiles."
            )
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                "delay_wgrad_compute and attributes of main_grad on the weight must not be used inside torch.func; got "
                "a call there, whose weight gradient would be zero. Use torch.autograd."
            )
        take = self._weight_gradient.for_call(
            weight, fused=fused, delayed=self.delay_wgrad_compute, overwrite=overwrite
        )
        return take, main_grad

    def need_backward_dw(self) -> bool:
        """Whether `backward_dw` has something to compute."""
        return self._weight_gradient.is_pending()

    def backward_dw(self) -> None:
        """Computes the weight gradient that the oldest backward left, with ``delay_wgrad_compute``.

        It goes where backward would have put it: into ``main_grad``, or added to ``weight.grad``. Until then input and
        incoming gradient are kept alive, and must keep their content.

        Raises:
          RuntimeError: no backward left one; or a buffer that it needs was written again.
        """
        if not self.delay_wgrad_compute:
            return
        self._weight_gradient.compute_next()
        for hook in self._after_wgrad:
            hook()

    def register_wgrad_accumulation_and_reduce_hooks(self, hook: Callable[[], object]) -> None:
        """`hook` is called after each `backward_dw`."""
        self._after_wgrad.append(hook)

    def export_te_state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """``weight0`` to ``weight{G-1}`` and ``bias0`` and so on, as views of the parameters."""
        return te_state_dict({n: p for n, p in (("weight", self.weight), ("bias", self.bias)) if p is not None}, prefix)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        stack_separate_parameters(state_dict, prefix, self._parameters, self.num_gemms)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        name = "" if self.name is None else f", name={self.name!r}"
        return (
            f"num_gemms={self.num_gemms}, in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}{name}"
        )
