"""What an inversion of a map is, and when one that iterates is done."""

from typing import Any, Protocol

import torch
from torch import Tensor

from .flow_map import FlowMap
from .shapes import expand_time


class Inversion(Protocol):
    """Finds the state x [B, *] at time s that a map carries to y [B, *] at time t: X_{s,t}(x) = y."""

    def __call__(self, model: FlowMap, y: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor: ...


class NotInverted(ValueError):
    """An inversion did not succeed for some samples of a batch."""


FAILED = ("raise", "nan")
"""What an inversion may do about samples that it fails on: raise NotInverted, or return them as not a number."""


def largest(error: Tensor) -> Tensor:
    """The largest absolute coordinate of each sample: [B, *] -> [B]."""
    return error.abs().flatten(1).amax(1)


def allowed(y: Tensor, tolerance: float) -> Tensor:
    """The error of a coordinate [B] with which a sample of y [B, *] counts as inverted.

    The tolerance, or 16 roundings of y's type, which no iteration gets below, times 1 + the largest coordinate.
    """
    return max(tolerance, 16 * torch.finfo(y.dtype).eps) * (1 + largest(y))


def inverted(x: Tensor, error: Tensor, limit: Tensor, failed: str, fix: str) -> Tensor:
    """The states x [B, *], if every sample's error [B] is within its limit [B].

    Args:
        x: states.
        error: what is left of each; not a number counts as too large.
        limit: what may be left.
        failed: one of FAILED.
        fix: what helps, for the message.
    Raises:
        NotInverted: if some sample's is not, unless they are to become not a number.
    """
    missed = ~(error <= limit)
    if failed == "raise" and bool(missed.any()):
        raise NotInverted(
            f"an inversion must leave an error of {float(limit[missed].max()):.2g} at most; {int(missed.sum())} of "
            f"{len(x)} samples have more, up to {float(error[missed].max()):.2g}. {fix} Or set failed='nan' to go on "
            "without these samples."
        )
    return torch.where(expand_time(missed, x), torch.nan, x)
