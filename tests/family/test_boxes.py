"""Reflected score matching: the heat kernel between walls, and the score of reflected noisy data."""

import math

import pytest
import torch
from test_losses import stationarity
from truth import SHAPES, TrueNet, stream

from flowmaps.build import build
from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.reflect import reflect
from flowmaps.core.sampling import RungeKutta4, sample
from flowmaps.interpolants.variance_exploding import VarianceExploding
from flowmaps.losses.reflected_score_matching import heat_kernel_score

LOW, HIGH = -1.0, 1.0


class Points(FlowMap):
    """Data on a few points of a box under reflected noise, by images of each point: the exact flow."""

    def __init__(self, points, interpolant):
        super().__init__()
        self.points, self.interpolant = points, interpolant

    def _kernels(self, x, t):
        """Log K of each point [B, N] and its gradient [B, N, D]."""
        sigma = self.interpolant.alpha(t)[:, None, None, None]
        reach = math.ceil(2 * self.interpolant.sigma_max) + 2  # eight deviations and more
        k = 2 * (HIGH - LOW) * torch.arange(-reach, reach + 1.0)
        mirrored = torch.stack([self.points, 2 * LOW - self.points], 2)[..., None] + k  # [N, D, 2, K]
        gap = x.flatten(1)[:, None, :, None] - mirrored.flatten(2)  # [B, N, D, 2 K]
        log = -(gap**2) / (2 * sigma**2)
        slope = -(log.softmax(-1) * gap).sum(-1) / sigma[..., 0] ** 2
        return log.logsumexp(-1).sum(-1), slope

    def score(self, x, t):
        log, slope = self._kernels(x, t)
        return (log.softmax(1)[..., None] * slope).sum(1).reshape(x.shape)

    def mean_velocity(self, x, s, t, cond=None):
        rate = self.interpolant.alpha(s) * self.interpolant.alpha_dot(s)
        return -rate.reshape(-1, *[1] * (x.ndim - 1)) * self.score(x, s)

    def sample(self, n, generator):
        return self.points[torch.randint(len(self.points), (n,), generator=generator)]


def points(shape):
    """Near walls and away from them."""
    at = 0.98 * (2 * torch.rand(4, math.prod(shape), generator=stream(1)) - 1)
    return Points(at, VarianceExploding(0.05, 6.0))


class Shaped(Points):
    """The same with data [B, *]."""

    def __init__(self, flow, shape):
        super().__init__(flow.points, flow.interpolant)
        self.shape = shape

    def sample(self, n, generator):
        return super().sample(n, generator).reshape(n, *self.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_score_of_reflected_noisy_data_is_where_it_is_stationary(shape):
    flow = Shaped(points(shape), shape)
    loss = build("losses", "reflected_score_matching", interpolant=flow.interpolant)
    assert stationarity(loss, flow, shape, size=256) < 6

    class Unreflected(Shaped):
        """Noise that passes through the walls."""

        def _kernels(self, x, t):
            sigma = self.interpolant.alpha(t)[:, None, None]
            gap = x.flatten(1)[:, None] - self.points
            return (-(gap**2) / (2 * sigma**2)).sum(-1), -gap / sigma**2

    wrong = MeanVelocity(TrueNet(Unreflected(flow, shape), shape))
    assert stationarity(loss, flow, shape, size=256, batches=8, model=wrong) > 30


def test_the_two_series_are_one_kernel():
    """Either form against more images, on both sides of the switch and in float32; and the kernel is a density."""
    y, x = torch.rand(2, 2000, 1, generator=stream())
    grid = torch.linspace(0, 1, 2001)[:, None]
    for sigma in (0.01, 0.1, 0.5, 0.7, 0.72, 1.0, 5.0):
        exact = (Points(2 * x[:1] - 1, VarianceExploding(1e-3, 2 * sigma)).score(2 * grid - 1, torch.zeros(2001))) * 2
        got = heat_kernel_score(grid, x[:1].expand(2001, 1), torch.full((2001, 1), sigma))
        assert (got - exact).abs().max() < 1e-9 * (1 + exact.abs().max())
        assert got[0].abs() < 1e-9
        assert got[-1].abs() < 1e-9, "nothing flows through the walls"
        low = heat_kernel_score(y.float(), x.float(), torch.full((2000, 1), sigma, dtype=torch.float32))
        full = heat_kernel_score(y.float().double(), x.float().double(), torch.full((2000, 1), sigma).float().double())
        assert (low - full).abs().max() < 2e-5 * (1 + full.abs().max()) / sigma  # float32, and 1 / sigma^2


def test_uniform_data_have_no_score():
    """The mean of K over uniform x is 1, so that the weighted mean of its scores is zero."""
    y, x = torch.linspace(0, 1, 11), (torch.arange(4000) + 0.5) / 4000
    for sigma in (0.2, 0.9):
        s = heat_kernel_score(y.repeat_interleave(4000)[:, None], x.repeat(11)[:, None], torch.full((44000, 1), sigma))
        k = 2 * torch.arange(-20.0, 21.0)
        gap = y[:, None, None] - torch.cat([k + x[:, None], k - x[:, None]], 1)
        weight = (-(gap**2) / (2 * sigma**2)).exp().sum(-1)
        assert ((weight * s.reshape(11, 4000)).mean(1) / weight.mean(1)).abs().max() < 1e-6  # midpoint rule


def test_its_flow_leads_from_uniform_noise_to_the_points_between_walls():
    """Heads of the right points, no mass at the walls, by a solver that reflects."""
    flow, n = points((2,)), 400
    x = reflect(flow.interpolant.start(torch.randn(n, 2, generator=stream(3))), LOW, HIGH)
    assert abs(x.std() - 2 / 12**0.5) < 0.05  # uniform: five standard errors, 6e-7
    with torch.no_grad():
        x = sample(flow, x, torch.linspace(0, 1, 61), sampler=RungeKutta4())
    x = reflect(x, LOW, HIGH)
    gap = (x[:, None] - flow.points).norm(dim=-1)
    share = torch.bincount(gap.argmin(1), minlength=4) / n
    assert (share - 0.25).abs().max() < 0.11  # five standard errors of four shares: 2e-6
    assert gap.amin(1).max() < 5 * 0.05 * 2**0.5, "within five deviations of the noise that is left"


def test_a_path_that_scales_the_data_is_refused():
    with pytest.raises(ValueError, match="the path must be the data plus noise; got Linear. Set interpolant to"):
        build("losses", "reflected_score_matching", interpolant=Linear())
    with pytest.raises(ValueError, match="high must be above low; got -1.0 and 1.0"):
        build("losses", {"name": "reflected_score_matching", "low": 1.0, "high": -1.0}, interpolant=VarianceExploding())
