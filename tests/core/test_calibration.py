"""Calibration: the share holds for others, the estimate is right in the middle, and nothing cheaper would do."""

import math
from itertools import combinations

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

from flowmaps.core.adaptive import Rung, sample_to_tolerance
from flowmaps.core.calibration import calibrate
from flowmaps.core.flow_map import EulerMap, FlowMap
from flowmaps.core.sampling import Jump, RungeKutta4


class Bent(FlowMap):
    """A flow, with jumps that are wrong by a smooth field, ever less the shorter they are."""

    def __init__(self, size, flow):
        super().__init__()
        self.size, self.flow = size, flow

    def mean_velocity(self, x, s, t, cond=None):
        return self.flow.mean_velocity(x, s, t) + self.size * (t - s).abs()[:, None] * torch.sin(3 * x.flip(1)) ** 3


def easy():
    return Bent(0.2, gaussian((2,)))


def hard():
    """The jumps are Euler steps, made worse; samples between two modes go astray."""
    return Bent(0.5, EulerMap(eight_gaussians()))


def starts(n, shape, seed):
    return torch.randn(n, *shape, generator=stream(seed))


def errors(result, exact):
    return (result.x - exact).flatten(1).square().mean(1).sqrt()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_true_map_needs_three_evaluations(shape):
    flow, x = gaussian(shape), starts(64, shape, 1)
    rungs = calibrate(flow, [(starts(40, shape, 2), None), (starts(24, shape, 3), None)], 0.01)
    result = sample_to_tolerance(flow, x, rungs)
    assert [str(r) for r in rungs] == ["Jump x 1", "Jump x 2"]
    assert (result.evaluations == 3).all()
    assert errors(result, flow(x, torch.zeros(64), torch.ones(64))).max() < 1e-12
    assert result.error.max() < 1e-6  # that of the solution it was calibrated with


@pytest.mark.parametrize("tolerance", [0.1, 0.03, 0.01])
@pytest.mark.parametrize("build", [easy, hard])
def test_the_share_holds_for_others(build, tolerance):
    """512 fresh samples; the standard error of a share of .95 among them is .01."""
    model, x = build(), starts(512, (2,), 1)
    rungs = calibrate(model, [(starts(256, (2,), 2), None)], tolerance)
    exact = Rung(RungeKutta4(), 128).climb(model, x)[0]
    result, plain = sample_to_tolerance(model, x, rungs), sample_to_tolerance(model, x, tolerance)
    true = errors(result, exact)
    assert (true <= tolerance).double().mean() > 0.93
    assert abs((true > result.error).double().mean() - 0.5) < 0.1, "as often too small as too large"
    if build is easy:
        assert result.evaluations.double().mean() < 0.8 * plain.evaluations.double().mean()


def test_the_probe_is_all_batches_with_their_conditions():
    """Only samples of condition 1 feel the wrong jumps; a probe that missed either batch would choose otherwise."""

    class Some(FlowMap):
        def mean_velocity(self, x, s, t, cond=None):
            return (cond * (1 + t - s))[:, None].expand_as(x)

    calm, wild = (torch.full((32,), c) for c in (0.0, 1.0))
    x = starts(32, (2,), 2)
    for batches in ([(x, calm), (x, wild)], [(x, wild), (x, calm)]):
        rungs = calibrate(Some(), batches, 0.05)
        result = sample_to_tolerance(Some(), x, rungs, cond=wild)
        assert (errors(result, x + 1) <= 0.05).all()
    assert [str(r) for r in calibrate(Some(), [(x, calm)], 0.05)] == ["Jump x 1", "Jump x 2"]


def test_a_larger_share_costs_more():
    probe, x, spent = [(starts(256, (2,), 2), None)], starts(256, (2,), 1), []
    for share in (0.5, 0.9, 0.99):
        rungs = calibrate(hard(), probe, 0.03, share=share)
        spent.append(float(sample_to_tolerance(hard(), x, rungs).evaluations.double().mean()))
    assert spent[0] < spent[1] < spent[2]


def test_against_every_threshold_tried():
    """Two or three rungs of four candidates, all thresholds, by brute force: none that is good enough is cheaper."""
    model, x, tolerance, best = easy(), starts(100, (2,), 2), 0.03, math.inf
    candidates = (Rung(RungeKutta4(), 3), Rung(Jump(), 1), Rung(Jump(), 4), Rung(Jump(), 2))
    rungs = calibrate(model, [(x, None)], tolerance, share=0.9, slack=1.0, candidates=candidates)
    exact, wanted = Rung(RungeKutta4(), 32).climb(model, x)[0], 0.9 + 2 * math.sqrt(0.9 * 0.1 / 100)
    ends, cost = zip(*(c.climb(model, x) for c in candidates), strict=True)
    good = [(end - exact).square().mean(1).sqrt() <= tolerance for end in ends]
    order = [1, 3, 2, 0]
    for a, b in combinations(order, 2):
        if good[b].double().mean() >= wanted:
            best = min(best, cost[a] + cost[b])
    for a, b, c in combinations(order, 3):
        d = (ends[b] - ends[a]).square().mean(1).sqrt()
        for accept in d:
            near = d <= accept
            share = torch.where(near, good[b], good[c]).double().mean()
            if good[b][near].double().mean() >= wanted and share >= wanted:
                best = min(best, cost[a] + cost[b] + float((~near).double().mean()) * cost[c])
    result = sample_to_tolerance(model, x, rungs)
    assert len(rungs) == 3
    assert abs(float(result.evaluations.double().mean()) - best) < 1e-9
    assert (errors(result, exact) <= tolerance).double().mean() >= wanted


def test_slack_buys_an_estimate_that_tells_good_from_bad():
    model, probe = hard(), starts(256, (2,), 2)
    exact, order, spent = Rung(RungeKutta4(), 32).climb(model, probe)[0], [], []
    for slack in (1.0, 2.0):
        result = sample_to_tolerance(model, probe, calibrate(model, [(probe, None)], 0.03, slack=slack))
        ranks = torch.stack([v.argsort().argsort().double() for v in (result.error, errors(result, exact))])
        order.append(float(ranks.corrcoef()[0, 1]))
        spent.append(float(result.evaluations.double().mean()))
    assert order[1] > order[0] + 0.1
    assert spent[0] < spent[1] <= 2 * spent[0]


def test_what_cannot_be_had_is_said():
    probe = [(starts(32, (2,), 2), None)]
    with pytest.raises(ValueError, match="tolerance must be at least 0.*; got 1e-05. Give candidates of more steps"):
        calibrate(easy(), probe, 1e-5, candidates=(Rung(Jump(), 1), Rung(Jump(), 2), Rung(RungeKutta4(), 2)))
    with pytest.raises(ValueError, match="tolerance must be > 0 and share lie between 0 and 1; got 0.1 and 1"):
        calibrate(easy(), probe, 0.1, share=1)
