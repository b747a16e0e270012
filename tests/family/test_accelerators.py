"""FlowTurbo and its refiner, sampling at several resolutions, features that are kept, sampling through the compiler."""

from itertools import pairwise

import pytest
import torch
from truth import SHAPES, TrueRefiner, eight_gaussians, gaussian, stream

from flowmaps.build import build
from flowmaps.core.flow_map import Counted, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.sampling import Heun, sample
from flowmaps.core.types import Pair
from flowmaps.couplings.independent import Independent
from flowmaps.guidance.cfg import CFG
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.losses.velocity_refiner import VelocityRefiner
from flowmaps.nets.mlp import MLP
from flowmaps.samplers.flow_turbo import FlowTurbo

# FlowTurbo


def pairs(flow, n, generator):
    return Independent()(flow.sample(n, generator), generator=generator)


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_refiner_that_knows_the_change_has_no_loss(shape, path):
    """For every sample; one that knows another flow's is led away, by the first half of what its network gives."""
    flow, model = gaussian(shape, path), MeanVelocity(TrueRefiner(gaussian(shape, path), shape))
    loss = build("losses", {"name": "velocity_refiner"}, teacher=flow, interpolant=path)
    assert loss(model, pairs(flow, 64, stream()), generator=stream()).max() < 1e-20
    other = build("losses", {"name": "velocity_refiner"}, teacher=gaussian(shape, path, seed=5), interpolant=path)
    error = other(model, pairs(flow, 64, stream()), generator=stream())
    assert error.shape == (64,)
    (gradient,) = torch.autograd.grad(error.mean(), model.net.head)
    first, second = gradient.reshape(-1, 2 * shape[0], *shape[1:]).chunk(2, 1)
    assert first.abs().amin() > 0
    assert second.abs().amax() == 0


def test_the_refiner_is_asked_where_the_step_of_the_teacher_ends():
    """At t - s = 0 the change is nothing, and beyond the data nobody asks."""
    flow, asked = gaussian(), []

    class Watched(TrueRefiner):
        def forward(self, x, s, t, cond=None):
            asked.append((x.chunk(2, 1), t))
            return super().forward(x, s, t, cond)

    pair = pairs(flow, 2000, stream())
    VelocityRefiner(flow, 0.5)(MeanVelocity(Watched(flow, (3,))), pair, generator=stream())
    ((y, v), t) = asked[0]
    assert t.max() == 1
    # y = (1 - s) x0 + s x1 + (t - s) v: its part along x0 says s, and t - s of a uniform law has a mean of 1/4, cut at 1.
    system = torch.stack([pair.x1 - pair.x0, v], 2)
    s, span = torch.linalg.lstsq(system, (y - pair.x0)[..., None]).solution[:, :, 0].unbind(1)
    assert (s + span - t).abs().median() < 1e-12
    assert (span.median() - 0.22).abs() < 0.03
    assert (flow.velocity(pair.x0.lerp(pair.x1, s[:, None]), s) - v).abs().median() < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_flow_turbo_by_its_blocks(shape):
    """Heun, pseudo correctors by their formula, and refiners that are exact, so that they are Heun's again."""
    flow, x = gaussian(shape), torch.randn(8, *shape, generator=stream())
    model, refiner = Counted(flow), Counted(MeanVelocity(TrueRefiner(flow, shape)))
    grid, sampler = torch.tensor([0.0, 0.1, 0.3, 0.4, 0.65, 0.8, 1.0]), FlowTurbo(2, 2, refiner)
    y, slope, state, wide = x, None, None, (8, *[1] * len(shape))
    for i, (s, t) in enumerate(pairwise(grid)):
        s, t = s.expand(8), t.expand(8)
        if i in (2, 3):
            h = (t - s).reshape(wide)
            end = flow.velocity(y + h * slope, t)
            y, slope = y + h / 2 * (slope + end), end
        else:
            slope = flow.velocity(y + (t - s).reshape(wide) * flow.velocity(y, s), t)
            y, _ = Heun()(flow, y, s, t)
        x, state = sampler(model, x, s, t, state=state)
        assert (x - y).abs().max() < 1e-12
    assert (model.calls, refiner.calls) == (6, 4)
    for heun, calls in ((0, 6), (1, 6), (3, 8)):
        model.calls = 0
        sample(model, x, torch.linspace(0, 1, 6), sampler=FlowTurbo(heun))
        assert model.calls == calls


def test_what_the_steps_hand_on():
    """A refiner is given the velocity at the predicted arrival of the step before, then its own at the departure."""
    flow, x, given = gaussian(), torch.randn(8, 3, generator=stream()), []

    class Watched(TrueRefiner):
        def forward(self, x, s, t, cond=None):
            given.append(x.chunk(2, 1)[1])
            return 0.5 * super().forward(x, s, t, cond)

    sample(flow, x, torch.linspace(0, 1, 4), sampler=FlowTurbo(1, 0, MeanVelocity(Watched(flow, (3,)))))
    t = torch.full((8,), 1 / 3)
    y, _ = Heun()(flow, x, 0 * t, t)
    v = flow.velocity(x + flow.velocity(x, 0 * t) / 3, t)
    first = v + (flow.velocity(y, t) - v) / 2
    for got, want in zip(given, (v, first, first), strict=False):
        assert (got - want).abs().max() < 1e-6


def test_a_small_refiner_makes_up_for_evaluations():
    """Three evaluations of the model: two steps without a refiner, three with one, and less than half of the error."""
    flow, g = eight_gaussians(steps=48).float(), stream(1)
    flow.std.fill_(0.4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        refiner = MeanVelocity(MLP((4,), width=32, depth=3)).float()
    loss, optimizer = VelocityRefiner(flow, 0.3), torch.optim.Adam(refiner.parameters(), lr=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss(refiner, pairs(flow, 256, g), generator=g).mean().backward()
        optimizer.step()
    x = torch.randn(400, 2, generator=stream(2)).float()
    exact = flow(x, torch.zeros(400), torch.ones(400))

    @torch.no_grad()
    def error(steps, sampler):
        y = sample(flow, x, torch.linspace(0, 1, steps + 1), sampler=sampler)
        return float((y - exact).norm(dim=1).median())

    assert error(3, FlowTurbo(1, 1, refiner)) < 0.5 * error(2, FlowTurbo())


def test_refiners_take_conditions_and_guidance():
    flow = gaussian()
    net = MLP((6,), classes=3, width=8, depth=2)
    x, cond, t = torch.randn(4, 3, generator=stream()), torch.tensor([0, 1, 2, 0]), torch.full((4,), 0.5)
    refiner, state = MeanVelocity(net.double()), None
    sampler = FlowTurbo(1, 0, CFG(refiner, 3.0))
    y, state = sampler(flow, x, t, t, cond=cond)
    seen = sampler(flow, y, t, t, cond=cond, state=state)[1].velocity - state.velocity
    beside = torch.cat([y, state.velocity], 1)
    null, told = (refiner.velocity(beside, t, c)[:, :3] for c in (net.null_condition(4), cond))
    assert (seen - (3 * told - 2 * null)).abs().max() < 1e-12


def test_errors_of_flow_turbo():
    refiner, flow = MeanVelocity(TrueRefiner(gaussian(), (3,))), gaussian()
    with pytest.raises(ValueError, match="heun and pseudo must be at least 0, and one of them more; got 0 and 0"):
        FlowTurbo(0, 0, refiner)
    for sampler in ((1, 2, None), (1, None, refiner)):
        with pytest.raises(ValueError, match="pseudo and refiner must come together"):
            FlowTurbo(*sampler)
    with pytest.raises(ValueError, match=r"longest must lie in \(0, 1\]; got 0"):
        VelocityRefiner(flow, 0)
    with pytest.raises(ValueError, match="the path needs data"):
        VelocityRefiner(flow)(refiner, Pair(torch.zeros(2, 3)))
    assert FlowTurbo().order == 2
    assert FlowTurbo(1, 1, refiner).order is None
