"""What tests compare with: closed-form flows on vectors and images, and a network that is exactly right."""

import math

import torch
from torch import nn

from flowmaps.core.flow_map import MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.recurrent import RecurrentNet
from flowmaps.oracles.gaussian import Gaussian
from flowmaps.oracles.mixture import Mixture

SHAPES = [(3,), (2, 2, 3)]  # vectors [B, D] and images [B, C, H, W]


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(shape=(3,), path=Linear(), seed=1):
    g = stream(seed)
    return Gaussian(torch.randn(shape, generator=g), torch.rand(shape, generator=g) + 0.3, path)


def eight_gaussians(**options):
    angle = torch.arange(8) * math.pi / 4
    return Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.15, **options)


def draws(n, shape, seed=0):
    """States [n, *] and times s < u < t [n]."""
    g = stream(seed)
    return torch.randn(n, *shape, generator=g), *torch.rand(3, n, generator=g).sort(0).values


class TrueNet(nn.Module):
    """The exact mean velocity, plus a head, zero at first, on random features of (x, s, t).

    At the true map a loss must be stationary in every direction of the head. A constant offset alone lets sign errors
    through; features of state and times do not.
    """

    def __init__(self, flow, shape, features=24):
        super().__init__()
        d = math.prod(shape)
        self.flow, self.shape = flow, shape
        self.register_buffer("project", torch.randn(d + 2, features, generator=stream(7)))
        self.head = nn.Parameter(torch.zeros(features, d))

    def forward(self, x, s, t, cond=None):
        features = torch.tanh(torch.cat([x.flatten(1), s[:, None], t[:, None]], 1) @ self.project)
        return self.flow.mean_velocity(x, s, t) + (features @ self.head).reshape(x.shape)

    def null_condition(self, batch):
        return None


class TrueHeads(TrueNet):
    """The exact velocity and E[noise | x] = -c grad log rho_t(x), c the path's noise scale; the head moves both."""

    def __init__(self, flow, shape):
        super().__init__(flow, shape)
        self.head = nn.Parameter(torch.zeros(len(self.head), 2 * math.prod(shape)))

    def forward(self, x, s, t, cond=None):
        features = torch.tanh(torch.cat([x.flatten(1), s[:, None], t[:, None]], 1) @ self.project)
        noise = -self.flow.interpolant.noise_scale(t).reshape(-1, *[1] * (x.ndim - 1)) * self.flow.score(x, t)
        both = torch.stack([self.flow.mean_velocity(x, s, t), noise], 1)
        return both + (features @ self.head).reshape(both.shape)


class TrueRefiner(TrueNet):
    """The exact change b_t(x) - v, for states with velocities v beside them; what stands beside it counts for nothing."""

    def __init__(self, flow, shape):
        super().__init__(flow, (2 * shape[0], *shape[1:]))

    def forward(self, x, s, t, cond=None):
        y, v = x.chunk(2, 1)
        features = torch.tanh(torch.cat([x.flatten(1), s[:, None], t[:, None]], 1) @ self.project)
        return torch.cat([self.flow.velocity(y, t) - v, v], 1) + (features @ self.head).reshape(x.shape)


class Remembering(RecurrentNet):
    """The exact mean velocity of a flow; it remembers how many states it has seen, and where."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def advance(self, x, s, t, cond, memory):
        return self.flow.mean_velocity(x, s, t, cond), [*(memory or []), float(s[0])]

    def null_condition(self, batch):
        return self.flow.null_condition(batch)


def true_model(flow, shape):
    return MeanVelocity(TrueNet(flow, shape))


def slope(errors):
    """Observed order from the errors at n and 2 n steps."""
    return math.log2(errors[0] / errors[1])
