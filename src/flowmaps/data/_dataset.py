"""What every reader returns, and what every reader checks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.random import fold_in


@dataclass(frozen=True)
class Dataset:
    """Data in memory, read by lists of indices; images lie in [-1, 1].

    Args:
        name: where they come from.
        x: all samples [N, *]; uint8 images are brought to [-1, 1] when read, anything else is read as float32.
        labels: class of each sample [N], or of each of its pixels [N, H, W], or None.
        classes: number of classes, 0 without labels.
        skipped: what could not be read, and why, one line each.
    """

    name: str
    x: Tensor
    labels: Tensor | None = None
    classes: int = 0
    skipped: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Samples [B, *] in float32, and their labels [B]."""
        index = torch.as_tensor(indices)
        return from_bytes(self.x[index]), None if self.labels is None else self.labels[index]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        x, labels = self.__getitems__([index])
        return x[0], None if labels is None else labels[0]

    def only(self, keep: Tensor) -> "Dataset":
        """The samples selected by an index tensor."""
        labels = None if self.labels is None else self.labels[keep]
        return Dataset(self.name, self.x[keep], labels, self.classes, self.skipped)


def from_bytes(x: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]; other types -> float32 unchanged."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


def split_off(data: Dataset, split: str, share: float) -> Dataset:
    """The "train" or "test" part of data that come without a split; a fixed random share is the test.

    Raises:
        ValueError: if the split is unknown, or a part would be empty.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split must be 'train', 'test' or 'all'; got {split!r}.")
    if split == "all":
        return data
    order = torch.randperm(len(data), generator=fold_in(0, len(data)))
    held = round(share * len(data))
    part = order[:held] if split == "test" else order[held:]
    if len(part) == 0:
        raise ValueError(
            f"the {split} part of {data.name} must have samples; it has none of {len(data)} with holdout {share:g}. "
            "Set data.holdout to a share between 0 and 1."
        )
    return data.only(part.sort().values)


def check_finite(name: str, x: Tensor) -> None:
    """Raise ValueError if any number is NaN or infinite, naming the first sample that has one."""
    if x.dtype.is_floating_point:
        bad = ~x.flatten(1).isfinite().all(1)
        if bool(bad.any()):
            raise ValueError(
                f"{name} must hold finite numbers; {int(bad.sum())} of {len(x)} samples have NaN or infinity, first "
                f"sample {int(bad.nonzero()[0])}. Remove them, or repair the file."
            )
