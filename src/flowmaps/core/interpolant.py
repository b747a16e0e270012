"""The path between source and data, and the conversions between the four readings of one network."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .random import Random, normal
from .shapes import expand_time
from .types import Pair


class Interpolant(ABC):
    """I_t = alpha(t) x0 + beta(t) x1 + gamma(t) z, with x0 ~ source at t = 0, x1 ~ data at t = 1 and z ~ N(0, I).

    A subclass gives alpha, beta and their derivatives; gamma is zero unless it says otherwise. The conversions hold for
    gamma = 0. They solve one 2 x 2 system, state and velocity for source and data:

        x = alpha E[x0|x] + beta E[x1|x],   b = alpha' E[x0|x] + beta' E[x1|x],   D = alpha beta' - alpha' beta.

    Source: Albergo, Boffi & Vanden-Eijnden, Stochastic interpolants: a unifying framework for flows and diffusions,
        2023, arXiv:2303.08797, Definition 2.1; the linear form and the conversions: Section 4.1, Eq. (4.1) to (4.5).
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the source."""

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """Coefficient of the data."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """Time derivative of alpha."""

    @abstractmethod
    def beta_dot(self, t: Tensor) -> Tensor:
        """Time derivative of beta."""

    def gamma(self, t: Tensor) -> Tensor:
        """Coefficient of the latent noise z; zero at both ends."""
        return torch.zeros_like(t)

    def gamma_dot(self, t: Tensor) -> Tensor:
        """Time derivative of gamma."""
        return torch.zeros_like(t)

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The time at which log(beta / alpha) has a given value, by bisection in float64.

        Args:
            log_snr: log of the signal-to-noise ratio beta / alpha, any shape, finite.
        Returns:
            Times in [0, 1], float64, differentiable; the nearest end where the path does not reach the ratio.
        """
        goal = log_snr.double()
        low, high = torch.zeros_like(goal), torch.ones_like(goal)
        for _ in range(50):  # 2^-50 is about float64's resolution of [0, 1]
            middle = (low + high) / 2
            below = self.log_snr(middle) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        t = ((low + high) / 2).detach()
        # One Newton step: no change to speak of in the value, and the derivative that bisection has not.
        a, b = self.alpha(t), self.beta(t)
        slope = a * b / (a * self.beta_dot(t) - self.alpha_dot(t) * b)
        return (t + slope * (goal - self.log_snr(t))).clamp(0, 1)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(beta(t) / alpha(t)), increasing in t; infinite where an end is exact."""
        return self.beta(t).log() - self.alpha(t).log()

    @property
    def latent(self) -> bool:
        """Whether the path has latent noise."""
        return type(self).gamma is not Interpolant.gamma

    def noise_scale(self, t: Tensor) -> Tensor:
        """Coefficient c of the Gaussian noise in the state, grad log rho_t(x) = -E[noise | x] / c.

        The noise is z and c = gamma on a path with latent noise; on others it is the source and c = alpha, if that is
        N(0, I) and independent of the data.
        """
        return self.gamma(t) if self.latent else self.alpha(t)

    def coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, beta, alpha', beta' at times [B], each [B, 1, ..., 1] to go with x."""
        return (
            expand_time(self.alpha(t), x),
            expand_time(self.beta(t), x),
            expand_time(self.alpha_dot(t), x),
            expand_time(self.beta_dot(t), x),
        )

    def refuse_latent(self) -> None:
        """Raise ValueError if the path has latent noise; for what takes states to be made of source and data alone."""
        if self.latent:
            raise ValueError(
                f"{type(self).__name__} has latent noise, so that the velocity alone does not determine source, data "
                "and score. Use a path without latent noise, or train a score beside the velocity."
            )

    def _system(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        self.refuse_latent()
        a, b, a_dot, b_dot = self.coefficients(t, x)
        return a, b, a_dot, b_dot, a * b_dot - a_dot * b

    def start(self, x0: Tensor) -> Tensor:
        """The state at t = 0 that sampling starts from, alpha(0) x0."""
        return expand_time(self.alpha(x0.new_zeros(len(x0))), x0) * x0

    def state(self, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """I_t [B, *], from source and data [B, *], times [B] and, if there is latent noise, z [B, *]."""
        x = expand_time(self.alpha(t), x0) * x0 + expand_time(self.beta(t), x1) * x1
        return (x if z is None else x + expand_time(self.gamma(t), z) * z).to(x0.dtype)

    def velocity(self, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """D I_t / dt [B, *], the conditional velocity."""
        v = expand_time(self.alpha_dot(t), x0) * x0 + expand_time(self.beta_dot(t), x1) * x1
        return (v if z is None else v + expand_time(self.gamma_dot(t), z) * z).to(x0.dtype)

    def draw(self, pair: Pair, t: Tensor, generator: Random = None) -> tuple[Tensor, Tensor]:
        """I_t and dI_t/dt of a coupled draw, with fresh latent noise where the path has any: [B, *] each."""
        if pair.x1 is None:
            raise ValueError("the path needs data; got a pair with x1 = None. Use a loss that trains without data.")
        z = normal(pair.x0.shape, pair.x0, generator) if self.latent else None
        return self.state(pair.x0, pair.x1, t, z), self.velocity(pair.x0, pair.x1, t, z)

    def data_from_velocity(self, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x] = (alpha b - alpha' x) / D."""
        a, _, a_dot, _, d = self._system(t, x)
        return (a * v - a_dot * x) / d

    def source_from_velocity(self, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x] = (beta' x - beta b) / D, the noise prediction."""
        _, b, _, b_dot, d = self._system(t, x)
        return (b_dot * x - b * v) / d

    def score_from_velocity(self, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Grad log rho_t(x) = -E[x0 | x] / alpha; singular where alpha = 0.

        For a source N(0, I) that is independent of the data.
        """
        return -self.source_from_velocity(v, x, t) / expand_time(self.alpha(t), x)

    def velocity_from_data(self, x1: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """B = (alpha' x + D E[x1|x]) / alpha; singular where alpha = 0."""
        a, _, a_dot, _, d = self._system(t, x)
        return (a_dot * x + d * x1) / a

    def velocity_from_source(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """B = (beta' x - D E[x0|x]) / beta; singular where beta = 0."""
        _, b, _, b_dot, d = self._system(t, x)
        return (b_dot * x - d * x0) / b

    def velocity_from_score(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """B = (beta' x + alpha D score) / beta; singular where beta = 0.

        For a source N(0, I) that is independent of the data.
        """
        return self.velocity_from_source(-expand_time(self.alpha(t), x) * score, x, t)


@dataclass(frozen=True)
class Linear(Interpolant):
    """The straight path: I_t = (1 - t) x0 + t x1.

    Source: Liu, Gong & Liu, Flow straight and fast: learning to generate and transfer data with rectified flow, 2022,
        arXiv:2209.03003, Section 2.1, the least squares problem on the linear interpolation; Lipman, Chen, Ben-Hamu,
        Nickel & Le, Flow matching for generative modeling, 2022, arXiv:2210.02747, Section 4.1, Example II, with
        sigma_min = 0.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def beta(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def beta_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def state(self, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        return torch.lerp(x0, x1, expand_time(t, x0).to(x0.dtype))

    def velocity(self, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        return x1 - x0

    def time_at(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(log_snr.double())
