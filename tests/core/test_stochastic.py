"""Noise that leaves the marginals alone."""

import pytest
import torch
from truth import SHAPES, TrueHeads, gaussian, stream

from flowmaps.build import build
from flowmaps.core.flow_map import EulerMap
from flowmaps.core.random import normal
from flowmaps.core.shapes import expand_time
from flowmaps.core.stochastic import drift_and_diffusion
from flowmaps.interpolants.stochastic import Stochastic
from flowmaps.maps.denoiser_head import DenoiserHead


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


@pytest.mark.parametrize("shape", SHAPES)
def test_a_head_for_the_noise_gives_the_score_of_a_path_with_latent_noise(shape):
    """With the exact heads and much noise, the law at the middle and at the end."""
    f, g = gaussian(shape, Stochastic(scale=0.8)), stream(2)
    model, path = EulerMap(DenoiserHead(TrueHeads(f, shape))), f.interpolant
    n, steps = 4000, 100
    x = torch.randn(n, *shape, generator=g)
    with torch.no_grad():
        for i in range(steps):
            t = torch.full((n,), i / steps)
            drift, diffusion = drift_and_diffusion(model, path, 2 * path.gamma(t), x, t)
            x = x + drift / steps + expand_time(diffusion, x) * normal(x.shape, x, g) / steps**0.5
            if i + 1 in (steps // 2, steps):
                end = torch.tensor((i + 1) / steps)
                std = (path.alpha(end) ** 2 + (path.beta(end) * f.std) ** 2 + path.gamma(end) ** 2).sqrt()
                # Five standard errors of 1.6 % and 1.1 %, 60 times, false alarm 4e-5, and the step's own error.
                assert ((x.mean(0) - path.beta(end) * f.mean) / std).abs().max() < 0.1
                assert (x.std(0) / std - 1).abs().max() < 0.07


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
