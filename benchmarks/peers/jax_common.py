# SPDX-License-Identifier: Apache-2.0
"""JAX calls on the data of torch: the same memory on both sides, samples between torch's events behind results."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.operations import DGRAD, FWD, HOST, HOST_LINEAR, LINEAR, MLP, WGRAD
from benchmarks.peers.base import EVENTS_BEHIND, Call, Peer, Skip
from benchmarks.problem import Case, Problem
from benchmarks.shapes import EVEN, SKEW


def view(p: Problem, i: int, name: str) -> Any:
    """A tensor of the i-th set, or one of the problem, as a JAX array over the same memory."""
    import jax

    owner = p.set(0 if name in ("sizes", "initial") else i)
    if name not in owner.views:
        tensor = getattr(p if name in ("sizes", "initial") else owner, name)
        owner.views[name] = jax.dlpack.from_dlpack(tensor.detach())
    return owner.views[name]


def _canonical(array: Any) -> Tensor:
    """A torch tensor; gradients of the weight from [G, K, N] to [G, N, K]."""
    tensor = torch.from_dlpack(array)
    return tensor.transpose(1, 2) if tensor.dim() == 3 else tensor


def _outputs(result: Any) -> list[Tensor]:
    return [_canonical(a) for a in (result if isinstance(result, tuple | list) else [result])]


def _main_gradient(initial: Any) -> Any:
    import jax.numpy as jnp

    return jnp.swapaxes(initial, 1, 2).astype(jnp.float32)


def _wait(result: Any) -> None:
    import jax

    jax.block_until_ready(result)


def _follow(result: Any) -> None:
    """Torch's current stream waits for a result. The exchanged tensor goes: the next call donates its memory."""
    import jax

    torch.from_dlpack(jax.tree.leaves(result)[-1])


@cache
def _jit(function: Callable, donated: tuple[int, ...]) -> Callable:
    """One for each function, so that sizes drawn anew on a known shape compile nothing.

    It lives as long as the process: a function must not hold on to a problem's data.
    """
    import jax

    return jax.jit(function, donate_argnums=donated)


class JaxPeer(Peer):
    """A JAX function under jit."""

    clock = EVENTS_BEHIND
    module = "jax"

    def missing(self, device: torch.device) -> str | None:
        """Also where JAX has no GPU."""
        reason = super().missing(device)
        if reason is None and device.type == "cuda":
            import jax

            if jax.default_backend() != "gpu":
                return f"jax runs on {jax.default_backend()} here"
        return reason

    def pool(self, problem: Problem) -> int:
        """Bytes that it takes from XLA's pool: results and temporaries."""
        return 0

    def memory(self, problem: Problem) -> int:
        """The weights as JAX stores them: torch's memory, which all JAX peers share."""
        p = problem
        if p.case.op in (FWD, DGRAD, LINEAR, HOST, HOST_LINEAR):
            return len(p.sets) * p.nbytes("GNK")
        return len(p.sets) * (p.nbytes("GNK") + p.nbytes("GFK")) if p.case.op == MLP else 0

    def prepare(self, problem: Problem) -> Call:
        """Skips what would not fit: an allocation that fails takes XLA ten seconds, at worst the process."""
        needed, free = self.pool(problem), pool_bytes(problem.device)
        if needed > 0.9 * free:
            raise Skip(f"needs about {needed / 2**30:.0f} GiB of XLA's pool, {free / 2**30:.0f} GiB are free")
        return super().prepare(problem)

    def call(self, p: Problem, function: Callable, names: tuple[str, ...]) -> Call:
        """`function` under jit, on the named inputs."""
        compiled = _jit(function, ())
        return self._call(p, lambda i: compiled(*(view(p, i, n) for n in names)))

    def into(self, p: Problem, function: Callable, names: tuple[str, ...], buffers: list[Any]) -> Call:
        """The same with buffers after the inputs, donated; its results are the buffers of the next call."""
        compiled = _jit(function, tuple(range(len(names), len(names) + len(buffers))))
        held = list(buffers)

        def run(i: int) -> list[Any]:
            held[:] = compiled(*(view(p, i, n) for n in names), *held)
            return held

        return self._call(p, run)

    def initial(self, p: Problem) -> Any:
        """What a gradient is added to, as XLA's own: [G, K, N] fp32."""
        return _jit(_main_gradient, ())(view(p, 0, "initial"))

    def _call(self, p: Problem, run: Callable[[int], Any]) -> Call:
        _ready(p)
        return Call(run, outputs=_outputs, wait=_wait, follow=_follow)

    def poisoned(self, p: Problem, *shape: int, dtype: Any = None) -> Any:
        """A buffer of XLA's own, filled with NaN."""
        import jax.numpy as jnp

        return jnp.full(shape, jnp.nan, dtype or str(p.dtype).removeprefix("torch."))


def too_many_compilations(case: Case) -> str | None:
    """Why a peer that takes seconds to compile each shape leaves a case out of its sample of them."""
    if case.draw != EVEN:
        return "seconds to compile each shape: timed on even alone"
    if case.op in (DGRAD, WGRAD) and SKEW not in case.shape.tags:
        return f"seconds to compile each shape: gradients are timed on those tagged {SKEW}"
    return None


def _ready(p: Problem) -> None:
    """Torch's work on the inputs is done."""
    if p.device.type == "cuda":
        torch.cuda.synchronize()


def pool_bytes(device: torch.device) -> float:
    """What is free of XLA's pool, all of which it took at its start."""
    import jax

    stats = jax.devices()[0].memory_stats() if device.type == "cuda" else None
    if not stats or "bytes_limit" not in stats:
        return float("inf")
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
