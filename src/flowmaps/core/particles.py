"""Weighted particles: what steering and ensemble posterior samplers share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .random import Random, uniform


@dataclass(frozen=True)
class Particles:
    """An ensemble that stands for a law: sum_i w_i delta(x_i), w = softmax(log_weight).

    Args:
        x: states [N, *].
        log_weight: unnormalised log weights [N], nats.
    """

    x: Tensor
    log_weight: Tensor

    @property
    def weight(self) -> Tensor:
        """Normalised weights [N], float64."""
        return self.log_weight.double().softmax(0)

    def effective_size(self) -> Tensor:
        """1 / sum_i w_i^2, between 1 and N: how many equal particles the ensemble is worth.

        Source: Kong, Liu & Wong, Sequential imputations and Bayesian missing data problems, 1994, the effective sample
            size.
        """
        return 1 / self.weight.square().sum()

    def log_mean_weight(self) -> Tensor:
        """Log (1/N) sum_i exp(log_weight_i): the increment of the log-normaliser since the last resampling."""
        return self.log_weight.double().logsumexp(0) - torch.tensor(len(self.log_weight)).double().log()

    def resampled(self, generator: Random = None) -> "Particles":
        """Equal weights again: particle i is kept about N w_i times (systematic resampling, one uniform draw).

        The log-weights are set to their log mean, so that the log-normaliser is kept.

        Args:
            generator: where the one draw comes from.
        Returns:
            N particles of equal weight.
        Source: Kitagawa, Monte Carlo filter and smoother for non-Gaussian nonlinear state space models, 1996, Appendix.
        """
        n = len(self.x)
        comb = (torch.arange(n, device=self.x.device) + uniform((1,), self.weight, generator)) / n
        index = torch.searchsorted(self.weight.cumsum(0), comb).clamp_max(n - 1)
        return Particles(self.x[index], self.log_mean_weight().to(self.log_weight).expand(n))
