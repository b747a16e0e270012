"""The adaptive part of Dormand and Prince's pair: errors, steps and independence of samples, on vectors and images."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import RK45
from truth import SHAPES, draws, gaussian, slope, stream

from flowmaps.core.flow_map import Counted, EulerMap
from flowmaps.samplers._dormand_prince import DENSE, ERROR, FRACTIONS, STAGES
from flowmaps.samplers.dormand_prince import DormandPrince


def pulses(x, t, cond):
    """x' = w / (w^2 + (t - 1/2)^2), for a width w of each sample: a narrow one is nothing but in the middle."""
    return (cond / (cond**2 + (t - 0.5) ** 2)).reshape(-1, *[1] * (x.ndim - 1)) + 0 * x


def through_the_pulse(width):
    """How far it moves a state from t = 0 to 1."""
    return 2 * torch.atan(0.5 / width)


def ends(n):
    return torch.zeros(n), torch.ones(n)


def watched(velocity):
    """A map of a velocity, and the list of the times at which it is asked."""
    times = []

    def v(x, t, cond):
        times.append(t.clone())
        return velocity(x, t, cond)

    return EulerMap(v), times


def steps_of(times):
    """(from, to, accepted) of every step of a single sample, from the times of its evaluations."""
    times = [float(t) for t in times]
    found, s = [], times[0]
    for k in range(2, len(times), 6):
        last = k + 6 >= len(times)
        end = times[k + 5]
        accepted = last or times[k + 6] > end  # the first stage of the next step lies behind this one
        found.append((s, end, accepted))
        s = end if accepted else s
    return found


def test_the_numbers_are_those_of_scipy():
    """Of the stages, the error, whose sign does not matter, and the dense output."""
    for row, (fraction, weights) in enumerate(zip(FRACTIONS[:5], STAGES[:5], strict=True), 1):
        assert abs(fraction - RK45.C[row]) < 1e-15
        assert np.abs(np.array(weights) - RK45.A[row, :row]).max() < 1e-14
    assert np.abs(np.array(STAGES[5]) - RK45.B).max() < 1e-15
    assert min(np.abs(np.array(ERROR) - sign * RK45.E).max() for sign in (1, -1)) < 1e-15
    assert np.abs(np.array(DENSE) - RK45.P).max() < 1e-13


def plain_walk(velocity, x, relative, absolute):
    """Times (from, to, accepted) of the steps from 0 to 1 of one state, by Hairer, Nørsett and Wanner's recipe."""

    def size_of(v, scale):
        return float((v / scale).square().mean().sqrt())

    scale = absolute + relative * x.abs()
    slopes = [velocity(x, 0.0)]
    first = 0.01 * size_of(x, scale) / size_of(slopes[0], scale)
    bend = size_of(velocity(x + first * slopes[0], first) - slopes[0], scale) / first
    h = min(100 * first, (0.01 / max(size_of(slopes[0], scale), bend)) ** 0.2)
    s, before, longest, found = 0.0, 1e-4, 10.0, []
    while s < 1:
        h = min(h, 1 - s)
        for fraction, weights in zip(RK45.C[1:], RK45.A[1:], strict=True):  # a row ends in zeros
            y = x + h * sum(float(w) * k for w, k in zip(weights, slopes, strict=False))
            slopes.append(velocity(y, s + fraction * h))
        new = x + h * sum(float(w) * k for w, k in zip(RK45.B, slopes, strict=True))
        slopes.append(velocity(new, s + h))
        off = h * sum(float(w) * k for w, k in zip(RK45.E, slopes, strict=True))
        error = size_of(off, absolute + relative * torch.maximum(x.abs(), new.abs()))
        factor = min(max(0.9 * max(error, 1e-10) ** -0.17 * before**0.04, 0.2), longest)
        found.append((s, s + h, error <= 1))
        if error <= 1:
            s, x, slopes, before, longest = s + h, new, slopes[-1:], max(error, 1e-4), 10.0
        else:
            slopes, longest = slopes[:1], 1.0
        h *= factor
    return found


@pytest.mark.parametrize("tolerances", [(1e-4, 1e-6), (1e-7, 1e-3), (0.0, 1e-6)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_the_published_recipe(shape, tolerances):
    """A field that starts quietly and is sharp in the middle, so that steps grow, are rejected, and grow again."""

    def velocity(x, t):
        return pulses(x, torch.as_tensor(t).reshape(1), torch.tensor([0.03])) + torch.sin(3 * x)

    x = 3 * torch.randn(1, *shape, generator=stream())
    model, times = watched(lambda x, t, cond: velocity(x, t))
    DormandPrince(*tolerances)(model, x, *ends(1))
    wanted, found = plain_walk(velocity, x, *tolerances), steps_of(times)
    assert not all(accepted for *_, accepted in wanted), "there is something to reject"
    assert len(found) == len(wanted)
    for (s, t, accepted), (s2, t2, accepted2) in zip(found, wanted, strict=True):
        assert abs(s - s2) + abs(t - t2) < 1e-6  # rounding of the error estimates, by then some percent of a step's
        assert accepted == accepted2


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_follow_the_tolerance_and_evaluations_its_fifth_root(shape):
    """Errors of some twenty steps add up, so that the end is off by a few tolerances; work grows as tolerance^-0.2."""
    flow, (x, *_) = gaussian(shape), draws(16, shape)
    exact, found = flow(x, *ends(16)), []
    for tolerance in (1e-4, 1e-8):
        y, progress = DormandPrince(tolerance, tolerance)(flow, x, *ends(16))
        off = ((y - exact) / (tolerance * (1 + exact.abs()))).flatten(1).square().mean(1).sqrt()
        assert off.median() > 0.003
        assert off.max() < 3
        found.append(progress.evaluations.double().mean())
    assert 0.7 < math.log(found[1] / found[0]) / math.log(1e4 ** (1 / 5)) < 1.1  # the two evaluations at the start


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_has_the_steps_that_it_has_alone(shape):
    """Narrow pulses are rejected and refined where wide ones go on; the narrow ones outlive half of the batch."""
    width = torch.tensor([0.003, 0.3, 0.01, 3.0, 0.1, 1.0, 0.3, 3.0])
    x, solver = torch.randn(8, *shape, generator=stream()), DormandPrince(1e-6, 1e-6)
    y, progress = solver(EulerMap(pulses), x, *ends(8), cond=width)
    moved = (y - x).flatten(1) - through_the_pulse(width)[:, None]
    assert moved.abs().max() < 2e-5  # a few tolerances, of states up to 4
    assert progress.evaluations[0] > 3 * progress.evaluations[3]
    for some in ([0], [3], [1, 2], [7, 5, 3, 1, 0]):
        part, alone = solver(EulerMap(pulses), x[some], *ends(len(some)), cond=width[some])
        assert torch.equal(alone.evaluations, progress.evaluations[some])
        assert (part - y[some]).abs().max() < 1e-12  # rounding


def test_what_is_too_long_a_step_is_taken_again():
    width, solver = torch.tensor([0.003, 3.0]), DormandPrince(1e-6, 1e-6)
    rejected = []
    for i in (0, 1):
        model, times = watched(pulses)
        _, progress = solver(model, torch.zeros(1, 3), *ends(1), cond=width[i : i + 1])
        steps = steps_of(times)
        assert int(progress.evaluations) == len(times) == 2 + 6 * len(steps)
        assert all(abs(b[0] - (a[1] if a[2] else a[0])) < 1e-12 for a, b in pairwise(steps))
        rejected.append(sum(not accepted for *_, accepted in steps))
    assert rejected[0] >= 2
    assert rejected[1] == 0


def test_a_relative_tolerance_knows_no_units():
    """Where x' is linear in x, a state a million times as large takes the same steps, to rounding."""
    x, solver = torch.randn(1, 3, generator=stream()), DormandPrince(1e-6, 1e-200)
    turn = torch.tensor([[-1.0, 4.0, 0.0], [-4.0, -1.0, 2.0], [0.0, -2.0, -3.0]])
    found = []
    for unit in (1.0, 1e6):
        model, times = watched(lambda x, t, cond: x @ turn)
        y, _ = solver(model, unit * x, *ends(1))
        found.append(torch.stack(times))
        assert (y / unit - x @ torch.linalg.matrix_exp(turn)).abs().max() < 1e-5
    assert found[0].shape == found[1].shape
    assert (found[0] - found[1]).abs().max() < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluations_are_counted_from_call_to_call(shape):
    """Two before the first step and six a step; the next call begins with the slope that the last one ended with."""
    flow, solver = Counted(gaussian(shape)), DormandPrince()
    x, state = torch.randn(1, *shape, generator=stream()), None
    for k in range(3):
        before = flow.calls
        x, state = solver(flow, x, torch.full((1,), k / 3), torch.full((1,), (k + 1) / 3), state=state)
        assert (flow.calls - before) % 6 == (2 if k == 0 else 0)
        assert int(state.evaluations) == flow.calls
    x, state = solver(flow, x + 1, torch.ones(1), torch.zeros(1), state=state)  # moved in between
    assert int(state.evaluations) == flow.calls
    assert flow.calls % 6 == 3


@pytest.mark.parametrize("way", [1, -1], ids=["forwards", "backwards"])
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_output_is_of_order_four_inside_a_step(shape, way):
    """One step of length h: errors h^5 at a share of it, which order 4 means, and h^6 at its end."""
    flow, (x, *_) = gaussian(shape), draws(16, shape)
    start = torch.full((16,), 0.5)
    found = []
    for h in (0.05, 0.025):
        times = 0.5 + way * h * torch.tensor([0.0, 0.3, 0.7, 1.0])
        states, _ = DormandPrince(absolute=math.inf).trajectory(flow, x, times)
        exact = torch.stack([flow(x, start, t.expand(16)) for t in times])
        assert torch.equal(states[0], x)
        found.append((states - exact).flatten(1).square().mean(1).sqrt())
    for share, order in ((1, 5), (2, 5), (3, 6)):
        assert abs(slope([float(e[share]) for e in found]) - order) < 0.35


@pytest.mark.parametrize("shape", SHAPES)
def test_a_trajectory_is_that_of_one_solve(shape):
    """Whatever times are wanted, the steps are those of the solve without; and each state is as good as its tolerance."""
    flow, (x, *_) = gaussian(shape), draws(16, shape)
    solver, times = DormandPrince(1e-7, 1e-7), torch.linspace(0, 1, 12)
    states, progress = solver.trajectory(flow, x, times)
    y, alone = solver(flow, x, *ends(16))
    assert torch.equal(progress.evaluations, alone.evaluations)
    assert (states[-1] - y).abs().max() < 1e-12  # rounding: the end is interpolated, at share 1
    exact = torch.stack([flow(x, torch.zeros(16), t.expand(16)) for t in times])
    assert (states - exact).abs().max() < 2e-6  # dense output is of one order less than the steps
