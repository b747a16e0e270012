"""Consistency models and their kin: known biases, exact fixed points, schedules, and the papers' own formulas."""

import math

import pytest
import torch
from test_losses import begun, flow_for, made, pairs, stationarity
from truth import SHAPES, TrueNet, gaussian, stream

from flowmaps.build import build
from flowmaps.core.calculus import d_dt
from flowmaps.core.flow_map import FlowMap, MeanVelocity, TrigFlow
from flowmaps.core.interpolant import Linear
from flowmaps.core.noise import noise_level
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.nets.mlp import MLP
from flowmaps.oracles.gaussian import Gaussian

CELLS = 8


class Population(FlowMap):
    """What consistency training without a teacher converges to on a uniform grid, for Gaussian data.

    f_1 is the identity and f_k(x) = E[f_{k+1}(I_{k+1}) | I_k = x], which is affine. Between grid times, never asked for.
    """

    def __init__(self, flow, cells=CELLS):
        super().__init__()
        t = torch.linspace(0, 1, cells + 1).reshape(-1, *[1] * flow.mean.ndim)
        variance = (1 - t) ** 2 + (t * flow.std) ** 2
        covariance = (1 - t[1:]) * (1 - t[:-1]) + t[1:] * t[:-1] * flow.std**2
        gain = (covariance / variance[:-1]).flip(0).cumprod(0).flip(0)  # product of the steps that remain
        self.gain, self.cells, self.mean = torch.cat([gain, torch.ones_like(gain[:1])]), cells, flow.mean
        self.correlation = covariance / (variance[1:] * variance[:-1]).sqrt()

    def mean_velocity(self, x, s, t, cond=None):
        k = (s * self.cells).round().long()
        h = (1 - s).clamp_min(1e-9).reshape(-1, *[1] * (x.ndim - 1))
        at = s.reshape(h.shape)
        return (self.mean + self.gain[k] * (x - at * self.mean) - x) / h


def training(**options):
    plain = {"distance": "square", "times": "uniform", "spacing": {"name": "uniform", "cells": CELLS}, "teacher": None}
    return plain | options


@pytest.mark.parametrize(("cells", "want"), [(8, 0.851), (16, 0.923), (32, 0.961), (64, 0.980)])
def test_consistency_training_shrinks_the_deviation_by_the_correlations(cells, want):
    """The closed form: s prod rho_k, about 1 - 1.285 / T for unit Gaussians."""
    flow = Gaussian(torch.zeros(1), torch.ones(1))
    biased = Population(flow, cells)
    x, zero = torch.randn(200_000, 1, generator=stream()), torch.zeros(200_000)
    y = biased(x, zero, torch.ones_like(zero))
    assert abs((y.std() / x.std()).item() - want) < 6e-4, "the table's rounding"
    assert abs(biased.correlation.prod().item() - (y.std() / x.std()).item()) < 1e-12
    assert abs(biased.correlation.prod().item() - (1 - 1.285 / cells)) < 2 / cells**2


@pytest.mark.parametrize("weighting", ["noise_gap", "unweighted"])
@pytest.mark.parametrize("shape", SHAPES)
def test_consistency_training_has_the_biased_map_as_its_fixed_point_and_not_the_truth(shape, weighting):
    """False alarms as in test_losses: z below 6 but for 1e-7."""
    flow = gaussian(shape)
    loss = made({"name": "consistency"}, flow, **training(weighting=weighting))
    assert stationarity(loss, Population(flow), shape, data=flow) < 6
    assert stationarity(loss, flow, shape, size=8192) > 30


@pytest.mark.parametrize("shape", SHAPES)
def test_consistency_distillation_errs_by_its_solver_alone(shape):
    """Halving the step divides the residual of Heun's step, whose local error is of third order, by about 8."""
    flow = gaussian(shape)
    model = MeanVelocity(TrueNet(flow, shape))
    x = pairs(flow, 2000, stream())
    size = []
    for cells in (8, 16):
        options = training(teacher=flow, spacing={"name": "uniform", "cells": cells}, weighting="unweighted")
        loss = build("losses", {"name": "consistency"} | options)
        size.append(loss(model, x, generator=stream(2)).mean().sqrt().item())
    assert 6 < size[0] / size[1] < 10
    exact = build("losses", {"name": "consistency", "sampler": "jump"} | options)
    assert exact(model, x, generator=stream(2)).mean() < 1e-20


CM = {
    "times": "power_noise",
    "spacing": {"name": "karras", "images": 1000},
    "target": "average",
    "distance": "square",
    "weighting": "unweighted",
}
ICT = {"spacing": {"name": "doubling", "images": 1000}}
ECT = {"spacing": {"name": "ratio", "images": 100}, "distance": {"name": "pseudo_huber", "scale": 1e-4}}


@pytest.mark.parametrize("teacher", [None, "given"])
@pytest.mark.parametrize("options", [CM, ICT, ECT], ids=["cm", "ict", "ect"])
@pytest.mark.parametrize("shape", SHAPES)
def test_published_configurations_approach_the_truth_as_the_steps_shrink(shape, options, teacher):
    """At the end of the schedule the residual at the truth is smaller than at its start, with or without a teacher."""
    flow = gaussian(shape)
    model = MeanVelocity(TrueNet(flow, shape))
    table = {"name": "consistency", **options, "weighting": "unweighted", "distance": "square"}
    loss = begun(build("losses", table, teacher=None if teacher is None else flow), model)
    first, last = (loss(model, pairs(flow, 500, stream()), step=k, generator=stream()).mean() for k in (0, 999))
    assert last < first / 10


def test_schedules_of_the_papers():
    t = torch.linspace(0.001, 0.999, 999)

    def cells(spacing, step):
        s, _ = spacing(t.repeat(200)[: 999 * 200] * 0 + torch.rand(999 * 200, generator=stream()), step)
        return len(s.unique())

    karras = build("spacings", {"name": "karras", "images": 1000})
    assert [cells(karras, k) for k in (0, 1000, 5000)] == [1, 150, 150]
    n = math.ceil(math.sqrt(0.25 * (151**2 - 2**2) + 2**2) - 1) + 1  # N(k), which counts points
    assert cells(karras, 250) == n - 1
    doubling = build("spacings", {"name": "doubling", "images": 800})
    grids = [doubling(torch.tensor([0.5]), k) for k in (0, 99, 100, 700, 10_000)]
    width = [(noise_level(s) ** (1 / 7) - noise_level(e) ** (1 / 7)).item() for s, e in grids]
    whole = 80 ** (1 / 7) - 0.002 ** (1 / 7)
    assert [round(whole / w) for w in width] == [10, 10, 20, 1280, 1280]
    uneven = build("spacings", {"name": "doubling", "first": 10, "last": 100, "images": 500})
    grids = [uneven(torch.tensor([0.5]), k) for k in (0, 100, 200, 300, 399, 400, 499, 900)]
    width = [(noise_level(s) ** (1 / 7) - noise_level(e) ** (1 / 7)).item() for s, e in grids]
    assert [round(whole / w) for w in width] == [10, 20, 40, 80, 80, 100, 100, 100], "no power of two between them"


@pytest.mark.parametrize("name", ["karras", "doubling", "uniform"])
def test_cells_hold_the_time_and_cover_everything(name):
    t = torch.rand(5000, generator=stream())
    s, e = build("spacings", name)(t, 100_000_000)
    assert (s <= t).all()
    assert (t < e).all()
    assert s.min() == 0
    assert e.max() == 1
    ends = build("spacings", name)(torch.tensor([0.0, 1.0]), 0)
    assert ends[0][0] == 0
    assert ends[1][1] == 1


def test_ratio_is_the_formula_and_reaches_the_data():
    ratio = build("spacings", {"name": "ratio", "images": 100})
    sigma = torch.tensor([0.01, 1.0, 3.0, 20.0])
    for step, stage in ((0, 0), (99, 0), (100, 1), (750, 7)):
        s, t = ratio(1 / (1 + sigma), step)
        r = sigma * (1 - 2.0 ** -(stage + 1) * (1 + 8 / (1 + sigma.exp())))
        assert (noise_level(t) - r.clamp_min(0)).abs().max() < 1e-12
        assert (noise_level(s) - sigma).abs().max() < 1e-12
    assert (ratio(1 / (1 + sigma), 0)[1] == 1).tolist() == [True, True, False, False]
    capped = build("spacings", {"name": "ratio", "images": 100, "least": 0.25})(1 / (1 + sigma), 10_000)[1]
    assert (noise_level(capped) - ratio(1 / (1 + sigma), 199)[0].new_tensor(
        [max(0.0, z * (1 - 0.25 * (1 + 8 / (1 + math.exp(z))))) for z in sigma.tolist()]
    )).abs().max() < 1e-12  # fmt: skip


def test_noise_gap_is_one_over_the_gap():
    weighting = build("weightings", "noise_gap")
    s, t = torch.tensor([0.0, 0.25, 0.5]), torch.tensor([0.1, 0.5, 1.0])
    assert (weighting(torch.ones(3), s, t) - 1 / torch.tensor([80 - 9.0, 2.0, 1.0])).abs().max() < 1e-12
    assert weighting(torch.zeros(1), s[:1], s[:1]).item() == 0
    gap = torch.tensor([1e-2, 1e-3, 1e-5, 0.0])  # below 1e-4 a weight does not grow any more
    weight = weighting(torch.ones(4), 1 / (2 + gap), torch.full((4,), 0.5))
    assert (weight * gap.clamp_min(1e-4) - 1).abs().max() < 1e-9


def test_consistency_training_refuses_latent_noise():
    with pytest.raises(ValueError, match="must have a path without latent noise"):
        build("losses", {"name": "consistency", "interpolant": "stochastic"})


class Departures(FlowMap):
    """A map that writes down the times it is asked at."""

    def __init__(self, flow):
        super().__init__()
        self.flow, self.seen = flow, []

    def mean_velocity(self, x, s, t, cond=None):
        self.seen.append(s)
        return self.flow.mean_velocity(x, s, t)


def test_truncated_consistency_splits_the_times_between_map_and_teacher():
    flow = gaussian()
    student, teacher = Departures(flow), Departures(flow)
    loss = build("losses", {"name": "truncated_consistency", "transition": 3.0}, teacher=teacher)
    loss(student, pairs(flow, 400, stream()), generator=stream())
    s = student.seen[-1]
    assert s.max() == 0.25
    assert (s[:100] == 0.25).all()
    t = teacher.seen[0]
    assert (t[:100] > 0.25).all(), "at the transition the teacher alone is followed"
    wrong = gaussian(seed=5)

    def with_teacher(teacher, boundary):
        table = {"name": "truncated_consistency", "boundary": boundary, "transition": 3.0, "weighting": "unweighted"}
        return build("losses", table, teacher=teacher)(flow, pairs(flow, 400, stream()), generator=stream())

    moved = with_teacher(flow, 0.25) != with_teacher(wrong, 0.25)
    assert torch.equal(moved, t > 0.25), "and before it only where the nearer time lies behind"


def test_truncated_consistency_counts_the_boundary_as_a_mean_of_its_own():
    flow = gaussian()
    one = build("losses", {"name": "truncated_consistency", "boundary": 0.0, "times": "uniform"}, teacher=flow)
    x = pairs(flow, 400, stream())

    class Far:
        """Errors of one, whatever the map says."""

        def __call__(self, a, b):
            return torch.ones(len(a))

    for share, weight in ((0.0, 1.0), (0.25, 1.1), (1.0, 0.1)):
        options = {"boundary": share, "distance": Far(), "weighting": "unweighted"}
        loss = build("losses", {"name": "truncated_consistency", **options}, teacher=flow)
        assert abs(loss(flow, x, generator=stream()).mean().item() - weight) < 1e-12
    assert one.boundary == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_truncated_consistency_continues_the_fixed_point_of_the_first_stage(shape):
    """With the population's fixed point as teacher, the same fixed point; with the truth as both, none."""
    flow = gaussian(shape)
    table = {"name": "truncated_consistency"} | training(boundary=0.25)
    del table["teacher"]
    first = Population(flow)
    assert stationarity(build("losses", table, teacher=first), first, shape, data=flow) < 6
    assert stationarity(build("losses", table, teacher=flow), flow, shape, size=8192) > 30


def test_student_noise_is_students_t_cut_to_an_interval():
    from scipy.stats import t as student

    law = build("training_times", {"name": "student_noise", "mean": 0.5, "scale": 0.7, "freedom": 3.0})
    log = noise_level(law.quantile(torch.linspace(0, 1, 101))).log().numpy()
    low, high = (student.cdf(z, 3.0, 0.5, 0.7) for z in (0.0, math.log(80)))
    want = student.ppf(high - torch.linspace(0, 1, 101).numpy() * (high - low), 3.0, 0.5, 0.7)
    assert abs(log - want).max() < 1e-5  # the table's resolution


def test_scm_is_the_papers_formula_on_the_trigonometric_path():
    """Angle tau, f = cos(tau) x - sin(tau) F(x, tau), written out on the paper's clock; gradients agree to rounding."""
    torch.manual_seed(0)
    net = MLP((3,), width=16, depth=2)
    model, path = TrigFlow(net), Trigonometric()
    flow = gaussian(path=path)
    pair = pairs(flow, 32, stream())
    for step, r in ((0, 0.0), (30, 0.3), (1000, 1.0)):
        loss = build("losses", {"name": "scm", "warmup": 100}, interpolant=path)
        got = loss(model, pair, step=step, generator=stream(4)).mean()
        tau = math.pi / 2 * (1 - loss.times(32, pair.x0, stream(4)))[:, None]
        x, dx = tau.cos() * pair.x1 + tau.sin() * pair.x0, -tau.sin() * pair.x1 + tau.cos() * pair.x0

        def f(x, tau):
            s = 1 - tau[:, 0] * 2 / math.pi
            return -net(x, s, torch.ones_like(s))

        old, df = torch.func.jvp(f, (x, tau), (dx, torch.ones_like(tau)))
        g = -(tau.cos() ** 2) * (old - dx) - r * tau.cos() * tau.sin() * (x + df)
        g = (g / (g.norm(dim=1, keepdim=True) + 0.1)).detach()
        want = ((f(x, tau) - old.detach() - g).square().mean(1) / tau.tan()[:, 0]).mean()
        assert abs(got - want) < 1e-12 * abs(want)
        each = [torch.cat([d.flatten() for d in torch.autograd.grad(v, list(net.parameters()))]) for v in (got, want)]
        assert (each[0] - each[1]).norm() < 1e-10 * each[1].norm()


def test_scm_does_not_depend_on_the_path():
    """States of two paths at one angle differ by a factor: at the truth of each, G and its tangent are the same."""
    value = []
    for path in ("linear", "trigonometric"):
        flow = flow_for({"interpolant": path}, (3,))
        wrong = Gaussian(flow.mean + 1, flow.std, flow.interpolant)
        pair = pairs(flow, 64, stream())
        loss = build("losses", {"name": "scm", "times": Angle(flow.interpolant)}, interpolant=flow.interpolant)
        value.append(loss(wrong, pair, generator=stream()))
    assert (value[0] - value[-1]).abs().max() < 1e-8


class Angle:
    """The same angles on every path."""

    def __init__(self, path):
        self.path = path

    def __call__(self, n, like, generator=None):
        angle = math.pi / 2 * torch.linspace(0.05, 0.95, n)
        return self.path.time_at(-angle.tan().log())


class Halfway:
    """The time one half."""

    def __call__(self, n, like, generator=None):
        return torch.full((n,), 0.5)


class Skewed(FlowMap):
    """Exponential data in one dimension: the map to t = 1 keeps the quantile, X_{s,1} = -log(1 - F_s)."""

    interpolant = Linear()

    def mean_velocity(self, x, s, t, cond=None):
        a, b = (1 - s)[:, None], s[:, None]
        tail = torch.logaddexp(
            torch.special.log_ndtr(-x / a), -x / b + (a / b) ** 2 / 2 + torch.special.log_ndtr(x / a - a / b)
        )
        return (-tail - x) / a

    def sample(self, n, generator=None):
        return -torch.rand(n, 1, generator=generator).log()


def test_scm_with_a_stabiliser_is_biased_without_a_teacher_on_skewed_data():
    """For Gaussian data the tangents are symmetric and all is well, as test_losses sees."""
    flow = Skewed()
    x, zero = torch.randn(100_000, 1, generator=stream()), torch.full((100_000,), 0.05)
    y = flow(0.95 * x + 0.05 * flow.sample(100_000, stream(1)), zero, torch.ones_like(zero))
    assert abs(y.mean() - 1) < 0.02, "five standard errors, 6e-7; the oracle's own mean is right"
    options = {"name": "scm", "times": Halfway()}  # elsewhere too, but the weights near the data hide it in noise
    biased, plain = (build("losses", {**options, "stabiliser": h}) for h in ("normalised", "unchanged"))
    assert stationarity(biased, flow, (1,), size=8192) > 30
    assert stationarity(plain, flow, (1,), size=8192) < 6


def nudged(flow, shape=(3,), std=0.1):
    """A map near the truth, whose head has weights to differentiate by."""
    model = MeanVelocity(TrueNet(flow, shape))
    torch.nn.init.normal_(model.net.head, std=std, generator=stream(2))
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_mid_training_regresses_every_state_on_the_end(shape):
    flow = gaussian(shape)
    model, pair = nudged(flow, shape), pairs(flow, 9, stream())
    loss = build("losses", {"name": "consistency_mid_training", "steps": 3, "sampler": "jump"}, teacher=flow)
    got = loss(model, pair, generator=stream())
    want = []
    for i in range(3):  # the states of three trajectories, time by time
        s, one = torch.full((3,), i / 3), torch.ones(3)
        x = flow(pair.x0[:3], torch.zeros(3), s)
        want.append((model(x, s, one) - flow(pair.x0[:3], torch.zeros(3), one)).square().flatten(1).mean(1))
    assert (got - torch.cat(want)).abs().max() < 1e-12


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_mid_training_sees_every_state_as_often_as_any_other(n):
    """Whatever the batch: of the 4 states of each trajectory, as many as it takes, it has n, and none twice."""
    flow, g = gaussian(), stream()
    loss = build("losses", {"name": "consistency_mid_training", "steps": 4, "sampler": "jump"}, teacher=flow)
    pair, counts, rounds = pairs(flow, n, g), torch.zeros(4), 400
    for _ in range(rounds):
        model, seen = Departures(flow), []
        model.mean_velocity = lambda x, s, t, cond=None, seen=seen: seen.append((x, s)) or flow.mean_velocity(x, s, t)
        loss(model, pair, generator=g)
        x, s = seen[0]
        assert len(torch.cat([x, s[:, None]], 1).unique(dim=0)) == n
        counts += torch.bincount((s * 4).round().long(), minlength=4)
    wanted = n * rounds / 4
    assert (counts - wanted).abs().max() < 5 * wanted**0.5, "five standard errors at most: it is spread evenly"


def test_mid_training_slopes_are_between_all_pairs_of_grid_times():
    flow = gaussian()
    model = Departures(flow)
    table = {"name": "consistency_mid_training", "form": "slope", "steps": 3, "sampler": "jump"}
    arrivals = []
    model.mean_velocity = lambda x, s, t, cond=None: arrivals.append((s, t)) or flow.mean_velocity(x, s, t)
    loss = build("losses", table, teacher=flow)(model, pairs(flow, 6000, stream()), generator=stream())
    s, t = arrivals[0]
    assert loss.max() < 1e-24
    where, count = torch.stack([s, t], 1).mul(3).round().unique(dim=0, return_counts=True)
    assert where.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert (count - 1000).abs().max() < 5 * 29, "five standard errors of six equal counts: false alarm 4e-6"


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
@pytest.mark.parametrize("shape", SHAPES)
def test_progressive_distillation_weighs_as_the_paper_does(shape, path):
    """max(|data - target|^2, |noise - target|^2), with the data and noise that a step from x to its result implies."""
    flow = flow_for({"interpolant": path}, shape)
    model, pair, p = nudged(flow, shape), pairs(flow, 64, stream()), flow.interpolant
    loss = build("losses", {"name": "progressive_distillation", "steps": 4}, teacher=flow, interpolant=p)
    got = loss(model, pair, generator=stream(3))
    k = (torch.rand(64, generator=stream(3)) * 4).floor()
    s, t = k / 4, (k + 1) / 4
    x, _ = p.draw(pair, s)
    (a, b, *_), (c, d, *_) = p.coefficients(s, x), p.coefficients(t, x)

    def implied(y):  # x = a noise + b data, y = c noise + d data
        data = (a * y - c * x) / (a * d - b * c)
        return data, (x - b * data) / a

    gaps = [
        (u - v).square().flatten(1).mean(1)
        for u, v in zip(implied(model(x, s, t)), implied(flow(flow(x, s, (s + t) / 2), (s + t) / 2, t)), strict=True)
    ]
    assert (got / torch.maximum(*gaps) - 1).abs().max() < 1e-9


def test_progressive_distillation_of_a_velocity_halves_its_euler_steps():
    """Two Euler steps of the teacher are what is learned, and not its flow."""
    flow = gaussian()
    table = {"name": "progressive_distillation", "steps": 2, "sampler": "euler"}
    two = Departures(flow)

    def halves(x, s, t, cond=None):
        h = ((t - s) / 2)[:, None]
        y = x + h * flow.velocity(x, s)
        return (flow.velocity(x, s) + flow.velocity(y, (s + t) / 2)) / 2

    two.mean_velocity = halves
    x = pairs(flow, 64, stream())
    loss = build("losses", table, teacher=flow)
    assert loss(two, x, generator=stream()).max() < 1e-24
    assert loss(flow, x, generator=stream()).mean() > 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_moment_matching_is_the_kernel_distance_of_groups(shape):
    flow = gaussian(shape)
    model, pair = nudged(flow, shape), pairs(flow, 8, stream())
    loss = build("losses", {"name": "inductive_moment_matching", "gap": 0.3, "sigma": 0.5, "a": 1, "b": 2.0})
    got = loss(model, pair, generator=stream(3))
    low, high = torch.rand(2, 2, generator=stream(3)).sort(1).values.T
    for g in range(2):
        s, t = low[g], high[g]
        r = torch.minimum(t, 1 / (1 + ((1 - s) / s - 0.3).clamp_min(0)))
        own = slice(4 * g, 4 * g + 4)
        x, y = ((1 - z) * pair.x0[own] + z * pair.x1[own] for z in (s, r))
        x, y = model(x, s.repeat(4), t.repeat(4)), model(y, r.repeat(4), t.repeat(4))
        width = x[0].numel() * (0.5 * (t - s).item() + 1e-6)
        near = lambda a, b, c=width: sum(  # noqa: E731
            math.exp(-max((u - v).norm().item(), 1e-4) / c) for u in a for v in b
        )
        log = lambda s: 2 * (s / (1 - s)).log()  # noqa: E731
        weight = torch.sigmoid(2.0 - log(s)) * torch.func.grad(log)(s) / 2 * s / ((1 - s) ** 2 + s**2)
        want = weight * (near(x, x) + near(y, y) - 2 * near(x, y)) / 16
        assert (got[own] / want - 1).abs().max() < 1e-6


def test_moment_matching_refuses_a_ragged_batch():
    with pytest.raises(ValueError, match="the batch must be a multiple of 4 particles; got 6"):
        build("losses", "inductive_moment_matching")(gaussian(), pairs(gaussian(), 6, stream()), generator=stream())


def test_trajectory_models_stop_the_outer_weights_and_nothing_else():
    """With the map's own weights as the average's, the gradient is the same: it passes through the outer map."""
    flow = gaussian()
    model, x = nudged(flow), pairs(flow, 64, stream())
    own, average = (
        begun(build("losses", {"name": "ctm", "diagonal": 0.0, "target": target}, teacher=flow), model)
        for target in ("own", "average")
    )
    values = [loss(model, x, generator=stream(3)).mean() for loss in (own, average)]
    a, b = (torch.autograd.grad(v, model.net.head)[0] for v in values)
    assert values[0] == values[1]
    assert a.abs().max() > 1e-6
    assert (a - b).abs().max() < 1e-14


def test_trajectory_models_hand_their_jumps_to_a_critic():
    flow = gaussian()
    model, x, seen = nudged(flow), pairs(flow, 8, stream()), []

    def critic(sample, pair, *, generator=None):
        seen.append(sample)
        return sample.square().mean(1)

    build("losses", {"name": "ctm", "diagonal": 0.5, "target": "own", "critic": critic})(model, x, generator=stream())
    assert seen[0].shape == (4, 3)
    assert torch.autograd.grad(seen[0].sum(), model.net.head)[0].abs().max() > 1e-3


@pytest.mark.parametrize("route", ["lagrangian", "eulerian"])
@pytest.mark.parametrize("shape", SHAPES)
def test_direct_matching_leaves_the_spread_of_the_velocity_at_the_truth(shape, route):
    """There the first term is |b_t(I_t) - dI_t/dt|^2, the second zero, with times in both orders."""
    flow = gaussian(shape)
    pair, g = pairs(flow, 64, stream()), stream(3)
    got = build("losses", {"name": "fmm", "route": route})(flow, pair, generator=stream(3))
    low, high = torch.rand(64, 2, generator=g).sort(1).values.T
    swap = torch.rand(64, generator=g) < 0.5
    t = torch.where(swap, low, high)
    x, w = flow.interpolant.draw(pair, t)
    assert (got - (flow.velocity(x, t) - w).square().flatten(1).mean(1)).abs().max() < 1e-8
    assert 10 < swap.sum() < 54


def trained(flow, table, steps=1500, progress=False):
    """A small network from scratch."""
    torch.manual_seed(0)
    model, g = MeanVelocity(MLP(flow.mean.shape, width=64, depth=3)), stream(3)
    loss = begun(build("losses", table), model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for i in range(steps):
        optimizer.zero_grad()
        loss(model, pairs(flow, 256, g), step=i * 256 if progress else 0, generator=g).mean().backward()
        optimizer.step()
        schedule.step()
    return model


def one_step(model, flow):
    x, zero = torch.randn(20_000, *flow.mean.shape, generator=stream(4)), torch.zeros(20_000)
    with torch.no_grad():
        y = model(x, zero, torch.ones_like(zero))
    exact = flow(x, zero, torch.ones_like(zero))
    return y, ((y - exact).norm() / (exact - flow.mean).norm()).item()


@pytest.mark.slow
def test_a_trained_network_lands_on_the_biased_deviation():
    """0.851 of the data's at 8 cells. Training's own spread is about 0.01."""
    torch.set_default_dtype(torch.float32)
    flow = Gaussian(torch.zeros(1), torch.ones(1))
    y, _ = one_step(trained(flow, {"name": "consistency"} | training(weighting="unweighted")), flow)
    assert abs(y.std().item() - 0.851) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [{"name": "doubling", "last": 160}, {"name": "ratio", "images": 64_000}], ids=str)
def test_consistency_training_learns_the_map_without_a_teacher_as_the_steps_shrink(spacing):
    """At the first grid the error is above a quarter, and 1.5 untrained."""
    torch.set_default_dtype(torch.float32)
    flow = gaussian().float()
    spacing = spacing if "images" in spacing else spacing | {"images": 1500 * 256}
    model = trained(flow, {"name": "consistency", "spacing": spacing}, progress=True)
    assert one_step(model, flow)[1] < 0.15


@pytest.mark.slow
def test_moment_matching_learns_the_law_from_scratch():
    """Mean and deviation, the latter short by the bias of self-pairs and of training at length 1500."""
    torch.set_default_dtype(torch.float32)
    flow = gaussian().float()
    y, error = one_step(trained(flow, {"name": "inductive_moment_matching"}), flow)
    assert (y.mean(0) - flow.mean).abs().max() < 0.1
    assert ((y.std(0) / flow.std - 1).abs() < 0.25).all()
    assert error < 0.25


def test_direct_matching_trains_the_way_back_too():
    """Its gradient is that of the formula with nothing held."""
    flow = gaussian()
    model, pair = nudged(flow), pairs(flow, 64, stream())
    whole = build("losses", "fmm")(model, pair, generator=stream(3)).mean()
    g = stream(3)
    low, high = torch.rand(64, 2, generator=g).sort(1).values.T
    swap = torch.rand(64, generator=g) < 0.5
    s, t = torch.where(swap, high, low), torch.where(swap, low, high)
    x, w = flow.interpolant.draw(pair, t)
    y = model(x, t, s)
    back, arrival = d_dt(model, y, s, t)
    want = ((arrival - w).square().mean(1) + (back - x).square().mean(1)).mean()
    a, b = (torch.autograd.grad(v, model.net.head)[0] for v in (whole, want))
    assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("teacher", [None, "given"])
@pytest.mark.parametrize("shape", SHAPES)
def test_trajectory_models_agree_with_themselves_at_the_truth(shape, teacher):
    """Exactly with exact steps, and but for the solver's error, of second order, without."""
    flow = gaussian(shape)
    model, x = MeanVelocity(TrueNet(flow, shape)), pairs(flow, 2000, stream())
    size = {}
    for sampler, steps in (("jump", 2), ("heun", 2), ("heun", 4)):
        table = {"name": "ctm", "diagonal": 0.0, "sampler": sampler, "steps": steps, "teacher": teacher and flow}
        size[sampler, steps] = begun(build("losses", table), model)(model, x, generator=stream()).mean().sqrt().item()
    assert size["jump", 2] < 1e-12
    assert 3 < size["heun", 2] / size["heun", 4] < 5


@pytest.mark.parametrize(
    ("kind", "table", "message"),
    [
        (
            "losses",
            {"name": "consistency_mid_training", "form": "start"},
            "form must be one of 'end', 'slope'; got 'st",
        ),
        ("losses", {"name": "consistency_mid_training", "steps": 0}, "steps must be at least 1; got 0"),
        ("losses", {"name": "progressive_distillation", "steps": 0}, "steps must be at least 1; got 0"),
        ("losses", {"name": "inductive_moment_matching", "particles": 1}, "particles must be at least 2 and gap > 0"),
        ("losses", {"name": "inductive_moment_matching", "interpolant": "stochastic"}, "path without latent noise"),
        ("losses", {"name": "ctm", "steps": 0}, "steps must be at least 1; got 0"),
        ("losses", {"name": "ctm", "diagonal": 2}, "diagonal must lie between 0 and 1"),
        ("losses", {"name": "fmm", "route": "semigroup"}, "route must be one of 'lagrangian', 'eulerian'"),
        ("losses", {"name": "scm", "interpolant": "stochastic"}, "needs a path without latent noise"),
        ("losses", {"name": "truncated_consistency", "boundary": 2}, "boundary must lie between 0 and 1"),
        ("losses", {"name": "truncated_consistency", "transition": 0}, "transition must be > 0"),
        ("losses", {"name": "truncated_consistency", "interpolant": "stochastic"}, "path without latent noise"),
        ("spacings", {"name": "uniform", "cells": 0}, "cells must be at least 1; got 0"),
        ("spacings", {"name": "karras", "first": 1}, "the grid must have 2 <= first <= last"),
        ("spacings", {"name": "doubling", "first": 20, "last": 10}, "cells must be 1 <= first <= last"),
        ("spacings", {"name": "ratio", "base": 1}, "base must be > 1"),
        ("training_times", {"name": "power_noise", "least": 0}, "noise levels must be 0 < least < most"),
        ("training_times", {"name": "student_noise", "freedom": 0}, "scale, freedom and least must be > 0"),
        ("training_times", {"name": "log_normal_angle", "std": 0}, "std must be > 0; got 0"),
    ],
)
def test_bad_options(kind, table, message):
    with pytest.raises(ValueError, match=message):
        build(kind, table, teacher=gaussian())
