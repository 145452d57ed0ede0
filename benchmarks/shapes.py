# SPDX-License-Identifier: Apache-2.0
"""Named real shapes and the ways in which rows fall on groups. Needs numpy alone, so that tests import it too.

T rows (tokens x top-k that reach one rank), G groups (experts on that rank), K in-features, N out-features. "up" is
the fused gate and up projection, N = 2 x hidden; "down" is the way back. Names tell model, parallelism and part.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIMARY = "primary"  # the default run: every regime once
SKEW = "skew"  # timed under every draw
ROWS = "rows"  # few rows an expert: bound by reading weights
TINY = "tiny"  # for a CPU
CORNERS = "corners"  # the ends of the space that kernels are tuned for
EXTRA = "extra"  # the rest of the registry


@dataclass(frozen=True)
class Shape:
    """One grouped linear layer of a model on one rank."""

    name: str
    G: int
    T: int
    K: int
    N: int
    tags: tuple[str, ...] = (EXTRA,)

    @property
    def is_up(self) -> bool:
        """Whether a gated activation follows, so that N is gate and up."""
        return self.name.endswith("-up")

    def __str__(self) -> str:
        return self.name


def _pair(name: str, G: int, T: int, model: int, hidden: int, up: tuple = (EXTRA,), down: tuple = (EXTRA,)):
    """The up and down projection of experts with `hidden` features between `model` ones."""
    return Shape(f"{name}-up", G, T, model, 2 * hidden, up), Shape(f"{name}-down", G, T, hidden, model, down)


SHAPES = (
    # Few experts a rank and thousands of rows each: bound by the tensor cores.
    *_pair("dsv3-ep32", 8, 32768, 7168, 2048, (PRIMARY, SKEW), (PRIMARY,)),
    *_pair("dsv3-ep8", 32, 65536, 7168, 2048, (PRIMARY,)),
    *_pair("kimi-k2-ep32", 12, 32768, 7168, 2048),
    *_pair("qwen3-235b", 16, 65536, 4096, 1536, (PRIMARY,), (PRIMARY,)),
    *_pair("mixtral", 8, 16384, 4096, 14336, (PRIMARY,)),
    *_pair("mixtral-8x22b-ep8", 1, 16384, 6144, 16384),
    *_pair("glm45-ep16", 10, 32768, 5120, 1536),
    *_pair("glm45-air-ep16", 8, 32768, 4096, 1408),
    *_pair("llama4-scout-ep8", 2, 16384, 5120, 8192),
    *_pair("llama4-maverick-ep16", 8, 16384, 5120, 8192),
    *_pair("qwen35-397b-ep32", 16, 40960, 4096, 1024),
    *_pair("dsv4-flash-ep8", 32, 196608, 4096, 2048),
    *_pair("dsv4-pro-ep8", 48, 262144, 7168, 3072),
    # Many experts and a few hundred rows each: tiles that are not full, and weights that weigh.
    *_pair("qwen3-30b", 128, 65536, 2048, 768, (PRIMARY, SKEW), (PRIMARY,)),
    *_pair("gptoss120b", 128, 32768, 2880, 2880, (PRIMARY,)),
    *_pair("gptoss20b", 32, 32768, 2880, 2880),
    *_pair("olmoe", 64, 65536, 2048, 1024, (EXTRA,), (PRIMARY,)),
    *_pair("qwen3next", 512, 81920, 2048, 512, (PRIMARY,), (PRIMARY,)),
    *_pair("qwen3next-ep8", 64, 81920, 2048, 512),
    *_pair("sonic30b-e64", 64, 131072, 4096, 1024),
    *_pair("sonic30b-e128", 128, 262144, 4096, 512),
    *_pair("sonic30b-e256", 256, 524288, 4096, 256),
    # A published point to compare with: 658-670 TFLOP/s on an H200.
    Shape("tileops-e256-up", 256, 262144, 6144, 4096),
    # No model's: the smallest and the largest of each length.
    Shape("corner-k256", 16, 65536, 256, 4096, (CORNERS,)),
    Shape("corner-k16384", 8, 16384, 16384, 4096, (CORNERS,)),
    Shape("corner-n256", 16, 65536, 4096, 256, (CORNERS,)),
    Shape("corner-n32768", 4, 8192, 4096, 32768, (CORNERS,)),
    Shape("corner-g1", 1, 8192, 4096, 4096, (CORNERS,)),
    Shape("corner-g1024", 1024, 65536, 1024, 1024, (CORNERS,)),
    Shape("corner-t16", 8, 16, 4096, 4096, (CORNERS,)),
    Shape("corner-t500000", 64, 500000, 1024, 512, (CORNERS,)),
    # Decode and small micro-batches.
    Shape("qwen3-30b-32rows-up", 128, 4096, 2048, 1536, (ROWS,)),
    Shape("qwen3-30b-64rows-up", 128, 8192, 2048, 1536, (PRIMARY, ROWS)),
    Shape("qwen3-30b-128rows-up", 128, 16384, 2048, 1536, (ROWS,)),
    # A call so small that only the host's share is seen.
    Shape("small-8x256", 8, 2048, 256, 256, ("host",)),
    # One thread of a CPU finishes these in milliseconds.
    Shape("tiny-up", 4, 128, 64, 96, (TINY, SKEW)),
    Shape("tiny-down", 8, 100, 48, 64, (TINY,)),
    Shape("tiny-8x16", 8, 64, 16, 16, ("host-cpu",)),
)
BY_NAME = {shape.name: shape for shape in SHAPES}

EVEN, MULTINOMIAL, ZIPF, ONE, EMPTY, TAIL = "even", "multinomial", "zipf", "one", "empty", "tail"
DRAWS = {
    EVEN: "equal sizes, the first T mod G groups one row more",
    MULTINOMIAL: "every row picks an expert at random",
    ZIPF: "every row picks expert i with weight 1/i^0.8, experts shuffled",
    ONE: "one expert takes all rows",
    EMPTY: "20 % of the experts get nothing, the rest as multinomial",
    TAIL: "equal sizes over half of the rows, the other half belongs to no group",
}
ZIPF_EXPONENT = 0.8


def seed_of(shape: Shape, draw: str, seed: int = 0) -> int:
    """The seed of a draw: its own for each shape and draw, the same on every machine."""
    digest = hashlib.sha256(f"{shape.name}/{draw}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def draw_sizes(shape: Shape, draw: str, seed: int = 0) -> NDArray[np.int32]:
    """Rows of each group; their sum is T, with a tail T / 2."""
    G, T = shape.G, shape.T
    rng = np.random.default_rng(seed_of(shape, draw, seed))
    if draw in (EVEN, TAIL):
        used = T if draw == EVEN else T // 2
        sizes = np.full(G, used // G)
        sizes[: used % G] += 1
    elif draw == MULTINOMIAL:
        sizes = rng.multinomial(T, np.full(G, 1 / G))
    elif draw == ZIPF:
        weights = 1 / np.arange(1, G + 1) ** ZIPF_EXPONENT
        rng.shuffle(weights)
        sizes = rng.multinomial(T, weights / weights.sum())
    elif draw == ONE:
        sizes = np.zeros(G, np.int64)
        sizes[rng.integers(G)] = T
    elif draw == EMPTY:
        sizes = np.zeros(G, np.int64)
        busy = rng.permutation(G)[min(G - 1, max(1, round(0.2 * G))) :]
        sizes[busy] = rng.multinomial(T, np.full(len(busy), 1 / len(busy)))
    else:
        raise ValueError(f"draw must be one of {', '.join(DRAWS)}; got {draw!r}.")
    return sizes.astype(np.int32)


def select(patterns: list[str]) -> list[Shape]:
    """Shapes by name, by tag or by part of a name, in the registry's order; "all" is every one for a GPU."""
    chosen = []
    for shape in SHAPES:
        for pattern in patterns:
            everything = pattern == "all" and not {TINY, "host", "host-cpu"} & set(shape.tags)
            named = pattern in shape.tags or pattern == shape.name or (pattern not in BY_NAME and pattern in shape.name)
            if everything or named:
                chosen.append(shape)
                break
    for pattern in patterns:
        if pattern != "all" and not any(pattern in s.tags or pattern in s.name for s in SHAPES):
            raise ValueError(f"no shape has the name, tag or part {pattern!r}.")
    return chosen
