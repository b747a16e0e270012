"""Every sampler, found by its file: the declared order is the measured one, on vectors and images."""

import pytest
import torch
from truth import SHAPES, gaussian, slope, stream

from flowmaps.build import build, names
from flowmaps.core.sampling import sample
from flowmaps.oracles._reference import Extrapolated

ORDERED = [n for n in names("samplers") if n != "jump"]  # a jump has no order: it is as good as the map


def errors(sampler, shape, counts, warp=1.0):
    f, x = gaussian(shape), torch.randn(16, *shape, generator=stream())
    exact = f(x, torch.zeros(16), torch.ones(16))
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


@pytest.mark.parametrize("name", names("samplers"))
def test_backwards_and_nowhere(name):
    """A solver runs backwards too, and a step of no length changes nothing."""
    f, x, sampler = gaussian(), torch.randn(8, 3, generator=stream()), build("samplers", name)
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
