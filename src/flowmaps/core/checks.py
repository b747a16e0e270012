"""Checks that constructors share: what must hold, what was given, how to fix it."""

from collections.abc import Sequence

import torch


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless a share lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, a share; got {value}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def check_block(block: int, depth: int) -> None:
    """Raise ValueError unless the number of a network's block lies between 1 and their number."""
    if not 1 <= block <= depth:
        raise ValueError(f"block must lie between 1 and {depth}, the number of blocks; got {block}.")


def check_image(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape (C, H, W) that a network of images is given; raise ValueError if it is another."""
    if len(shape) != 3:
        raise ValueError(
            f"this network must have images, of shape (C, H, W); got {tuple(shape)}. Set net=mlp, which takes any."
        )
    channels, height, side = shape
    return channels, height, side


def check_device(name: str) -> None:
    """Raise ValueError unless this machine has a device of that name, and numbers on it."""
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that this machine has, such as cpu; got {name!r}: {error}") from error
