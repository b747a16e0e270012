"""A folder of pictures."""

from pathlib import Path

from ._dataset import Dataset, split_off
from ._images import SUFFIXES, read_images

__all__ = ["image_folder"]


def image_folder(
    path: str, size: int | None = None, grey: bool = False, split: str = "train", holdout: float = 0.1
) -> Dataset:
    """All pictures under a folder, decoded once; sub-folders, if there are several, are classes.

    Args:
        path: the folder.
        size: side to which each picture is cut to a square and scaled; needed when sizes differ.
        grey: one channel instead of three.
        split: "train", "test" or "all".
        holdout: share of the pictures, fixed and random, that is the test.
    Returns:
        Images [C, H, W] in [-1, 1]; what could not be read is listed in `skipped`.
    Raises:
        ValueError: if the folder is missing or has no readable picture, or sizes differ and `size` is not given.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"data.path must be a folder of pictures; {path!r} is not a folder.")
    files = sorted(str(f.relative_to(folder).as_posix()) for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    data = read_images(path, files, lambda name: (folder / name).read_bytes(), size, grey)
    return split_off(data, split, holdout)
