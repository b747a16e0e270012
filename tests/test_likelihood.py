"""Every likelihood, found by its file: against densities in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, slope, stream

from flowmaps.build import build, names
from flowmaps.core.calculus import divergence
from flowmaps.core.flow_map import FlowMap
from flowmaps.core.shapes import expand_time
from flowmaps.couplings.independent import Independent
from flowmaps.likelihood.change_of_variables import ChangeOfVariables
from flowmaps.likelihood.continuous import Continuous
from flowmaps.likelihood.divergence_head import DivergenceHead
from flowmaps.losses.divergence_distillation import DivergenceDistillation
from flowmaps.maps.divergence_head import DivergenceHead as HeadMap
from flowmaps.nets.mlp import MLP


def standard(x):
    return -(x.flatten(1).square().sum(1) + x[0].numel() * math.log(2 * math.pi)) / 2


class Heads(FlowMap):
    """A map that is exact, with its mean divergence beside it: from the densities before and after a jump."""

    def __init__(self, flow):
        super().__init__()
        self.flow, self.asked = flow, []

    def mean_velocity(self, x, s, t, cond=None):
        return self.flow.mean_velocity(x, s, t)

    def with_divergence(self, x, s, t, cond=None):
        self.asked.append((float(s[0]), float(t[0])))
        u = self.mean_velocity(x, s, t)
        if bool((s == t).all()):
            return u, divergence(lambda z: self.flow.velocity(z, s), x)[1]
        y = x + expand_time(t - s, x) * u
        return u, (self.flow.log_density(x, s) - self.flow.log_density(y, t)) / (t - s)


def made(name):
    options = {} if name == "continuous" else {"inversion": "backward"}
    return build("likelihood", {"name": name, **options})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", names("likelihood"))
def test_gaussian_log_density(name, shape):
    flow = gaussian(shape)
    x = flow.sample(16, stream()).double()
    want = flow.log_density(x, torch.ones(16))
    got = made(name)(Heads(flow), x, torch.linspace(0, 1, 33), standard)
    assert got.shape == (16,)
    # Exact for the map; Runge-Kutta's error of order 4 with 32 steps is some 1e-6 per dimension.
    assert (got - want).abs().max() < (1e-4 if name == "continuous" else 1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_mixture_log_density_by_the_determinant(steps):
    """In one jump and in chained ones, through the reference map: 1e-3 nats per dimension is what users are promised."""
    flow = eight_gaussians(steps=12)
    x = flow.sample(8, stream()).double()
    got = ChangeOfVariables(build("inversions", "backward"))(flow, x, torch.linspace(0, 1, steps + 1), standard)
    assert (got - flow.log_density(x, torch.ones(8))).abs().max() < 2e-3


def test_hutchinson_has_no_bias():
    """The mean over probes is the exact value; five standard errors of 400 fail with probability 1e-6."""
    flow = gaussian()
    x = flow.sample(1, stream()).double().repeat(400, 1)
    got = Continuous("hutchinson")(flow, x, torch.linspace(0, 1, 17), standard, generator=stream(1))
    want = Continuous()(flow, x[:1], torch.linspace(0, 1, 17), standard)
    assert got.std() > 1e-3
    assert abs(got.mean() - want) < 5 * got.std() / 20


def test_bad_trace():
    with pytest.raises(ValueError, match="trace must be one of 'exact', 'hutchinson'; got 'both'"):
        Continuous("both")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("times", [[0.0, 1.0], [0.0, 0.3, 1.0]], ids=str)
def test_divergence_head_is_exact_with_an_inversion_in_any_number_of_steps(times, shape):
    flow = gaussian(shape)
    x = flow.sample(16, stream())
    model = Heads(flow)
    got = DivergenceHead(build("inversions", "backward"))(model, x, times, standard)
    assert (got - flow.log_density(x, torch.ones(16))).abs().max() < 1e-9
    assert model.asked == list(reversed(list(pairwise(times)))), "one evaluation a step, in the trained order of time"


@pytest.mark.parametrize("shape", SHAPES)
def test_divergence_head_steps_backwards_by_spans_ahead(shape):
    """The rule written out, and its first order: twice the steps, half the error; none of the spans leaves [0, 1]."""
    flow = gaussian(shape)
    x, errors = flow.sample(16, stream()), []
    for k in (16, 32, 64):
        model = Heads(flow)
        got = DivergenceHead()(model, x, [i / k for i in range(k + 1)], standard)
        assert model.asked == [(i / k, min((i + 1) / k, 1.0)) for i in range(k, 0, -1)]
        errors.append((got - flow.log_density(x, torch.ones(16))).abs().mean())
    assert abs(slope(errors[:2]) - 1) < 0.25
    assert abs(slope(errors[1:]) - 1) < 0.12
    y, total = x, torch.zeros(16)
    for s, t, further in ((0.6, 1.0, 1.0), (0.1, 0.6, 1.0), (0.0, 0.1, 0.2)):
        u, d = Heads(flow).with_divergence(y, torch.full((16,), t), torch.full((16,), further))
        y, total = y - (t - s) * u, total + (t - s) * d
    got = DivergenceHead()(Heads(flow), x, [0.0, 0.1, 0.6, 1.0], standard)
    assert (got - (standard(y) - total)).abs().max() < 1e-9


def test_divergence_head_needs_one():
    with pytest.raises(ValueError, match=r"must have a divergence head; got Gaussian\. Train one with the loss"):
        DivergenceHead()(gaussian(), torch.zeros(2, 3), [0.0, 1.0], standard)


@pytest.mark.slow
def test_a_trained_divergence_head_tells_the_likelihood_of_data():
    """From the exact velocity, in 16 steps; within 0.1 nats per dimension on average, where deviations are 1."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow, g = gaussian().float(), stream(3)
    model = HeadMap(MLP((3,), width=64, depth=3, outputs=2))
    loss, optimizer = DivergenceDistillation(flow), torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(model, Independent()(flow.sample(256, g), generator=g), generator=g).mean().backward()
        optimizer.step()
        schedule.step()
    x = flow.sample(2000, g)
    got = DivergenceHead()(model, x, torch.linspace(0, 1, 17), standard)
    error = (got - flow.log_density(x, torch.ones(2000))) / 3
    assert error.abs().mean() < 0.1
