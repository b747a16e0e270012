"""Every loss, found by its file: shape, stationarity at the truth, learning, seeds, streams, dropout, options."""

import inspect

import pytest
import torch
from truth import SHAPES, TrueNet, gaussian, stream, true_model

from flowmaps.build import build, find, names
from flowmaps.core import identities
from flowmaps.core.flow_map import EulerMap, MeanVelocity
from flowmaps.core.report import listen
from flowmaps.core.times import UniformPair
from flowmaps.core.types import Pair
from flowmaps.couplings.independent import Independent
from flowmaps.nets.mlp import MLP

LOSSES = names("losses")
# Every published variant of a loss is tested like the loss itself.
VARIANTS = [
    *[{"name": name} for name in LOSSES],
    {"name": "lsd", "route": "stopped"},
    {"name": "esd", "stop": "convex"},
    {"name": "esd", "stop": "none"},
    {"name": "psd", "split": "midpoint"},
    {"name": "pfmm", "steps": 2},
    {"name": "mean_flow", "times": "logit_normal_pair"},
    {"name": "flow_matching", "interpolant": "stochastic"},
    {"name": "mean_flow", "interpolant": "stochastic"},
    {"name": "lsd", "interpolant": "trigonometric"},
]


def label(variant):
    return "-".join(map(str, variant.values()))


def made(variant, flow, **options):
    return build("losses", {**variant, **options}, teacher=flow, interpolant=flow.interpolant)


def flow_for(variant, shape):
    return gaussian(shape, build("interpolants", variant.get("interpolant", "linear")))


def pairs(flow, n, generator):
    return Independent()(flow.sample(n, generator), generator=generator)


def stationarity(loss, flow, shape, batches=24, size=512):
    """Mean squared z-score of the gradient on the head of TrueNet, about 1 where the truth is stationary.

    Entries of the head are correlated, so that the mean of their squares spreads about 1: over 150 seeds of flow matching
    and of MeanFlow on vectors it was 1.1 with deviation 0.5 and 3.6 at most, like a chi-square of 8 degrees over 8, which
    exceeds 6 with probability 1e-7. On images it spreads less. Sign errors score 30 and more.
    """
    model, g = true_model(flow, shape), stream(3)
    gradients = torch.stack(
        [
            torch.autograd.grad(loss(model, pairs(flow, size, g), generator=g).mean(), model.net.head)[0]
            for _ in range(batches)
        ]
    )
    # The floor is rounding: a loss whose every sample is stationary has no spread to compare with.
    deviation = gradients.std(0) / batches**0.5 + 1e-12
    return float((gradients.mean(0) / deviation).square().mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_the_truth_is_stationary(variant, shape):
    flow = flow_for(variant, shape)
    assert stationarity(made(variant, flow), flow, shape) < 6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v["name"] not in ("flow_matching", "mean_flow")], ids=label)
def test_residuals_vanish_at_the_truth_for_every_sample(variant, shape):
    """Off the diagonal, but for the losses whose target is the conditional velocity: those are right in mean only."""
    flow = flow_for(variant, shape)
    off = {"diagonal": 0.0} if "diagonal" in inspect.signature(find("losses", variant["name"])).parameters else {}
    assert (
        made(variant, flow, **off)(true_model(flow, shape), pairs(flow, 64, stream()), generator=stream()).max() < 1e-15
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_a_wrong_map_is_not_stationary(variant):
    """The battery sees: against the flow of other data every loss pulls away."""
    shape = (3,)
    right, wrong = flow_for(variant, shape), gaussian(shape, build("interpolants", "linear"), seed=5)
    loss = made(variant, right)
    model, g = MeanVelocity(TrueNet(wrong, shape)), stream(3)
    gradients = torch.stack(
        [
            torch.autograd.grad(loss(model, pairs(right, 512, g), generator=g).mean(), model.net.head)[0]
            for _ in range(8)
        ]
    )
    assert (gradients.mean(0) / (gradients.std(0) / 8**0.5 + 1e-12)).square().mean() > 30


# Evaluations with and without gradient that the docstrings promise off the diagonal, the teacher's among them.
EVALUATIONS = {
    "flow_matching": (1, 0),
    "lsd": (1, 1),
    "lsd-stopped": (1, 2),
    "esd": (1, 2),
    "esd-convex": (1, 1),
    "esd-none": (2, 0),
    "psd": (1, 2),
    "mean_flow": (1, 1),
    "lmd": (1, 1),
    "emd": (1, 1),
    "pfmm": (1, 4),
}


@pytest.mark.parametrize("variant", [v for v in VARIANTS if label(v) in EVALUATIONS], ids=label)
def test_targets_carry_no_gradient(variant):
    """At the truth a missing stop changes nothing, since the residual is zero; so it is looked for directly."""
    seen = []

    class Watched(TrueNet):
        def forward(self, x, s, t, cond=None):
            seen.append(torch.is_grad_enabled())
            return super().forward(x, s, t, cond)

    flow = gaussian()
    off = {"diagonal": 0.0} if "diagonal" in inspect.signature(find("losses", variant["name"])).parameters else {}
    model, teacher = (MeanVelocity(Watched(flow, (3,))) for _ in range(2))
    build("losses", variant | off, teacher=teacher)(model, pairs(flow, 4, stream()), generator=stream())
    assert (sum(seen), len(seen) - sum(seen)) == EVALUATIONS[label(variant)]


def test_stopped_lsd_moves_the_mean_velocity_against_the_residual():
    """Its gradient is that of 2 r u with r held constant: a wrong sign has the same value, and zero, at the truth."""
    flow = gaussian()
    model = true_model(flow, (3,))
    torch.nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    loss, pair = made({"name": "lsd", "route": "stopped"}, flow, diagonal=0.0), pairs(flow, 64, stream())
    s, t = UniformPair()(64, pair.x0, stream(4))
    x, _ = flow.interpolant.draw(pair, s)
    r = identities.lagrangian(model, model.velocity, x, s, t).detach()
    wanted = (2 * r * model.mean_velocity(x, s, t)).mean()
    got, want = (
        torch.autograd.grad(value, model.net.head)[0]
        for value in (loss(model, pair, generator=stream(4)).mean(), wanted)
    )
    assert (got - want).abs().max() < 1e-12


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_number_per_sample_from_the_given_stream_alone(variant, shape):
    flow = flow_for(variant, shape)
    loss, model = made(variant, flow), true_model(flow, shape)
    before = torch.get_rng_state()
    x0, x1 = torch.randn(2, 12, *shape, generator=stream())
    kept = x0.clone(), x1.clone()
    first, again, other = (loss(model, Pair(x0, x1), generator=stream(i)) for i in (1, 1, 2))
    assert first.shape == (12,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before), "the global stream did not move"
    assert torch.equal(x0, kept[0])
    assert torch.equal(x1, kept[1])


@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_reported(name):
    flow = gaussian()
    with listen() as heard:
        made({"name": name}, flow)(true_model(flow, (3,)), pairs(flow, 16, stream()), generator=stream())
    assert heard
    assert sum(v.numel() for values in heard.values() for v in values) == 16


@pytest.mark.parametrize("name", [n for n in LOSSES if "diagonal" in inspect.signature(find("losses", n)).parameters])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_empty_shares(name, share):
    flow = gaussian()
    loss = made({"name": name}, flow, diagonal=share)
    assert loss(true_model(flow, (3,)), pairs(flow, 8, stream()), generator=stream()).shape == (8,)
    matching = made({"name": "flow_matching"}, flow)
    if share == 1:
        both = [f(true_model(flow, (3,)), pairs(flow, 8, stream()), generator=stream(4)) for f in (loss, matching)]
        assert torch.equal(*both), "with the whole batch on the diagonal it is flow matching"


@pytest.mark.parametrize("name", ["mean_flow", "lsd", "psd", "esd"])
def test_target_and_prediction_share_dropout(name):
    """With t = s, a zero net but for dropout noise would see two masks; the loss of a shared mask is deterministic."""
    torch.manual_seed(0)
    net = MLP((3,), width=32, depth=3, dropout=0.5)
    model, flow = MeanVelocity(net).train(), gaussian()
    options = {"route": "stopped"} if name == "lsd" else {}
    loss = made({"name": name}, flow, diagonal=0.0, **options)

    def gap(seed):
        torch.manual_seed(seed)
        return loss(model, pairs(flow, 64, stream()), generator=stream()).mean()

    assert torch.equal(gap(1), gap(1)), "the masks are those of the global stream"
    assert not torch.equal(gap(1), gap(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    # A velocity alone gives no map; logit-normal pairs hardly ever span the whole of [0, 1].
    "variant",
    [v for v in VARIANTS if v["name"] != "flow_matching" and v.get("times") != "logit_normal_pair"],
    ids=label,
)
def test_it_learns_the_map(variant):
    """From scratch to a one-step error below 15 %, in a minute at most; an untrained map errs by about 150 %."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow = flow_for(variant, (3,)).float()
    model, g = MeanVelocity(MLP((3,), width=64, depth=3)), stream(3)
    loss = made(variant, flow)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(model, pairs(flow, 256, g), generator=g).mean().backward()
        optimizer.step()
        schedule.step()
    x, zero, one = torch.randn(2000, 3, generator=g), torch.zeros(2000), torch.ones(2000)
    exact = flow(x, zero, one)
    assert ((model(x, zero, one) - exact).norm() / (exact - flow.mean).norm()).item() < 0.15


def test_flow_matching_learns_a_velocity_only():
    assert find("losses", "flow_matching").learns_map is False
    assert getattr(find("losses", "lsd"), "learns_map", True)


def test_progressive_matching_steps_a_velocity_with_a_solver():
    """A teacher that is only a velocity must be solved: by jumps of its Euler map it would teach Euler steps."""
    flow = gaussian()
    velocity = EulerMap(flow)
    x = pairs(flow, 64, stream())
    gap = {}
    for sampler in ("jump", "runge_kutta4"):
        loss = build("losses", {"name": "pfmm", "steps": 8, "sampler": sampler}, teacher=velocity)
        gap[sampler] = loss(true_model(flow, (3,)), x, generator=stream()).mean()
    assert gap["runge_kutta4"] < 1e-9 < 1e-6 < gap["jump"]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"name": "lsd", "diagonal": 1.5}, "diagonal must lie between 0 and 1, a share of the batch; got 1.5"),
        ({"name": "lsd", "route": "fast"}, "route must be one of 'exact', 'stopped'; got 'fast'"),
        ({"name": "esd", "stop": "all"}, "stop must be one of 'full', 'convex', 'none'; got 'all'"),
        ({"name": "psd", "split": "thirds"}, "split must be one of 'uniform', 'midpoint'; got 'thirds'"),
        ({"name": "pfmm", "steps": 1}, "steps must be at least 2"),
    ],
)
def test_bad_options(variant, message):
    with pytest.raises(ValueError, match=message):
        made(variant, gaussian())
