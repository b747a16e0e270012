"""MNIST and its relatives in IDX format."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ._dataset import Dataset

__all__ = ["mnist"]


def mnist(path: str, split: str = "train") -> Dataset:
    """70,000 grey images of 28 x 28 pixels in ten classes, as idx files, plain or gzipped (Fashion-MNIST too).

    Args:
        path: the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the t10k files, with or without .gz.
        split: "train" (60,000) or "test" (10,000).
    Returns:
        Images [1, 28, 28] in [-1, 1], labels 0 to 9.
    Raises:
        ValueError: if a file is missing, truncated or not in IDX format.
    Source: LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition, 1998.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}.")
    prefix = "train" if split == "train" else "t10k"
    images = _read(Path(path), f"{prefix}-images-idx3-ubyte", 3)
    labels = _read(Path(path), f"{prefix}-labels-idx1-ubyte", 1).long()
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"{path} must hold one label per image; got {len(images)} images and {len(labels)} labels.")
    return Dataset(f"MNIST format, {path}", images[:, None], labels, int(labels.max()) + 1)


def _read(folder: Path, name: str, dimensions: int) -> Tensor:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            break
    else:
        raise ValueError(f"data.path must be a folder with {name} or {name}.gz in it; {folder / name} is missing.")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, OSError) as error:
        raise ValueError(f"{file} must be a whole gzip file; {error}.") from error
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(
            f"{file} must be an idx file of bytes in {dimensions} dimensions; its first bytes say otherwise."
        )
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if len(content) - head != math.prod(shape):
        raise ValueError(
            f"{file} must hold {math.prod(shape)} bytes of data; it has {len(content) - head}, so it is cut."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy())
