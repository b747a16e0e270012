"""A zip file of pictures."""

import zipfile
from pathlib import Path, PurePosixPath

from ._dataset import Dataset, split_off
from ._images import SUFFIXES, read_images

__all__ = ["image_zip"]


def image_zip(
    path: str, size: int | None = None, grey: bool = False, split: str = "train", holdout: float = 0.1
) -> Dataset:
    """All pictures in a zip file, read in place; folders inside it, if there are several, are classes.

    Args:
        path: the zip file; nothing is unpacked.
        size: side to which each picture is cut to a square and scaled; needed when sizes differ.
        grey: one channel instead of three.
        split: "train", "test" or "all".
        holdout: share of the pictures, fixed and random, that is the test.
    Returns:
        Images [C, H, W] in [-1, 1]; what could not be read is listed in `skipped`.
    Raises:
        ValueError: if the file is missing, damaged or without a readable picture, or sizes differ and `size` is not
            given.
    """
    if not Path(path).is_file():
        raise ValueError(f"data.path must be a zip file of pictures; {path!r} is not a file.")
    try:
        with zipfile.ZipFile(path) as archive:
            files = sorted(n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in SUFFIXES)
            data = read_images(path, files, archive.read, size, grey)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} must be a whole zip file; {error}.") from error
    return split_off(data, split, holdout)
