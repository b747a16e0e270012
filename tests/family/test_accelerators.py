"""FlowTurbo and its refiner, sampling at several resolutions, features that are kept, sampling through the compiler."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from truth import SHAPES, TrueRefiner, eight_gaussians, gaussian, stream

from flowmaps.build import build
from flowmaps.core.flow_map import Counted, EulerMap, FlowMap, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.random import Tape, TapeError
from flowmaps.core.recurrent import Recurrent
from flowmaps.core.sampling import Euler, Heun, Jump, RungeKutta4, sample
from flowmaps.core.types import Pair
from flowmaps.couplings.independent import Independent
from flowmaps.engine.compiled import CompileError
from flowmaps.flow import Flow
from flowmaps.guidance.cfg import CFG
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.losses.velocity_refiner import VelocityRefiner
from flowmaps.nets._convolutional import Residual
from flowmaps.nets._transformer import Block
from flowmaps.nets.cached import Cached
from flowmaps.nets.mlp import MLP
from flowmaps.nets.unet import UNet
from flowmaps.samplers.bottleneck import Bottleneck
from flowmaps.samplers.flow_turbo import FlowTurbo
from flowmaps.samplers.recurrent import RecurrentSteps
from flowmaps.spaces.euclidean import Euclidean
from flowmaps.time_grids.shift import Shift

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
    flow, g = eight_gaussians().float(), stream(1)
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
    exact = sample(flow, x, torch.linspace(0, 1, 33), sampler=RungeKutta4())

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


# Several resolutions


class Field(FlowMap):
    """The exact map of Gaussian images of any resolution: N(R m, R C R^T), R the mean over blocks of a full image's."""

    def __init__(self, mean, covariance, path):
        super().__init__()
        self.mean, self.covariance, self.path = mean, covariance, path

    def law(self, size):
        shrink = averaging(self.mean.shape, size)
        return shrink @ self.mean.flatten(), shrink @ self.covariance @ shrink.T

    def mean_velocity(self, x, s, t, cond=None):
        mean, covariance = self.law(x.shape[1:])
        values, vectors = torch.linalg.eigh(covariance)
        before, after = (
            (self.path.alpha(r) ** 2)[:, None] + self.path.beta(r)[:, None] ** 2 * values.clamp_min(0) for r in (s, t)
        )
        from_, to = (self.path.beta(r)[:, None] * mean for r in (s, t))
        y = to + ((x.flatten(1) - from_) @ vectors * (after / before).sqrt()) @ vectors.T
        return (y.reshape(x.shape) - x) / (t - s).reshape(-1, 1, 1, 1)


def averaging(shape, size):
    """The matrix of means over blocks, from one resolution to a lower one."""
    basis = torch.eye(math.prod(shape)).reshape(-1, *shape)
    return F.avg_pool2d(basis, shape[1] // size[1]).flatten(1).T


def law_of(sampler, model, shape, low):
    """Mean and covariance of what a sampler makes of noise, without chance: all is affine in its draws.

    Row k of the batch has one unit of noise, in the start, in the low or in the last stage; the first row has none.
    """
    start, middle = math.prod(shape), math.prod(low)
    rows = 1 + start + middle + start
    units = torch.eye(rows)[:, 1:].split([start, middle, start], 1)
    x, *draws = (u.reshape(rows, *s) for u, s in zip(units, (shape, low, shape), strict=True))
    tape = Tape(draws, [("normal", tuple(d.shape)) for d in draws])
    y, _ = sampler(model, x, torch.zeros(rows), torch.ones(rows), generator=tape)
    none, some = y.flatten(1)[:1], y.flatten(1)[1:]
    return none[0], (some - none).T @ (some - none)


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
def test_the_law_of_bottleneck_is_what_its_stages_make_of_it(path):
    """With exact jumps: right to the last change of resolution, at which blocks lose what they are inside; noise at the
    level of that time covers this in part. Images of constant blocks keep their law."""
    shape, low, at = (1, 4, 4), (1, 2, 2), 0.45
    sampler = Bottleneck(Jump(), (1, 2, 3), (1, 0.5, 1), (0, 0.3, at), (2, 1, 3), "area", path)
    g = stream(4)
    factor, mean = torch.randn(16, 16, generator=g) / 3, torch.randn(shape, generator=g)
    time = torch.tensor([at])
    alpha, beta = path.alpha(time), path.beta(time)
    shrink = averaging(shape, low)
    grow = 4 * shrink.T
    for blocks in (False, True):
        flat, covariance = (mean.flatten(), factor @ factor.T)
        if blocks:
            flat, covariance = grow @ shrink @ flat, grow @ shrink @ covariance @ shrink.T @ grow.T
        field = Field(flat.reshape(shape), covariance, path)
        noisy = beta * grow @ shrink @ flat
        spread = beta**2 * grow @ shrink @ covariance @ shrink.T @ grow.T + alpha**2 * torch.eye(16)
        one = torch.ones(17)
        points = torch.cat([torch.zeros(1, 16), torch.eye(16)]).reshape(-1, *shape)
        there = field(points, at * one, one).flatten(1)
        linear = (there[1:] - there[:1]).T
        got_mean, got = law_of(sampler, field, shape, low)
        assert (got_mean - there[0] - linear @ noisy).abs().max() < 1e-10
        assert (got - linear @ spread @ linear.T).abs().max() < 1e-10
        assert bool((got - covariance).abs().max() < 1e-6) is blocks, "eigenvalues of 0 are rounded to 1e-16"


def test_one_stage_is_the_sampler():
    flow, x = gaussian((2, 2, 3)), torch.randn(8, 2, 2, 3, generator=stream())
    zero, one = torch.zeros(8), torch.ones(8)
    y, _ = Bottleneck(Heun(), (8,), (1,), (0,), (1,))(flow, x, zero, one)
    assert torch.equal(y, sample(flow, x, torch.linspace(0, 1, 9), sampler=Heun()))
    y, _ = Bottleneck(Heun(), (8,), (1,), (0,), (3,))(flow, x, zero, one)
    assert torch.equal(y, sample(flow, x, Shift(3.0)(8, flow, x), sampler=Heun()))


def test_the_times_of_a_stage_are_shifted_from_its_start():
    """Equally spaced before the shift, by which (1 - t) / t is multiplied."""
    sampler = Bottleneck()
    for k, (start, shift, steps) in enumerate(zip(sampler.starts, sampler.shifts, sampler.steps, strict=True)):
        t = sampler.times(k)
        assert len(t) == steps + 1
        assert (t[0] - start).abs() < 1e-15
        assert t[-1] == 1
        assert (t / (t + (1 - t) / shift)).diff().diff().abs().max() < 1e-15


def test_bottleneck_samples_from_a_unet_at_two_resolutions():
    """In a step of the flow, with conditions and guidance; each sample by its own noise, and nothing from elsewhere."""
    seen, before = [], torch.get_rng_state()

    class Watched(UNet):
        def forward(self, x, s, t, cond=None):
            seen.append((x.shape[2:], float(t[0])))
            return super().forward(x, s, t, cond)

    with torch.random.fork_rng():
        net = Watched((1, 8, 8), classes=3, width=8, blocks=1, heads=1)
        for weight in net.parameters():
            nn.init.normal_(weight, std=0.1)
    flow = Flow(MeanVelocity(net), Linear(), Independent(), Euclidean(), (1, 8, 8), 3)
    table = {"name": "bottleneck", "steps": (2, 3, 2), "sampler": "heun", "resample": "bilinear"}
    x = flow.sample(4, 1, sampler=table, guidance=2.0)
    assert x.shape == (4, 1, 8, 8)
    assert [size for size, _ in seen] == [(8, 8)] * 8 + [(4, 4)] * 12 + [(8, 8)] * 8
    assert [seen[i][1] for i in (0, 8, 20)] == pytest.approx([0, 0.2, 0.5], abs=1e-7)
    assert torch.allclose(flow.sample(1, 1, first=2, sampler=table, guidance=2.0), x[2:3])
    assert not torch.allclose(flow.sample(4, 1, seed=1, sampler=table, guidance=2.0), x)
    assert not torch.allclose(*(flow.sample(1, 1, label=n, sampler=table) for n in (0, 1)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("path", [Linear(), Trigonometric()], ids=str)
def test_bottleneck_keeps_half_precision(path):
    seen = []

    class Watched(FlowMap):
        def mean_velocity(self, x, s, t, cond=None):
            seen.append(x.dtype)
            return -x

    x = torch.ones(2, 1, 4, 4).bfloat16()
    y, _ = Bottleneck(interpolant=path)(Watched(), x, torch.zeros(2), torch.ones(2), generator=stream())
    assert {y.dtype, *seen} == {torch.bfloat16}


def test_errors_of_bottleneck():
    flow, x = gaussian(), torch.zeros(2, 3)
    zero, one = torch.zeros(2), torch.ones(2)
    for states, t in ((x, one), (torch.zeros(2, 1, 4, 4), one / 2)):
        with pytest.raises(ValueError, match="takes images .* from time 0 to 1 in one step"):
            Bottleneck()(flow, states, zero, t)
    fixed, images = MeanVelocity(MLP((1, 4, 4), width=8, depth=2).double()), torch.zeros(2, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"network that takes images of several sizes.*took \(4, 4\) and not \(2, 2\): mat"
    ):
        Bottleneck()(fixed, images, zero, one)
    for error in (torch.OutOfMemoryError, TapeError):  # at the low resolution, and not for its sake

        def raises(x, t, cond, error=error):
            if len(x[0, 0]) == 2:
                raise error("something else")
            return -x

        with pytest.raises(error, match="^something else"):
            Bottleneck()(EulerMap(raises), images, zero, one)
    for options, message in (
        ({"steps": (4, 4)}, "one number per stage"),
        ({"scales": (1, 1, 0.5)}, "scales must be > 0, and 1 in the first and the last stage"),
        ({"starts": (0.1, 0.2, 0.5)}, r"starts must lie in \[0, 1\), and the first be 0"),
        ({"steps": (1, 0, 1)}, "steps must be at least 1 and shifts > 0"),
        ({"resample": "nearest"}, "resample must be one of 'area', 'bilinear', 'bicubic'"),
    ):
        with pytest.raises(ValueError, match=message):
            Bottleneck(**options)


# Features that are kept


def trained(name, classes=0, **options):
    """A small network on images [2, 8, 8], none of whose weights is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build("nets", {"name": name, **options}, shape=(2, 8, 8), classes=classes)
        for weight in made.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
    return made


DEEP = {
    "dit": ({"width": 16, "depth": 5, "heads": 2}, Block, 5, {0: 0, 1: 2, 2: 4}),
    # Two levels of two blocks: 4 down, 2 in the middle, 6 up. Skips: from the entry, 2 blocks, the halving, 2 blocks.
    "unet": ({"width": 16, "heads": 2}, Residual, 12, {0: 1, 1: 3, 2: 5, 3: 8, 4: 10}),
}


def blocks_of(model, kind):
    """A list that grows by one with every block that is evaluated."""
    seen = []
    for part in model.modules():
        if isinstance(part, kind):
            part.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("name", DEEP)
def test_without_reuse_a_cached_network_is_the_network(name):
    """Bit for bit: at every step if every = 1, and at the first step and without a memory whatever it is."""
    options, *_, outers = DEEP[name]
    net = trained(name, classes=3, **options)
    x, cond = torch.randn(4, 2, 8, 8, generator=stream()), torch.tensor([0, 1, 2, 3])
    for outer in outers:
        model, memories = Recurrent(Cached(net, 1, outer)), {1: None, 9: None}
        for r in torch.linspace(0, 1, 4):
            s, t, y = r.expand(4), (r / 2).expand(4), (1 - r) * x
            plain = net(y, s, t, cond)
            assert torch.equal(model.mean_velocity(y, s, t, cond), plain)
            for every in memories:
                got, memories[every] = Cached(net, every, outer).advance(y, s, t, cond, memories[every])
                assert torch.equal(got, plain) is (every == 1 or bool(r == 0))
    plain = sample(MeanVelocity(net), x, torch.linspace(0, 1, 6), sampler=Euler(), cond=cond)
    same = sample(model, x, torch.linspace(0, 1, 6), sampler=RecurrentSteps(), cond=cond)
    assert (plain - same).abs().max() < 1e-12


@pytest.mark.parametrize("name", DEEP)
def test_inner_blocks_are_evaluated_at_every_kth_step(name):
    options, kind, depth, outers = DEEP[name]
    net = trained(name, **options)
    x, seen = torch.randn(2, 2, 8, 8, generator=stream()), blocks_of(net, kind)
    for outer, cheap in outers.items():
        seen.clear()
        sample(Recurrent(Cached(net, 3, outer)), x, torch.linspace(0, 1, 10), sampler=RecurrentSteps())
        assert len(seen) == 3 * depth + 6 * cheap


@pytest.mark.parametrize("name", DEEP)
def test_features_are_reused_as_they_were(name):
    """Where the state and the time are those of the step before, nothing is lost; elsewhere the outer blocks see the new
    state, and less is lost the more of them there are."""
    options, *_, outers = DEEP[name]
    net = trained(name, **options).requires_grad_(False)
    x, s, zero = torch.randn(8, 2, 8, 8, generator=stream()), torch.full((8,), 0.3), torch.zeros(8)
    near, later, lost = x + 0.05 * torch.randn(x.shape, generator=stream(1)), s + 0.02, []
    for outer in outers:
        cached = Cached(net, 2, outer)
        y, memory = cached.advance(x, s, s, None, None)
        again, _ = cached.advance(x, s, s, None, memory)
        assert (again - y).abs().max() < 1e-12
        reused, memory = cached.advance(near, later, later, None, memory)
        assert not torch.equal(reused, y), "what is told to the outer blocks is new"
        lost.append(float((reused - net(near, later, later)).square().mean()))
        assert torch.equal(cached.advance(x, s, zero, None, memory)[0], net(x, s, zero)), "the third step is whole"
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] > 0


def test_a_cached_network_adopts_weights_and_says_what_it_cannot():
    net, other = (build("nets", {"name": "dit", "width": 16, "heads": 2}, shape=(2, 8, 8), classes=0) for _ in range(2))
    cached = Cached(other)
    cached.adopt(net)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), cached.parameters(), strict=True))
    with pytest.raises(ValueError, match="net must have blocks that can be left out: a dit or unet; got MLP"):
        Cached(MLP((3,)))
    for every, outer in ((0, 1), (2, 3)):
        with pytest.raises(ValueError, match="every must be at least 1 and outer lie between 0 and 2"):
            Cached(net, every, outer)


# Sampling through the compiler


def small_flow():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP((3,), classes=3, width=8, depth=2)
    return Flow(MeanVelocity(net), Linear(), Independent(), Euclidean(), (3,), 3)


@pytest.mark.parametrize("sampler", [pytest.param("flow_turbo", marks=pytest.mark.slow), "gamma"])
def test_compiled_samples_are_the_eager_ones(sampler):
    """For each shape of the batch, with conditions, guidance and fresh noise; a graph is made once."""
    torch._dynamo.reset()
    flow = small_flow()
    fast, options = flow.compiled("eager"), {"sampler": sampler, "guidance": 2.0, "batch": 3}
    for seed in (0, 1):
        want, got = (f.sample(5, 3, seed=seed, **options) for f in (flow, fast))
        assert (want - got).abs().max() < 1e-12, "rounding"
    assert sorted(kind[0][0] for kind in fast.run.kinds) == [2, 3]
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(fast.sample(5, 3, seed=1, **options), got)


@pytest.mark.slow  # eleven graphs
def test_more_kinds_of_sampling_than_torch_compiles_one_function_for():
    torch._dynamo.reset()
    flow = small_flow()
    fast = flow.compiled("eager")
    for n in range(1, 12):
        for _ in range(2):
            got = fast.sample(n, 1)
        assert (got - flow.sample(n, 1)).abs().max() < 1e-12


@pytest.mark.slow  # the compiler takes its time
def test_sampling_through_inductor():
    torch._dynamo.reset()
    flow = small_flow()
    fast = flow.compiled()
    fast.sample(4, 2, sampler="flow_turbo")
    want, got = (f.sample(4, 2, seed=1, sampler="flow_turbo") for f in (flow, fast))
    assert (want - got).abs().max() < 1e-12, "rounding"


def test_what_cannot_be_compiled_says_so():
    fast = small_flow().compiled("eager")
    fast.sample(2, 1, sampler="dormand_prince")
    with pytest.raises(CompileError, match="must take the same course whatever it sees; DormandPrince does not"):
        fast.sample(2, 1, sampler="dormand_prince")
    fast.sample(2, 2, sampler="euler", guidance="interval")
    with pytest.raises(CompileError, match="Euler does not, or one of Interval, MeanVelocity, CFG or its network"):
        fast.sample(2, 2, sampler="euler", guidance="interval")
    with pytest.raises(TypeError, match="makes its own tape"):
        fast.run(fast.model, torch.zeros(2, 3), torch.linspace(0, 1, 2), generator=Tape([], []))
