"""Losses of the diagonal beyond flow matching: what each learns, in closed form."""

import dataclasses

import pytest
import torch
from test_losses import pairs, stationarity
from truth import SHAPES, TrueHeads, gaussian, stream, true_model

from flowmaps.build import build
from flowmaps.core.flow_map import EulerMap, FlowMap, Integrated
from flowmaps.core.report import listen
from flowmaps.core.types import Pair
from flowmaps.interpolants.stochastic import Stochastic
from flowmaps.maps.denoiser_head import DenoiserHead
from flowmaps.nets.mlp import MLP
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


def heads(flow, shape):
    return DenoiserHead(TrueHeads(flow, shape))


@shapes
@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("linear", {}),
        ("stochastic", {"denoiser": 0.5}),
        ({"name": "stochastic", "power": 0.5, "scale": 0.7}, {"antithetic": True}),
    ],
)
def test_velocity_and_denoiser_are_where_a_stochastic_interpolant_is_stationary(path, options, shape):
    flow = gaussian(shape, build("interpolants", path))
    loss = build("losses", {"name": "stochastic_interpolant", **options}, interpolant=flow.interpolant)
    assert stationarity(loss, flow, shape, model=heads(flow, shape)) < 6
    wrong = heads(gaussian(shape, flow.interpolant, seed=5), shape)
    assert stationarity(loss, flow, shape, batches=8, model=wrong) > 30


def test_each_head_has_its_own_error():
    """Shifted by one, the denoiser costs its weight and the velocity one; the terms are reported."""
    flow = gaussian((3,), Stochastic())
    loss, pair = build("losses", {"name": "stochastic_interpolant", "denoiser": 3.0}), pairs(flow, 4000, stream())
    loss = dataclasses.replace(loss, interpolant=flow.interpolant)

    class Shifted(TrueHeads):
        shift = (0.0, 0.0)

        def forward(self, x, s, t, cond=None):
            return super().forward(x, s, t, cond) + torch.tensor(self.shift)[:, None]

    model = DenoiserHead(Shifted(flow, (3,)))
    right = loss(model, pair, generator=stream(1)).mean()
    for shift, cost in (((1.0, 0.0), 1.0), ((0.0, 1.0), 3.0)):
        model.net.shift = shift
        with listen() as heard:
            wrong = loss(model, pair, generator=stream(1)).mean()
        assert set(heard) == {"velocity", "denoiser"}
        assert abs(wrong - right - cost) < 0.3  # twice a mean of 4000 residuals of size up to 2: deviation 0.06


def test_opposite_draws_tame_the_gradient_of_a_brownian_bridge():
    """gamma' z is infinite at the ends for gamma = sqrt(t (1 - t)), and cancels between z and -z."""
    flow = gaussian((3,), Stochastic(power=0.5))
    spread = {}
    for antithetic in (False, True):
        loss = build(
            "losses", {"name": "stochastic_interpolant", "antithetic": antithetic, "interpolant": flow.interpolant}
        )
        model, g = heads(flow, (3,)), stream(3)
        rows = [
            torch.autograd.grad(loss(model, pairs(flow, 64, g), generator=g).mean(), model.net.head)[0]
            for _ in range(50)
        ]
        spread[antithetic] = torch.stack(rows)[..., :3].std(0).mean()
    assert spread[True] < spread[False] / 2


def test_a_stochastic_interpolant_needs_a_head_and_opposite_draws_need_noise():
    flow = gaussian()
    with pytest.raises(ValueError, match="the map must have a head for the noise; got MeanVelocity"):
        build("losses", "stochastic_interpolant")(true_model(flow, (3,)), pairs(flow, 4, stream()))
    with pytest.raises(ValueError, match="the network must have two outputs; got one"):
        DenoiserHead(MLP((3,), width=8, depth=2)).with_noise(torch.randn(2, 3), torch.rand(2))
    with pytest.raises(ValueError, match="antithetic needs a path with latent noise"):
        build("losses", {"name": "stochastic_interpolant", "antithetic": True})


def test_weights_of_a_difference_depend_on_times_alone():
    """A difference of errors may be negative, where a power of it or its logarithm says nothing."""
    for weighting in ("adaptive_power", "learned"):
        with pytest.raises(ValueError, match="weighting must depend on the time alone, .*; got .* Use 'unweighted'"):
            build("losses", {"name": "contrastive_flow_matching", "weighting": weighting})
        build("losses", {"name": "contrastive_flow_matching", "contrast": 0.0, "weighting": weighting})
    for weighting in ("unweighted", "noise_gap"):
        build("losses", {"name": "contrastive_flow_matching", "weighting": weighting})
