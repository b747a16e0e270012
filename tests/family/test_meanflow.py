"""What MeanFlow's relatives are beyond stationary: their limits, targets, schedules and guidance, in closed form."""

import math

import pytest
import torch
from test_losses import begun, pairs, stationarity
from torch import nn
from truth import SHAPES, gaussian, slope, stream, true_model

from flowmaps.build import build
from flowmaps.core import identities
from flowmaps.core.calculus import derivative_along
from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.regression import Unchanged
from flowmaps.core.report import listen
from flowmaps.core.target import averages
from flowmaps.core.times import UniformPair
from flowmaps.core.types import Pair
from flowmaps.maps.two_heads import TwoHeads
from flowmaps.nets.mlp import MLP
from flowmaps.velocities.autoguided import Autoguided
from flowmaps.velocities.diagonal import Diagonal
from flowmaps.weightings.adaptive_power import AdaptivePower

PATH = Linear()
shapes = pytest.mark.parametrize("shape", SHAPES)


def bent(flow, shape, seed=2):
    """A map that is not the true one."""
    model = true_model(flow, shape)
    nn.init.normal_(model.net.head, std=0.1, generator=stream(seed))
    return model


def off_diagonal(pair, seed=4):
    """States I_s and dI_s/ds at the pairs of times that UniformPair draws first from a stream."""
    s, t = UniformPair()(len(pair), pair.x0, stream(seed))
    return *PATH.draw(pair, s), s, t


def columns(t, x):
    return t.reshape(-1, *[1] * (x.ndim - 1))


def mean_square(x):
    return x.square().flatten(1).mean(1)


def gradient(loss, model, pair, **options):
    return torch.autograd.grad(loss(model, pair, generator=stream(4), **options).mean(), model.net.head)[0]


class Labelled(FlowMap):
    """The constant velocity of a label: 1, 2, 3, and 0 without one. Writes down the conditions it sees."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 0.0]))
        self.seen = []

    def mean_velocity(self, x, s, t, cond=None):
        self.seen.append(cond)
        label = cond["label"] if isinstance(cond, dict) else cond
        return columns(self.value[label], x).expand(x.shape)

    def null_condition(self, batch):
        return torch.full((batch,), 3)


def labelled(shape, n=12):
    x0, x1 = torch.randn(2, n, *shape, generator=stream(6))
    return Pair(x0, x1, torch.arange(n) % 4), (torch.arange(n) % 4 == 3)


# AlphaFlow


def alpha_flow(**options):
    return build("losses", {"name": "alpha_flow", "diagonal": 0.0, "end": 10**9, **options})


def step_with(a):
    """The images after which a step-10^9 schedule of slope 25 has the ratio a."""
    return round((math.log(1 / a - 1) / 25 + 0.5) * 10**9)


def test_alpha_falls_from_one_to_zero():
    loss = build("losses", {"name": "alpha_flow", "begin": 100, "end": 300})
    assert [loss.ratio(k) for k in (0, 100, 200, 300, 900)] == [1, 1, 0.5, 0, 0]
    assert abs(loss.ratio(210) - 1 / (1 + math.exp(25 / 20))) < 1e-12
    assert loss.ratio(200 + 42) > 0.005 > loss.ratio(200 + 43) == 0  # ln(199) / 25 is 0.21 of the length
    assert loss.ratio(200 - 42) < 0.995 < loss.ratio(200 - 43) == 1


@shapes
def test_alpha_one_is_flow_matching_at_every_span_and_alpha_zero_mean_flow(shape):
    flow = gaussian(shape)
    model, pair = bent(flow, shape), pairs(flow, 32, stream())
    x, w, s, t = off_diagonal(pair)
    got = alpha_flow()(model, pair, generator=stream(4))
    assert (got - mean_square(model.mean_velocity(x, s, t) - w)).abs().max() < 1e-12
    options = {"diagonal": 0.25}
    losses = [build("losses", {"name": name, **options}) for name in ("alpha_flow", "mean_flow")]
    assert torch.equal(*(f(model, pair, step=10**9, generator=stream(4)) for f in losses))


@shapes
def test_alpha_flow_tends_to_mean_flow_at_first_order(shape):
    flow = gaussian(shape)
    model, pair = bent(flow, shape), pairs(flow, 64, stream())
    limit = gradient(build("losses", {"name": "mean_flow", "diagonal": 0.0}), model, pair)
    gap = [float((gradient(alpha_flow(), model, pair, step=step_with(a)) - limit).norm()) for a in (0.04, 0.02)]
    assert abs(slope(gap) - 1) < 0.1  # the next order is a few hundredths of the first
    assert gap[1] < 0.1 * limit.norm()


@shapes
@pytest.mark.parametrize("rescale", [True, False])
def test_alpha_weights_the_rescaled_or_the_released_error(shape, rescale):
    flow, a = gaussian(shape), 0.25
    model, pair = bent(flow, shape), pairs(flow, 32, stream())
    x, w, s, t = off_diagonal(pair)
    m = s + a * (t - s)
    target = a * w + (1 - a) * model.mean_velocity(x + columns(m - s, x) * w, m, t)
    error = mean_square(model.mean_velocity(x, s, t) - target)
    want = a * error / (error + 0.01 * (a**2 if rescale else 1))
    loss = alpha_flow(rescale=rescale, weighting=AdaptivePower(offset=0.01))
    # The step is a whole number of images, so that a is 0.25 to 1e-8.
    assert (loss(model, pair, step=step_with(a), generator=stream(4)) - want).abs().max() < 1e-6
    clipped = mean_square(model.mean_velocity(x, s, t) - target.clamp(-0.5, 0.5)) / a
    got = alpha_flow(limit=0.5)(model, pair, step=step_with(a), generator=stream(4))
    assert (got - clipped).abs().max() < 1e-6


# SplitMeanFlow


@shapes
def test_split_mean_flow_is_progressive_self_distillation_after_a_start(shape):
    flow = gaussian(shape)
    model, pair = bent(flow, shape), pairs(flow, 32, stream())
    loss = build("losses", {"name": "split_mean_flow", "start": 100})
    later, start = ({"name": "psd", "diagonal": 0.5}, 100), ({"name": "flow_matching"}, 99)
    for other, step in (later, start):
        both = (f(model, pair, step=step, generator=stream(4)) for f in (loss, build("losses", other)))
        assert torch.equal(*both)


# Shortcut models


class Dyadic:
    """Half of the spans 1/2, half the shortest, 1/64."""

    def __call__(self, n, like, generator=None, *, step=0):
        span = torch.where(torch.arange(n) % 2 == 0, 0.5, 1 / 64)
        s = (torch.arange(n) % 7 + 1) / 8  # off the ends, where the oracle's divided differences are one-sided
        s = (s.clamp(max=0.9) / span).floor() * span
        return s, s + span


@shapes
def test_shortcuts_take_euler_steps_for_the_shortest_span_only(shape):
    """At the true map long spans have no error, and the shortest that of two Euler steps, in closed form."""
    flow = gaussian(shape)
    model, pair = true_model(flow, shape), pairs(flow, 14, stream())
    loss = begun(build("losses", {"name": "shortcut", "diagonal": 0.0, "times": Dyadic()}), model)
    error = loss(model, pair, generator=stream())
    s, t = Dyadic()(14, pair.x0)
    assert error[::2].max() < 1e-24
    x, _ = PATH.draw(pair, s)
    h = columns((t - s) / 2, x)
    first = flow.velocity(x, s)
    slow = (first + flow.velocity(x + h * first, (s + t) / 2)) / 2
    want = mean_square(flow.mean_velocity(x, s, t) - slow)
    assert (error - want)[1::2].abs().max() < 1e-12 < 1e-7 < want[1::2].max()


@shapes
def test_shortcuts_learn_from_the_average(shape):
    flow = gaussian(shape)
    model, pair = true_model(flow, shape), pairs(flow, 14, stream())
    options = {"diagonal": 0.0, "shortest": 0.0, "times": "uniform_pair"}
    loss = begun(build("losses", {"name": "shortcut", **options}), model)
    assert averages(loss)[0].decay == 0.999
    nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    s, t = loss.times(14, pair.x0, stream(4))
    x, _ = PATH.draw(pair, s)
    want = mean_square(model.mean_velocity(x, s, t) - flow.mean_velocity(x, s, t))
    assert (loss(model, pair, generator=stream(4)) - want).abs().max() < 1e-12 < want.min()


@shapes
def test_shortcuts_guide_and_clip_their_targets(shape):
    pair, null = labelled(shape)
    model = Labelled()
    loss = begun(build("losses", {"name": "shortcut", "diagonal": 0.0, "times": Dyadic(), "scale": 3.0}), model)
    short = torch.arange(12) % 2 == 1
    want = torch.where(short & ~null, (2 * pair.cond + 2.0).square(), torch.zeros(12))  # (3 - 1) v
    assert (loss(model, pair, generator=stream()) - want).abs().max() < 1e-12
    loss = begun(build("losses", {"name": "shortcut", "diagonal": 0.0, "limit": 1.5}), model)
    got = loss(model, pair, generator=stream())
    assert (got - (model.value[pair.cond] - 1.5).clamp_min(0).square()).abs().max() < 1e-12


# SoFlow


@shapes
def test_soflow_compares_arrivals(shape):
    """In the form of the paper: a difference of the map over the step in time."""
    flow, rho = gaussian(shape), 0.125
    model, pair = bent(flow, shape), pairs(flow, 32, stream())
    x, w, s, t = off_diagonal(pair)
    m = s + rho * (t - s)
    q = (model(x, s, t) - model(x + columns(m - s, x) * w, m, t)) / columns(m - s, x)
    loss = build("losses", {"name": "soflow", "diagonal": 0.0, "first": rho, "last": rho})
    assert (loss(model, pair, generator=stream(4)) - rho * mean_square(q)).abs().max() < 1e-9
    halved = build("losses", {"name": "soflow", "first": 0.08, "last": 0.02, "images": 100})
    assert [round(halved.ratio(k), 12) for k in (0, 50, 100, 500)] == [0.08, 0.04, 0.02, 0.02]


@shapes
def test_soflow_is_biased_at_first_order_in_its_step(shape):
    """With the velocity itself Q is O(rho) at the true map, so that rho |Q|^2 is of third order."""
    flow = gaussian(shape)
    model, pair = true_model(flow, shape), pairs(flow, 64, stream())
    value = [
        build("losses", {"name": "soflow", "diagonal": 0.0, "images": 0, "last": rho}, velocity=Diagonal())(
            model, pair, generator=stream(4)
        )
        .mean()
        .item()
        for rho in (0.02, 0.01)
    ]
    assert abs(slope(value) - 3) < 0.1
    assert value[1] > 1e-12


# Decoupled MeanFlow


@shapes
def test_decoupled_mean_flow_is_both_losses_on_every_sample(shape):
    flow = gaussian(shape)
    model, pair, g = bent(flow, shape), pairs(flow, 16, stream()), stream(4)
    losses = [{"name": "flow_matching"}, {"name": "mean_flow", "diagonal": 0.0}]
    parts = [build("losses", other)(model, pair, generator=g) for other in losses]
    uniform = {"times": "uniform_pair", "diagonal_times": "uniform"}
    got = build("losses", {"name": "decoupled_mean_flow", **uniform})(model, pair, generator=stream(4))
    assert torch.equal(got, (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize("v", [0.0, -3.0])
def test_the_log_loss_of_decoupled_mean_flow_has_the_gradient_of_adaptive_power(v):
    error = torch.tensor([1e-4, 0.1, 30.0], requires_grad=True)
    released = (math.exp(-v) * error + 0.01).log() + v
    ours = AdaptivePower(1.0, 0.01 * math.exp(v))(error, error, error)
    both = [torch.autograd.grad(loss.sum(), error)[0] for loss in (released, ours)]
    assert (both[0] / both[1] - 1).abs().max() < 1e-12


# Balanced shares


@shapes
@pytest.mark.parametrize("inner", [{"name": "mean_flow"}, {"name": "psd"}, {"name": "improved_mean_flow"}])
def test_balanced_shares_have_one_scale(shape, inner):
    """Each sample off the diagonal has the mean of the diagonal, and the gradient of that mean times the logarithm."""
    flow = gaussian(shape)
    model, pair = bent(flow, shape), pairs(flow, 16, stream())
    inner = {**inner, "diagonal": 0.25}
    plain, loss = build("losses", inner), build("losses", {"name": "balanced", "loss": inner, "offset": 1e-9})
    e = plain(model, pair, generator=stream(4))
    assert e[4:].std() > 0.01 * e[4:].mean(), "they differ before"
    got = loss(model, pair, generator=stream(4))
    mean = e[:4].mean().detach()
    assert torch.equal(got[:4], e[:4])
    assert (got[4:] / mean - e[4:] / (e[4:] + 1e-9)).abs().max() < 1e-12
    want = torch.cat([e[:4], mean * (e[4:] + 1e-9).log()]).mean()
    both = [torch.autograd.grad(x, model.net.head)[0] for x in (got.mean(), want)]
    assert (both[0] - both[1]).norm() < 1e-12 * both[1].norm()
    assert torch.equal(loss(model, pair[:1], generator=stream(4)), plain(model, pair[:1], generator=stream(4)))


# Terminal velocity matching


@shapes
def test_terminal_velocity_is_that_of_the_average(shape):
    flow = gaussian(shape)
    model, pair = true_model(flow, shape), pairs(flow, 16, stream())
    loss = begun(build("losses", {"name": "terminal_velocity_matching", "times": "uniform_pair"}), model)
    assert averages(loss)[0].decay == 0.99
    nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    x, _, s, t = off_diagonal(pair)
    want = mean_square(identities.lagrangian(model, flow.velocity, x, s, t))
    with listen() as heard:
        loss(model, pair, generator=stream(4))
    assert (heard["terminal"][0] - want).abs().max() < 1e-9 < want.min()
    still = begun(build("losses", {"name": "terminal_velocity_matching", "times": "annealed"}), true_model(flow, shape))
    with listen() as heard:
        still(model, pair, generator=stream(4))
    assert heard["terminal"][0].max() == 0, "where s = t only flow matching counts"


@shapes
def test_terminal_velocity_matching_guides_flow_matching(shape):
    pair, null = labelled(shape)
    model = Labelled()
    loss = begun(build("losses", {"name": "terminal_velocity_matching", "scale": 2.0}), model)
    w = pair.x1 - pair.x0
    u = columns(model.value[pair.cond], w)
    want = torch.where(null, mean_square(w), mean_square(u - 2 * w) / 4)
    assert (loss(model, pair, generator=stream()) - want).abs().max() < 1e-12


# Align Your Flow


def align(flow, **options):
    return build("losses", {"name": "align_your_flow", **options}, teacher=flow)


@shapes
def test_align_your_flow_keeps_a_hundredth_of_straightness(shape):
    """At the truth (t - s) Du = u - b, so that what is left is the normalised (1 - most) (b - u)."""
    flow = gaussian(shape)
    model, pair = true_model(flow, shape), pairs(flow, 16, stream())
    x, _, s, t = off_diagonal(pair)
    g = 0.01 * (flow.velocity(x, s) - flow.mean_velocity(x, s, t))
    g = g / (columns(g.flatten(1).norm(dim=1), g) + 0.1)
    got = align(flow)(model, pair, generator=stream(4))
    assert (got - mean_square(g)).abs().max() < 1e-12 < mean_square(g).max()
    cold = align(flow, warmup=10, stabiliser=Unchanged())(model, pair, generator=stream(4))
    assert (cold - mean_square(flow.velocity(x, s) - flow.mean_velocity(x, s, t))).abs().max() < 1e-12


@shapes
def test_align_your_flow_without_taming_is_a_known_residual(shape):
    flow, weak = gaussian(shape), gaussian(shape, seed=8)
    model, pair = bent(flow, shape), pairs(flow, 16, stream())
    plain = {"stabiliser": Unchanged(), "most": 1.0}
    x, _, s, t = off_diagonal(pair)
    for velocity, b in (
        (None, flow.velocity),
        (Autoguided(flow, weak, 3.0), lambda *a: 3 * flow.velocity(*a[:2]) - 2 * weak.velocity(*a[:2])),
        # Without a condition no guidance; and right anywhere, as its teacher.
        (build("velocities", {"name": "guided", "velocity": "teacher"}, teacher=flow), flow.velocity),
    ):
        for residual in ("eulerian", "lagrangian"):
            want = getattr(identities, residual)(model, b, x, s, t)
            got = align(flow, velocity=velocity, residual=residual, **plain)(model, pair, generator=stream(4))
            assert (got - mean_square(want)).abs().max() < 1e-9


@shapes
def test_align_your_flow_moves_the_mean_velocity_against_the_residual(shape):
    flow = gaussian(shape)
    model, pair = bent(flow, shape), pairs(flow, 16, stream())
    x, _, s, t = off_diagonal(pair)
    for residual in ("eulerian", "lagrangian"):
        r = getattr(identities, residual)(model, flow.velocity, x, s, t).detach()
        sign = {"eulerian": -1, "lagrangian": 1}[residual]  # d_s X has -u where d_t X has u
        want = torch.autograd.grad((2 * sign * r * model.mean_velocity(x, s, t)).mean(), model.net.head)[0]
        got = gradient(align(flow, residual=residual, stabiliser=Unchanged(), most=1.0), model, pair)
        assert (got - want).abs().max() < 1e-9


# Flow-anchored consistency


@shapes
def test_anchored_consistency_moves_part_of_the_way(shape):
    flow = gaussian(shape)
    model, pair = bent(flow, shape), pairs(flow, 16, stream())
    loss = build("losses", {"name": "facm", "stabiliser": "clamped", "distance": "square_and_cosine"})
    s = torch.rand(16, generator=stream(4))
    (x, w), one = PATH.draw(pair, s), torch.ones(16)
    r = identities.eulerian(model, lambda *_: w, x, s, one)  # w - u + (1 - s) Du
    r = columns(1 - s.sqrt(), x) * r.clamp(-1, 1)
    anchor = loss.distance(model.velocity(x, s), w)
    want = torch.cos(math.pi / 2 * s) * mean_square(r) + anchor
    assert (loss(model, pair, generator=stream(4)) - want).abs().max() < 1e-9
    # Half of that square's gradient is r times the gradient of u.
    jump = (torch.cos(math.pi / 2 * s) * (-2 * r.detach() * model.mean_velocity(x, s, one)).flatten(1).mean(1)).mean()
    want = torch.autograd.grad(jump + anchor.mean(), model.net.head)[0]
    assert (gradient(loss, model, pair) - want).abs().max() < 1e-9


@shapes
def test_anchored_consistency_with_clamping_is_stationary_for_the_velocity_itself(shape):
    flow = gaussian(shape)
    loss = build("losses", {"name": "facm", "stabiliser": "clamped", "velocity": "teacher"}, teacher=flow)
    assert stationarity(loss, flow, shape) < 6


# Improved MeanFlow


@shapes
def test_improved_mean_flow_is_a_regression_along_its_own_velocity(shape):
    flow = gaussian(shape)
    model, pair = bent(flow, shape), pairs(flow, 16, stream())
    x, w, s, t = off_diagonal(pair)
    du = derivative_along(model.mean_velocity, x, s, t, dx=model.velocity(x, s), ds=1.0)[1]
    compound = model.mean_velocity(x, s, t) - columns(t - s, x) * du
    loss = build("losses", {"name": "improved_mean_flow", "diagonal": 0.0})
    assert (loss(model, pair, generator=stream(4)) - mean_square(compound - w)).abs().max() < 1e-9


class Doubled(nn.Module):
    """A mean velocity, and a second output that is 0.3 x + s."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, s, t, cond=None):
        return torch.stack([self.net(x, s, t, cond), 0.3 * x + columns(s, x)], 1)

    def null_condition(self, batch):
        return None


@shapes
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_improved_mean_flow_trains_a_second_head_and_differentiates_along_it(shape, share):
    flow = gaussian(shape)
    one, pair = bent(flow, shape), pairs(flow, 16, stream())
    loss = build("losses", {"name": "improved_mean_flow", "diagonal": share})
    if share:
        s = t = torch.rand(16, generator=stream(4))
        x, w = PATH.draw(pair, s)
    else:
        x, w, s, t = off_diagonal(pair)
    v = 0.3 * x + columns(s, x)
    du = derivative_along(one.mean_velocity, x, s, t, dx=v, ds=1.0)[1]
    compound = one.mean_velocity(x, s, t) - columns(t - s, x) * du
    got = loss(TwoHeads(Doubled(one.net)), pair, generator=stream(4))
    assert (got - mean_square(compound - w) - mean_square(v - w)).abs().max() < 1e-9


@shapes
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_improved_mean_flow_guides_by_what_the_network_is_told(shape, share):
    """For constant velocities the target is dI/ds + (1 - 1/scale) v(label) where the scale holds, and dI/ds elsewhere."""
    pair, null = labelled(shape, 400)
    model = Labelled()
    loss = build("losses", {"name": "improved_mean_flow", "diagonal": share})
    got = loss(model, pair, generator=stream(4))
    told = model.seen[-1]
    s = UniformPair()(400, pair.x0, stream(4))[0]
    scale, holds = told["guidance"], (told["low"] <= s) & (s <= told["high"])
    if share:
        assert (told["low"] == 0).all()
        assert (told["high"] == 1).all()
        holds = torch.ones(400, dtype=torch.bool)
    else:
        assert 0 <= told["low"].min() < told["low"].max() <= 0.5 <= told["high"].min() < told["high"].max() <= 1
        assert 0.2 < holds.double().mean() < 0.9
        assert sum(isinstance(c, dict) and bool((c["low"] > 0).any()) for c in model.seen) == 2, "u and du only"
    assert 1 <= scale.min() < 1.2 < 6 < scale.max() <= 8
    assert abs(scale.log().mean() / math.log(8) - 0.5) < 0.07  # five standard errors of 400 uniform draws: 6e-7
    w = pair.x1 - pair.x0
    kept = torch.where(null | ~holds, 0.0, (1 - 1 / scale) * model.value[pair.cond])
    want = mean_square(columns(model.value[pair.cond] - kept, w) - w)
    assert (got - want).abs().max() < 1e-12


class Beside(FlowMap):
    """u = the mean of what stands beside the state, plus 2 for the label 1; it needs all that it is told."""

    def mean_velocity(self, x, s, t, cond=None):
        assert set(cond) - {"label"} == {"spatial", "guidance", "low", "high"}
        label = cond.get("label", torch.zeros(len(x)))
        return columns(cond["spatial"].flatten(1).mean(1) + 2 * label.eq(1), x).expand(x.shape)

    def null_condition(self, batch):
        return {"label": torch.full((batch,), 2), "spatial": torch.zeros(batch, 1, 2, 3)}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_improved_mean_flow_keeps_the_whole_condition(share, labels):
    """What stands beside the state guides too, with a label or alone; without it the velocity is zero."""
    pair, _ = labelled((2, 2, 3), 64)
    spatial, label = torch.rand(64, 1, 2, 3, generator=stream(9)), (pair.cond == 1).long()
    spatial[:8], label[:8] = 0, 2  # dropped
    cond = {"spatial": spatial} | ({"label": label} if labels else {})
    model, told = Beside(), []
    plain = model.mean_velocity
    model.mean_velocity = lambda x, s, t, cond=None: told.append(cond) or plain(x, s, t, cond)
    loss = build("losses", {"name": "improved_mean_flow", "diagonal": share})
    got = loss(model, Pair(pair.x0, pair.x1, cond), generator=stream(4))
    s = UniformPair()(64, pair.x0, stream(4))[0] if not share else torch.rand(64, generator=stream(4))
    last = told[-1]
    scale, holds = last["guidance"], (last["low"] <= s) & (s <= last["high"])
    assert torch.equal(last["spatial"], spatial)
    u = spatial.flatten(1).mean(1) + (2 * label.eq(1) if labels else 0)
    gained = torch.where(holds & (torch.arange(64) >= 8), (1 - 1 / scale) * u, 0.0)
    w = pair.x1 - pair.x0
    assert (got - mean_square(columns(u - gained, w) - w)).abs().max() < 1e-12


class Guided(FlowMap):
    """The exact guided velocity scale b + (1 - scale) b(null) of the scale that it is told, plus a head, at first zero."""

    def __init__(self, flow, free, shape):
        super().__init__()
        self.net, self.free = true_model(flow, shape).net, free

    def mean_velocity(self, x, s, t, cond=None):
        free, scale = self.free.velocity(x, s), columns(cond["guidance"], x)
        label = columns(cond["label"], x)
        return torch.where(label == 1, free, free.lerp(self.net(x, s, t), scale))

    def null_condition(self, batch):
        return torch.ones(batch, dtype=torch.long)


@shapes
def test_the_fixed_point_of_improved_mean_flow_is_guidance_of_the_scale_told(shape):
    """Mean squared z-score of the gradient, as in test_losses; below 6 but for a chance of 1e-7."""
    flow, g = gaussian(shape), stream(3)
    model = Guided(flow, gaussian(shape, seed=8), shape)
    loss = build("losses", {"name": "improved_mean_flow", "diagonal": 1.0, "highest": 4.0})

    def gradients():
        pair = pairs(flow, 512, g)
        pair = Pair(pair.x0, pair.x1, torch.zeros(512, dtype=torch.long))
        return torch.autograd.grad(loss(model, pair, generator=g).mean(), model.net.head)[0]

    every = torch.stack([gradients() for _ in range(24)])
    assert (every.mean(0) / (every.std(0) / 24**0.5)).square().mean() < 6


def test_what_improved_mean_flow_compares_has_one_dropout_mask():
    """A network that ignores labels and scales has nothing to exaggerate, whatever the mask."""
    torch.manual_seed(0)
    net = MLP((3,), classes=4, width=16, depth=2, dropout=0.5, numbers=("guidance", "low", "high"))
    nn.init.zeros_(net.labels.table.weight)
    pair, model, found = labelled((3,))[0], MeanVelocity(net).train(), []
    for highest in (8.0, 1.0):
        torch.manual_seed(1)
        loss = build("losses", {"name": "improved_mean_flow", "diagonal": 1.0, "highest": highest})
        found.append(loss(model, pair, generator=stream(4)))
    assert (found[0] - found[1]).abs().max() < 1e-12


def test_improved_mean_flow_needs_a_network_that_can_be_told():
    pair, _ = labelled((3,))
    model = MeanVelocity(MLP((3,), classes=3, width=8, depth=2))
    with pytest.raises(ValueError, match=r"Name it in net\.numbers"):
        build("losses", "improved_mean_flow")(model, pair, generator=stream())
    told = MeanVelocity(MLP((3,), classes=3, width=8, depth=2, numbers=("guidance", "low", "high")))
    assert build("losses", "improved_mean_flow")(told, pair, generator=stream()).shape == (12,)
    assert build("losses", {"name": "improved_mean_flow", "highest": 1.0})(model, pair, generator=stream()).shape == (
        12,
    )
