"""Data from a mixture of Gaussians: velocity, score and density in closed form, the map by a float64 solve."""

import math
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import EulerMap, FlowMap, Integrated
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal, uniform
from ..core.shapes import expand_time
from ._reference import Extrapolated

__all__ = ["Mixture"]


class Mixture(FlowMap):
    """The flow between N(0, I) and sum_k w_k N(mean_k, C_k), coupled independently.

    b_t(x) = sum_k p(k | x) [b' mean_k + (a a' I + b b' C_k) V_k^{-1} (x - b mean_k)], V_k = a^2 I + b^2 C_k, for a path
    with coefficients a of the source and b of the data. The map solves dx/dt = b_t(x) in float64.

    Args:
        means: [K, *].
        std: standard deviation, one for all or [K] or, along the axes of `basis`, [K, D].
        weights: [K], positive; equal when left out.
        interpolant: the path, without latent noise.
        labels: class of each component [K]; then a condition [B] restricts the mixture to its class, and the class
            max(labels) + 1 stands for all.
        basis: principal axes of the components, as columns [K, D, D]; the coordinate axes when left out.
        steps: steps of order 8 that the map takes; `map_error` measures what is left.
    Cost: no network; the map takes 21 velocities a step.
    """

    def __init__(
        self, means: Tensor, std: float | Tensor, weights: Tensor | None = None, interpolant: Interpolant = Linear(), *,
        labels: Tensor | None = None, basis: Tensor | None = None, steps: int = 96,
    ) -> None:  # fmt: skip
        super().__init__()
        k, d = len(means), means[0].numel()
        std = torch.as_tensor(std, dtype=means.dtype)
        std = std.reshape(-1, 1).expand(k, d) if std.ndim < 2 else std
        weights = torch.ones(k, dtype=means.dtype) if weights is None else weights
        if weights.shape != (k,) or not bool((weights > 0).all()) or std.shape != (k, d):
            raise ValueError(
                f"for {k} components in {d} dimensions, weights must be {k} positive numbers and std 1, {k} or {k} x "
                f"{d}; got weights {tuple(weights.shape)} and std {tuple(std.shape)}."
            )
        if interpolant.latent:
            raise ValueError("the path must have no latent noise. Use the Gaussian oracle for paths with latent noise.")
        self.interpolant, self.steps, self.shape = interpolant, steps, tuple(means.shape[1:])
        self.register_buffer("means", means)
        self.register_buffer("std", std.contiguous())
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("labels", labels)
        self.register_buffer("basis", basis)

    def _components(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log w_k N_k [B, K], residual along the axes [B, K, D], its variance [B, K, D], and t [B, 1, 1]."""
        t = expand_time(t, x).reshape(-1, 1, 1)
        p = self.interpolant
        residual = x.flatten(1)[:, None] - p.beta(t) * self.means.flatten(1)
        if self.basis is not None:
            residual = torch.einsum("bkd,kde->bke", residual, self.basis)
        variance = (p.alpha(t) ** 2 + (p.beta(t) * self.std) ** 2).clamp_min(1e-20)
        log = (
            self.weights.log()
            - ((residual**2 / variance + variance.log()).sum(2) + math.log(2 * math.pi) * x[0].numel()) / 2
        )
        if cond is not None and self.labels is not None:
            every = cond[:, None] > self.labels.max()
            log = log.masked_fill((cond[:, None] != self.labels) & ~every, -math.inf)
        return log, residual, variance, t

    def _rotate(self, along: Tensor) -> Tensor:
        return along if self.basis is None else torch.einsum("bke,kde->bkd", along, self.basis)

    def _velocity(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        log, residual, variance, t = self._components(x, t, cond)
        p = self.interpolant
        rate = (p.alpha(t) * p.alpha_dot(t) + p.beta(t) * p.beta_dot(t) * self.std**2) / variance
        each = p.beta_dot(t) * self.means.flatten(1) + self._rotate(rate * residual)
        return (log.softmax(1)[:, :, None] * each).sum(1).reshape(x.shape)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if s is t:  # the velocity
            return self._velocity(x, t, cond)
        solved = Integrated(EulerMap(self._velocity), Extrapolated(), self.steps)
        return solved.mean_velocity(x.double(), s.double(), t.double(), cond).to(x.dtype)

    def map_error(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> float:
        """Largest change of X_{s,t}(x) when the number of steps is doubled: the error of the solve."""
        twice = Integrated(EulerMap(self._velocity), Extrapolated(), 2 * self.steps)
        x, s, t = x.double(), s.double(), t.double()
        return float((self(x, s, t, cond) - twice(x, s, t, cond)).abs().max())

    def score(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Grad log rho_t(x) [B, *]."""
        log, residual, variance, _ = self._components(x, t, cond)
        return -(log.softmax(1)[:, :, None] * self._rotate(residual / variance)).sum(1).reshape(x.shape)

    def log_density(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Log rho_t(x) [B], nats."""
        log = self._components(x, t, cond)[0]
        share = torch.where(log.isfinite(), self.weights, 0.0).sum(1)
        return log.logsumexp(1) - share.log()

    def sample(self, n: int, generator: Random = None) -> Tensor:
        """N data [n, *]."""
        return self.sample_labelled(n, generator)[0]

    def sample_labelled(self, n: int, generator: Random = None) -> tuple[Tensor, Tensor]:
        """N data [n, *] and the component that each came from [n]."""
        u = uniform((n,), self.means, generator)
        k = torch.searchsorted(self.weights.cumsum(0), u.to(self.weights.dtype)).clamp_max(len(self.weights) - 1)
        along = self.std[k] * normal((n, self.std.shape[1]), self.means, generator).to(self.means.dtype)
        if self.basis is not None:
            along = torch.einsum("be,bde->bd", along, self.basis[k])
        return self.means[k] + along.reshape(n, *self.shape), k

    def null_condition(self, batch: int) -> Tensor | None:
        return None if self.labels is None else (self.labels.max() + 1).expand(batch)

    means: Tensor
    std: Tensor
    weights: Tensor
    labels: Tensor | None
    basis: Tensor | None
