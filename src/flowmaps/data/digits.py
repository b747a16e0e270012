"""Handwritten digits, 8 x 8, that come with scikit-learn."""

from typing import Any

import torch

from ._dataset import Dataset, split_off

__all__ = ["digits"]


def digits(split: str = "train") -> Dataset:
    """1,797 grey digits of 8 x 8 pixels with their labels; a fixed fifth is the test.

    Args:
        split: "train", "test" or "all".
    Returns:
        Images [1, 8, 8] in [-1, 1], labels 0 to 9.
    Source: Alpaydin & Kaynak, Optical recognition of handwritten digits, 1998, UCI machine learning repository; its
        test part, as distributed with scikit-learn.
    """
    from sklearn.datasets import load_digits  # half a second, wanted only here

    table: Any = load_digits()
    x = torch.tensor(table.images, dtype=torch.float32)[:, None] / 8 - 1
    return split_off(Dataset("digits", x, torch.tensor(table.target), 10), split, 0.2)
