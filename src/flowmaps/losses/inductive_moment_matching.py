"""Inductive moment matching."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.noise import noise_level, time_of_noise
from ..core.random import Random
from ..core.report import report
from ..core.times import PairLaw, UniformPair
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["InductiveMomentMatching"]


@dataclass(frozen=True)
class InductiveMomentMatching:
    """Jumps from a time and from a slightly later one arrive at the same law, compared by a kernel in small groups.

    E w_s [mean k(X, X) + mean k(Y, Y) - 2 mean k(X, Y)] over groups of particles that share s <= r <= t, with
    X = X_{s,t}(I_s), Y = sg X_{r,t}(I_r) of the same source and data, k(a, b) = exp(-|a - b| / (D (t - s) sigma)), and
    w_s = (1/2) sigmoid(b - l_s) l'_s beta^a / (alpha^2 + beta^2), l the log of the squared signal-to-noise ratio.

    The map gets the right laws; it need not be the flow map, but stays close to it while r is close to s. A group
    compares each particle with itself too, a bias that fades with the gap and with the size of groups. Samples of a
    group may have different conditions: for a condition each needs its own pass through the data, as here.

    Args:
        particles: in a group; the batch must be a multiple of it.
        gap: by which the noise level (1 - t) / t falls from s to r, not below that of t.
        most: highest noise level; earlier times count as this one.
        sigma: deviation of the data.
        a: power of the signal in the weight.
        b: where the weight falls off, in logarithmic signal-to-noise ratio.
        interpolant: the path, without latent noise.
        times: law of (s, t); the paper's has t uniform on [s, 1].
        weighting: what the error of a group counts besides.
    Cost: 1 evaluation with gradient, 1 without; the group's kernel is small.
    Source: Zhou, Ermon & Song, Inductive moment matching, 2025, arXiv:2503.07565, with the numbers of a third-party
        implementation, since no training code was released.
    Differs: time reversed with respect to the paper; s and t are uniform on the triangle; every sample of a group
        returns the loss of the group; source of unit deviation.
    """

    particles: int = 4
    gap: float = 0.04
    most: float = 165.0
    sigma: float = 1.0
    a: int = 2
    b: float = 4.0
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if self.particles < 2 or self.gap <= 0:
            raise ValueError(f"particles must be at least 2 and gap > 0; got {self.particles} and {self.gap}.")
        if self.interpolant.latent:
            raise ValueError(
                "moment matching must have a path without latent noise, or the two states share too little; got "
                f"{type(self.interpolant).__name__}."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        n, m = len(pair), self.particles
        if n % m:
            raise ValueError(f"the batch must be a multiple of {m} particles; got {n}. Change batch or particles.")
        s, t = (z.repeat_interleave(m) for z in self.times(n // m, pair.x0, generator, step=step))
        r = time_of_noise((noise_level(s, self.most) - self.gap).clamp_min(0))
        r = torch.maximum(torch.minimum(r, t), s)
        x, _ = self.interpolant.draw(pair, s, generator)
        y, _ = self.interpolant.draw(pair, r, generator)
        with stop_gradient():
            target = model(y, r, t, pair.cond)
        width = x[0].numel() * ((t - s) * self.sigma + 1e-6).reshape(-1, m)[:, :1, None]  # [groups, 1, 1]
        a, b = (z.reshape(n // m, m, -1) for z in (model(x, s, t, pair.cond), target))

        def similarity(a: Tensor, b: Tensor) -> Tensor:
            square = (a[:, :, None] - b[:, None]).square().sum(3)
            return (-square.clamp_min(1e-8).sqrt() / width).exp().mean((1, 2))

        error = (similarity(a, a) + similarity(b, b) - 2 * similarity(a, b)).repeat_interleave(m)
        report("moments", error)
        return self.weighting(self._weight(s) * error, s, t)

    def _weight(self, s: Tensor) -> Tensor:
        """(1/2) sigmoid(b - l) l' beta^a / (alpha^2 + beta^2), with what is singular at both ends cancelled."""
        p = self.interpolant
        alpha, beta = p.alpha(s), p.beta(s)
        d = alpha * p.beta_dot(s) - p.alpha_dot(s) * beta
        falling = alpha.square() + math.exp(-self.b) * beta.square()
        return d * alpha * beta ** (self.a - 1) / (falling * (alpha.square() + beta.square()))
