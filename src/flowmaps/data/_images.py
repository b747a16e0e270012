"""How a picture file becomes an array, whatever is wrong with it."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ._dataset import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def read_images(name: str, files: Sequence[str], read: Callable[[str], bytes], size: int | None, grey: bool) -> Dataset:
    """Decode pictures into one array; what cannot be read is skipped and counted.

    Args:
        name: of the collection, for messages.
        files: names of the pictures, in order; the folder of each is its class, if there are several folders.
        read: name -> content.
        size: side to which each picture is cut to a square and scaled; None leaves them as they are.
        grey: one channel instead of three.
    Returns:
        uint8 images [C, H, W].
    Raises:
        ValueError: if there is no picture, none can be read, or their sizes differ and `size` is not given.
    """
    if not files:
        raise ValueError(f"{name} must hold pictures ({', '.join(SUFFIXES)}); it has none.")
    folders = sorted({file.rpartition("/")[0] for file in files})
    images: list[Tensor] = []
    labels: list[int] = []
    skipped: list[str] = []
    first = ""
    for file in files:
        try:
            image = _decode(read(file), size, grey)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, its own bomb error and more
            skipped.append(f"{file}: {error}")
            continue
        first = first or file
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"all pictures in {name} must have one size; {first} is {tuple(images[0].shape[1:])} and {file} is "
                f"{tuple(image.shape[1:])}. Set data.size to cut and scale them to squares of that side."
            )
        images.append(image)
        labels.append(folders.index(file.rpartition("/")[0]))
    if not images:
        raise ValueError(f"{name} must hold a readable picture; all {len(files)} failed, first {skipped[0]}.")
    several = len(folders) > 1
    return Dataset(
        name, torch.stack(images), torch.tensor(labels) if several else None, len(folders) if several else 0,
        tuple(skipped),
    )  # fmt: skip


def _decode(content: bytes, size: int | None, grey: bool) -> Tensor:
    with Image.open(io.BytesIO(content)) as opened:
        opened.load()  # all of it: a truncated file fails here, not in training
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits: Pillow's own conversion would clip them
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA" if "transparency" in image.info else image.mode).convert("L" if grey else "RGB")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    array = np.array(image)
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())
