"""Sampling to a tolerance: a true map passes at once, a map that only agrees with itself does not, each sample alone."""

import math

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

from flowmaps.core.adaptive import Rung, sample_to_tolerance, uncalibrated
from flowmaps.core.flow_map import Counted, EulerMap, FlowMap
from flowmaps.core.sampling import Jump, RungeKutta4, sample
from flowmaps.core.shapes import expand_time


class Gossip(FlowMap):
    """Jumps of one flow, velocity of another: composes without a flaw, and is not the flow of its velocity."""

    def __init__(self, jumps, velocity):
        super().__init__()
        self.jumps, self.v = jumps, velocity

    def mean_velocity(self, x, s, t, cond=None):
        same = expand_time(s == t, x)
        return torch.where(same, self.v.mean_velocity(x, s, s), self.jumps.mean_velocity(x, s, t))


class Driven(FlowMap):
    """dx/dt = c x^0 at a rate given by the condition, {"rate": [B]}, with jumps that are true up to `wrong`."""

    def __init__(self, wrong=0.0):
        super().__init__()
        self.wrong = wrong

    def mean_velocity(self, x, s, t, cond):
        return expand_time(cond["rate"] * (1 + self.wrong * (t - s)), x).expand_as(x)


def ends(flow, x):
    return flow(x, torch.zeros(len(x)), torch.ones(len(x)))


def distance(a, b):
    return (a - b).flatten(1).square().mean(1).sqrt()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_true_map_passes_the_first_check(shape):
    """Two Runge-Kutta steps agree with it as well as they can; the estimate is twice their error."""
    flow, x = gaussian(shape), torch.randn(8, *shape, generator=stream())
    result = sample_to_tolerance(flow, x, 0.1)
    assert (result.evaluations == 12).all()
    assert torch.allclose(result.error, 2 * distance(result.x, ends(flow, x)), rtol=1e-9)
    rungs = (Rung(Jump(), 1), Rung(Jump(), 2, accept=1e-12))
    exact = sample_to_tolerance(flow, x, rungs)
    assert (exact.evaluations == 3).all()
    assert exact.error.max() < 1e-12
    assert (exact.x - ends(flow, x)).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_a_map_that_only_agrees_with_itself_is_found_out(shape):
    truth, x = gaussian(shape), torch.randn(32, *shape, generator=stream())
    model = Counted(Gossip(gaussian(shape, seed=2), truth))
    halves = sample(model, x, [0, 0.5, 1]) - ends(model, x)
    assert halves.abs().max() < 1e-12, "its jumps compose"
    assert distance(ends(model, x), ends(truth, x)).min() > 0.05, "and are wrong"
    for tolerance in (0.03, 0.01, 1e-3):
        result = sample_to_tolerance(model, x, tolerance)
        wrong = distance(result.x, ends(truth, x))
        assert (wrong < result.error).all()
        assert (result.error <= tolerance).all()
        assert (result.evaluations > 12).all(), "the first check cannot pass"


def test_against_the_rule_followed_rung_by_rung():
    model, x, total = EulerMap(eight_gaussians()), torch.randn(16, 2, generator=stream(3)), 0
    rungs = (
        Rung(Jump(), 2),
        Rung(Jump(), 8, accept=0.38, scale=0.5, power=0.75),
        Rung(RungeKutta4(), 4, accept=0.03, scale=2.0),
        Rung(RungeKutta4(), 5, accept=0.0, scale=3.0, power=0.5),
    )
    result, seen = sample_to_tolerance(model, x, rungs), set()
    for i in range(16):
        before, spent = None, 0
        for rung, cost in zip(rungs, (2, 8, 16, 20), strict=True):
            grid = torch.linspace(0, 1, rung.steps + 1)
            end, spent = sample(model, x[i : i + 1], grid, sampler=rung.sampler), spent + cost
            if before is not None:
                d = float(distance(end, before))
                error = rung.scale * d**rung.power
                if d <= rung.accept:
                    break
            before = end
        assert (result.x[i] - end[0]).abs().max() < 1e-12
        assert result.evaluations[i] == spent
        assert math.isclose(result.error[i], error, rel_tol=1e-9)
        seen.add(spent)
        total += spent
    assert seen == {10, 26, 46}, "some samples stop at every rung"
    assert int(result.evaluations.sum()) == total


def test_a_sample_does_not_depend_on_its_neighbours():
    flow, x = EulerMap(eight_gaussians()), torch.randn(16, 2, generator=stream())
    together, alone = sample_to_tolerance(flow, x, 0.05), sample_to_tolerance(flow, x[3:4], 0.05)
    assert torch.allclose(together.x[3:4], alone.x, atol=1e-12)
    assert together.evaluations[3] == alone.evaluations[0]
    assert len(together.evaluations.unique()) > 1, "samples differ in difficulty"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_sample_keeps_its_condition(shape):
    """Some go on and some do not; four jumps of length 1/4 miss the end by wrong/4 of the rate."""
    x, rate = torch.randn(6, *shape, generator=stream()), torch.tensor([0.0, 1, 2, -3, 4, 5])
    rungs = (*uncalibrated(1.2)[:2], Rung(Jump(), 1))
    result = sample_to_tolerance(Driven(wrong=1.0), x, rungs, cond={"rate": rate})
    assert result.evaluations.tolist() == [12, 12, 12, 13, 13, 13]
    move = torch.where(rate.abs() > 2.4, 2 * rate, rate)  # the last rung is one wrong jump
    assert (result.x - x - expand_time(move, x)).abs().max() < 1e-12
    assert torch.allclose(result.error, torch.where(rate.abs() > 2.4, 1.0, 0.5) * rate.abs())


@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision(shape):
    """States stay as they are, and errors are counted in float32; a bfloat16 number has 1/256 of its size for an error."""
    flow, x = gaussian(shape).bfloat16(), torch.randn(8, *shape, generator=stream()).bfloat16()
    result = sample_to_tolerance(flow, x, 0.3)
    assert (result.x.dtype, result.error.dtype) == (torch.bfloat16, torch.float32)
    assert distance(result.x.double(), ends(gaussian(shape), x.double())).max() < 0.1


def test_what_never_agrees_ends_on_the_last_rung_and_says_so():
    class Wild(FlowMap):
        def mean_velocity(self, x, s, t, cond=None):
            return torch.full_like(x, torch.nan) if float(t[0]) == 1 else 40 * x

    result = sample_to_tolerance(Wild(), torch.ones(2, 1), 1e-9)
    assert (result.evaluations == 252).all()
    assert result.error.isnan().all()


def test_bad_tolerance():
    with pytest.raises(ValueError, match="tolerance must be > 0; got 0"):
        sample_to_tolerance(gaussian(), torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match="at least two rungs, one to be compared with the other; got 1"):
        sample_to_tolerance(gaussian(), torch.zeros(2, 3), [Rung(Jump(), 1)])
