"""Losses of the diagonal beyond flow matching: what each learns, in closed form."""

import pytest
import torch
from test_losses import pairs, stationarity
from truth import SHAPES, gaussian, stream

from flowmaps.build import build
from flowmaps.core.flow_map import EulerMap, FlowMap, Integrated
from flowmaps.core.types import Pair
from flowmaps.oracles.mixture import Mixture
from flowmaps.samplers.runge_kutta4 import RungeKutta4

shapes = pytest.mark.parametrize("shape", SHAPES)


class Bent(FlowMap):
    """An exact velocity v as contrastive flow matching bends it: (v - contrast beta' mean) / (1 - contrast)."""

    def __init__(self, flow, mean, contrast):
        super().__init__()
        self.flow, self.mean, self.contrast, self.interpolant = flow, mean, contrast, flow.interpolant

    def mean_velocity(self, x, s, t, cond=None):
        rate = self.interpolant.beta_dot(s).reshape(-1, *[1] * (x.ndim - 1))
        return (self.flow.velocity(x, s, cond) - self.contrast * rate * self.mean) / (1 - self.contrast)

    def null_condition(self, batch):
        return self.flow.null_condition(batch)


@shapes
@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_contrastive_flow_matching_is_stationary_at_its_bent_velocity(path, shape):
    """And, at this contrast, not at the truth; the bound on the z-score is that of the battery."""
    flow = gaussian(shape, build("interpolants", path))
    loss = build("losses", {"name": "contrastive_flow_matching", "contrast": 0.6}, interpolant=flow.interpolant)
    assert stationarity(loss, Bent(flow, flow.mean, 0.6), shape, data=flow) < 6
    assert stationarity(loss, flow, shape, size=1024) > 15


@pytest.mark.parametrize("shape", [(2,), (2, 2, 3)])
def test_undoing_the_contrast_gives_the_classes_back(shape):
    """Four classes: bent, the flow misses the mean of each by a known amount; undone, it is the flow of the class."""
    means = 2 * torch.randn(4, *shape, generator=stream(1))
    flow = Mixture(means, 0.5, labels=torch.arange(4))
    bent = Bent(flow, means.mean(0), 0.2)
    loss = build("losses", {"name": "contrastive_flow_matching", "contrast": 0.2})
    x, t, cond = (
        torch.randn(200, *shape, generator=stream()),
        torch.rand(200, generator=stream(2)),
        torch.arange(200) % 4,
    )
    again = loss.unbiased(bent, means.mean(0))
    assert (again.velocity(x, t, cond) - flow.velocity(x, t, cond)).abs().max() < 1e-12  # rounding
    zero, one = torch.zeros(200), torch.ones(200)
    exact, off, back = (Integrated(EulerMap(f), RungeKutta4(), 20)(x, zero, one, cond) for f in (flow, bent, again))
    assert (back - exact).abs().max() < 1e-10  # the same solver on the same velocity
    # A class of mean m and deviation s moves by a pull away from the mean of all that is constant in space.
    shift = (off - exact)[cond == 0].mean(0)
    assert (shift * (means[0] - means.mean(0))).sum() > 0
    assert off[cond == 0].std(0).mean() < 0.95 * exact[cond == 0].std(0).mean(), "and it shrinks"


@shapes
def test_the_contrast_is_with_another_sample_and_if_asked_with_another_class(shape):
    """With a map of no velocity the loss is |w_i|^2 - contrast |w_j|^2, which tells which j was taken."""
    n = 12
    x1 = torch.arange(1.0, n + 1).reshape(-1, *[1] * len(shape)).expand(n, *shape)
    label = torch.arange(n) // 4
    taken = {}
    for other in (False, True):
        loss = build("losses", {"name": "contrastive_flow_matching", "contrast": 0.5, "other_classes": other})
        rows = [
            loss(Still(), Pair(torch.zeros_like(x1), x1, {"label": label}), generator=stream(i)) for i in range(200)
        ]
        j = ((torch.arange(1.0, n + 1) ** 2 - torch.stack(rows)) / 0.5).sqrt().round().long() - 1
        taken[other] = torch.stack([(j == k).double().mean(0) for k in range(n)], 1)  # [i, j], shares of 200 draws
    # Five standard errors of a share of 1/11 and of 1/8 in 200 draws: 0.1 and 0.12; false alarm 1e-4 over 240 shares.
    assert (taken[False].fill_diagonal_(1 / 11) - 1 / 11).abs().max() < 0.1
    same = label[:, None] == label
    assert not taken[True][same].any()
    assert (taken[True][~same] - 1 / 8).abs().max() < 0.12


class Still(FlowMap):
    """Nothing moves."""

    def mean_velocity(self, x, s, t, cond=None):
        return torch.zeros_like(x)


def test_nobody_to_be_contrasted_with_leaves_flow_matching():
    flow = gaussian()
    pair = pairs(flow, 6, stream())
    pair = Pair(pair.x0, pair.x1, torch.zeros(6, dtype=torch.long))
    loss = build("losses", {"name": "contrastive_flow_matching", "other_classes": True})
    v = build("losses", "flow_matching")(flow, pair, generator=stream(1))
    assert torch.equal(loss(flow, pair, generator=stream(1)), v)
    with pytest.raises(ValueError, match="other_classes must be false to be undone"):
        loss.unbiased(flow, flow.mean)
    with pytest.raises(ValueError, match=r"contrast must lie in \[0, 1\), or there is no minimum; got 1.0"):
        build("losses", {"name": "contrastive_flow_matching", "contrast": 1.0})
