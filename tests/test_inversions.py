"""Every inversion, found by its file: it comes back to where the map started."""

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

from flowmaps.build import build, names
from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.nets.mlp import MLP
from flowmaps.oracles.gaussian import Gaussian


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", names("inversions"))
def test_the_true_map_is_inverted(name, shape):
    flow, x = gaussian(shape), torch.randn(8, *shape, generator=stream())
    s, t = torch.full((8,), 0.3), torch.full((8,), 0.7)
    found = build("inversions", name)(flow, flow(x, s, t), s, t)
    assert (found - x).abs().max() < 1e-5  # the tolerance is 1e-6 in the image; this map shrinks at most by 1/2


@pytest.mark.parametrize("name", ["fixed_point", "newton_krylov"])
def test_a_map_that_knows_one_order_of_time_is_inverted(name):
    """A network whose backward map is not its inverse."""
    torch.manual_seed(0)
    model = MeanVelocity(MLP((3,), width=32, depth=3)).double()
    x, s, t = torch.randn(8, 3, generator=stream()), torch.full((8,), 0.2), torch.full((8,), 0.9)
    y = model(x, s, t).detach()
    assert (model(y, t, s) - x).abs().max() > 1e-3
    assert (build("inversions", name)(model, y, s, t) - x).abs().max() < 1e-5


class OneWay(FlowMap):
    """The true map forwards; backwards it only repeats the state, so that the first guess is poor."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def mean_velocity(self, x, s, t, cond=None):
        return torch.zeros_like(x) if bool((t < s).all()) else self.flow.mean_velocity(x, s, t)


def test_newton_inverts_where_substitution_cannot():
    """Wide data: the mean velocity of one jump has slope 2, and substitution doubles every error."""
    flow = OneWay(Gaussian(torch.tensor([1.0, -2.0, 0.0]), torch.full((3,), 3.0)))
    x, s, t = torch.randn(16, 3, generator=stream()), torch.zeros(16), torch.ones(16)
    y = flow(x, s, t)
    with pytest.raises(ValueError, match=r"must settle within 1e-06; .* still moves by .*\(newton_krylov\)"):
        build("inversions", "fixed_point")(flow, y, s, t)
    assert (build("inversions", "newton_krylov")(flow, y, s, t) - x).abs().max() < 1e-6


def test_newton_inverts_a_curved_map():
    """From noise almost to eight Gaussians in one jump."""
    flow = OneWay(eight_gaussians(steps=4))
    x, s, t = torch.randn(16, 2, generator=stream()), torch.zeros(16), torch.full((16,), 0.8)
    y = flow(x, s, t)
    found = build("inversions", {"name": "newton_krylov", "iterations": 60})(flow, y, s, t)
    assert (flow(found, s, t) - y).abs().max() < 1e-6
    assert (found - x).abs().max() < 1e-3  # the map shrinks at most some hundredfold


def test_newton_says_when_it_fails():
    with pytest.raises(ValueError, match=r"must reach an error of 1e-12; after 1 steps it is"):
        flow = eight_gaussians(steps=12)
        y = torch.randn(4, 2, generator=stream())
        build("inversions", {"name": "newton_krylov", "iterations": 1, "krylov": 1, "tolerance": 1e-12})(
            flow, y, torch.zeros(4), torch.full((4,), 0.9)
        )
