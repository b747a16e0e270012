"""The noun of the library: X_{s,t}, the map that carries the flow from time s to time t."""

import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor, nn

from .interpolant import Interpolant, Linear
from .sampling import sample
from .shapes import expand_time
from .types import Sampler, Velocity


class FlowMap(nn.Module, ABC):
    """The two-time map of a flow; a subclass says what the mean velocity is, the rest follows.

    X_{s,t}(x) = x + (t - s) u_{s,t}(x), with velocity b_t(x) = u_{t,t}(x).

    The identity X_{s,s}(x) = x and the tangent condition d_t X_{s,t}(x) = b_s(x) at t = s hold by construction.
    """

    @abstractmethod
    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """u_{s,t}(x), smooth across t = s.

        Args:
            x: state at time s [B, *].
            s: departure times [B].
            t: arrival times [B], before or after s.
            cond: condition, batch first.
        Returns:
            Mean velocity [B, *].
        """

    @final
    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X_{s,t}(x) [B, *]; t < s inverts. Cost: 1 call of mean_velocity."""
        return x + expand_time(t - s, x).to(x.dtype) * self.mean_velocity(x, s, t, cond).to(x.dtype)

    @final
    def velocity(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """b_t(x) = u_{t,t}(x) [B, *]. Cost: 1 call of mean_velocity."""
        return self.mean_velocity(x, t, t, cond).to(x.dtype)

    def with_noise(self, x: Tensor, t: Tensor, cond: Any = None) -> tuple[Tensor, Tensor | None]:
        """b_t(x), and E[noise | x_t = x] beside it from a map with a head for it, or else None: [B, *] each."""
        return self.velocity(x, t, cond), None

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """u_{s,t}(x), and what a block of the network makes on the way to it [B, places, channels].

        Raises:
            ValueError: if the map or its network gives no features.
        """
        raise ValueError(f"the map must give features of its network; got {type(self).__name__}. Use 'mean_velocity'.")

    def null_condition(self, batch: int) -> Any:
        """The condition that says nothing, for a batch; None unless the network has its own."""
        return None


def _null_condition(net: Any, batch: int) -> Any:
    return net.null_condition(batch)


def net_with_features(
    net: Any, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1
) -> tuple[Tensor, Tensor]:
    """Net(x, s, t, cond), and what the block of that number makes on the way [B, places, channels].

    Raises:
        ValueError: if the network gives no features.
    """
    features = getattr(net, "with_features", None)
    if features is None:
        raise ValueError(
            f"net must give features of its blocks: a dit or unet, or another with with_features; got "
            f"{type(net).__name__}."
        )
    return features(x, s, t, cond, block)


class MeanVelocity(FlowMap):
    """The mean velocity is a network: u_{s,t}(x) = net(x, s, t, cond).

    Args:
        net: module with signature (x [B, *], s [B], t [B], cond) -> [B, *] and a method null_condition(batch).
    Cost: 1 network evaluation.
    Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework
        for consistency models, 2024, arXiv:2406.07507v2, Eq. (4.1); the same authors, How to build a consistency model:
        learning flow maps via self-distillation, 2025, arXiv:2505.18825v2, Eq. (6).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if getattr(net, "outputs", 1) != 1:
            raise ValueError(
                f"a mean velocity is one output of a network; {type(net).__name__} has {net.outputs}. Use a map that "
                "takes them, such as map.name='trajectory', or set net.outputs to 1."
            )
        self.net = net

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.net(x, s, t, cond)

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        return net_with_features(self.net, x, s, t, cond, block)

    def null_condition(self, batch: int) -> Any:
        return _null_condition(self.net, batch)


class EulerMap(FlowMap):
    """A velocity, seen as the flow map that takes one Euler step: u_{s,t}(x) = b_s(x).

    Args:
        v: a flow map, of which only the diagonal is used, or a callable (x [B, *], t [B], cond) -> [B, *].
    Cost: 1 evaluation of v.
    """

    def __init__(self, v: "FlowMap | Velocity") -> None:
        super().__init__()
        self.v = v

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.v.velocity(x, s, cond) if isinstance(self.v, FlowMap) else self.v(x, s, cond)

    def with_noise(self, x: Tensor, t: Tensor, cond: Any = None) -> tuple[Tensor, Tensor | None]:
        return self.v.with_noise(x, t, cond) if isinstance(self.v, FlowMap) else (self.velocity(x, t, cond), None)

    def null_condition(self, batch: int) -> Any:
        return self.v.null_condition(batch) if isinstance(self.v, FlowMap) else None


class _Displacement(FlowMap):
    """The flow seen from one departure point: z(r) = (X_{s, s + r h}(x) - x) / h for r in [0, 1], regular at h = 0."""

    def __init__(self, model: FlowMap, x: Tensor, s: Tensor, h: Tensor) -> None:
        super().__init__()
        self.model, self.x, self.s, self.h = model, x, s, h

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        y = self.x + expand_time(self.h, x).to(x.dtype) * x
        return self.model.mean_velocity(y, self.s + s * self.h, self.s + t * self.h, cond)


class Integrated(FlowMap):
    """The flow map of a velocity, by solving its ordinary differential equation in a fixed number of steps.

    X_{s,t}(x) = the state at t of dx/dr = b_r(x) that starts from x at s.

    Args:
        model: the flow map whose velocity is integrated.
        sampler: the solver; with Jump, the composition of shorter jumps of the map itself.
        steps: number of equal steps from s to t.
    Cost: steps times the sampler's evaluations.
    """

    def __init__(self, model: FlowMap, sampler: Sampler, steps: int) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1; got {steps}.")
        self.model, self.sampler, self.steps = model, sampler, steps

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        seen = _Displacement(self.model, x, s, t - s)
        grid = torch.linspace(0, 1, self.steps + 1, dtype=s.dtype, device=s.device)
        return sample(seen, torch.zeros_like(x), grid, sampler=self.sampler, cond=cond)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)


class Counted(FlowMap):
    """The same map, counting its calls, and the states in them.

    Args:
        model: the flow map.
    """

    def __init__(self, model: FlowMap) -> None:
        super().__init__()
        self.model, self.calls, self.states = model, 0, 0

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.calls, self.states = self.calls + 1, self.states + len(x)
        return self.model.mean_velocity(x, s, t, cond)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)


class TrigFlow(FlowMap):
    """The parametrisation of continuous-time consistency models on the trigonometric path.

    X_{s,t}(x) = cos(a) x + sin(a) sigma F(x / sigma, s, t), with a = pi/2 (t - s).

    Args:
        net: F, a module with the signature of MeanVelocity's.
        sigma: standard deviation of data and source.
    Cost: 1 network evaluation.
    Source: Lu & Song, Simplifying, stabilizing and scaling continuous-time consistency models, 2024, arXiv:2410.11081,
        Section 3, Eq. (5).
    Differs: time reversed with respect to the paper, and any arrival time t instead of data only.
    """

    def __init__(self, net: nn.Module, sigma: float = 1.0) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        h = expand_time(t - s, x)  # torch.sinc(z) is sin(pi z) / (pi z), regular at h = 0
        f = self.sigma * self.net(x / self.sigma, s, t, cond).to(x.dtype)
        return math.pi / 2 * (torch.sinc(h / 2) * f - torch.sin(math.pi / 4 * h) * torch.sinc(h / 4) * x)

    def null_condition(self, batch: int) -> Any:
        return _null_condition(self.net, batch)


class Preconditioned(FlowMap):
    """A network whose input and output have unit variance, and a skip that is exact for Gaussian data.

    u_{s,t}(x) = (a a' + b b' sigma^2) / S^2 x + sigma D / S net(x / S, s, t) at time s, where a, b are the coefficients
    of source and data, S^2 = a^2 + b^2 sigma^2 is the variance of the state and D = a b' - a' b.

    Args:
        net: module with the signature of MeanVelocity's.
        interpolant: the path.
        sigma: standard deviation of the data.
    Cost: 1 network evaluation.
    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364, Section 5 and Appendix B.6, there for the denoiser on the variance exploding path.
    Differs: the same derivation (unit variance, least amplified error) for a velocity, on any path.
    """

    def __init__(self, net: nn.Module, interpolant: Interpolant = Linear(), sigma: float = 0.5) -> None:
        super().__init__()
        self.net, self.interpolant, self.sigma = net, interpolant, sigma

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        skip, out, scale = self._coefficients(x, s)
        return skip * x + out * self.net((x / scale).to(x.dtype), s, t, cond).to(x.dtype)

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        skip, out, scale = self._coefficients(x, s)
        y, features = net_with_features(self.net, (x / scale).to(x.dtype), s, t, cond, block)
        return skip * x + out * y.to(x.dtype), features

    def _coefficients(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the state and of the network's output, and the deviation of the state."""
        a, b, a_dot, b_dot = self.interpolant.coefficients(s, x)
        variance = a**2 + b**2 * self.sigma**2
        skip = (a * a_dot + b * b_dot * self.sigma**2) / variance
        return skip, self.sigma * (a * b_dot - a_dot * b) / variance.sqrt(), variance.sqrt()

    def null_condition(self, batch: int) -> Any:
        return _null_condition(self.net, batch)
