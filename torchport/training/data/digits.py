"""The 1797 handwritten digits of 8×8 pixels bundled with scikit-learn (UCI; Alpaydin & Kaynak 1998)."""

from __future__ import annotations

import numpy as np

from .images import ImageData, channel_statistics
from .split import Split

_SPLIT_SEED = 1998  # the held-out fifth is the same one for every training seed


def load_digits() -> ImageData:
    """The digits, 0…16 stretched to 0…255, with a stratified fifth held out for testing.

    >>> data = load_digits()
    >>> data.train.images.shape, data.test.images.shape
    ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    from sklearn.datasets import load_digits as bundled_digits

    bundle = bundled_digits()
    images = np.round(bundle.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)
    labels = bundle.target.astype(np.int64)
    shuffled = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = np.sort(by_class[::5])
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    mean, std = channel_statistics(images[kept])
    return ImageData(
        name="digits",
        train=Split(images[kept], labels[kept]),
        val=None,
        test=Split(images[held_out], labels[held_out]),
        class_names=tuple("0123456789"),
        mean=mean,
        std=std,
    )
