"""Every sampler, found by its file: the declared order is the measured one, on vectors and images."""

import math
from itertools import pairwise

import pytest
import torch
from truth import SHAPES, Remembering, eight_gaussians, gaussian, slope, stream

from flowmaps.build import build, names
from flowmaps.core.flow_map import Counted, EulerMap
from flowmaps.core.interpolant import Linear
from flowmaps.core.random import Tape, TapeError
from flowmaps.core.recurrent import Recurrent, RecurrentNet
from flowmaps.core.sampling import Euler, Heun, sample
from flowmaps.guidance.cfg import CFG
from flowmaps.interpolants.stochastic import Stochastic
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.oracles._reference import Extrapolated
from flowmaps.samplers._multistep import lagrange
from flowmaps.samplers.adams_bashforth import AdamsBashforth
from flowmaps.samplers.corrected import Corrected
from flowmaps.samplers.dormand_prince import DormandPrince
from flowmaps.samplers.dpm_solver_pp import DPMSolverPP
from flowmaps.samplers.dualfast import DualFast
from flowmaps.samplers.edm_stochastic import EDMStochastic
from flowmaps.samplers.ghvb import GHVB, momentum_weights
from flowmaps.samplers.heavy_ball import HeavyBall
from flowmaps.samplers.picard import Picard
from flowmaps.samplers.reflected import Reflected
from flowmaps.samplers.unipc import UniPC

RANDOM = ["corrected", "gamma", "restart"]
NOISY = ["euler_maruyama", "stochastic_heun", "edm_stochastic", {"name": "dpm_solver_pp", "eta": 1.0}]
# As one chooses them to see an order: an adaptive method takes one step per call, others are exact and without noise.
PLAIN = {
    "dormand_prince": {"absolute": math.inf},
    "edm_stochastic": {"churn": 0.0},
    "picard": {"tolerance": 0.0, "steps": 2, "sampler": "heun"},
}
# A jump has no order: it is as good as the map.
# Samplers that this battery cannot try, and why; tests/family has their own.
ELSEWHERE = {"bottleneck": "takes images only, and all the way from noise to data"}
DEFAULTS = [{"name": n} | PLAIN.get(n, {}) for n in names("samplers") if n not in ELSEWHERE]
ORDERED = [spec for spec in DEFAULTS if getattr(build("samplers", spec), "order", None)]
VARIANTS = [
    *({"name": "adams_bashforth", "order": n} for n in (3, 4)),
    *({"name": "ghvb", "order": n, "beta": 0.8} for n in (1, 3, 4)),
    {"name": "heavy_ball", "slopes": 3, "nesterov": True},
    *({"name": "dpm_solver_pp", "solver_order": n} for n in (1, 3)),
    *({"name": "unipc", "predictor": n, "mass": "bh1"} for n in (1, 2, 3)),
    *({"name": "unipc", "predictor": n, "corrector": False} for n in (1, 2, 3)),
]
# Steps to halve the error by: third orders settle late, fifth ones are soon exact.
COUNTS = {1: (64, 128), 2: (64, 128), 3: (256, 512), 4: (128, 256), 5: (8, 16)}


def by_noise(spec):
    """Whether a sampler steps in the log of the signal-to-noise ratio."""
    return spec["name"] in ("dpm_solver_pp", "unipc", "edm_stochastic")


def flow_for(sampler, shape, path):
    """The exact flow, as a map with a memory for the sampler that asks for one."""
    flow = gaussian(shape, path)
    return Recurrent(Remembering(flow)) if sampler == build("samplers", "recurrent") else flow


def spaced(n, variable):
    """N + 1 numbers from 0 to 1; every other step three times as long if they are variable."""
    steps = torch.ones(n)
    steps[1::2] += 2 * variable
    return torch.cat([torch.zeros(1), steps.cumsum(0) / steps.sum()])


def grid_for(spec, path, n, variable=False):
    """Steps that show an order.

    In the log of the signal-to-noise ratio time has no ends, so that steps from t = 0 or to t = 1 do not become short there
    when their number grows: grids stay inside. Multistep methods without a start of their own get very short first steps.
    """
    if not by_noise(spec):
        return spaced(n, variable)
    inner = spaced(n, variable)
    return path.time_at(-4 + 8 * torch.cat([inner[:1], torch.tensor([n**-3.0, n**-2.0]) / 2, inner[1:]]))


def errors(sampler, shape, grids, path):
    f, x = flow_for(sampler, shape, path), torch.randn(16, *shape, generator=stream())
    found = []
    for grid in grids:
        start, end = (torch.full((16,), float(t)) for t in (grid[0], grid[-1]))
        y = f(x, torch.zeros(16), start)
        exact = f(y, start, end)
        # Root mean squares: the largest error changes place with the step, and sign on its way.
        found.append(float((sample(f, y, grid, sampler=sampler) - exact).square().mean().sqrt()))
    return found


@pytest.mark.parametrize("variable", [False, True], ids=["uniform", "variable"])
@pytest.mark.parametrize(
    ("spec", "shape"), [*((s, d) for s in ORDERED for d in SHAPES), *((s, (3,)) for s in VARIANTS)], ids=str
)
def test_declared_order_is_the_measured_order(spec, shape, variable):
    # On the linear path the midpoint method is of order 3 for a Gaussian, by luck.
    path = Trigonometric()
    sampler = build("samplers", spec, interpolant=path)
    counts = COUNTS[2 if by_noise(spec) and sampler.order < 4 else sampler.order]
    gain = slope(errors(sampler, shape, [grid_for(spec, path, n, variable) for n in counts], path)) - sampler.order
    # Fifth orders, and high ones of the data prediction, whose leading errors nearly cancel for a Gaussian, exceed theirs.
    assert -0.15 < gain < (3 if by_noise(spec) or sampler.order == 5 else 0.15)


@pytest.mark.parametrize("columns", [2, 3])
def test_the_reference_solver_has_order_twice_its_columns(columns):
    # It gains on the way to its order: steps that resolve the field reach more than they promise.
    grids = [spaced(n, False) for n in (6, 12)]
    assert slope(errors(Extrapolated(columns), (3,), grids, Linear())) > 2 * columns - 0.3


@pytest.mark.parametrize("spec", [{"name": "jump"}, *ORDERED, *VARIANTS], ids=str)
def test_backwards_and_nowhere(spec):
    """A solver runs backwards too, and a step of no length changes nothing, wherever it is."""
    sampler = build("samplers", spec)
    f = flow_for(sampler, (3,), Linear())
    grid = grid_for(spec, Linear(), 128)
    x = f(torch.randn(8, 3, generator=stream()), torch.zeros(8), torch.full((8,), float(grid[0])))
    there = sample(f, x, grid, sampler=sampler)
    back = sample(f, there, grid.flip(0), sampler=sampler)
    order = getattr(sampler, "order", 4)
    # In the log of the signal-to-noise ratio the way is 8 units long, and the start of order 1 is not short backwards.
    rough = 8.0**order if by_noise(spec) else 1.0
    assert (back - x).abs().max() < max(100 * 128.0**-order * rough, 0.02 * by_noise(spec))
    for place in (0.0, 0.3, 1.0):
        still, _ = sampler(f, x, torch.full((8,), place), torch.full((8,), place))
        assert torch.equal(still, x)


@pytest.mark.parametrize("spec", [*(d for d in DEFAULTS if d["name"] != "recurrent"), *VARIANTS], ids=str)
def test_samples_in_float32_with_conditions_whole_ends_and_rests(spec):
    """From 0 to 1 in a few steps, some of no length: finite, near the flow, under a condition and guidance, in the type of
    the state, and without a draw from the global stream."""
    flow, sampler = eight_gaussians(labels=torch.arange(8) % 3, steps=8).float(), build("samplers", spec)
    torch.set_default_dtype(torch.float32)
    cond, x = torch.arange(6) % 3, torch.randn(6, 2, generator=stream()).float()
    grid, before = torch.tensor([0.0, 0.0, 0.1, 0.25, 0.25, 0.5, 0.75, 0.9, 1.0, 1.0]), torch.get_rng_state()
    for model in (flow, CFG(flow, 1.5)):
        y = sample(model, x, grid, sampler=sampler, cond=cond, generator=stream(1))
        assert y.dtype == torch.float32
        assert y.isfinite().all()
        if model is flow and spec["name"] not in (*RANDOM, *(n for n in NOISY if isinstance(n, str)), "reflected"):
            exact = flow(x, torch.zeros(6), torch.ones(6), cond)
            assert (y - exact).norm(dim=1).median() < 0.5  # the modes are 1.5 apart, and these are seven steps
    assert torch.equal(before, torch.get_rng_state())


def test_ddim_is_euler_on_the_linear_path():
    """x_u = u E[x1|x] + (1 - u) E[x0|x]."""
    f, x = gaussian(), torch.randn(8, 3, generator=stream())
    t, u = torch.full((8,), 0.3), torch.full((8,), 0.45)
    v, path = f.velocity(x, t), f.interpolant
    want = 0.45 * path.data_from_velocity(v, x, t) + 0.55 * path.source_from_velocity(v, x, t)
    assert (build("samplers", "euler")(f, x, t, u)[0] - want).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["linear", "trigonometric"])
@pytest.mark.parametrize(
    "variant", [*RANDOM, {"name": "gamma", "gamma": 1.0}, {"name": "gamma", "gamma": 0.3}, *NOISY], ids=str
)
def test_random_samplers_keep_the_law(variant, path, shape):
    """With the true map: mean, deviation and correlations at the data and half-way, within five standard errors, which fail
    with probability 4e-5 in all; Langevin steps of size 0.1 miss the deviation by some percent of the noise's, solvers in
    48 steps by 1 %."""
    path = build("interpolants", path)
    flow, sampler, n = (
        gaussian(shape, path),
        build("samplers", variant, interpolant=path),
        10_000 if variant in NOISY else 20_000,
    )
    x0 = torch.randn(n, *shape, generator=stream())
    slack = 0.02 if variant == "corrected" else 0.015 * (variant in NOISY)
    for times in ([0.0, 0.3, 0.6, 1.0], [0.0, 0.2, 0.5]):
        fine = [s + (t - s) * k / 16 for s, t in pairwise(times) for k in range(16)] + times[-1:]
        x = sample(flow, x0, fine if variant in NOISY else times, sampler=sampler, generator=stream(1))
        end = torch.tensor(times[-1:])
        mean = path.beta(end) * flow.mean
        std = (path.alpha(end) ** 2 + (path.beta(end) * flow.std) ** 2).sqrt()
        assert ((x.mean(0) - mean).abs() < 5 * std / n**0.5 + slack).all()
        assert ((x.std(0) / std - 1).abs() < 5 / (2 * n) ** 0.5 + slack).all()
        assert (torch.corrcoef(x.flatten(1).T).fill_diagonal_(0).abs() < 5 / n**0.5).all()


@pytest.mark.parametrize("variant", [*RANDOM, *NOISY], ids=str)
def test_fresh_noise_is_drawn_from_the_stream(variant):
    flow, sampler, x0 = gaussian(), build("samplers", variant), torch.randn(4, 3, generator=stream())
    a, b, c = (sample(flow, x0, [0.0, 0.25, 0.5], sampler=sampler, generator=stream(i)) for i in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    if variant in ("gamma", "restart"):
        assert torch.equal(*(sample(flow, x0, [0.0, 1.0], sampler=sampler, generator=stream(i)) for i in (1, 2)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["variance_exploding", "variance_preserving"])
@pytest.mark.parametrize("name", RANDOM)
def test_no_noise_is_added_at_the_data_where_the_path_keeps_some(name, path, shape):
    flow = gaussian(shape, build("interpolants", path))
    sampler, x = build("samplers", name, interpolant=flow.interpolant), torch.randn(4, *shape, generator=stream())
    s, one = torch.full((4,), 0.7), torch.ones(4)
    assert flow.interpolant.alpha(one).min() > 1e-3
    assert (sampler(flow, x, s, one, generator=stream())[0] - flow(x, s, one)).abs().max() < 1e-12


def test_the_released_gamma_rule_loses_noise():
    """All data at zero: at t = 1/2 the state is noise of deviation 1/2; with gamma = 0.9 the rule leaves 0.39."""
    flow = gaussian()
    flow.mean.zero_()
    flow.std.fill_(1e-6)
    x0 = torch.randn(50_000, 3, generator=stream())
    for rule, want in (("exact", 0.5), ("released", 0.387)):
        sampler = build("samplers", {"name": "gamma", "gamma": 0.9, "rule": rule})
        got = sample(flow, x0, [0.0, 0.5], sampler=sampler, generator=stream(1)).std()
        assert abs(got - want) < 0.004  # five standard errors, 6e-7, and a rounding of 0.387
    with pytest.raises(ValueError, match="the released rule needs the linear path"):
        build("samplers", {"name": "gamma", "rule": "released", "interpolant": "trigonometric"})


def test_gamma_zero_is_the_jump_and_one_the_restart():
    flow, x0 = gaussian(), torch.randn(4, 3, generator=stream())
    made = {
        g: sample(
            flow, x0, [0.0, 0.4, 1.0], sampler=build("samplers", {"name": "gamma", "gamma": g}), generator=stream(1)
        )
        for g in (0.0, 1.0)
    }
    assert torch.equal(made[0.0], sample(flow, x0, [0.0, 0.4, 1.0]))
    again = sample(flow, x0, [0.0, 0.4, 1.0], sampler=build("samplers", "restart"), generator=stream(1))
    assert (made[1.0] - again).abs().max() < 1e-12


def law_error(sampler, grid, path):
    """How far mean and deviation at the end are off, without chance: a Gaussian's solvers are affine in state and noise.

    Row k of the batch has noise in step k alone, the last two start from 0 and 1 without any.
    """
    n, flow = len(grid) - 1, gaussian((1,), path)
    draws = torch.eye(n + 2)[:n, :, None]
    x = torch.zeros(n + 2, 1)
    x[-1] = 1
    tape = Tape(list(draws), [("normal", (n + 2, 1))] * n)
    *noise, none, one = sample(flow, x, grid, sampler=sampler, generator=tape)[:, 0]
    ends = torch.stack([grid[0], grid[-1]])
    mean, std = path.beta(ends) * flow.mean, (path.alpha(ends) ** 2 + (path.beta(ends) * flow.std) ** 2).sqrt()
    got = (
        (one - none) * mean[0] + none,
        (((one - none) * std[0]) ** 2 + (torch.stack(noise) - none).square().sum()).sqrt(),
    )
    return math.hypot(float(got[0] - mean[1]), float(got[1] - std[1]))


@pytest.mark.parametrize("variable", [False, True], ids=["uniform", "variable"])
@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
@pytest.mark.parametrize(
    "spec",
    [
        {"name": "euler_maruyama", "noise": 2.0},
        {"name": "stochastic_heun", "noise": 2.0},
        *({"name": "dpm_solver_pp", "solver_order": n, "eta": 1.0} for n in (1, 2)),
    ],
    ids=str,
)
def test_declared_weak_order_is_the_measured_order(spec, path, variable):
    sampler = build("samplers", spec, interpolant=path)
    grids = [spaced(n, variable) for n in (128, 256)]
    grids = [path.time_at(-4 + 8 * g) for g in grids] if by_noise(spec) else grids
    assert abs(slope([law_error(sampler, g, path) for g in grids]) - sampler.weak_order) < 0.15


# What published methods are in special cases


def random_steps(path, count=6, shape=(3,)):
    """A true flow, states on it, and a grid that is not even."""
    flow = gaussian(shape, path)
    grid = torch.cat([torch.zeros(1), torch.rand(count, generator=stream(3)).sort().values, torch.ones(1)])
    return flow, torch.randn(8, *shape, generator=stream()), grid


def same(flow, x, grid, one, other, **options):
    a, b = (sample(flow, x, grid, sampler=s, **options) for s in (one, other))
    return float((a - b).abs().max()) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_first_orders_are_ddim_and_euler(shape):
    flow, x, grid = random_steps(Linear(), shape=shape)
    for sampler in (DPMSolverPP(1), UniPC(1, corrector=False), HeavyBall(1, 1.0), GHVB(1, 1.0), DualFast(Euler(), 0.0)):
        assert same(flow, x, grid, sampler, Euler())
    path = Trigonometric()
    flow, x, grid = random_steps(path, shape=shape)
    for s, t in pairwise(grid):
        s, t = s.expand(8), t.expand(8)
        v = flow.velocity(x, s)
        want = path.state(path.source_from_velocity(v, x, s), path.data_from_velocity(v, x, s), t)
        assert (DPMSolverPP(1)(flow, x, s, t)[0] - want).abs().max() > 1e-4, "on another path"
        assert (DPMSolverPP(1, interpolant=path)(flow, x, s, t)[0] - want).abs().max() < 1e-12
        x = want


def test_a_predictor_without_corrector_is_dpm_solver_pp():
    flow, x, grid = random_steps(Linear())
    for order in (1, 2, 3):
        assert same(flow, x, grid, UniPC(order, corrector=False), DPMSolverPP(order))
    assert not same(flow, x, grid, UniPC(2, corrector=False, mass="bh1"), DPMSolverPP(2))
    assert not same(flow, x, grid, UniPC(2), DPMSolverPP(2))


def test_with_noise_an_order_is_claimed_of_the_law_alone():
    for claims, want in ((DPMSolverPP(3), (3, None)), (DPMSolverPP(3, eta=0.5), (None, 2))):
        assert (claims.order, claims.weak_order) == want
    assert EDMStochastic().order is None


def test_dpm_solver_pp_2m_by_its_formula():
    """x <- sigma_u / sigma_s x - alpha_u (e^{-h} - 1) [(1 + 1/2r) D_i - 1/2r D_{i-1}], in the paper's letters."""
    flow, path = gaussian((3,), Trigonometric()), Trigonometric()
    x, (r, s, t) = torch.randn(8, 3, generator=stream()), torch.tensor([[0.2], [0.3], [0.5]]).expand(3, 8)
    y, state = DPMSolverPP(interpolant=path)(flow, x, r, s)
    z, _ = DPMSolverPP(interpolant=path)(flow, y, s, t, state=state)
    older, newer = (path.data_from_velocity(flow.velocity(w, u), w, u) for w, u in ((x, r), (y, s)))
    before, h = (path.log_snr(b[:1]) - path.log_snr(a[:1]) for a, b in ((r, s), (s, t)))
    ratio = before / h
    mixed = (1 + 1 / (2 * ratio)) * newer - older / (2 * ratio)
    want = path.alpha(t[:1]) / path.alpha(s[:1]) * y - path.beta(t[:1]) * torch.expm1(-h) * mixed
    assert (z - want).abs().max() < 1e-12


@pytest.mark.parametrize("order", [2, 3, 4])
def test_adams_bashforth_and_its_weights(order):
    """On equal steps the classical ones; on others, polynomials of degree order - 1 are integrated exactly."""
    weights = {2: [3, -1], 3: [23, -16, 5], 4: [55, -59, 37, -9]}[order]
    for sampler in (AdamsBashforth(order), GHVB(order, 1.0)):
        for j, weight in enumerate(reversed(weights)):
            impulse, state = EulerMap(lambda x, t, c, j=j: (t[:, None] == j).to(x.dtype)), None
            for k in range(order):
                s = torch.full((1,), float(k))
                y, state = sampler(impulse, torch.zeros(1, 1), s, s + 1, state=state)
            assert abs(float(y) - weight / {2: 2, 3: 12, 4: 24}[order]) < 1e-12
    flow, x, grid = random_steps(Linear())
    power = EulerMap(lambda x, t, c: order * t[:, None] ** (order - 1) + 0 * x)
    for sampler in (AdamsBashforth(order), GHVB(order, 0.4)):
        assert (sample(power, torch.zeros(2, 1), grid, sampler=sampler) - 1).abs().max() < 1e-10
    assert same(flow, x, grid, GHVB(order, 1.0), AdamsBashforth(order)), "no momentum is neutral"


def test_polynomials_leave_out_nodes_that_say_nothing():
    """One at infinity, where there are no data, and an older one at the same place, after a step of no length."""
    points = torch.tensor([[0.6, 0.9]])
    for nodes, kept in (
        ([0.5, 0.3, -math.inf], [0, 1]),
        ([0.5, 0.5, 0.3], [0, 2]),
        ([0.5, 0.3, 0.3, 0.1], [0, 1, 3]),
    ):
        nodes, want = torch.tensor([nodes]), torch.zeros(1, 2, len(nodes))
        want[..., kept] = lagrange(nodes[:, kept], points)
        assert torch.equal(lagrange(nodes, points), want)
        for power in range(len(kept)):
            assert (want[..., kept] @ nodes[0, kept] ** power - points**power).abs().max() < 1e-12


@pytest.mark.parametrize("b", [0.3, 0.8])
def test_ghvb_settles_on_its_published_weights(b):
    published = {
        1: [b],
        2: [(2 + b) / 2, -(2 - b) / 2],
        3: [(18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12],
        4: [(46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24],
    }
    flow, h = gaussian(), torch.full((1,), 0.01)
    for order, weights in published.items():
        state = None
        for k in range(100):
            _, state = GHVB(order, b)(flow, torch.zeros(1, 3), k * h, (k + 1) * h, state=state)
        assert torch.allclose(momentum_weights(state.moments, h), torch.tensor(weights) / b, atol=1e-8)


@pytest.mark.parametrize("b", [0.2, 0.5, 0.8])
def test_momentum_widens_the_stable_steps(b):
    """Dx = -z x is stable for steps of z up to 2 - beta with GHVB of order 2, and up to 1 without momentum."""
    for sampler, bound in ((GHVB(2, b), 2 - b), (AdamsBashforth(2), 1.0)):
        for z, stable in ((0.95 * bound, True), (1.05 * bound, False)):
            decay = EulerMap(lambda x, t, c, z=z: -z * x)
            y = sample(decay, torch.ones(1, 1), torch.arange(401.0), sampler=sampler)
            assert bool(y.abs() < 1) == stable


def test_heavy_ball_by_its_formula():
    """A momentum of what Adams-Bashforth would do, or a look ahead of it; alone it is Adams-Bashforth started by Euler."""
    flow, x, grid = random_steps(Linear())
    s, t, u = (grid[k].expand(8) for k in (1, 2, 3))
    a = flow.velocity(x, s)
    y = x + (t - s)[:, None] * a
    b = flow.velocity(y, t)
    mean = b + ((u - t) / (t - s))[:, None] / 2 * (b - a)
    for nesterov in (False, True):
        ball = HeavyBall(2, 0.7, nesterov)
        first, state = ball(flow, x, s, t)
        assert (first - y).abs().max() < 1e-12
        momentum = 0.3 * a + 0.7 * mean
        used = 0.3 * momentum + 0.7 * mean if nesterov else momentum
        assert (ball(flow, y, t, u, state=state)[0] - y - (u - t)[:, None] * used).abs().max() < 1e-12


# Noise


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
def test_edm_is_heun_in_the_noise_level(path):
    """Algorithm 2 as it is published, for a denoiser of y = x1 + sigma x0."""
    flow, sigmas = gaussian((3,), path), torch.tensor([5.0, 2.0, 0.7, 0.2, 0.0])
    times = path.time_at(-sigmas.log())
    x = flow(torch.randn(8, 3, generator=stream()), torch.zeros(8), times[0].expand(8))
    noise = list(torch.randn(4, 8, 3, generator=stream(1)))

    def denoised(y, sigma):
        t = path.time_at(-sigma.log())
        state = path.beta(t) * y
        return path.data_from_velocity(flow.velocity(state, t.expand(8)), state, t.expand(8))

    for churn, inflation in ((0.0, 1.0), (0.3, 1.01)):
        y = x / path.beta(times[0])
        for now, then, e in zip(sigmas[:-1], sigmas[1:], noise, strict=True):
            gamma = churn if 0.5 <= now <= 3 else 0.0
            raised = now * (1 + gamma)
            y = y + (raised**2 - now**2).sqrt() * inflation * e
            d = (y - denoised(y, raised)) / raised
            z = y + (then - raised) * d
            y = y + (then - raised) / 2 * (d + (z - denoised(z, then)) / then) if then > 0 else z
        sampler = EDMStochastic(churn, 0.5, 3.0, inflation, path)
        tape = Tape(noise, [("normal", (8, 3))] * 4)
        model = Counted(flow)
        assert (sample(model, x, times, sampler=sampler, generator=tape) - y).abs().max() < 1e-10
        assert model.calls == 7


# Many steps at once


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inner", [Euler(), Heun()], ids=str)
@pytest.mark.parametrize("window", [None, 5, 1])
def test_picard_is_the_steps_one_after_the_other(window, inner, shape):
    flow, x = gaussian(shape), torch.randn(8, *shape, generator=stream())
    zero, one = torch.zeros(8), torch.ones(8)
    want = sample(flow, x, torch.linspace(0, 1, 17), sampler=inner)
    y, rounds = Picard(inner, 16, window, 0.0)(flow, x, zero, one)
    assert (y - want).abs().max() < 1e-12
    assert (rounds <= 16).all()
    near, fewer = Picard(inner, 16, window, 1e-3)(flow, x, zero, one)
    assert (near - want).abs().max() < 3e-3
    if window != 1:
        assert (fewer < 13).all(), "a tolerance saves rounds"
    _, again = Picard(inner, 16, window, 1e-3)(flow, x, zero, one, state=fewer)
    assert torch.equal(again, 2 * fewer)


def test_picard_evaluates_a_window_at_once_and_each_sample_alone():
    flow, seen = eight_gaussians(labels=torch.arange(8) % 3), []

    def watched(x, t, cond):
        seen.append(len(x))
        return flow.velocity(x, t, cond)

    x, cond, picard = torch.randn(10, 2, generator=stream()), torch.arange(10) % 3, Picard(steps=12, window=6)
    y, rounds = picard(EulerMap(watched), x, torch.zeros(10), torch.ones(10), cond=cond)
    assert max(seen) == 60
    assert len(seen) == rounds.max() > rounds.min()
    some, fewer = picard(flow, x[3:7], torch.zeros(4), torch.ones(4), cond=cond[3:7])
    assert torch.equal(rounds[3:7], fewer)
    assert (some - y[3:7]).abs().max() < 1e-12


# Wrappers


def test_reflection_keeps_the_box_and_leaves_the_inside_alone():
    flow, x, grid = random_steps(Linear())
    bounded = Reflected(Heun(), -0.5, 0.6)
    seen = []
    sample(flow, 3 * x, grid, sampler=bounded, callback=lambda t, y: seen.append(y))
    assert all(((y >= -0.5) & (y <= 0.6)).all() for y in seen)
    s, t = grid[1].expand(8), grid[2].expand(8)
    step = Heun()(flow, x, s, t)[0]
    once = torch.where(step > 0.5, 1 - step, step)
    assert (step > 0.5).any()
    assert torch.allclose(Reflected(Heun(), -50.0, 0.5)(flow, x, s, t)[0], once, rtol=1e-13)
    assert same(flow, x, grid, Reflected(AdamsBashforth(3), -50.0, 50.0), AdamsBashforth(3)), "memory is passed on"
    with pytest.raises(ValueError, match="low must be below high; got 1.0 and 0.0"):
        Reflected(Euler(), 1.0, 0.0)


def test_a_wrapper_costs_an_evaluation_that_would_have_been_kept():
    one = DormandPrince(absolute=math.inf)  # six evaluations a step, and the first
    for sampler, calls in ((one, 25), (Reflected(one, -50.0, 50.0), 28), (Corrected(one), 32)):
        model = Counted(gaussian())
        sample(model, torch.zeros(2, 3), torch.linspace(0, 1, 5), sampler=sampler, generator=stream())
        assert model.calls == calls


@pytest.mark.parametrize("reference", ["first", "previous"])
def test_dualfast_by_its_formula(reference):
    """DDIM with noise predictions E + c (E - E_ref); the first step has nothing to lean on."""
    path = Trigonometric()
    flow, x, grid = random_steps(path)
    y, references = x, []
    for s, t in pairwise(grid):
        s, t = s.expand(8), t.expand(8)
        noise = path.source_from_velocity(flow.velocity(y, s), y, s)
        references.append(noise)
        far = noise + 0.4 * s[:, None] * (
            noise - references[0 if reference == "first" else max(len(references) - 2, 0)]
        )
        if float(s[0]) == 0:
            data = path.data_from_velocity(flow.velocity(y, s), y, s)
        else:
            data = (y - path.alpha(s)[:, None] * far) / path.beta(s)[:, None]
        y = path.state(far, data, t)
    sampler = DualFast(DPMSolverPP(1, interpolant=path), 0.4, reference, path)
    assert (sample(flow, x, grid, sampler=sampler) - y).abs().max() < 1e-10
    wrapped = DualFast(UniPC(interpolant=path), 0.0, reference, path)
    assert same(flow, x, grid, wrapped, UniPC(interpolant=path)), "memory is passed on"
    with pytest.raises(ValueError, match="must have a sampler that asks for them"):
        sample(flow, x, grid, sampler=DualFast(build("samplers", "jump")))


def test_dualfast_makes_up_for_few_steps_and_a_blurred_field():
    """Where a denoiser takes the noise for 15 % more than it is, and where steps are few; with many exact ones it is a bias."""
    flow, path = eight_gaussians(steps=24), Linear()
    x = torch.randn(400, 2, generator=stream())
    exact = flow(x, torch.zeros(400), torch.ones(400))

    def blurred(x, t, cond):
        noisier = (t / (t + 1.15 * (1 - t))).clamp_max(1 - 1e-9)
        state = x * (noisier / t.clamp_min(1e-9))[:, None]
        data = path.data_from_velocity(flow.velocity(state, noisier), state, noisier)
        return path.velocity_from_data(data, x, t.clamp_max(1 - 1e-9))

    def median(model, steps, strength):
        y = sample(model, x, torch.linspace(0.02, 1, steps + 1), sampler=DualFast(strength=strength))
        return float((y - exact).norm(dim=1).median())

    assert median(flow, 10, 0.2) < 0.9 * median(flow, 10, 0.0)
    assert median(EulerMap(blurred), 50, 0.2) < 0.9 * median(EulerMap(blurred), 50, 0.0)
    assert median(flow, 200, 0.2) > 1.5 * median(flow, 200, 0.0)


class Half(RecurrentNet):
    """A network of half precision, which takes no other state."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3).bfloat16()

    def advance(self, x, s, t, cond, memory):
        assert x.dtype == torch.bfloat16
        return self.layer(x), None

    def null_condition(self, batch):
        return None


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
@pytest.mark.parametrize("spec", [*DEFAULTS, *VARIANTS, *(n for n in NOISY if isinstance(n, dict))], ids=str)
def test_states_of_half_precision_stay_so(spec, path):
    """Times and draws are float32 at least."""
    sampler, x = build("samplers", spec, interpolant=path), torch.ones(4, 3).bfloat16()
    with torch.no_grad():
        x = sample(Recurrent(Half()), x, torch.linspace(0, 1, 4), sampler=sampler, generator=stream())
    assert x.dtype == torch.bfloat16
    assert x.isfinite().all()


@pytest.mark.parametrize("name", ["restart", "gamma"])
def test_samplers_that_noise_the_source_anew_refuse_latent_noise(name):
    with pytest.raises(ValueError, match="Stochastic has latent noise, so that the velocity alone does not determine"):
        build("samplers", name, interpolant=Stochastic())


def test_edm_runs_back_to_where_there_are_no_data():
    f, sampler = gaussian(), EDMStochastic(churn=0.0)
    x = sample(f, torch.randn(8, 3, generator=stream()), torch.linspace(0, 1, 65), sampler=sampler)
    assert sample(f, x, torch.linspace(1, 0, 9), sampler=sampler).isfinite().all()


def test_a_trajectory_ends_where_its_solve_ends():
    """Also where s + (t - s) is not t: in single precision with times inside."""
    torch.set_default_dtype(torch.float32)
    flow = EulerMap(lambda x, t, cond: 1 - 0.1 * x)
    x = torch.randn(5000, 2, generator=stream())
    states, progress = DormandPrince(1e-3, 1e-3).trajectory(flow, x, torch.tensor([0.0, 0.7]))
    assert (states[-1] - progress.x).abs().max() < 1e-5  # rounding


def test_picard_refuses_a_sampler_that_draws_or_remembers():
    flow, x = gaussian(), torch.randn(4, 3, generator=stream())
    with pytest.raises(TapeError):
        sample(flow, x, [0.0, 1.0], sampler=Picard(build("samplers", "euler_maruyama")))
    with pytest.raises(
        ValueError, match="its sampler must have no memory of those before; got AdamsBashforth. Use 'eu"
    ):
        sample(flow, x, [0.0, 1.0], sampler=Picard(AdamsBashforth()))
    assert Picard(Heun(), tolerance=0.0).order == 2
    assert Picard(Heun(), tolerance=0.1).order is None
