"""Every sampler, found by its file: the declared order is the measured one, on vectors and images."""

import pytest
import torch
from truth import SHAPES, Remembering, gaussian, slope, stream

from flowmaps.build import build, names
from flowmaps.core.recurrent import Recurrent
from flowmaps.core.sampling import sample
from flowmaps.oracles._reference import Extrapolated

RANDOM = ["corrected", "gamma", "restart"]
# A jump has no order: it is as good as the map.
ORDERED = [n for n in names("samplers") if n not in ("jump", *RANDOM)]


def flow_for(sampler, shape):
    """The exact flow, as a map with a memory for the sampler that asks for one."""
    return Recurrent(Remembering(gaussian(shape))) if sampler == build("samplers", "recurrent") else gaussian(shape)


def errors(sampler, shape, counts, warp=1.0):
    f, x = flow_for(sampler, shape), torch.randn(16, *shape, generator=stream())
    exact = gaussian(shape)(x, torch.zeros(16), torch.ones(16))
    grids = [torch.linspace(0, 1, n + 1) ** warp for n in counts]
    return [float((sample(f, x, grid, sampler=sampler) - exact).square().mean().sqrt()) for grid in grids]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("warp", [1.0, 1.5], ids=["uniform", "variable"])
@pytest.mark.parametrize("name", ORDERED)
def test_declared_order_is_the_measured_order(name, warp, shape):
    sampler = build("samplers", name)
    # Root mean squares: the largest error changes place with the step, and sign on its way. Higher orders settle later.
    counts = (64, 128) if sampler.order < 3 else (128, 256)
    assert abs(slope(errors(sampler, shape, counts, warp)) - sampler.order) < 0.15


@pytest.mark.parametrize("columns", [2, 3])
def test_the_reference_solver_has_order_twice_its_columns(columns):
    # It gains on the way to its order: steps that resolve the field reach more than they promise.
    assert slope(errors(Extrapolated(columns), (3,), (6, 12))) > 2 * columns - 0.3


@pytest.mark.parametrize("name", ["jump", *ORDERED])
def test_backwards_and_nowhere(name):
    """A solver runs backwards too, and a step of no length changes nothing."""
    sampler = build("samplers", name)
    f, x = flow_for(sampler, (3,)), torch.randn(8, 3, generator=stream())
    there = sample(f, x, torch.linspace(0, 1, 129), sampler=sampler)
    back = sample(f, there, torch.linspace(1, 0, 129), sampler=sampler)
    order = getattr(sampler, "order", 4)
    assert (back - x).abs().max() < 3 * 128.0**-order * 10
    still, _ = sampler(f, x, torch.full((8,), 0.3), torch.full((8,), 0.3))
    assert torch.equal(still, x)


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
