"""The one place where times meet states."""

import torch
from torch import Tensor


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """View times [B] as [B, 1, ..., 1], so that they broadcast against a state [B, *].

    Args:
        t: times [B].
        x: state [B, *].
    Returns:
        The same times, shape [B, 1, ..., 1].
    Raises:
        ValueError: if t is not [B]; nothing is ever broadcast by accident.
    """
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"times must have shape ({x.shape[0]},) to match x {tuple(x.shape)}; got {tuple(t.shape)}. "
            "Use fill_time for one time per batch."
        )
    return t.reshape(-1, *[1] * (x.ndim - 1))


def fill_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Repeat one time over the batch.

    Args:
        t: a number, a 0-d tensor, or times that are already [B].
        x: state [B, *]; gives the length, the device and at least float32 precision.
    Returns:
        Times [B].
    """
    return torch.as_tensor(t).to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(x.shape[0])


def step_size(s: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The step t - s, shaped to broadcast against a state [B, *].

    One time for the whole batch, as `fill_time` gives it, makes one number, whose product with a state of few
    dimensions is several times as fast.

    Args:
        s: departure times [B].
        t: arrival times [B].
        x: state [B, *].
    Returns:
        [B, 1, ..., 1], or [] for one number.
    """
    if s.stride() == t.stride() == (0,) and len(x) > 0:
        return (t[0] - s[0]).to(x.dtype)
    return expand_time((t - s).to(x.dtype), x)


def square_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean square error of each sample: [B, *], [B, *] -> [B], in float32 or better."""
    return (a - b).to(torch.promote_types(a.dtype, torch.float32)).square().flatten(1).mean(1)
