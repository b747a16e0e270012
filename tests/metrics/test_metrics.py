"""Every measure against a closed form, and against itself where laws are equal."""

import math

import numpy as np
import pytest
import torch
from truth import SHAPES, TrueNet, gaussian, stream

from flowmaps.core.flow_map import EulerMap, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.types import Pair
from flowmaps.metrics.classifier_two_sample import classifier_two_sample
from flowmaps.metrics.energy_distance import energy_distance
from flowmaps.metrics.function_evaluations import function_evaluations
from flowmaps.metrics.histogram_kl import histogram_kl
from flowmaps.metrics.identity_residuals import identity_residuals
from flowmaps.metrics.label_agreement import label_agreement
from flowmaps.metrics.map_error import map_error
from flowmaps.metrics.maximum_mean_discrepancy import maximum_mean_discrepancy
from flowmaps.metrics.sliced_wasserstein import sliced_wasserstein
from flowmaps.samplers.heun import Heun
from flowmaps.samplers.runge_kutta4 import RungeKutta4


def normals(n, d=2, shift=0.0, seed=0):
    return torch.randn(n, d, generator=stream(seed)) + shift


def test_energy_distance_of_points_and_of_normals():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])
    assert energy_distance(a, b) == pytest.approx(2 * 1 - 1 - 0)
    # N(0,1) against N(m,1): 2 E|Z sqrt2 + m| - 4/sqrt(pi).
    m = 1.5
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    got = energy_distance(normals(3000, 1), normals(3000, 1, m, 1))
    assert got == pytest.approx(2 * folded - 4 / math.sqrt(math.pi), abs=0.06)  # five standard errors, by repetition
    assert energy_distance(normals(50), normals(50)) == pytest.approx(0, abs=1e-12)
    assert energy_distance(normals(500, 4, 0, 1).reshape(-1, 1, 2, 2), normals(500, 4, 0, 2).reshape(-1, 1, 2, 2)) > 0


def test_sliced_wasserstein_of_a_shift_and_a_scale():
    x = normals(4000, 3)
    shift = torch.tensor([3.0, 0.0, 4.0])
    assert sliced_wasserstein(x, x + shift) == pytest.approx(5 / math.sqrt(3), rel=0.1)  # mean of cos^2 over directions
    assert sliced_wasserstein(x, 2 * x) == pytest.approx(1.0, rel=0.03)
    assert sliced_wasserstein(x, x[torch.randperm(4000, generator=stream())]) == 0
    assert sliced_wasserstein(x, x[:1000]) < 0.08, "samples of different size"


def test_mmd_is_unbiased_and_sees_a_shift():
    same = [maximum_mean_discrepancy(normals(200, 2, 0, i), normals(200, 2, 0, 100 + i)) for i in range(60)]
    assert abs(np.mean(same)) < 5 * np.std(same) / 60**0.5
    assert min(same) < 0
    assert maximum_mean_discrepancy(normals(200), normals(200, 2, 1.0, 1)) > 10 * np.std(same)


def test_classifier_tells_a_shift_and_not_a_copy():
    # Held-out accuracy on 800 has deviation 1.8 %; four of them.
    assert abs(classifier_two_sample(normals(400), normals(400, 2, 0, 1)) - 0.5) < 0.07
    # Two normals 2 apart: the best rule is right with probability Phi(1) = 0.84.
    far = torch.tensor([2.0, 0.0])
    assert classifier_two_sample(normals(400), normals(900, 2, 0, 1) + far) == pytest.approx(0.84, abs=0.05)
    assert classifier_two_sample(normals(100), normals(100, 2, 50.0, 1)) > 0.97


def test_label_agreement_counts_what_was_asked_for():
    g = stream()
    labels = torch.randint(3, (900,), generator=g)
    x = 4 * torch.nn.functional.one_hot(labels, 3) + 0.3 * torch.randn(900, 3, generator=g)
    part = slice(0, 400), slice(400, 700), slice(700, 900)
    wrong = labels[part[2]].clone()
    wrong[:50] = (wrong[:50] + 1) % 3
    agreement, accuracy = label_agreement(x[part[2]], wrong, x[part[0]], labels[part[0]], x[part[1]], labels[part[1]])
    assert accuracy == 1
    assert agreement == pytest.approx(150 / 200)


@pytest.mark.parametrize("shape", SHAPES)
def test_map_error_of_the_truth_of_the_mean_and_of_a_scale(shape):
    flow, x0 = gaussian(shape), torch.randn(500, *shape, generator=stream())
    exact = flow(x0, torch.zeros(500), torch.ones(500))
    assert map_error(flow, x0, exact, 1) < 1e-12
    assert map_error(flow, x0, exact, 200, RungeKutta4()) < 1e-6
    mean = EulerMap(lambda x, t, cond: exact.mean(0) - x)
    assert map_error(mean, x0, exact, 1) == pytest.approx(1)
    off = EulerMap(
        lambda x, t, cond: flow(x, torch.zeros(len(x)), torch.ones(len(x))) + 0.1 * exact.sub(exact.mean(0)) - x
    )
    assert map_error(off, x0, exact, 1) == pytest.approx(0.1)


def test_histogram_kl_of_known_cells():
    data = torch.tensor([[-0.9, -0.9]] * 3 + [[0.9, 0.9]])
    samples = torch.tensor([[-0.9, -0.9], [0.9, 0.9]])
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert histogram_kl(data, samples, bins=2) == pytest.approx(want)
    assert histogram_kl(data, data) == 0
    assert histogram_kl(data, samples[:1], bins=2) == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25e10))
    outside = torch.cat([samples, torch.full((2, 2), 5.0)])
    assert histogram_kl(data, outside, bins=2) == pytest.approx(want + math.log(2)), "points outside are lost mass"


def test_function_evaluations_are_counted():
    flow, x = gaussian(), torch.zeros(1, 3)
    assert function_evaluations(flow, Heun(), 5, x) == 10
    assert function_evaluations(flow, RungeKutta4(), 3, x) == 12


def test_identity_residuals_of_a_known_map():
    """Euler steps of b_t = t: X_{s,t} = x + (t - s) s, with residuals s - t, t - s and (t - u) (u - s)."""
    model = EulerMap(lambda x, t, cond: t[:, None].expand_as(x))
    pair = Pair(*torch.randn(2, 4000, 1, generator=stream()))
    for row in identity_residuals(model, Linear(), pair, stream(1)):
        low, high = row["from"], row["to"]
        square, fourth = ((high ** (k + 1) - low ** (k + 1)) / (k + 1) / (high - low) for k in (2, 4))
        # Root mean squares of 4,000 draws are good to 1 %, the product's to 1.5 %; five of them.
        assert row["lagrangian"] == pytest.approx(square**0.5, rel=0.05)
        assert row["eulerian"] == pytest.approx(square**0.5, rel=0.05)
        assert row["semigroup"] == pytest.approx((fourth / 30) ** 0.5, rel=0.075)


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_residuals_vanish_at_the_truth_only(shape):
    flow, g = gaussian(shape), stream()
    pair = Pair(torch.randn(64, *shape, generator=g), flow.sample(64, g))
    rows = identity_residuals(flow, Linear(), pair, stream(1))
    assert [row["from"] for row in rows] == [0.0, 0.1, 0.25, 0.5, 0.75]
    assert max(row[k] for row in rows for k in ("lagrangian", "eulerian", "semigroup")) < 1e-8
    net = TrueNet(flow, shape)
    torch.nn.init.normal_(net.head, std=0.1, generator=stream(2))
    off = identity_residuals(MeanVelocity(net), Linear(), pair, stream(1))
    assert min(row[k] for row in off for k in ("lagrangian", "eulerian")) > 1e-2
    assert off[-1]["semigroup"] > off[0]["semigroup"] > 1e-5, "longer jumps show it more"
