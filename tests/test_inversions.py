"""Every inversion, found by its file: it comes back to where the map started."""

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

from flowmaps.build import build, names
from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.inversion import NotInverted
from flowmaps.core.shapes import expand_time
from flowmaps.likelihood.change_of_variables import ChangeOfVariables
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
    with pytest.raises(
        NotInverted, match=r"at most; 16 of 16 samples have more, up to .*Newton's method \(newton_krylov\)"
    ):
        build("inversions", "fixed_point")(flow, y, s, t)
    assert (build("inversions", "newton_krylov")(flow, y, s, t) - x).abs().max() < 1e-6


def test_newton_inverts_a_curved_map():
    """From noise almost to eight Gaussians in one jump."""
    flow = OneWay(eight_gaussians(steps=4))
    x, s, t = torch.randn(16, 2, generator=stream()), torch.zeros(16), torch.full((16,), 0.8)
    y = flow(x, s, t)
    found = build("inversions", {"name": "newton_krylov", "iterations": 15})(flow, y, s, t)
    assert (flow(found, s, t) - y).abs().max() < 4e-6  # 1e-6 of 1 + the largest coordinate
    assert (found - x).abs().max() < 1e-3  # the map shrinks at most some hundredfold


def test_newton_says_when_it_fails():
    with pytest.raises(NotInverted, match=r"an error of .*e-12 at most; 4 of 4 samples have more, up to"):
        flow = eight_gaussians(steps=12)
        y = torch.randn(4, 2, generator=stream())
        build("inversions", {"name": "newton_krylov", "iterations": 1, "krylov": 1, "tolerance": 1e-12})(
            flow, y, torch.zeros(4), torch.full((4,), 0.9)
        )


class Folded(FlowMap):
    """X = x + rate sin(x) in each coordinate, told the rate; backwards it only repeats the state.

    For a rate of 7 substitution fails, and so does Newton's method: there the derivative is no number.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def mean_velocity(self, x, s, t, cond=None):
        self.seen.append(len(x))
        rate = cond["rate"].reshape(-1, *[1] * (x.ndim - 1))
        broken = torch.where(rate > 5, (0 * x.square()).sqrt(), 0.0)
        return torch.where(expand_time(t < s, x), 0.0, rate * x.sin() + broken)


def folded(shape, rate):
    x, n = torch.randn(len(rate), *shape, generator=stream()), len(rate)
    s, t, cond = torch.zeros(n), torch.ones(n), {"rate": torch.tensor(rate)}
    return x, Folded()(x, s, t, cond), s, t, cond


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["fixed_point", "newton_krylov"])
def test_a_sample_that_fails_leaves_the_others_alone(name, shape):
    x, y, s, t, cond = folded(shape, [0.3, 7.0, 0.2, 0.0])
    with pytest.raises(NotInverted, match=r"; 1 of 4 samples have more, .*failed='nan' to go on without"):
        build("inversions", name)(Folded(), y, s, t, cond)
    model, lenient = Folded(), build("inversions", {"name": name, "failed": "nan"})
    found = lenient(model, y, s, t, cond)
    assert found[1].isnan().all()
    kept = [0, 2, 3]
    assert (found[kept] - x[kept]).abs().max() < 1e-5
    assert min(model.seen) == 1 or name == "newton_krylov", "what is done is not evaluated again"
    for i in kept:
        alone = lenient(Folded(), y[i : i + 1], s[:1], t[:1], {"rate": cond["rate"][i : i + 1]})
        assert (alone[0] - found[i]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="failed must be one of 'raise', 'nan'; got 'skip'"):
        build("inversions", {"name": name, "failed": "skip"})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["fixed_point", "newton_krylov"])
def test_single_precision_of_large_coordinates_is_enough(name, shape):
    """At 3000, float32 numbers are 2e-4 apart: what is left is measured by the size of the state."""
    flow = gaussian(shape).float()
    flow.mean.mul_(3000)
    x = torch.randn(8, *shape, generator=stream(), dtype=torch.float32)
    s, t = torch.full((8,), 0.5, dtype=torch.float32), torch.full((8,), 0.7, dtype=torch.float32)
    x = x + 0.5 * flow.mean
    y = OneWay(flow)(x, s, t)
    found = build("inversions", name)(OneWay(flow), y, s, t)
    assert found.dtype == torch.float32
    assert ((found - x).flatten(1).abs().amax(1) / (1 + x.flatten(1).abs().amax(1))).max() < 1e-5


def test_likelihood_of_what_cannot_be_inverted_is_no_number():
    x, y, *_, cond = folded((3,), [0.3, torch.nan, 0.2])
    y = torch.where(y.isfinite(), y, 1.0)
    density = ChangeOfVariables(build("inversions", {"name": "newton_krylov", "failed": "nan"}))
    found = density(Folded(), y, [0.0, 1.0], lambda x: -x.square().sum(1) / 2, cond)
    slope = (1 + cond["rate"][:, None] * x.cos()).log().sum(1)
    assert (found - (-x.square().sum(1) / 2 - slope))[[0, 2]].abs().max() < 1e-5
    assert found.isnan().tolist() == [False, True, False]
