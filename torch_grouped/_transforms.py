# SPDX-License-Identifier: Apache-2.0
"""Backward under ``create_graph=True`` and torch.func: first derivatives, batched by a loop, and never a wrong zero."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple]


def refuse_buffers_under_transforms(**buffers: Tensor | None) -> None:
    """NotImplementedError for a buffer inside torch.func.

    torch.func transforms pure functions: it may run a function several times or keep its results for later, and
    what is written into a caller's memory is not a result.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    for name, buffer in buffers.items():
        if buffer is not None:
            raise NotImplementedError(
                f"{name} cannot be written inside torch.func (grad, vjp, jacrev, vmap): these transform functions "
                f"without side effects. Leave {name} out there, or use torch.autograd."
            )


def in_a_loop(function: type[torch.autograd.Function], info: Any, in_dims: tuple, arguments: tuple) -> tuple:
    """What `function` gives for one element of the batch after another, stacked: its ``vmap``."""
    size = info.batch_size

    def element(argument: Any, dim: int | None, i: int) -> Any:
        if dim is None:
            return argument
        if size == 0:  # zeros, with the history of the argument
            return argument.sum(dim, dtype=argument.dtype)
        return argument.select(dim, i) if dim == 0 else argument.select(dim, i).contiguous()

    def stack(results: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        return torch.stack(results) if size else torch.stack(results)[:0]

    # Of an empty batch one element tells the shapes of what is then empty too.
    found = [
        function.apply(*(element(argument, dim, i) for argument, dim in zip(arguments, in_dims, strict=True)))
        for i in range(max(size, 1))
    ]
    if not isinstance(found[0], tuple):
        return stack(found), 0
    stacked = tuple(stack(column) if column[0] is not None else None for column in zip(*found, strict=True))
    return stacked, tuple(None if result is None else 0 for result in stacked)


class _ContextOn:
    """A context whose saved tensors are those given, which may be slices or lie at another level of torch.func."""

    def __init__(self, ctx: Any, saved_tensors: tuple) -> None:
        self._ctx = ctx
        self.saved_tensors = saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _without_history(gradient: Any) -> Any:
    return gradient.detach() if isinstance(gradient, Tensor) else gradient


class _Gradients(torch.autograd.Function):
    """``backward(ctx, *incoming)`` as a function of everything that its results depend on."""

    @staticmethod
    def forward(backward: Backward, ctx: Any, incoming: int, *tensors: Tensor | None) -> tuple:
        """The gradients. A buffer among them is handed on as another tensor over its memory."""
        found = backward(_ContextOn(ctx, tensors[incoming:]), *tensors[:incoming])
        return tuple(map(_without_history, found))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Nothing is kept: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple:
        """There is none."""
        raise NotImplementedError(
            "the gradients of grouped operations have no derivative of their own: the core computes first "
            "derivatives, and a buffer holds one result only. Take this gradient without create_graph=True."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        """One element of the batch after another."""
        return in_a_loop(_Gradients, info, in_dims, arguments)


def first_derivative_only(backward: Backward) -> Backward:
    """A static ``backward(ctx, *incoming)`` whose gradients say so when someone asks for theirs.

    In an ordinary backward pass it is `backward` itself. Under ``create_graph=True`` and torch.func the gradients
    carry a node that raises: torch's own mark for this, once_differentiable, makes them zeros inside torch.func.
    """

    @functools.wraps(backward)
    def with_refusal(ctx: Any, *incoming: Tensor | None) -> tuple:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return backward(ctx, *incoming)
        return _Gradients.apply(backward, ctx, len(incoming), *incoming, *ctx.saved_tensors)

    return with_refusal
