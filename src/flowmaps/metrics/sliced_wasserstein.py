"""How far two samples are apart, seen from many directions."""

import torch
from torch import Tensor

from ..core.random import fold_in, normal

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 200, seed: int = 0) -> float:
    """The 2-Wasserstein distance of the projections on one direction, in root mean square over directions.

    Args:
        a: sample [N, *].
        b: sample [M, *].
        directions: number of directions, uniform on the sphere.
        seed: of the directions; the same ones are used at every call.
    Returns:
        Sliced Wasserstein distance of order 2, in units of the data.
    Source: Bonneel, Rabin, Peyré & Pfister, Sliced and Radon Wasserstein barycenters of measures, 2015, the sliced
        Wasserstein distance.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    way = normal((a.shape[1], directions), a, fold_in(seed, a.shape[1])).double()
    way = way / way.norm(dim=0)
    level = (torch.arange(max(len(a), len(b)), dtype=torch.float64, device=a.device) + 0.5) / max(len(a), len(b))
    p, q = (torch.quantile(z @ way, level, dim=0, interpolation="nearest") for z in (a, b))
    return float((p - q).square().mean().sqrt())
