"""Every sampler, found by its file: the declared order is the measured one, on vectors and images."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from truth import SHAPES, Remembering, eight_gaussians, gaussian, slope, stream

from flowmaps.build import build, find, names
from flowmaps.core.flow_map import Counted, EulerMap
from flowmaps.core.interpolant import Linear
from flowmaps.core.random import Tape
from flowmaps.core.recurrent import Recurrent
from flowmaps.core.sampling import Euler, Heun, sample
from flowmaps.guidance.cfg import CFG
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.oracles._reference import Extrapolated
from flowmaps.samplers.adams_bashforth import AdamsBashforth
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
DEFAULTS = [{"name": n} | PLAIN.get(n, {}) for n in names("samplers")]
ORDERED = [spec for spec in DEFAULTS if getattr(build("samplers", spec), "order", None)]
VARIANTS = [
    *({"name": "adams_bashforth", "order": n} for n in (3, 4)),
    *({"name": "ghvb", "order": n, "beta": 0.8} for n in (1, 3, 4)),
    {"name": "heavy_ball", "slopes": 3, "nesterov": True},
    *({"name": "dpm_solver_pp", "order": n} for n in (1, 3)),
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
    f, sampler = gaussian(), build("samplers", spec)
    grid = grid_for(spec, f.interpolant, 128)
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


@pytest.mark.parametrize("spec", [*DEFAULTS, *VARIANTS], ids=str)
def test_samples_in_float32_with_conditions_whole_ends_and_rests(spec):
    """From 0 to 1 in a few steps, some of no length: finite, near the flow, under a condition and guidance, in the type of
    the state, and without a draw from the global stream."""
    flow, sampler = eight_gaussians(labels=torch.arange(8) % 3, steps=24).float(), build("samplers", spec)
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
    "variant", [*RANDOM, {"name": "gamma", "gamma": 1.0}, {"name": "gamma", "gamma": 0.3}], ids=str
)
def test_random_samplers_keep_the_law(variant, path, shape):
    """With the true map: mean and deviation at the data and half-way, within five standard errors, which fail with
    probability 2e-5 in all; Langevin steps of size 0.1 miss the deviation by some percent of the noise's."""
    path = build("interpolants", path)
    flow, sampler, n = gaussian(shape, path), build("samplers", variant, interpolant=path), 20_000
    x0 = torch.randn(n, *shape, generator=stream())
    slack = 0.02 if variant == "corrected" else 0.0
    for times in ([0.0, 0.3, 0.6, 1.0], [0.0, 0.2, 0.5]):
        x = sample(flow, x0, times, sampler=sampler, generator=stream(1))
        end = torch.tensor(times[-1:])
        mean = path.beta(end) * flow.mean
        std = (path.alpha(end) ** 2 + (path.beta(end) * flow.std) ** 2).sqrt()
        assert ((x.mean(0) - mean).abs() < 5 * std / n**0.5 + slack).all()
        assert ((x.std(0) / std - 1).abs() < 5 / (2 * n) ** 0.5 + slack).all()


@pytest.mark.parametrize("name", RANDOM)
def test_fresh_noise_is_drawn_from_the_stream(name):
    flow, sampler, x0 = gaussian(), build("samplers", name), torch.randn(4, 3, generator=stream())
    a, b, c = (sample(flow, x0, [0.0, 0.5], sampler=sampler, generator=stream(i)) for i in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    if name != "corrected":
        assert torch.equal(*(sample(flow, x0, [0.0, 1.0], sampler=sampler, generator=stream(i)) for i in (1, 2)))


def test_the_released_gamma_rule_loses_noise():
    """All data at zero: at t = 1/2 the state is noise of deviation 1/2; with gamma = 0.9 the rule leaves 0.39."""
    flow = gaussian()
    flow.mean.zero_()
    flow.std.fill_(1e-6)
    x0 = torch.randn(50_000, 3, generator=stream())
    for rule, want in (("exact", 0.5), ("released", 0.387)):
        sampler = build("samplers", {"name": "gamma", "gamma": 0.9, "rule": rule})
        got = sample(flow, x0, [0.0, 0.5], sampler=sampler, generator=stream(1)).std()
        assert abs(got - want) < 0.004  # five standard errors, and a rounding of 0.387
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
