"""Distillation and its critics: FreeFlow, distribution matching, adversaries."""

import math
from itertools import pairwise

import pytest
import torch
from test_losses import begun, pairs, stationarity
from torch import nn
from truth import SHAPES, TrueNet, draws, eight_gaussians, gaussian, stream, true_model

from flowmaps.build import build
from flowmaps.core import identities
from flowmaps.core.flow_map import EulerMap, FlowMap, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.report import listen
from flowmaps.core.sampling import sample
from flowmaps.core.shapes import expand_time
from flowmaps.core.target import Own, averages
from flowmaps.core.times import TimeLaw
from flowmaps.core.types import Pair
from flowmaps.couplings.reflow import Reflow, stored_pairs
from flowmaps.critics.discriminator import Discriminator
from flowmaps.critics.distribution_matching import DistributionMatching
from flowmaps.critics.velocity import VelocityCritic
from flowmaps.losses.boss import BOSS
from flowmaps.losses.distribution_matching import DistributionMatching as OneStep
from flowmaps.losses.free_flow import FreeFlow
from flowmaps.losses.one_step_distillation import OneStepDistillation
from flowmaps.losses.self_corrected import SelfCorrected
from flowmaps.losses.velocity_distillation import VelocityDistillation
from flowmaps.losses.with_critic import WithCritic
from flowmaps.nets.mlp import MLP
from flowmaps.oracles.gaussian import Gaussian
from flowmaps.oracles.mixture import Mixture
from flowmaps.samplers.heun import Heun


class At(TimeLaw):
    """All times the same."""

    def __init__(self, t):
        self.t = t

    def quantile(self, u):
        return torch.full_like(u, self.t)

    def density(self, t):
        return torch.ones_like(t)


def shifted(flow, by=0.5):
    """The flow to the same data, moved: the law of a map that is wrong by a constant."""
    return Gaussian(flow.mean + by, flow.std, flow.interpolant)


def true_critic(flow, shape):
    return VelocityCritic(TrueNet(flow, shape))


def gradient(loss, parameter):
    return torch.autograd.grad(loss.mean(), parameter, allow_unused=True)[0]


def train(loss, model, flow, steps=1500, batch=256, rate=3e-3, extra=()):
    g = stream(3)
    optimizer = torch.optim.Adam([*model.parameters(), *extra], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        optimizer.zero_grad()
        loss(model, pairs(flow, batch, g), step=k * batch, generator=g).mean().backward()
        optimizer.step()
        schedule.step()
    return model


# Critics


def critic_of(name, flow, shape, **options):
    """A critic that sees a moved law, and the network in it."""
    torch.manual_seed(0)
    velocity = true_critic(shifted(flow), shape)
    if name == "discriminator":
        judge = Discriminator(shape, 3, width=16, **options)
        return judge, judge
    return (velocity if name == "velocity" else DistributionMatching(flow, velocity, **options)), velocity


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["velocity", "discriminator", "distribution_matching"])
def test_map_and_critic_do_not_see_each_others_gradient(name, shape):
    flow, found = gaussian(shape), []
    pair = Pair(*torch.randn(2, 12, *shape, generator=stream()), torch.arange(12) % 4)
    for options in ({"weight": 1.0}, {"weight": 5.0})[: 1 if name == "velocity" else 2]:
        critic, module = critic_of(name, flow, shape, **options if name != "velocity" else {})
        model = MeanVelocity(TrueNet(shifted(flow), shape))
        loss = critic(model(pair.x0, torch.zeros(12), torch.ones(12)), pair, generator=stream(1))
        assert loss.shape == (12,)
        weights = [model.net.head, *module.parameters()]
        found.append(torch.autograd.grad(loss.mean(), weights, allow_unused=True))
    if name == "velocity":
        assert found[0][0] is None, "a velocity learns; it does not judge"
        assert all(g is not None for g in found[0][1:])
        return
    assert (found[1][0] - 5 * found[0][0]).abs().max() < 1e-10 < found[1][0].abs().max(), "the map sees its own term"
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.equal(one, other), "the critic does not see that of the map"


@pytest.mark.parametrize("shape", SHAPES)
def test_distribution_matching_pulls_along_the_difference_of_means(shape):
    """For equal spreads D_fake - D_real = (m' - m) (1 - r)^2 / S_r^2 at every point, and nothing at the truth."""
    flow, r = gaussian(shape), 0.3
    critic = DistributionMatching(flow, true_critic(shifted(flow), shape), times=At(r))
    x = shifted(flow).sample(16, stream()).requires_grad_()
    (pull,) = torch.autograd.grad(critic(x, Pair(x.detach()), generator=stream(1)).sum(), x)
    g = stream(1)
    torch.rand(16, generator=g)
    y = r * x + (1 - r) * torch.randn(16, *shape, generator=g)
    times = torch.full((16,), r)
    scale = (x - flow.interpolant.data_from_velocity(flow.velocity(y, times), y, times)).abs().flatten(1).mean(1)
    want = 0.5 * (1 - r) ** 2 / ((1 - r) ** 2 + (r * flow.std) ** 2) / scale.reshape(-1, *[1] * len(shape))
    assert (pull * flow.mean.numel() - want).abs().max() < 1e-10  # 1/2 |.|^2 / D has gradient (x - target) / D
    same = DistributionMatching(flow, true_critic(flow, shape))(x, Pair(x.detach()), generator=stream(1))
    assert torch.autograd.grad(same.sum(), x)[0].abs().max() < 1e-12


def test_guided_distribution_matching_moves_the_teacher_away_from_its_null():
    flow, x = gaussian(), torch.randn(8, 3, generator=stream())

    class Two(Gaussian):
        def mean_velocity(self, x, s, t, cond=None):
            v = super().mean_velocity(x, s, t)
            return v if cond is None else v + cond[:, None]

        def null_condition(self, batch):
            return torch.zeros(batch)

    teacher = Two(flow.mean, flow.std)
    pair, critic = Pair(x, None, torch.ones(8)), true_critic(flow, (3,))
    pulls = []
    for scale in (1.0, 3.0):
        y = x.clone().requires_grad_()
        loss = DistributionMatching(teacher, critic, scale=scale, times=At(0.0))(y, pair, generator=stream(1))
        pulls.append(torch.autograd.grad(loss.sum(), y)[0])
    # At r = 0 real data are predicted at their mean, plus the scale; what is pulled is -scale over mean |x - D_real|.
    for scale, pull in zip((1.0, 3.0), pulls, strict=True):
        want = -scale / (x - flow.mean - scale).abs().mean(1, keepdim=True)
        assert (pull * 3 - want).abs().max() < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_discriminator_terms_are_the_published_ones(shape):
    judge, flow = Discriminator(shape, 3, width=16, weight=0.3, penalty=2.0), gaussian(shape)
    x, pair = flow.sample(6, stream(1)), Pair(flow.sample(6, stream(2)), flow.sample(6, stream(3)), torch.arange(6) % 4)
    real = pair.x1.clone().requires_grad_()
    a, b = judge.net(x, pair.cond), judge.net(real, pair.cond)
    slope = torch.stack([torch.autograd.grad(b[i], real, retain_graph=True)[0][i] for i in range(6)])
    want = (
        0.3 * torch.log1p((-a).exp())
        + torch.log1p(a.exp())
        + torch.log1p((-b).exp())
        + slope.flatten(1).square().sum(1)
    )
    assert (judge(x, pair) - want).abs().max() < 1e-12
    with pytest.raises(ValueError, match="a discriminator needs data; got a pair with x1 = None"):
        judge(x, Pair(x))
    with pytest.raises(ValueError, match="weight and penalty must be >= 0"):
        Discriminator(shape, penalty=-1.0)


def test_discriminator_learns_the_log_ratio_of_densities():
    torch.manual_seed(0)
    flow = gaussian()
    other, g = shifted(flow), stream()
    judge = Discriminator((3,), width=32, depth=2, penalty=0.0)
    optimizer = torch.optim.Adam(judge.parameters(), 3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        judge(other.sample(256, g), pairs(flow, 256, g)).mean().backward()
        optimizer.step()
    x, one = flow.sample(2000, g), torch.ones(2000)
    ratio = flow.log_density(x, one) - other.log_density(x, one)
    found = torch.corrcoef(torch.stack([judge.net(x, None).detach(), ratio]))[0, 1]
    assert found > 0.95  # the optimum is the ratio itself; what is left is that of a short fit


def test_discriminator_sees_the_label():
    torch.manual_seed(0)
    judge, x = Discriminator((3,), 2), torch.randn(4, 3)
    nn.init.normal_(judge.net.label.weight)
    zero, one, null = (judge.net(x, torch.full((4,), k)) for k in (0, 1, 2))
    assert (zero != one).all()
    assert (zero != null).all()
    assert torch.equal(one, judge.net(x, {"label": torch.ones(4, dtype=torch.long), "guidance": torch.ones(4)}))


# FreeFlow


@pytest.mark.parametrize("shape", SHAPES)
def test_free_flow_is_stationary_at_the_truth_with_the_true_critic(shape):
    flow = gaussian(shape)
    loss = FreeFlow(flow, true_critic(flow, shape))
    assert stationarity(loss, flow, shape) < 6


@pytest.mark.parametrize("shape", SHAPES)
def test_free_flow_corrects_a_constant_error_towards_the_teacher(shape):
    """For equal spreads v_r - b_r = (m' - m) (1 - r) / S_r^2 at every point: the gradient on an offset is that."""
    flow, r = gaussian(shape), 0.3
    model = MeanVelocity(TrueNet(shifted(flow), shape))
    offset = torch.zeros(shape, requires_grad=True)
    original = model.net.forward
    model.net.forward = lambda x, s, t, cond=None: original(x, s, t, cond) + offset
    loss = FreeFlow(flow, true_critic(shifted(flow), shape), prediction=0.0, critic_times=At(r), balance=0.7)
    pair = Pair(torch.randn(16, *shape, generator=stream()))
    got = gradient(loss(model, pair, generator=stream(1)), offset)
    want = 2 * 0.7 * 0.5 * (1 - r) / ((1 - r) ** 2 + (r * flow.std) ** 2) / flow.mean.numel()
    assert (got - want).abs().max() < 1e-12


def test_free_flow_balances_the_correction_against_the_prediction():
    """The pull of the correction, per sample, has the mean length of the prediction's residual times the balance."""
    flow = gaussian()
    model = MeanVelocity(TrueNet(shifted(flow), (3,)))
    pair = Pair(torch.randn(64, 3, generator=stream()))
    for balance in (1.0, 2.0):
        with listen() as heard:
            FreeFlow(flow, true_critic(shifted(flow, 0.4), (3,)), balance=balance)(model, pair, generator=stream(1))
        assert {k: len(v[0]) for k, v in heard.items()} == {"prediction": 48, "correction": 16, "critic": 16}
        lengths = [heard[k][0].mul(3).sqrt().mean() for k in ("prediction", "correction")]
        assert abs(lengths[1] / lengths[0] - balance) < 1e-5  # 1e-6 in the denominator


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_free_flow_needs_no_data(share):
    flow = gaussian()
    loss = FreeFlow(flow, true_critic(flow, (3,)), prediction=share)
    assert loss(true_model(flow, (3,)), Pair(draws(8, (3,))[0]), generator=stream()).shape == (8,)


@pytest.mark.parametrize("name", ["ctm", "self_corrected", "distribution_matching", "with_critic"])
def test_a_critic_that_gives_the_map_no_gradient_is_refused(name):
    flow = gaussian()
    critic = {"name": "velocity", "net": {"name": "mlp", "width": 8, "depth": 2}}
    context = {"teacher": flow, "interpolant": flow.interpolant, "shape": (3,), "classes": 0}
    with pytest.raises(
        ValueError, match=r"VelocityCritic learns their velocity.*'distribution_matching', critic\.critic"
    ):
        build("losses", {"name": name, "critic": critic}, **context)
    judge = {"name": "distribution_matching", "critic": critic}
    assert build("losses", {"name": name, "critic": judge}, **context).critic.teacher is flow


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inner", ["lsd", "mean_flow", "emd"])
def test_a_critic_beside_a_loss_adds_its_gradient_by_weight_and_warm_up(inner, shape):
    """Gradients of the map are those of the loss and a share of the critic's; those of the critic are its own."""
    flow = gaussian(shape)
    model, pair = MeanVelocity(TrueNet(shifted(flow), shape)), pairs(flow, 16, stream())
    torch.nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    online = true_critic(shifted(flow, 0.3), shape)
    critic = DistributionMatching(flow, online)

    class Silent:
        """The same loss, which leaves the stream where it finds it."""

        def __call__(self, model, pair, *, step=0, generator=None):
            return build("losses", inner, teacher=flow)(model, pair, step=step, generator=stream(7))

    def found(loss, step=0):
        value = loss(model, pair, step=step, generator=stream(1))
        weights = [model.net.head, *online.parameters()]
        return value, torch.autograd.grad(value.mean(), weights, allow_unused=True)

    alone, own = found(Silent()), found(OneStep(critic))
    for step, share in ((0, 0.0), (30, 0.6), (100, 2.0), (500, 2.0)):
        value, (head, *rest) = found(WithCritic(critic, Silent(), weight=2.0, warmup=100), step)
        assert (value - alone[0] - own[0]).abs().max() < 1e-12
        assert (head - alone[1][0] - share * own[1][0]).abs().max() < 1e-12 < own[1][0].abs().max()
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(rest, own[1][1:], strict=True))


def test_what_a_critic_cannot_stand_beside():
    flow = gaussian()
    critic = DistributionMatching(flow, true_critic(flow, (3,)))
    with pytest.raises(ValueError, match="must learn a map, whose samples the critic sees; got FlowMatching"):
        build("losses", {"name": "with_critic", "critic": critic, "loss": "flow_matching"})
    with pytest.raises(ValueError, match="weight and warmup must be >= 0; got -1.0 and 0"):
        build("losses", {"name": "with_critic", "critic": critic, "weight": -1.0})


@pytest.mark.slow
def test_a_critic_sharpens_a_map_that_learns_too_little():
    """MeanFlow with a tenth of the steps it takes leaves the deviation too small; beside a critic it is nearer."""
    torch.set_default_dtype(torch.float32)
    flow, gap = gaussian().float(), {}
    for beside in (False, True):
        torch.manual_seed(0)
        online = VelocityCritic(MLP((3,), width=64, depth=3))
        loss = build("losses", "mean_flow")
        loss = WithCritic(DistributionMatching(flow, online), loss, weight=0.3, warmup=20_000) if beside else loss
        model = train(loss, MeanVelocity(MLP((3,), width=64, depth=3)), flow, 400, extra=online.parameters())
        x = model(torch.randn(8000, 3, generator=stream(9)), torch.zeros(8000), torch.ones(8000)).detach()
        gap[beside] = float((x.std(0) / flow.std).log().abs().mean() + (x.mean(0) - flow.mean).abs().mean())
    assert gap[True] < gap[False] / 2, gap  # 0.08 and 0.51


def test_critics_are_built_from_nested_tables():
    flow = gaussian()
    net = {"name": "mlp", "width": 8, "depth": 2}
    inner = {"name": "velocity", "net": net}
    context = {"teacher": flow, "interpolant": flow.interpolant, "shape": (3,), "classes": 0}
    assert isinstance(build("losses", {"name": "free_flow", "critic": inner}, **context).critic.net, MLP)
    outer = {"name": "distribution_matching", "critic": {"name": "distribution_matching", "critic": inner}}
    loss = build("losses", outer, **context)
    assert loss.critic.teacher is flow
    assert isinstance(loss.critic.critic.net, MLP)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distribution_matching", "discriminator"])
def test_one_step_samples_get_the_right_law_from_a_critic_alone(name):
    """From a map that is off by 0.5 in the mean to one that is off by less than a third of that."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow = gaussian().float()
    online = VelocityCritic(MLP((3,), width=64, depth=3))
    critic = DistributionMatching(flow, online) if name == "distribution_matching" else Discriminator((3,), weight=1.0)
    module = online if name == "distribution_matching" else critic
    model = MeanVelocity(TrueNet(shifted(flow), (3,)))
    train(OneStep(critic), model, flow, 1000, extra=module.parameters())
    x = model(torch.randn(4000, 3, generator=stream(9)), torch.zeros(4000), torch.ones(4000))
    assert (x.mean(0) - flow.mean).abs().max() < 0.15  # five standard errors of the mean are 0.1
    assert ((x.std(0) / flow.std).log().abs()).max() < math.log(1.25)


@pytest.mark.slow
def test_free_flow_with_an_online_critic_learns_the_map():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow = gaussian().float()
    critic = VelocityCritic(MLP((3,), width=64, depth=3))
    model = train(FreeFlow(flow, critic), MeanVelocity(MLP((3,), width=64, depth=3)), flow, extra=critic.parameters())
    x, zero, one = torch.randn(2000, 3, generator=stream(9)), torch.zeros(2000), torch.ones(2000)
    exact = flow(x, zero, one)
    assert ((model(x, zero, one) - exact).norm() / (exact - flow.mean).norm()).item() < 0.15


# Straight flows: x1 = scale x0 + mean, for which Euler's step is exact and every point of the path knows both ends


class Straight(FlowMap):
    """X_{s,t}(x) = (1 - t) x0 + t x1 for the x0 that passes through x at s."""

    def __init__(self, shape, seed=1):
        super().__init__()
        g = stream(seed)
        self.mean, self.scale = torch.randn(shape, generator=g), torch.rand(shape, generator=g) + 0.3
        self.interpolant = Linear()

    def mean_velocity(self, x, s, t, cond=None):
        s = expand_time(s, x)
        return (self.scale - 1) * (x - s * self.mean) / (1 - s + s * self.scale) + self.mean

    def pairs(self, n, generator):
        x0 = torch.randn(n, *self.mean.shape, generator=generator)
        return Pair(x0, self.scale * x0 + self.mean)


@pytest.mark.parametrize("shape", SHAPES)
def test_self_corrected_vanishes_for_a_straight_flow(shape):
    """All three terms, and the datum as a target, on the pairs of the flow itself."""
    flow, terms = Straight(shape), {}
    loss = begun(SelfCorrected(flow), model := true_model(flow, shape))
    with listen() as heard:
        assert loss(model, flow.pairs(64, stream()), generator=stream(1)).abs().max() < 1e-24
    terms = {k: len(v[0]) for k, v in heard.items()}
    assert terms == {"consistency": 64, "reverse": 64, "reflow": 64}
    nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    with listen() as heard:
        loss(model, flow.pairs(64, stream()), generator=stream(1))
    assert all(v[0].mean() > 1e-6 for v in heard.values()), "each term sees a wrong map"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("term", ["consistency", "reverse"])
def test_steps_of_self_corrected_are_of_first_order(term, shape):
    """For a curved flow the error of an Euler step is its square, and the loss the fourth power of the reach."""
    flow, errors = gaussian(shape), []
    for reach in (0.02, 0.01):
        loss = begun(SelfCorrected(flow, reach, truncation=0.0, times=At(0.5)), model := true_model(flow, shape))
        with listen() as heard:
            loss(model, pairs(flow, 64, stream()), generator=stream(1))
        errors.append(heard[term][0].mean())
    assert abs(math.log2(errors[0] / errors[1]) - 4) < 0.2  # the next order is 2 % to 10 % of this one


@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_brings_in_the_mean_of_the_data(shape):
    """With the datum as the only target the minimum is E[x1 | x] = x + (1 - t) b_t(x): one Euler step, not the map."""
    flow = gaussian(shape)
    loss = SelfCorrected(flow, truncation=1.0, reverse=0.0, reflow=0.0)
    assert stationarity(loss, EulerMap(flow), shape, data=flow) < 6
    assert stationarity(loss, flow, shape) > 30


def test_self_corrected_terms_point_where_they_should():
    """The step forwards lands between here and the data, the step back between noise and here."""
    flow, seen = gaussian(), []

    class Watched(TrueNet):
        def forward(self, x, s, t, cond=None):
            seen.append(s.clone())
            return super().forward(x, s, t, cond)

    model = MeanVelocity(Watched(flow, (3,)))
    SelfCorrected(flow, reach=0.3, target=Own(), times=At(0.6))(model, pairs(flow, 256, stream()), generator=stream(1))
    forth, back, here = seen[:3]
    assert torch.equal(here, torch.full((256,), 0.6))
    assert 0.6 <= forth.min() < forth.max() <= 0.9
    assert 0.3 <= back.min() < back.max() <= 0.6
    assert forth.max() > 0.88, "a step may be as long as the reach"
    SelfCorrected(flow, reach=0.3, target=Own(), times=At(0.9))(model, pairs(flow, 256, stream()), generator=stream(1))
    assert seen[len(seen) // 2].max() <= 1, "and never longer than what is left"


def test_self_corrected_warm_up_and_critic():
    flow = gaussian()
    model, pair = true_model(flow, (3,)), pairs(flow, 32, stream())
    loss = begun(SelfCorrected(flow, warmup=100), model)
    early, half, full = (loss(model, pair, step=k, generator=stream(1)) for k in (0, 50, 100))
    assert torch.allclose(full - half, half - early)
    assert (full > early).all()
    judge = Discriminator((3,), width=8, weight=1.0)
    judged = begun(SelfCorrected(flow, critic=judge), model)
    plain = begun(SelfCorrected(flow), model)
    a, b = (x(model, pair, generator=stream(1)) for x in (judged, plain))
    assert torch.allclose(a - b, judge(flow(pair.x0, torch.zeros(32), torch.ones(32)), pair))


@pytest.mark.slow
def test_self_corrected_learns_a_straight_flow():
    torch.manual_seed(0)
    flow = Straight((3,))
    model = MeanVelocity(MLP((3,), width=64, depth=3))
    loss, g = begun(SelfCorrected(flow), model), stream(3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(model, flow.pairs(256, g), generator=g).mean().backward()
        optimizer.step()
        schedule.step()
        for average in averages(loss):
            average.follow(model)
    pair = flow.pairs(2000, g)
    found = model(pair.x0, torch.zeros(2000), torch.ones(2000))
    assert (found - pair.x1).norm() / (pair.x1 - flow.mean).norm() < 0.15


# Velocity distillation


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_distillation_moves_samples_by_their_own_error(shape):
    """Its gradient is that of 2 r u_{0,1} / D, r the residual of the Eulerian identity at points on fresh paths."""
    flow = gaussian(shape)
    model = true_model(flow, shape)
    nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    pair, s = pairs(flow, 16, stream()), torch.full((16,), 0.4)
    got = gradient(
        VelocityDistillation(flow, matching=0.0, times=At(0.4))(model, pair, generator=stream(1)), model.net.head
    )
    g = stream(1)
    torch.rand(16, generator=g)
    u = model.mean_velocity(pair.x0, torch.zeros(16), torch.ones(16))
    y = 0.6 * torch.randn(16, *shape, generator=g) + 0.4 * (pair.x0 + u).detach()
    # d_s X + grad X b = -u + b + (1 - s) (d_s u + grad u b) = -r, at s with arrival 1
    r = -identities.eulerian(model, flow.velocity, y, s, torch.ones(16)).detach()
    want = gradient((2 * r * u).flatten(1).mean(1), model.net.head)
    assert (got - want).abs().max() < 1e-12


# BOSS, one-step distillation, reflow


@pytest.mark.parametrize("shape", SHAPES)
def test_boss_asks_for_the_secants_between_its_nodes(shape):
    flow, seen = gaussian(shape), []

    class Watched(TrueNet):
        def forward(self, x, s, t, cond=None):
            seen.append((x, s, t))
            return super().forward(x, s, t, cond)

    nodes = (0.0, 0.3, 0.45, 1.0)
    pair = Pair(torch.randn(64, *shape, generator=stream()))
    loss = BOSS(flow, nodes, steps=3)(MeanVelocity(Watched(flow, shape)), pair, generator=stream(1))
    assert loss.max() < 1e-24, "jumps of a true map compose, and its mean velocity is the secant"
    ((x, s, t),) = seen
    assert {(round(float(a), 9), round(float(b), 9)) for a, b in zip(s, t, strict=True)} == set(pairwise(nodes))
    assert (x - flow(pair.x0, torch.zeros(64), s)).abs().max() < 1e-12, "states of the trajectory of each x0"
    seen.clear()
    coarse = BOSS(EulerMap(flow), nodes, steps=2)(MeanVelocity(Watched(flow, shape)), pair, generator=stream(1))
    solved = BOSS(EulerMap(flow), nodes, steps=2, sampler=Heun())(
        MeanVelocity(Watched(flow, shape)), pair, generator=stream(1)
    )
    assert coarse.mean() > 10 * solved.mean() > 0


@pytest.mark.slow
def test_boss_learns_its_steps():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow, nodes = gaussian().float(), (0.0, 0.4, 1.0)
    model = train(BOSS(flow, nodes, steps=1), MeanVelocity(MLP((3,), width=64, depth=3)), flow)
    x = torch.randn(2000, 3, generator=stream(9))
    exact = flow(x, torch.zeros(2000), torch.ones(2000))
    assert ((sample(model, x, nodes) - exact).norm() / (exact - flow.mean).norm()).item() < 0.15


@pytest.mark.parametrize("shape", SHAPES)
def test_one_step_distillation_is_exact_on_the_pairs_of_a_flow(shape):
    """From noise itself the truth has no error; from t0 later, that of the straight path over t0, its square."""
    flow = gaussian(shape)
    pair = Reflow(teacher=flow, steps=1)(torch.empty(64, *shape), generator=stream())
    model = true_model(flow, shape)
    assert OneStepDistillation(0.0)(model, pair).max() < 1e-24
    errors = [OneStepDistillation(t0)(model, pair).mean() for t0 in (0.02, 0.01)]
    # The chord leaves the trajectory at rate t0, and the loss is the square of that.
    assert abs(math.log2(errors[0].item() / errors[1].item()) - 2) < 0.2
    assert OneStepDistillation()(model, pair).mean() < 1e-5
    with pytest.raises(ValueError, match="endpoints are needed; got a pair with x1 = None"):
        OneStepDistillation()(model, Pair(pair.x0))


@pytest.mark.slow
def test_one_step_distillation_on_reflowed_pairs_learns_the_map():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow, g = gaussian().float(), stream(3)
    coupling, model = Reflow(teacher=flow, steps=1), MeanVelocity(MLP((3,), width=64, depth=3))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(1000):
        optimizer.zero_grad()
        OneStepDistillation()(model, coupling(torch.empty(256, 3), generator=g)).mean().backward()
        optimizer.step()
    pair = coupling(torch.empty(2000, 3), generator=g)
    found = model(pair.x0, torch.zeros(2000), torch.ones(2000))
    assert (found - pair.x1).norm() / (pair.x1 - flow.mean).norm() < 0.15


@pytest.mark.parametrize("shape", SHAPES)
def test_reflow_pairs_noise_with_its_endpoint(shape):
    flow = gaussian(shape)
    cond = {"text": torch.arange(40).reshape(8, 5), "guidance": torch.rand(8)}
    pair = Reflow(teacher=flow, steps=3)(torch.empty(8, *shape), cond, generator=stream())
    assert (pair.x1 - flow(pair.x0, torch.zeros(8), torch.ones(8))).abs().max() < 1e-12
    assert pair.cond is cond, "any condition is handed to the teacher, and kept"
    x0 = Reflow().source((20_000, *shape), torch.empty(0), generator=stream()).flatten(1)
    assert x0.mean(0).abs().max() < 0.036  # five standard errors, false alarm 1e-5
    assert (x0.var(0) - 1).abs().max() < 0.05
    with pytest.raises(ValueError, match="reflow must have stored pairs or a teacher; got neither"):
        Reflow()(torch.empty(8, *shape))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Reflow(steps=0)


def test_reflow_hands_the_condition_to_the_teacher():
    class Moved(Straight):
        def mean_velocity(self, x, s, t, cond=None):
            return torch.zeros_like(x) + cond["text"].double().mean(1, keepdim=True)

    cond = {"text": torch.arange(40).reshape(8, 5)}
    pair = Reflow(teacher=Moved((3,)), steps=2)(torch.empty(8, 3), cond, generator=stream())
    assert torch.allclose(pair.x1 - pair.x0, cond["text"].double().mean(1, keepdim=True).expand(8, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_stored_pairs_come_back_as_they_were(shape, tmp_path):
    flow, file = gaussian(shape), str(tmp_path / "pairs.pt")
    cond = {"label": torch.arange(50), "text": torch.arange(100).reshape(50, 2)}
    made = stored_pairs(file, Reflow(teacher=flow, steps=1), torch.empty(50, *shape), cond, generator=stream())
    coupling = Reflow(file)
    pair = coupling(torch.empty(400, *shape), None, generator=stream(1))
    i = pair.cond["label"]
    assert len(i.unique()) == 50  # each is missed with probability 3e-4; the draw is fixed
    assert torch.equal(pair.x0, made.x0[i])
    assert torch.equal(pair.x1, made.x1[i])
    assert torch.equal(pair.cond["text"], cond["text"][i])
    with pytest.raises(ValueError, match="stored pairs must have the shape of the data"):
        coupling(torch.empty(4, 7))


def test_reflow_keeps_the_law_of_the_data_and_does_not_raise_the_cost():
    """Eight Gaussians. E c(x1 - x0) for convex c is largest for the independent pairs (a theorem of the paper)."""
    flow, g = eight_gaussians(steps=24), stream()
    n = 4000
    data = flow.sample(n, g)
    independent = pairs(flow, n, g)
    reflowed = Reflow(teacher=flow, steps=1)(data, generator=g)
    for power in (1, 2, 4):
        costs = [(p.x1 - p.x0).norm(dim=1).pow(power) for p in (reflowed, independent)]
        error = (costs[0].var() / n + costs[1].var() / n).sqrt()
        assert costs[0].mean() < costs[1].mean() - 5 * error  # a strict gap here, false alarm 3e-7
    # The law stays: each mode keeps its eighth (five standard errors: 5e-6), and its width.
    angle = torch.atan2(reflowed.x1[:, 1], reflowed.x1[:, 0])
    count = torch.bincount((angle / (math.pi / 4)).round().long() % 8, minlength=8) / n
    assert (count - 1 / 8).abs().max() < 5 * (7 / 64 / n) ** 0.5
    apart = (reflowed.x1[:, None] - flow.means).norm(dim=2).amin(1)
    assert abs(apart.square().mean() / 2 - 0.15**2) < 5 * 0.15**2 / n**0.5


def test_reflow_in_one_dimension_is_a_fixed_point_after_one_pass():
    """Trajectories in one dimension do not cross, so that the map is monotone and its straight pairs neither: their
    velocity at (x, t) is T(z) - z for the one z with (1 - t) z + t T(z) = x, and its flow from z ends at T(z) again."""
    flow = Mixture(torch.tensor([[-1.5], [1.0]]), 0.3, torch.tensor([0.3, 0.7]), steps=48)
    z = torch.linspace(-5, 5, 4001)
    end = flow(z[:, None], torch.zeros(4001), torch.ones(4001))[:, 0]
    assert (end.diff() > 0).all()

    class Again(FlowMap):
        def mean_velocity(self, x, s, t, cond=None):
            at = (1 - s[0]) * z + s[0] * end
            i = torch.searchsorted(at, x[:, 0].contiguous()).clamp(1, 4000)
            share = (x[:, 0] - at[i - 1]) / (at[i] - at[i - 1])
            return ((end - z)[i - 1].lerp((end - z)[i], share))[:, None]

    x0 = torch.linspace(-3, 3, 101)[:, None]
    first = Reflow(teacher=flow, steps=1)(x0, generator=stream())
    second = Reflow(teacher=EulerMap(Again()), steps=20)(x0, generator=stream())
    assert torch.equal(first.x0, second.x0)
    assert (first.x1 - second.x1).abs().max() < 1e-4  # linear interpolation at spacing 1/400 of a map of curvature < 20
    # And Euler's step is exact: one step or twenty, the same.
    once = Reflow(teacher=EulerMap(Again()), steps=1)(x0, generator=stream())
    assert (once.x1 - second.x1).abs().max() < 1e-4
