"""Every way of writing a flow map: identity, tangent, either order of times, dtype, image shapes."""

import math

import pytest
import torch
from torch import nn
from truth import SHAPES, Remembering, draws, gaussian, stream

from flowmaps.build import build, names
from flowmaps.core.calculus import d_ds, d_dt
from flowmaps.core.flow_map import EulerMap, Integrated, MeanVelocity, Preconditioned, TrigFlow
from flowmaps.core.interpolant import Linear
from flowmaps.core.types import Pair
from flowmaps.interpolants.variance_exploding import VarianceExploding
from flowmaps.maps.data_prediction import DataPrediction
from flowmaps.samplers.heun import Heun
from flowmaps.velocities.clamped import Clamped


class Wiggle(nn.Module):
    """A smooth network that depends on everything."""

    def __init__(self, shape, outputs=1):
        super().__init__()
        self.outputs = outputs
        d = math.prod(shape)
        self.register_buffer("w", torch.randn(d + 2, d, generator=stream(3)))

    def forward(self, x, s, t, cond=None):
        z = torch.cat([x.flatten(1), s[:, None].to(x.dtype), t[:, None].to(x.dtype)], 1)
        y = torch.tanh(z @ self.w.to(x.dtype)).reshape(x.shape)
        return y if self.outputs == 1 else torch.stack([y, 2 * y], 1)

    def null_condition(self, batch):
        return torch.full((batch,), 7)


def forms(shape):
    nets = {
        name: Wiggle(shape, 2 if name in ("two_heads", "divergence_head", "denoiser_head", "trajectory") else 1)
        for name in names("maps")
    }
    nets["recurrent"] = Remembering(MeanVelocity(Wiggle(shape)))
    made = [build("maps", name, net=net, interpolant=Linear()) for name, net in nets.items()]
    return [*made, EulerMap(made[0]), Integrated(made[0], Heun(), 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("i", range(len(names("maps")) + 2))
def test_every_form_is_a_flow_map(i, shape):
    f = forms(shape)[i]
    x, s, _, t = draws(16, shape)
    assert torch.equal(f(x, s, s), x), "X_{s,s} is the identity"
    _, slope = d_dt(f, x, s, s)
    # Equal up to rounding: both are the same formula, once differentiated.
    assert (slope - f.velocity(x, s)).abs().max() < 1e-13, "d_t X at t = s is the velocity"
    assert (d_ds(f, x, s, s, torch.zeros_like(x))[1] + f.velocity(x, s)).abs().max() < 1e-13, "d_s X is minus it"
    assert f(x, t, s).isfinite().all(), "either order of times"
    low = f(x.float(), s.float(), t.float())
    assert low.dtype == torch.float32
    assert (low.double() - f(x, s, t)).abs().max() < 1e-5  # float32 rounding
    assert torch.equal(f.null_condition(2), torch.full((2,), 7)), "the network's own"


def test_euler_map_takes_a_bare_velocity_or_that_of_a_map():
    f = EulerMap(lambda x, t, cond: -x * t[:, None])
    x, s, _, t = draws(4, (3,))
    assert torch.allclose(f(x, s, t), x - (t - s)[:, None] * x * s[:, None])
    assert f.null_condition(2) is None
    g = MeanVelocity(Wiggle((3,)))
    assert torch.allclose(EulerMap(g)(x, s, t), x + (t - s)[:, None] * g.velocity(x, s))


def test_trig_flow_is_its_cosine_form():
    net, sigma = Wiggle((3,)), 0.7
    x, s, _, t = draws(16, (3,))
    a = math.pi / 2 * (t - s)[:, None]
    want = a.cos() * x + a.sin() * sigma * net(x / sigma, s, t)
    assert (TrigFlow(net, sigma)(x, s, t) - want).abs().max() < 1e-14


@pytest.mark.parametrize("path", [Linear(), VarianceExploding(0.01, 20.0)], ids=lambda p: type(p).__name__)
def test_preconditioning_is_exact_for_gaussian_data_and_gives_the_network_unit_variance(path):
    """With a zero network the velocity is that of N(0, sigma^2); what is left for the network has unit variance."""
    sigma, g = 0.5, stream()
    x0, x1 = torch.randn(200_000, 1, generator=g), sigma * torch.randn(200_000, 1, generator=g)
    flow = gaussian((1,), path)
    flow.mean.zero_()
    flow.std.fill_(sigma)

    class Zero(Wiggle):
        def forward(self, x, s, t, cond=None):
            self.seen = x
            return torch.zeros_like(x)

    class One(Wiggle):
        def forward(self, x, s, t, cond=None):
            return torch.ones_like(x)

    net = Zero((1,))
    for time in (0.05, 0.5, 0.95):
        t = torch.full((len(x0),), time)
        x, v = path.state(x0, x1, t), path.velocity(x0, x1, t)
        skip = Preconditioned(net, path, sigma).velocity(x, t)
        assert (skip - flow.velocity(x, t)).abs().max() / v.std() < 1e-9
        scale = Preconditioned(One((1,)), path, sigma).velocity(x, t) - skip
        # 1 % is 4.5 standard errors of a variance from 2e5 samples, sqrt(2 / 2e5) = 0.3 %: false alarm 1e-5.
        assert net.seen.var().sub(1).abs() < 0.015
        assert ((v - skip) / scale).var().sub(1).abs() < 0.015


def test_integrated_needs_a_step():
    with pytest.raises(ValueError, match=r"steps must be at least 1; got 0\."):
        Integrated(MeanVelocity(Wiggle((3,))), Heun(), 0)


class Ends(Wiggle):
    """A network that predicts the datum of a given path through x at s, whatever it sees."""

    def __init__(self, data):
        super().__init__((3,))
        self.data = data

    def forward(self, x, s, t, cond=None):
        return self.data(x, s)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_a_prediction_of_the_data_mean_is_the_marginal_velocity(shape, path):
    """Up to where the divisor is bounded, and the clamped velocity's beyond, at which the prediction stays the datum."""
    path = build("interpolants", path)
    flow = gaussian(shape, path)
    x, s, _, _ = draws(64, shape)
    s = torch.cat([s[:32], 1 - 0.02 * s[32:]])
    f = DataPrediction(Ends(lambda x, s: path.data_from_velocity(flow.velocity(x, s), x, s)), path)
    share = (path.alpha(s) / 0.05).clamp_max(1).reshape(-1, *[1] * len(shape))
    assert (f.velocity(x, s) - share * flow.velocity(x, s)).abs().max() < 1e-10
    assert (share < 1).any()
    x0, x1 = torch.randn(2, 64, *shape, generator=stream())
    x, w = path.draw(Pair(x0, x1), s)
    exact = DataPrediction(Ends(lambda x, s: x1), path)
    assert (exact.velocity(x, s) - Clamped(interpolant=path)(exact, Pair(x0, x1), x, w, s)).abs().max() < 1e-10


def test_a_prediction_of_the_data_is_where_the_jump_to_them_lands():
    f, net = DataPrediction(Wiggle((3,))), Wiggle((3,))
    x, s, _, _ = draws(16, (3,))
    s, one = 0.95 * s, torch.ones(16)
    assert (f(x, s, one) - net(x, s, one)).abs().max() < 1e-13
    for form in (lambda: DataPrediction(net, least=0.0), lambda: Clamped(least=0.0)):
        with pytest.raises(ValueError, match=r"least must be > 0, .*; got 0.0"):
            form()


@pytest.mark.parametrize("path", [VarianceExploding(0.01, 20.0), Linear()], ids=lambda p: type(p).__name__)
def test_a_network_for_the_noise_gives_the_velocity(path):
    """For Gaussian data the noise is -alpha times the score, wherever the data count in the state."""
    flow = gaussian((3,), path)
    x, s, _, _ = draws(16, (3,))
    s = 0.05 + 0.95 * s

    class Noise(nn.Module):
        def forward(self, x, s, t, cond=None):
            return -path.alpha(s)[:, None] * flow.score(x, s)

    v = flow.velocity(x, s)
    model = build("maps", "noise_prediction", net=Noise(), interpolant=path)
    assert (model.velocity(x, s) - v).abs().max() < 1e-11 * (1 + v.abs().max())  # rounding, and 1 / beta
    bounded = build("maps", {"name": "noise_prediction", "least": 0.5}, net=Noise(), interpolant=path)
    share = (path.beta(s) / 0.5).clamp_max(1)[:, None]
    assert (bounded.velocity(x, s) - share * v).abs().max() < 1e-11 * (1 + v.abs().max()), "divides by 0.5 at least"
    with pytest.raises(ValueError, match="least must be > 0, since the data vanish"):
        build("maps", {"name": "noise_prediction", "least": 0.0}, net=Noise())
