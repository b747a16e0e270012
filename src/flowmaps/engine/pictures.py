"""Samples as pictures: blocks of images, scatters of points."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor


def save_samples(blocks: Sequence[Tensor], titles: Sequence[str], file: Path, across: int = 0) -> None:
    """One picture of several samples side by side, each under its title.

    Args:
        blocks: samples [N, *] of each kind: images in [-1, 1], or anything else as points of its first two dimensions.
        titles: one per block.
        file: where it goes, .png.
        across: images per row of a block; 0 makes blocks about square, 1 makes them columns.
    """
    if blocks[0].ndim == 4:
        _image_blocks(blocks, titles, across or math.ceil(math.sqrt(len(blocks[0])))).save(file, "PNG")
    else:
        _scatter(blocks, titles, file)


def save_trajectories(result: Mapping[str, Any], states: Tensor, file: Path) -> None:
    """Trajectories seen from the chords between their ends, and where they bend.

    Args:
        result: what `measure_trajectories` found.
        states: trajectories [N + 1, B, *], of which 64 are drawn.
        file: where it goes, .png.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    x = (states[:, :64] - states[:1, :64]).flatten(2).double().cpu()
    chord = x[-1] / x[-1].norm(dim=1, keepdim=True).clamp_min(1e-30)
    along = (x * chord).sum(2)
    off = (x - along[..., None] * chord).norm(dim=2)
    unit = x[-1].square().sum(1).mean().sqrt()
    time = result["by_time"]["time"]
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2))
    axes[0].plot((along / unit).numpy(), (off / unit).numpy(), linewidth=0.7, alpha=0.5, color="#1f4e79")
    axes[0].set(title="seen from the chord", xlabel="along it, in mean lengths", ylabel="off it")
    axes[1].plot(time, result["by_time"]["bend"], color="#1f4e79")
    axes[1].set(title="square distance of velocity and chord", xlabel="time", ylim=(0, None))
    axes[2].plot(time, result["by_time"]["turning"], color="#1f4e79")
    axes[2].set(title="turning, radians per unit of time", xlabel="time", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(file, dpi=90, format="png")
    pyplot.close(figure)


def to_picture(x: Tensor) -> Image.Image:
    """An image [C, H, W] in [-1, 1] as a picture; with three channels or more the first three are colours."""
    array = ((x.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return Image.fromarray(array[0] if len(array) < 3 else array[:3].transpose(1, 2, 0))


def _image_blocks(blocks: Sequence[Tensor], titles: Sequence[str], across: int) -> Image.Image:
    first = to_picture(blocks[0][0])
    zoom, gap, head = max(1, 48 // max(first.size)), 3, 16  # small images are shown enlarged, with hard edges
    wide, high = first.width * zoom + gap, first.height * zoom + gap
    block = max(across * wide, 8 * max(map(len, titles))) + 2 * gap
    rows = math.ceil(len(blocks[0]) / across)
    sheet = Image.new("RGB", (len(blocks) * block + gap, rows * high + head + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for b, (samples, title) in enumerate(zip(blocks, titles, strict=True)):
        left = gap + b * block
        pen.text((left + across * wide // 2, 2), title, fill="black", anchor="ma")
        for i, x in enumerate(samples):
            tile = to_picture(x).resize((wide - gap, high - gap), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + i % across * wide, head + i // across * high))
    return sheet


def _scatter(blocks: Sequence[Tensor], titles: Sequence[str], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [x.flatten(1)[:, :2].float().cpu().numpy() for x in blocks]
    limit = 1.15 * float(np.quantile(np.abs(points[-1]), 0.995))
    figure, axes = pyplot.subplots(1, len(blocks), figsize=(2.6 * len(blocks), 2.8), squeeze=False)
    for axis, xy, title in zip(axes[0], points, titles, strict=True):
        axis.plot(xy[:, 0], xy[:, -1], ".", markersize=1.2, alpha=0.6, color="#1f4e79")
        axis.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(file, dpi=90, format="png")
    pyplot.close(figure)
