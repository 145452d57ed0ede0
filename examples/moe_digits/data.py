# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits that ship inside scikit-learn: 1797 images of 8x8 pixels, nothing to download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from moe_digits.config import BATCH, NOISE


class Split(NamedTuple):
    """Images ``[n, 64]`` float32 and labels ``[n]`` int32."""

    images: np.ndarray
    labels: np.ndarray


def load(seed: int) -> tuple[Split, Split]:
    """Three quarters to train on and one to test on, standardised by the training part's mean and deviation.

    One mean and one deviation for all pixels: by pixel, those in the corners, nearly always blank, would be blown up.
    """
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    train_x, test_x, train_y, test_y = (np.asarray(part) for part in parts)
    mean, deviation = train_x.mean(), train_x.std()

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        return Split(((images - mean) / deviation).astype(np.float32), labels.astype(np.int32))

    return split(train_x, train_y), split(test_x, test_y)


def batches(train: Split, steps: int, seed: int) -> Iterator[Split]:
    """`steps` batches of one size, reshuffled in every epoch; what is left at an epoch's end is dropped.

    Fresh noise on every image keeps the small training set from being learnt by heart.
    """
    rng = np.random.default_rng(seed)
    per_epoch = len(train.images) // BATCH
    for step in range(steps):
        if step % per_epoch == 0:
            shuffled = rng.permutation(len(train.images))
        chosen = shuffled[step % per_epoch * BATCH :][:BATCH]
        noise = rng.standard_normal((BATCH, train.images.shape[1]), dtype=np.float32)
        yield Split(train.images[chosen] + np.float32(NOISE) * noise, train.labels[chosen])
