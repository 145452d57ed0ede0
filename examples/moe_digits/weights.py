# SPDX-License-Identifier: Apache-2.0
"""The weights that all three models start from, drawn once in numpy."""

from __future__ import annotations

import numpy as np

from moe_digits.config import CLASSES, EXPERTS, HIDDEN, PIXELS, WIDTH


def initial_weights(seed: int) -> dict[str, np.ndarray]:
    """By layer, stored ``[..., in, out]`` as JAX multiplies; PyTorch's models transpose them when they load."""
    rng = np.random.default_rng(seed)

    def layer(*shape: int, gain: float = 1.0) -> np.ndarray:
        fan_in = shape[-2]
        return (rng.standard_normal(shape) * gain / np.sqrt(fan_in)).astype(np.float32)

    return {
        "embed": layer(PIXELS, WIDTH),
        "router": layer(WIDTH, EXPERTS),
        "fc1": layer(EXPERTS, WIDTH, 2 * HIDDEN),
        "fc2": layer(EXPERTS, HIDDEN, WIDTH),
        "head": layer(WIDTH, CLASSES),
    }
