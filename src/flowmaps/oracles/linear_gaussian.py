"""A linear inverse problem whose posterior is known exactly."""

import math

import torch
from torch import Tensor

from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from .mixture import Mixture

__all__ = ["LinearGaussian"]


class LinearGaussian:
    """Data x1 from a Gaussian mixture, observed as y = A x1 + sigma n, n ~ N(0, I).

    The posterior is a mixture again: component k has precision C_k^{-1} + A^T A / sigma^2 and weight proportional to
    w_k N(y; A mean_k, A C_k A^T + sigma^2 I). One component is the linear-Gaussian problem.

    Args:
        matrix: A [M, D], acting on flattened data.
        sigma: standard deviation of the noise, positive.
        means: of the prior's components [K, *].
        covariances: of the prior's components [K, D, D], positive definite.
        weights: of the prior's components [K].
    """

    def __init__(self, matrix: Tensor, sigma: float, means: Tensor, covariances: Tensor, weights: Tensor) -> None:
        d = means[0].numel()
        if matrix.shape[1] != d or covariances.shape != (len(means), d, d) or sigma <= 0:
            raise ValueError(
                f"for data of {d} dimensions, matrix must be M x {d}, covariances {len(means)} x {d} x {d} and sigma "
                f"> 0; got {tuple(matrix.shape)}, {tuple(covariances.shape)} and {sigma}."
            )
        self.matrix, self.sigma, self.means, self.weights = matrix, sigma, means, weights / weights.sum()
        self.covariances = covariances

    def prior(self, interpolant: Interpolant = Linear()) -> Mixture:
        """The law of x1, as a flow map."""
        return self._mixture(self.means, self.covariances, self.weights, interpolant)

    def measure(self, x1: Tensor, generator: Random = None) -> Tensor:
        """Observations [B, M] of data [B, *]."""
        y = x1.flatten(1) @ self.matrix.T
        return y + self.sigma * normal(y.shape, y, generator).to(y.dtype)

    def moments(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [K], means [K, *] and covariances [K, D, D] of the posterior given one observation y [M]."""
        a, c = self.matrix, self.covariances
        evidence = a @ c @ a.T + self.sigma**2 * torch.eye(len(a), dtype=a.dtype)
        gain = torch.linalg.solve(evidence, a @ c).mT  # [K, D, M]
        gap = y - self.means.flatten(1) @ a.T
        mean = self.means.flatten(1) + torch.einsum("kdm,km->kd", gain, gap)
        log = -(torch.linalg.solve(evidence, gap) * gap).sum(1) / 2 - torch.logdet(evidence) / 2
        weight = (self.weights.log() + log).softmax(0)
        return weight, mean.reshape(self.means.shape), c - gain @ a @ c

    def posterior(self, y: Tensor, interpolant: Interpolant = Linear()) -> Mixture:
        """The law of x1 given one observation y [M], as a flow map."""
        weight, mean, covariance = self.moments(y)
        return self._mixture(mean, covariance, weight, interpolant)

    def posterior_mean(self, y: Tensor) -> Tensor:
        """E[x1 | y] [*]."""
        weight, mean, _ = self.moments(y)
        return torch.einsum("k,k...->...", weight, mean)

    def posterior_covariance(self, y: Tensor) -> Tensor:
        """Cov[x1 | y] [D, D]."""
        weight, mean, covariance = self.moments(y)
        gap = (mean - self.posterior_mean(y)).flatten(1)
        return torch.einsum("k,kde->de", weight, covariance) + torch.einsum("k,kd,ke->de", weight, gap, gap)

    def log_evidence(self, y: Tensor) -> Tensor:
        """Log p(y), nats, a scalar."""
        a = self.matrix
        evidence = a @ self.covariances @ a.T + self.sigma**2 * torch.eye(len(a), dtype=a.dtype)
        gap = y - self.means.flatten(1) @ a.T
        log = -(torch.linalg.solve(evidence, gap) * gap).sum(1) / 2 - torch.logdet(evidence) / 2
        return (self.weights.log() + log).logsumexp(0) - len(a) * math.log(2 * math.pi) / 2

    def _mixture(self, means: Tensor, covariances: Tensor, weights: Tensor, interpolant: Interpolant) -> Mixture:
        variance, basis = torch.linalg.eigh(covariances)
        return Mixture(means, variance.clamp_min(0).sqrt(), weights, interpolant, basis=basis)
