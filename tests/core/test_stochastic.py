"""Noise that leaves the marginals alone."""

import pytest
import torch
from truth import gaussian, stream

from flowmaps.build import build
from flowmaps.core.random import normal
from flowmaps.core.stochastic import drift_and_diffusion


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_the_equation_keeps_the_law_of_the_data(path):
    """Euler-Maruyama with much noise ends at the data's mean and deviation; the flow's own noise would not matter."""
    f, g = gaussian((2,), build("interpolants", path)), stream(2)
    n, steps = 20_000, 400
    x = torch.randn(n, 2, generator=g)
    for i in range(steps):
        t = torch.full((n,), i / steps)
        drift, diffusion = drift_and_diffusion(f, f.interpolant, 2 * f.interpolant.alpha(t), x, t)
        x = x + drift / steps + diffusion[:, None] * normal(x.shape, x, g) / steps**0.5
    # Standard errors 0.7 % of the deviation; 4 % leaves 3 % for the steps' own error of order 1 / steps.
    assert ((x.mean(0) - f.mean) / f.std).abs().max() < 0.04
    assert (x.std(0) / f.std - 1).abs().max() < 0.04


def test_fokker_planck():
    """Drift minus e times the score is the velocity: the two equations have one continuity equation."""
    f, x = gaussian(), torch.randn(32, 3, generator=stream())
    t, level = torch.rand(32, generator=stream(1)), torch.rand(32, generator=stream(2))
    drift, diffusion = drift_and_diffusion(f, f.interpolant, level, x, t)
    assert (drift - level[:, None] * f.score(x, t) - f.velocity(x, t)).abs().max() < 1e-10
    assert torch.allclose(diffusion**2, 2 * level)


def test_no_noise_is_the_flow_also_where_the_score_is_infinite():
    f, x, one = gaussian(), torch.randn(8, 3, generator=stream()), torch.ones(8)
    drift, diffusion = drift_and_diffusion(f, f.interpolant, torch.zeros(8), x, one)
    assert torch.equal(drift, f.velocity(x, one))
    assert not diffusion.any()
