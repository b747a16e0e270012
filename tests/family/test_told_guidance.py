"""Guidance whose scale the network is told: stationary at the guided flow, asked for by a number, learnt and sampled."""

import dataclasses
import inspect
import math

import pytest
import torch
from test_losses import begun
from torch import nn
from truth import SHAPES, stream

from flowmaps.build import build, find, names
from flowmaps.core.flow_map import EulerMap, FlowMap, Integrated, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.sampling import sample
from flowmaps.couplings.independent import Independent
from flowmaps.engine.step import Step
from flowmaps.flow import Flow
from flowmaps.guidance.told import Told
from flowmaps.nets.mlp import MLP
from flowmaps.oracles.mixture import Mixture
from flowmaps.samplers.runge_kutta4 import RungeKutta4
from flowmaps.spaces.euclidean import Euclidean

shapes = pytest.mark.parametrize("shape", SHAPES)
# Losses that take a velocity.
TELLING = [n for n in names("losses") if "velocity" in inspect.signature(find("losses", n)).parameters]


def mixture(shape):
    """Two classes of two Gaussians each; the class 2 is none."""
    means = 0.8 * torch.randn(4, *shape, generator=stream(1))
    return Mixture(means, torch.tensor([0.5, 0.8, 0.6, 0.4]), labels=torch.tensor([0, 0, 1, 1]))


class Guided(FlowMap):
    """The flow of q = b(null) + a (b(label) - b(null)) for the scale a it is told, plus a head, zero at first.

    The head sees state, times, label and scale, so that a loss must be stationary for each of them.
    """

    def __init__(self, data, steps=6, heeds=True):
        super().__init__()
        self.data, self.heeds, d = data, heeds, math.prod(data.shape)
        self.solved = Integrated(EulerMap(self.guided), RungeKutta4(), steps)
        self.register_buffer("project", torch.randn(d + 4, 24, generator=stream(7)))
        self.head = nn.Parameter(torch.zeros(24, d))

    def guided(self, x, t, cond):
        label, scale = (cond["label"], cond["guidance"]) if isinstance(cond, dict) else (cond, torch.ones_like(t))
        free = self.data.velocity(x, t, self.null_condition(len(x)))
        scale = scale if self.heeds else torch.ones_like(scale)
        return free.lerp(self.data.velocity(x, t, label), scale.reshape(-1, *[1] * (x.ndim - 1)))

    def mean_velocity(self, x, s, t, cond=None):
        label, scale = (cond["label"], cond["guidance"]) if isinstance(cond, dict) else (cond, torch.ones_like(t))
        u = self.guided(x, t, cond) if s is t else self.solved.mean_velocity(x, s, t, cond)
        columns = torch.stack([s, t, label.to(x.dtype), scale], 1)
        return u + (torch.tanh(torch.cat([x.flatten(1), columns], 1) @ self.project) @ self.head).reshape(x.shape)

    def null_condition(self, batch):
        return torch.full((batch,), 2)


class Mixed(FlowMap):
    """The mean velocities with and without the label, mixed by the scale."""

    def __init__(self, data):
        super().__init__()
        self.plain = Guided(data, steps=4, heeds=False)  # far from the guided map, however well it is solved

    def mean_velocity(self, x, s, t, cond=None):
        free, bound = (self.plain.solved.mean_velocity(x, s, t, c) for c in (torch.full_like(cond["label"], 2), cond))
        return free.lerp(bound, cond["guidance"].reshape(-1, *[1] * (x.ndim - 1)))


def pairs(data, n, generator, dropped=0.1):
    x1, component = data.sample_labelled(n, generator)
    label = torch.where(torch.rand(n, generator=generator) < dropped, 2, data.labels[component])
    return Independent()(x1, label, generator=generator)


def loss_of(name, **options):
    return build("losses", {"name": name, "velocity": {"name": "guided_as_told", "highest": 3.0}, **options})


def score(loss, model, batches=24, size=2048):
    """Mean squared z-score of the gradient of the head, as in test_losses: about 1 where the model is stationary."""
    g = stream(3)
    gradients = torch.stack(
        [
            torch.autograd.grad(loss(model, pairs(model.data, size, g), generator=g).mean(), model.head)[0]
            for _ in range(batches)
        ]
    )
    return float((gradients.mean(0) / (gradients.std(0) / batches**0.5 + 1e-12)).square().mean())


@shapes
def test_the_guided_velocity_is_stationary(shape):
    loss = loss_of("flow_matching")
    assert score(loss, Guided(mixture(shape))) < 6
    if len(shape) == 1:  # on images the scale is too faint beside the noise of the paths
        assert score(loss, Guided(mixture(shape), heeds=False)) > 30, "a map that ignores the scale is not"


def exact(data, name, **options):
    """A loss with the exact conditional velocity in place of dI/dt: right for every sample, not only on average."""
    velocity = {"name": "guided_as_told", "highest": 3.0, "velocity": "teacher"}
    return build("losses", {"name": name, "velocity": velocity, **options}, teacher=data)


@shapes
@pytest.mark.parametrize("name", ["flow_matching", "lsd", "esd", "psd", "split_mean_flow", "shortcut"])
def test_the_diagonal_is_the_guided_velocity(name, shape):
    data = mixture(shape)
    loss = exact(data, name, **({} if name == "flow_matching" else {"diagonal": 1.0}))
    pair = pairs(data, 256, stream(), dropped=0.3)
    assert loss(Guided(data), pair, generator=stream()).max() < 1e-24
    unheeding, dropped = loss(Guided(data, heeds=False), pair, generator=stream()), pair.cond == 2
    assert unheeding[dropped].max() < 1e-24, "without a label there is no guidance"
    assert unheeding[~dropped].mean() > 0.01


def cases(variants, quick):
    """Each variant on vectors and on images, which in the fast suite the quick ones stand for."""
    slow = {True: (), False: pytest.mark.slow}
    return [
        pytest.param(
            v, shape, id=f"{'-'.join(map(str, v.values()))}-{len(shape)}", marks=slow[shape == (3,) or v in quick]
        )
        for v in variants
        for shape in SHAPES
    ]


FOLLOWING = [
    {"name": "lsd"},
    {"name": "lsd", "route": "stopped"},
    {"name": "esd"},
    {"name": "esd", "stop": "convex"},
    {"name": "esd", "stop": "none"},
    {"name": "psd"},
    {"name": "psd", "split": "midpoint"},
    {"name": "split_mean_flow"},
    {"name": "shortcut", "target": "own", "shortest": 0.0, "times": "uniform_pair"},
]


@pytest.mark.parametrize(("variant", "shape"), cases(FOLLOWING, [{"name": n} for n in ("lsd", "esd", "psd")]))
def test_off_the_diagonal_every_residual_vanishes_at_the_guided_map(variant, shape):
    """Zero but for the solve; the same diagonal with the mix of the two maps off it, which is CFG, is far from it."""
    loss, data = loss_of(**variant, diagonal=0.0), mixture(shape)
    right, wrong = Guided(data, steps=16), Guided(data, steps=16)
    wrong.solved = Mixed(data)
    right, wrong = (loss(m, pairs(data, 64, stream(), 0.0), generator=stream()) for m in (right, wrong))
    assert right.max() < 1e-6 * wrong.mean()
    assert wrong.mean() > 1e-3


DRIVEN = [
    {"name": "mean_flow", "diagonal": 0.0},
    {"name": "alpha_flow", "diagonal": 0.0, "end": 0},
    {"name": "decoupled_mean_flow"},
    {"name": "facm"},
    {"name": "scm", "stabiliser": "unchanged"},
    {"name": "align_your_flow", "most": 1.0, "stabiliser": "unchanged"},
]


@pytest.mark.parametrize(("variant", "shape"), cases(DRIVEN, DRIVEN[:1]))
def test_losses_that_a_velocity_drives_have_the_guided_map_too(variant, shape):
    data = mixture(shape)
    loss, right, wrong = exact(data, **variant), Guided(data, steps=16), Guided(data, steps=16)
    wrong.solved = Mixed(data)
    right, wrong = (loss(m, pairs(data, 64, stream(), 0.0), generator=stream()) for m in (right, wrong))
    assert right.max() < 1e-5 * wrong.mean()
    assert wrong.mean() > 1e-2


class Listening(FlowMap):
    """Writes down the conditions it sees."""

    def __init__(self):
        super().__init__()
        self.shift, self.seen = nn.Parameter(torch.zeros(())), []

    def mean_velocity(self, x, s, t, cond=None):
        self.seen.append(cond)
        return x + self.shift

    def null_condition(self, batch):
        return torch.full((batch,), 2)


@pytest.mark.parametrize("name", TELLING)
def test_every_loss_with_a_velocity_tells_the_scale(name):
    """On the diagonal and off it; all else that is asked is the plain map, for the direction of guidance."""
    data, model = mixture((3,)), Listening()
    velocity = {"name": "guided_as_told", "lowest": 1.5, "highest": 3.0}
    loss = build("losses", {"name": name, "velocity": velocity}, teacher=data)
    begun(loss, model)(model, pairs(data, 40, stream()), generator=stream())
    heard = [c for c in model.seen if isinstance(c, dict)]
    assert heard
    for cond in heard:
        none = cond["label"] == 2
        assert (cond["guidance"][none] == 1).all()
        assert ((cond["guidance"] >= 1.5) & (cond["guidance"] < 3) | none).all()
    plain = [c for c in model.seen if not isinstance(c, dict)]
    assert sum(bool((c == 2).all()) for c in plain) == len(plain) / 2


def test_a_loss_that_does_not_tell_is_told_so():
    data = mixture((3,))
    pair, velocity = pairs(data, 4, stream()), build("velocities", "guided_as_told")
    with pytest.raises(ValueError, match=r"must hold the scale.*'guidance'; got Tensor.*core\.velocity\.told"):
        velocity(Guided(data), pair, pair.x0, pair.x0, torch.rand(4))
    with pytest.raises(ValueError, match="0 <= lowest <= highest; got 2.0 and 1.0"):
        build("velocities", {"name": "guided_as_told", "lowest": 2.0, "highest": 1.0})


# Sampling


def flow_of(model):
    return Flow(model, Linear(), Independent(), Euclidean(), (3,), 2)


def net(seed=0):
    """A network that takes a scale, with weights that make it heed."""
    torch.manual_seed(seed)
    made = MLP((3,), classes=2, width=32, depth=2, numbers=("guidance",))
    nn.init.normal_(made.labels.mix["guidance"].weight, std=0.3)
    return made


def test_a_network_that_takes_a_scale_is_told_it():
    model, labels = MeanVelocity(net()), torch.tensor([0, 1, 0, 1])
    flow, seen = flow_of(model), []
    model.net.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    x = flow.sample(4, steps=2, seed=5, guidance=3.0)
    assert len(seen) == 2, "one evaluation a step"
    assert (seen[0]["guidance"] == 3).all()
    x0 = next(flow._starts(4, None, 5, 0, 4))[0]
    cond = {"label": labels, "guidance": torch.full((4,), 3.0)}
    assert torch.equal(x, sample(model, x0, torch.linspace(0, 1, 3), cond=cond))
    plain = flow.sample(4, steps=2, seed=5)
    assert (x - plain).abs().max() > 1e-2
    none = flow.sample(4, steps=2, seed=5, label=2, guidance=3.0)
    assert torch.equal(none, flow.sample(4, steps=2, seed=5, label=2)), "nothing to exaggerate"


def test_a_scale_of_one_is_the_same_as_none():
    model = MeanVelocity(net())
    x, s, t, label = torch.randn(4, 3, generator=stream()), torch.zeros(4), torch.ones(4), torch.tensor([0, 1, 0, 2])
    one = model(x, s, t, {"label": label, "guidance": torch.ones(4)})
    assert torch.equal(one, model(x, s, t, label))
    assert not torch.equal(model(x, s, t, {"label": label, "guidance": torch.full((4,), 2.0)}), one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lsd", "esd", "psd"])
def test_one_network_learns_the_guided_maps_of_all_scales(name):
    """From scratch, in one jump, sampled through Flow; 1000 steps leave 12 to 32 %."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    data = mixture((3,)).float()
    model, g = MeanVelocity(MLP((3,), classes=2, width=96, depth=3, numbers=("guidance",))), stream(3)
    loss = loss_of(name, diagonal=0.5)
    step = Step(model, loss, Independent(), Euclidean(), condition_dropout=0.15)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        x1, component = data.sample_labelled(256, g)
        step(x1, data.labels[component], generator=g, terms=False)[0].backward()
        optimizer.step()
        schedule.step()
    flow, scales = flow_of(model), (0.0, 1.0, 2.0, 3.0)
    truth = [dataclasses.replace(flow, model=Told(Guided(data, steps=16), a)).sample(2000, seed=1) for a in scales]
    for scale, exact in zip(scales, truth, strict=True):
        got = flow.sample(2000, steps=1, seed=1, guidance=scale)
        error = [float((got - other).norm() / (exact - exact.mean(0)).norm()) for other in truth]
        assert min(error) == error[scales.index(scale)] < 0.4, "close to its own map, and closer than to the others'"
