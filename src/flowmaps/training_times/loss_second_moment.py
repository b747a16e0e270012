"""One time, drawn where the losses have been large."""

import torch
import torch.distributed as processes
from torch import Tensor, nn

from ..core.times import TimeLaw

__all__ = ["LossSecondMoment"]


class LossSecondMoment(TimeLaw, nn.Module):
    """p(t) proportional to sqrt(E[L_t^2]), with losses divided by p(t): the same objective with less variance.

    [0, 1] is cut into bins, each of which remembers its latest losses; inside a bin the law is uniform. It is uniform
    everywhere until every bin has its memory full.

    Flow matching, also as a part of another loss, and other regressions of one time tell the law their losses, those of
    all processes; in other losses it would stay uniform, and a run refuses it.

    Args:
        bins: number of bins.
        history: losses that each bin remembers.
        uniform: share of the mass that is spread evenly.
    Source: Nichol & Dhariwal, Improved denoising diffusion probabilistic models, 2021, arXiv:2102.09672, the
        importance sampling of Section 3.3, with a history of 10 and 0.001 of uniform mass in the released code
        (improved_diffusion/resample.py).
    Differs: bins of a continuous time in place of 4000 discrete steps.
    """

    def __init__(self, bins: int = 100, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        if bins < 1 or history < 1 or not 0 < uniform <= 1:
            raise ValueError(
                f"bins and history must be at least 1 and uniform lie in (0, 1]; got {bins}, {history} and {uniform}."
            )
        self.bins, self.history, self.uniform = bins, history, uniform
        self.register_buffer("losses", torch.zeros(bins, history))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.long))

    def mass(self) -> Tensor:
        """Probability of each bin [bins], float64."""
        weight = self.losses.double().square().mean(1).sqrt()
        weight = (1 - self.uniform) * weight / weight.sum().clamp_min(1e-30) + self.uniform / self.bins
        even = torch.full_like(weight, 1 / self.bins)
        return torch.where((self.seen >= self.history).all() & (weight.sum() > 0.5), weight, even)

    def _bin(self, t: Tensor) -> Tensor:
        return (t.detach() * self.bins).long().clamp(0, self.bins - 1)

    def _below(self, mass: Tensor) -> Tensor:
        return torch.cat([mass.new_zeros(1), mass.cumsum(0)])

    def quantile(self, u: Tensor) -> Tensor:
        mass = self.mass()
        below = self._below(mass)
        i = (torch.searchsorted(below, u.detach().double(), right=True) - 1).clamp(0, self.bins - 1)
        return ((i + (u - below[i]) / mass[i]) / self.bins).clamp(0, 1).to(u.dtype)

    def density(self, t: Tensor) -> Tensor:
        return (self.mass()[self._bin(t)] * self.bins).to(t.dtype)

    def cumulative(self, t: Tensor) -> Tensor:
        mass, i = self.mass(), self._bin(t)
        return (self._below(mass)[i] + mass[i] * (t * self.bins - i)).to(t.dtype)

    @property
    def learns(self) -> bool:
        return True

    @property
    def heard(self) -> bool:
        return bool(self.seen.any())

    def reweighted(self, t: Tensor, loss: Tensor) -> Tensor:
        fair = loss / self.density(t)
        if self.training:
            self._remember(_all(self._bin(t)), _all(loss.detach().to(self.losses.dtype)))
        return fair

    def _remember(self, bins: Tensor, losses: Tensor) -> None:
        order = bins.argsort(stable=True)
        bins, losses = bins[order], losses[order]
        rank = torch.arange(len(bins), device=bins.device) - torch.searchsorted(bins, bins)  # within its bin
        place = (self.seen[bins] + rank) % self.history
        self.losses[bins, place] = torch.where(losses.isfinite(), losses, self.losses[bins, place])
        self.seen.index_add_(0, bins, torch.ones_like(bins))

    losses: Tensor
    seen: Tensor


def _all(x: Tensor) -> Tensor:
    """What every process has, in the order of their ranks: one law for all."""
    if not processes.is_available() or not processes.is_initialized():
        return x
    shares = [torch.empty_like(x) for _ in range(processes.get_world_size())]
    processes.all_gather(shares, x.contiguous())
    return torch.cat(shares)
