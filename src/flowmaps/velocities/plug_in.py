"""The marginal velocity of the batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.types import Pair, equal_conditions

__all__ = ["PlugIn"]


@dataclass(frozen=True)
class PlugIn:
    """The velocity that would be exact if the batch were the data: less variance, some bias.

    sum_j p_j (alpha' e_j + beta' x1_j), with e_j = (I_s - beta x1_j) / alpha and p = softmax_j(-|e_j|^2 / 2), over the
    data j of the batch that have the same condition, for a source N(0, I) that was drawn independently of the data. The
    first `share` of the batch gets it, the rest its own path's velocity. Where no two conditions are alike it is the
    path's own velocity too.

    Args:
        share: of the batch that gets it.
        interpolant: the path, without latent noise.
    Cost: no network; B^2 D operations for a batch of B.
    Source: Lin, Hu, Ren & others, On the design of one-step diffusion via shortcutting flow paths, 2025,
        arXiv:2512.11831, the plug-in velocity.
    Differs: the share is exact, where the released code draws a coin per sample; the mean is over the samples with the
        same condition, which the released code leaves to the batch.
    """

    needs_gaussian = True
    needs_path: ClassVar[bool] = True

    share: float = 0.5
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        check_share("share", self.share)
        self.interpolant.refuse_latent()

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The plug-in velocity at (x, s)."""
        if pair.x1 is None:
            raise ValueError("the plug-in velocity needs data; got a pair with x1 = None.")
        k = round(self.share * len(x))
        some = x[:k]
        a, b, a_dot, b_dot = (c.flatten(1)[:, None] for c in self.interpolant.coefficients(s[:k], some))
        noise = (some.flatten(1)[:, None] - b * pair.x1.flatten(1)) / a.clamp_min(1e-6)  # [k, B, D]
        log = -noise.square().sum(2) / 2
        if pair.cond is not None:
            log = log.masked_fill(~equal_conditions(pair[:k].cond, pair.cond), -torch.inf)
        p = log.softmax(1)[:, :, None]
        mean = (p * (a_dot * noise + b_dot * pair.x1.flatten(1))).sum(1)
        return torch.cat([mean.reshape(some.shape).to(w.dtype), w[k:]])
