"""Folding a state into a box."""

import torch
from torch import Tensor


def reflect(x: Tensor, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
    """Where a state ends that walls throw back, however far it went.

    low + w - |((x - low) mod 2 w) - w|, w = high - low; a state in the box stays exactly as it is.

    Args:
        x: state [B, *].
        low: lower walls, broadcast against x.
        high: upper walls, above the lower.
    Returns:
        State in the box [B, *], differentiable.
    Source: Lou & Ermon, Reflected diffusion models, 2023, arXiv:2304.04740, the reflection of the sampler.
    """
    width = torch.as_tensor(high - low).to(x)
    if not bool((width > 0).all()):
        raise ValueError(f"high must be above low; got {high} and {low}. Exchange them.")
    folded = low + (width - ((x - low).remainder(2 * width) - width).abs())
    # Rounding may leave the box by a bit, and must not move what is inside.
    folded = torch.minimum(torch.maximum(folded, torch.as_tensor(low).to(x)), torch.as_tensor(high).to(x))
    return torch.where((x >= low) & (x <= high), x, folded)
