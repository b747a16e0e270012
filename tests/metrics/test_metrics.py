"""Every measure against a closed form, and against itself where laws are equal."""

import math

import numpy as np
import pytest
import torch
from truth import SHAPES, Remembering, TrueNet, eight_gaussians, gaussian, stream

from flowmaps.build import build
from flowmaps.core.flow_map import Counted, EulerMap, FlowMap, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.recurrent import Recurrent
from flowmaps.core.sampling import Jump, RungeKutta4, trajectory
from flowmaps.core.types import Pair
from flowmaps.metrics.classifier_two_sample import classifier_two_sample
from flowmaps.metrics.curvature import curvature
from flowmaps.metrics.energy_distance import energy_distance
from flowmaps.metrics.explained_variance import explained_variance
from flowmaps.metrics.function_evaluations import function_evaluations
from flowmaps.metrics.histogram_kl import histogram_kl
from flowmaps.metrics.identity_residuals import identity_residuals
from flowmaps.metrics.label_agreement import label_agreement
from flowmaps.metrics.map_error import map_error
from flowmaps.metrics.maximum_mean_discrepancy import maximum_mean_discrepancy
from flowmaps.metrics.sliced_wasserstein import sliced_wasserstein
from flowmaps.metrics.straightness import straightness
from flowmaps.oracles.gaussian import Gaussian
from flowmaps.samplers.dormand_prince import DormandPrince
from flowmaps.samplers.flow_turbo import FlowTurbo
from flowmaps.samplers.heun import Heun
from flowmaps.samplers.picard import Picard
from flowmaps.samplers.reflected import Reflected


def normals(n, d=2, shift=0.0, seed=0):
    return torch.randn(n, d, generator=stream(seed)) + shift


def test_energy_distance_of_points_and_of_normals():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])
    assert energy_distance(a, b) == pytest.approx(2 * 1 - 1 - 0)
    # N(0,1) against N(m,1): 2 E|Z sqrt2 + m| - 4/sqrt(pi).
    m = 1.5
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    got = energy_distance(normals(3000, 1), normals(3000, 1, m, 1))
    assert got == pytest.approx(
        2 * folded - 4 / math.sqrt(math.pi), abs=0.06
    )  # five standard errors, by repetition: 6e-7
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
    masses = torch.zeros(4, 4)
    masses[0, 0], masses[3, 3] = 0.75, 0.25
    assert histogram_kl(masses, samples, bins=4) == pytest.approx(want)


def test_function_evaluations_are_counted():
    flow, x = gaussian(), torch.zeros(1, 3)
    assert function_evaluations(flow, Heun(), 5, x) == (10, None)
    assert function_evaluations(flow, RungeKutta4(), 3, x) == (12, None)


def test_evaluations_of_guided_maps_are_those_of_their_networks():
    model = eight_gaussians(labels=torch.arange(8) % 3, steps=1)
    x, cond = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)

    def count(sampler, number, **table):
        return function_evaluations(build("guidance", table, model=model), sampler, number, x, cond).model

    assert count(Heun(), 5, name="cfg") == 20
    assert count(Jump(), 3, name="autoguidance", weak=eight_gaussians(steps=1)) == 6, "the weak map counts too"
    assert count(Jump(), 1, name="guided_flows", steps=3) == 2 * 3 * 4
    # Times 0, 0.25, 0.5, 0.75 of Euler steps: two of them inside.
    assert count(build("samplers", "euler"), 4, name="interval", low=0.2, high=0.6) == 6
    guided = build("guidance", "raag", model=model)
    assert function_evaluations(guided, Jump(), 4, x, cond).model == 8
    assert not [part for part in guided.modules() if isinstance(part, Counted)], "the map is left alone"


def test_evaluations_of_samplers_that_decide_are_those_of_the_samples():
    """An adaptive solver is believed about each sample, one that draws gets a stream, and a refiner counts apart."""
    model = eight_gaussians(labels=torch.arange(8) % 3, steps=1)
    x, cond, before = torch.randn(50, 2, generator=stream()), torch.arange(50) % 3, torch.get_rng_state()
    zero, watched = torch.zeros(50), Counted(model)
    solver = DormandPrince(1e-4, 1e-4)
    _, state = solver(watched, x, zero, zero + 1, cond=cond)
    mean = float(state.evaluations.double().mean())
    assert watched.states > 51 * mean, "some have arrived, and are kept company"
    assert function_evaluations(model, solver, 1, x, cond).model == pytest.approx(mean, rel=1e-12)
    guided = build("guidance", {"name": "cfg", "scale": 1.0}, model=model)
    assert function_evaluations(guided, solver, 1, x, cond).model == pytest.approx(2 * mean, rel=1e-12)
    # Twelve steps at once, in every round of a sample.
    picard = Picard(steps=12)
    _, rounds = picard(model, x, zero, zero + 1, cond=cond)
    assert function_evaluations(model, picard, 1, x, cond).model == 12 * float(rounds.double().mean())
    assert function_evaluations(model, build("samplers", "stochastic_heun"), 3, x, cond).model == 6
    assert torch.equal(before, torch.get_rng_state())
    turbo = FlowTurbo(1, 1, build("guidance", {"name": "cfg", "scale": 2.0}, model=Recurrent(Remembering(Silent()))))
    for sampler in (turbo, Reflected(turbo, -9.0, 9.0)):
        assert function_evaluations(model, sampler, 5, x, cond) == (3, 2 * 3 * 2), (
            "three steps, twice, with and without"
        )


class Silent(FlowMap):
    """A refiner that knows of no change."""

    def mean_velocity(self, x, s, t, cond=None):
        return 0 * x


def paths(model, x0, n=32):
    times = torch.linspace(0, 1, n + 1)
    states = trajectory(model, x0, times, sampler=RungeKutta4())
    return times, states, torch.stack([model.velocity(x, t.expand(len(x))) for t, x in zip(times, states, strict=True)])


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)])
def test_trajectories_of_a_gaussian_in_closed_form(shape):
    """X_t = t m + S_t x0, S_t^2 = (1 - t)^2 + t^2 s^2: all derivatives, and with one s for all a curve in a plane."""
    x0 = torch.randn(40, *shape, generator=stream())
    for equal in (True, False):
        flow = gaussian(shape)
        std = torch.full(shape, 0.4) if equal else flow.std
        flow = Gaussian(flow.mean, std)
        times, states, velocities = paths(flow, x0, 100)
        t = times.reshape(-1, *[1] * (1 + len(shape)))
        size = ((1 - t) ** 2 + (t * std) ** 2).sqrt()
        first = (t * std**2 - (1 - t)) / size
        second = (std**2 + 1 - first**2) / size
        s, bend = straightness(times, states, velocities)
        want = ((first - (std - 1)) * x0).square().flatten(1).mean(1)
        assert (bend - want).abs().max() < 1e-6  # the solver's error
        assert abs(s - float(want[1:-1].sum() + (want[0] + want[-1]) / 2) / 100) < 1e-7
        v, a = ((flow.mean * speed + z * x0).flatten(2) for speed, z in ((1.0, first), (0.0, second)))
        turn = (a - (a * v).sum(2, keepdim=True) * v / v.square().sum(2, keepdim=True)).norm(dim=2) / v.norm(dim=2)
        some = [z[::10] for z in (times, states, velocities)]
        assert (curvature(flow, *some) / turn.mean(1)[::10] - 1).abs().max() < 1e-6
        share = explained_variance(states)
        assert share[0] < 1 - 1e-3
        assert (share[1] > 1 - 1e-9) == equal, "one s for all: the plane of m and x0"
    assert straightness(times, states, velocities)[0] > 1e-3


def test_straight_trajectories():
    """What reflow leads to, here x1 = 3 x0 + m at constant speed; and a straight one at varying speed."""
    m, x0 = torch.tensor([2.0, -1.0]), torch.randn(20, 2, generator=stream())

    def steady(x, t, cond):
        return 2 * (x - t[:, None] * m) / (1 + 2 * t[:, None]) + m

    def faster(x, t, cond):
        return 2 * t[:, None] * m.expand_as(x)

    for v, is_steady in ((steady, True), (faster, False)):
        model = EulerMap(v)
        times, states, velocities = paths(model, x0)
        assert (straightness(times, states, velocities)[0] < 1e-9) == is_steady
        # At t = 0 the second does not move yet, and has no direction.
        assert curvature(model, times[1:], states[1:], velocities[1:]).abs().max() < 1e-6
        assert (explained_variance(states, 2) - 1).abs().max() < 1e-9
    # The integral of |(2 t - 1) m|^2 is |m|^2 / 3, per dimension; the trapezoidal rule's error is 2 / (3 n^2) |m|^2.
    assert straightness(times, states, velocities)[0] == pytest.approx(5 / 3 / 2, abs=2 / 3 / 32**2 * 2.5 * 1.01)


def test_curvature_of_a_circle():
    """A rotation by w turns all trajectories by w, whatever their radius; a circle lies in a plane, not in a line."""
    w, x0 = 2.5, torch.randn(20, 2, generator=stream())
    model = EulerMap(lambda x, t, cond: w * torch.stack([-x[:, 1], x[:, 0]], 1))
    times, states, velocities = paths(model, x0)
    rate = curvature(model, times, states, velocities)
    assert (rate - w).abs().max() < 1e-9
    share = explained_variance(states, 4)
    assert share[0] < 0.95
    assert share[1:].tolist() == pytest.approx([1, 1, 1], abs=1e-9)
    # E|X' - chord|^2 = E|x0|^2 (w^2 + |c|^2 - 2 w <direction, c>), integrated: w^2 - 4 sin^2(w / 2), per dimension.
    want = (w**2 - 4 * math.sin(w / 2) ** 2) * float(x0.square().mean())
    assert straightness(times, states, velocities)[0] == pytest.approx(want, rel=2e-3)


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
