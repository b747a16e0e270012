"""Every weighting: one loss per sample, gradients that point the right way, and the optimum it is known by."""

import math

import pytest
import torch
from truth import stream

from flowmaps.build import build, names
from flowmaps.weightings.learned import Learned


@pytest.mark.parametrize("name", names("weightings"))
def test_larger_errors_cost_more_gradient_downhill(name):
    weighting = build("weightings", name)
    error = torch.tensor([0.1, 1.0, 10.0], requires_grad=True)
    s, t = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.9, 0.2, 0.4])
    loss = weighting(error, s, t)
    assert loss.shape == (3,)
    (slope,) = torch.autograd.grad(loss.sum(), error)
    assert (slope > 0).all()


@pytest.mark.parametrize(("power", "want"), [(0.0, [1.0, 1.0]), (0.5, [1.0, 0.5]), (1.0, [1.0, 0.25])])
def test_adaptive_power(power, want):
    """The weight is (e + offset)^-p, and carries no gradient of its own."""
    error = torch.tensor([0.5, 3.5], requires_grad=True)
    weighting = build("weightings", {"name": "adaptive_power", "power": power, "offset": 0.5})
    (slope,) = torch.autograd.grad(weighting(error, error, error).sum(), error)
    assert torch.allclose(slope, torch.tensor(want))


def test_learned_weight_settles_at_the_log_of_the_mean_error():
    """On and off the diagonal, each for itself."""
    torch.manual_seed(0)
    weighting, g = Learned(4, separate=True), stream()
    optimizer = torch.optim.Adam(weighting.parameters(), 0.02)
    for _ in range(1500):
        s, t = torch.rand(2, 256, generator=g).sort(0).values
        t = torch.where(torch.arange(256) < 128, s, t)
        error = torch.where(s == t, 2.0, 1e-3 * (4 * (t - s)).exp()) * torch.rand(256, generator=g) * 2
        optimizer.zero_grad()
        weighting(error, s, t).mean().backward()
        optimizer.step()
    s, t = torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.2, 0.9, 0.8])
    want = torch.tensor([math.log(2), math.log(1e-3) + 1.6, math.log(1e-3) + 0.4])
    # The last iterate of a noisy fit; errors vary by 58 %, averaged over some hundred steps.
    assert (weighting.log_variance(s, t) - want).abs().max() < 0.25
    # At its optimum w = log e the weighted loss has gradient 1 / e, and d/dw vanishes.
    error = want[:2].exp().requires_grad_()
    (slope,) = torch.autograd.grad(weighting(error, s[:2], t[:2]).sum(), error)
    assert (slope * error - 1).abs().max() < 0.3


def test_learned_weight_is_continuous_unless_separate():
    """At random weights: next to the diagonal it is what it is on it, or it is not: over a span of 1e-3 cosines of
    at most 3 pi change by 5e-5, times sixteen normal weights."""
    torch.manual_seed(0)
    s = torch.tensor([0.2, 0.5, 0.7])
    for separate in (False, True):
        weighting = Learned(4, separate)
        for p in weighting.parameters():
            torch.nn.init.normal_(p)
        gap = (weighting.log_variance(s, s) - weighting.log_variance(s, s + 1e-3)).abs()
        assert bool((gap < 1e-2).all()) != separate


def test_bad_options():
    with pytest.raises(ValueError, match="offset must be > 0"):
        build("weightings", {"name": "adaptive_power", "offset": 0.0})
    with pytest.raises(ValueError, match="features must be at least 1"):
        Learned(0)
