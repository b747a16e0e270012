"""Arrays saved by NumPy."""

from pathlib import Path

import numpy as np
import torch

from ._dataset import Dataset, check_finite, split_off

__all__ = ["arrays"]


def arrays(path: str, key: str = "x", labels: str = "y", split: str = "train", holdout: float = 0.1) -> Dataset:
    """An .npy file of samples [N, ...], or an .npz file that holds samples and perhaps labels.

    Args:
        path: the file. Pickled objects in it are refused, since reading them runs code.
        key: name of the samples in an .npz; the only array when there is but one.
        labels: name of the labels [N] in an .npz, if it has them, or of maps of labels [N, H, W].
        split: "train", "test" or "all".
        holdout: share of the samples, fixed and random, that is the test.
    Returns:
        uint8 images [C, H, W] in [-1, 1] (channels are moved first), other numbers as they are.
    Raises:
        ValueError: if the file is missing or damaged, or holds objects, NaN, infinity, or labels of another length.
    """
    file = Path(path)
    try:
        loaded = np.load(file, allow_pickle=False)
        table = {k: loaded[k] for k in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else {key: loaded}
    except FileNotFoundError as error:
        raise ValueError(f"data.path must be an existing .npy or .npz file; {path!r} is missing.") from error
    except Exception as error:  # zipfile, zlib, numpy and the system each raise their own
        raise ValueError(f"{path} must be a readable .npy or .npz file without pickled objects; {error}.") from error
    if key not in table and len(table) == 1:
        key = next(iter(table))
    if key not in table:
        raise ValueError(f"{path} must hold an array {key!r}; it has {', '.join(table)}. Set data.key.")
    x = table[key]
    if x.ndim < 2 or len(x) == 0 or x.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold numbers of shape [N, ...] with N > 0; got {x.dtype} {x.shape}.")
    samples = torch.from_numpy(np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32)))
    check_finite(path, samples)
    if samples.dtype == torch.uint8:
        samples = samples[:, None] if samples.ndim == 3 else samples
        if samples.ndim == 4 and samples.shape[-1] in (1, 3):
            samples = samples.permute(0, 3, 1, 2).contiguous()
    known = None
    if labels in table:
        known = torch.from_numpy(table[labels].astype(np.int64))
        known = known if known.ndim == 3 else known.flatten()
        if len(known) != len(samples) or int(known.min()) < 0:
            raise ValueError(
                f"labels must be one whole number >= 0 per sample; got {len(known)} labels from {int(known.min())} for "
                f"{len(samples)} samples in {path}."
            )
    classes = 0 if known is None else int(known.max()) + 1
    return split_off(Dataset(path, samples, known, classes), split, holdout)
