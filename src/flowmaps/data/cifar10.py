"""CIFAR-10 in its Python format."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._dataset import Dataset

__all__ = ["cifar10"]


class _ArraysOnly(pickle.Unpickler):
    """Reads the batches and nothing else: a pickle that asks for anything but NumPy's arrays is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """The few classes that a pickled array needs."""
        allowed = {"_reconstruct", "ndarray", "dtype", "_frombuffer"}
        if module.split(".")[0] == "numpy" and name in allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def cifar10(path: str, split: str = "train") -> Dataset:
    """60,000 colour images of 32 x 32 pixels in ten classes, from the folder cifar-10-batches-py.

    Args:
        path: the folder with data_batch_1 to data_batch_5 and test_batch.
        split: "train" (50,000) or "test" (10,000).
    Returns:
        Images [3, 32, 32] in [-1, 1], labels 0 to 9.
    Raises:
        ValueError: if the folder or a batch is missing, damaged, or holds anything but arrays.
    Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}.")
    folder, images, labels = Path(path), [], []
    for name in [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]:
        try:
            table = _ArraysOnly(io.BytesIO((folder / name).read_bytes()), encoding="latin1").load()
            images.append(np.asarray(table["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(table["labels"], dtype=np.int64))
            if len(images[-1]) != len(labels[-1]) or labels[-1].min() < 0 or labels[-1].max() > 9:
                raise ValueError("images and labels 0 to 9 do not go together")
        except FileNotFoundError as error:
            raise ValueError(
                f"data.path must be the folder cifar-10-batches-py with {name} in it; {folder / name} is missing."
            ) from error
        except Exception as error:  # a damaged pickle raises almost anything
            raise ValueError(f"{folder / name} must be a CIFAR-10 batch in Python format; {error}.") from error
    return Dataset("CIFAR-10", torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)), 10)
