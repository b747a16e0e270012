"""Sampling to a tolerance: nothing to do for a true map, honest for a wrong one, sample by sample."""

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

from flowmaps.core.adaptive import sample_to_tolerance
from flowmaps.core.flow_map import EulerMap, FlowMap


class Counted(FlowMap):
    """Counts evaluations per sample; the first coordinate's hundreds tell which sample it is."""

    def __init__(self, flow):
        super().__init__()
        self.flow, self.seen = flow, 0

    def mean_velocity(self, x, s, t, cond=None):
        self.seen += len(x)
        return self.flow.mean_velocity(x, s, t, cond)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_true_map_takes_one_jump_and_its_check(shape):
    flow, x = gaussian(shape), torch.randn(8, *shape, generator=stream())
    result = sample_to_tolerance(flow, x, 1e-6)
    assert (result.evaluations == 3).all()
    assert result.error.max() < 1e-12
    assert (result.x - flow(x, torch.zeros(8), torch.ones(8))).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_euler_steps_are_shortened_until_they_pass(shape):
    """The estimate is the error, which shrinks with the tolerance; evaluations are counted right."""
    flow, x = gaussian(shape), torch.randn(32, *shape, generator=stream())
    exact, spent = flow(x, torch.zeros(32), torch.ones(32)), []
    for tolerance in (0.1, 0.03):
        model = Counted(EulerMap(flow))
        result = sample_to_tolerance(model, x, tolerance)
        true = (result.x - exact).flatten(1).square().mean(1).sqrt()
        # A solver's errors all point one way, against the rule's assumption; their sum is what the estimate says, but for
        # what the flow makes of early ones, here less than half as much again.
        assert (true < 1.5 * result.error).all()
        assert (true > 0.5 * result.error).all()
        assert (true < 1.5 * tolerance).all()
        assert model.seen == int(result.evaluations.sum())
        spent.append(result.evaluations.double().mean())
    assert spent[1] > 1.5 * spent[0]


def test_against_the_rule_followed_jump_by_jump():
    """One sample, by the book: try, halve, keep the halves, double."""
    model, x = EulerMap(eight_gaussians()), torch.randn(1, 2, generator=stream(3))
    s, span, state, error, tolerance = 0.0, 1.0, x, 0.0, 0.1

    def jump(x, s, t):
        return model(x, torch.tensor([s]), torch.tensor([t]))

    while s < 1:
        h = min(span, 1 - s)
        two = jump(jump(state, s, s + h / 2), s + h / 2, s + h)
        gap = float((two - jump(state, s, s + h)).square().mean().sqrt())
        if gap <= tolerance * h**0.5 / 4 or h <= 1 / 64:
            state, s, span, error = two, s + h, 2 * h, error + gap
        else:
            span = h / 2
    result = sample_to_tolerance(model, x, tolerance)
    assert (result.x - state).abs().max() < 1e-12
    assert abs(float(result.error) - error) < 1e-12


def test_a_sample_does_not_depend_on_its_neighbours():
    flow, x = EulerMap(eight_gaussians()), torch.randn(16, 2, generator=stream())
    together, alone = sample_to_tolerance(flow, x, 0.05), sample_to_tolerance(flow, x[3:4], 0.05)
    assert torch.allclose(together.x[3:4], alone.x, atol=1e-12)
    assert together.evaluations[3] == alone.evaluations[0]
    assert len(together.evaluations.unique()) > 1, "samples differ in difficulty"


def test_the_least_span_ends_the_search():
    """A map that never passes: 4 spans of a quarter, each tried whole and in halves, after two halvings of the first."""

    class Wild(FlowMap):
        def mean_velocity(self, x, s, t, cond=None):
            return x * (1 + 100 * (t - s))[:, None]

    result = sample_to_tolerance(Wild(), torch.ones(2, 1), 1e-9, least=0.25)
    assert (result.evaluations < 40).all()
    assert (result.error > 1).all(), "the estimate says that it failed"


def test_bad_tolerance():
    with pytest.raises(ValueError, match="tolerance must be > 0; got 0"):
        sample_to_tolerance(gaussian(), torch.zeros(2, 3), 0)
