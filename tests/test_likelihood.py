"""Every likelihood, found by its file: against densities in closed form."""

import math

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

from flowmaps.build import build, names
from flowmaps.likelihood.change_of_variables import ChangeOfVariables
from flowmaps.likelihood.continuous import Continuous


def standard(x):
    return -(x.flatten(1).square().sum(1) + x[0].numel() * math.log(2 * math.pi)) / 2


def made(name):
    options = {"inversion": "backward"} if name == "change_of_variables" else {}
    return build("likelihood", {"name": name, **options})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", names("likelihood"))
def test_gaussian_log_density(name, shape):
    flow = gaussian(shape)
    x = flow.sample(16, stream()).double()
    want = flow.log_density(x, torch.ones(16))
    got = made(name)(flow, x, torch.linspace(0, 1, 33), standard)
    assert got.shape == (16,)
    # Exact for the map; Runge-Kutta's error of order 4 with 32 steps is some 1e-6 per dimension.
    assert (got - want).abs().max() < (1e-9 if name == "change_of_variables" else 1e-4)


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
