# SPDX-License-Identifier: Apache-2.0
"""Sizes and constants that all three models share."""

from __future__ import annotations

PIXELS = 64
CLASSES = 10
WIDTH = 72  # features of a token inside the model: D
HIDDEN = 96  # hidden features of one expert: F
EXPERTS = 8
TOP_K = 2
BATCH = 256
NOISE = 0.3  # on the training images, in standard deviations of a pixel

LEARNING_RATE = 2e-3
BETA1 = 0.9
BETA2 = 0.99
EPSILON = 1e-8
BALANCE_WEIGHT = 0.05  # of the load-balance loss beside the cross-entropy

PAIRS = BATCH * TOP_K  # rows that the experts see in one step: one for each (token, expert) pair

# Every array that the expert path produces has a buffer, keyed by the layer that fills it: its result on the way
# forward, and the gradient of its input on the way back.
OUT_SHAPES = {"fc1": (PAIRS, 2 * HIDDEN), "swiglu": (PAIRS, HIDDEN), "fc2": (PAIRS, WIDTH)}
DGRAD_SHAPES = {"fc1": (PAIRS, WIDTH), "swiglu": (PAIRS, 2 * HIDDEN), "fc2": (PAIRS, HIDDEN)}
