"""Every source of a target's velocity, found by its file: right on average at the truth, and what its formula says."""

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream, true_model

from flowmaps.build import build, names
from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.target import Average
from flowmaps.couplings.independent import Independent
from flowmaps.nets.mlp import MLP
from flowmaps.oracles.gaussian import Gaussian
from flowmaps.oracles.mixture import Mixture
from flowmaps.velocities.autoguided import Autoguided
from flowmaps.velocities.diagonal import Diagonal
from flowmaps.velocities.guided import Guided
from flowmaps.velocities.guided_as_told import GuidedAsTold
from flowmaps.velocities.plug_in import PlugIn
from flowmaps.velocities.teacher import Teacher


def drawn(flow, n, seed=0, low=0.1, high=0.9):
    pair = Independent()(flow.sample(n, stream(seed)), generator=stream(seed + 1))
    s = low + (high - low) * torch.rand(n, generator=stream(seed + 2))
    return pair, *flow.interpolant.draw(pair, s), s


def source(name, flow):
    return build("velocities", name, teacher=flow, weak=flow, interpolant=flow.interpolant)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", names("velocities"))
def test_it_is_the_marginal_velocity_on_average(name, shape):
    """Against features of state and time; five standard errors of some 30 means fail with probability 2e-5.

    The plug-in velocity is consistent only: with 2048 data its bias is far below the noise here.
    """
    flow = gaussian(shape)
    pair, x, w, s = drawn(flow, 2048)
    v = source(name, flow)(true_model(flow, shape), pair, x, w, s)
    assert v.shape == x.shape
    assert not v.requires_grad
    gap = (v - flow.velocity(x, s)).flatten(1)
    for feature in (torch.ones_like(gap), x.flatten(1), s[:, None].expand_as(gap)):
        z = (gap * feature).mean(0) / ((gap * feature).std(0) / 2048**0.5 + 1e-12)
        assert z.abs().max() < 5


@pytest.mark.parametrize("shape", SHAPES)
def test_plug_in_is_exact_for_the_batch_as_data(shape):
    """The batch as a mixture of points; the rest of the batch keeps its own velocity."""
    flow = gaussian(shape)
    pair, x, w, s = drawn(flow, 12)
    points = Mixture(pair.x1, 1e-6)
    v = PlugIn(share=0.5)(flow, pair, x, w, s)
    assert (v[:6] - points.velocity(x, s)[:6]).abs().max() < 1e-8
    assert torch.equal(v[6:], w[6:])


CODES = torch.arange(16) % 2
CONDITIONS = {
    "labels": CODES,
    "texts": torch.stack([torch.ones(16), CODES + 1.0, torch.zeros(16)], 1).long(),
    "spatial": {"label": torch.zeros(16).long(), "spatial": CODES.double().reshape(16, 1, 1, 1).expand(16, 2, 4, 4)},
    "nested": [{"label": CODES}, torch.zeros(16, 2)],
}


@pytest.mark.parametrize("cond", CONDITIONS.values(), ids=CONDITIONS)
def test_plug_in_keeps_to_the_condition(cond):
    flow = eight_gaussians()
    pair, x, w, s = drawn(flow, 16)
    v = PlugIn(share=1.0)(flow, type(pair)(pair.x0, pair.x1, cond), x, w, s)
    for k in (0, 1):
        mine = torch.eq(CODES, k)
        assert (v[mine] - Mixture(pair.x1[mine], 1e-6).velocity(x[mine], s[mine])).abs().max() < 1e-8


def test_plug_in_and_arrival_at_the_data_are_independent():
    """As one recipe combines them: each falls on half of the batch, both on a quarter."""
    flow, law, g, both = gaussian(), build("training_times", {"name": "to_data", "share": 0.5}), stream(), []
    pair, x, w, s = drawn(flow, 16)
    plugged = (PlugIn(share=0.5)(flow, pair, x, w, s) != w).any(1)
    for _ in range(400):
        arrives = law(16, x, g)[1] == 1
        assert int(arrives.sum()) == int(plugged.sum()) == 8
        both.append(float((arrives & plugged).sum()) / 16)
    # Hypergeometric, of deviation 1.03 in 16 samples: five standard errors of 400 of them.
    assert abs(sum(both) / 400 - 0.25) < 5 * 1.03 / 16 / 20


def test_plug_in_refuses_latent_noise():
    with pytest.raises(ValueError, match="Stochastic has latent noise"):
        build("velocities", {"name": "plug_in", "interpolant": "stochastic"})


class Labelled(FlowMap):
    """u = label for labels 0, 1; 5 for the null label 2."""

    def mean_velocity(self, x, s, t, cond=None):
        value = torch.where(cond == 2, 5.0, cond.to(x.dtype))
        return value[:, None].expand_as(x)

    def null_condition(self, batch):
        return torch.full((batch,), 2)


def test_guided_mixes_inside_the_interval_and_with_labels():
    flow = gaussian()
    pair, x, w, s = drawn(flow, 6)
    s = torch.tensor([0.1, 0.5, 0.5, 0.5, 0.9, 0.5])
    labels = torch.tensor([0, 0, 1, 2, 1, 2])
    pair = type(pair)(pair.x0, pair.x1, labels)
    v = Guided(omega=0.5, kappa=0.3, low=0.2, high=0.8)(Labelled(), pair, x, w, s)
    for i in (0, 3, 4, 5):  # outside, or without a label
        assert torch.equal(v[i], w[i])
    for i in (1, 2):
        assert torch.allclose(v[i], 0.5 * w[i] + 0.3 * labels[i] + 0.2 * 5)
    assert torch.equal(Guided()(flow, type(pair)(pair.x0, pair.x1), x, w, s), w), "no condition, no guidance"
    with pytest.raises(ValueError, match="kappa != 1 and 0 <= low <= high <= 1"):
        Guided(kappa=1.0)


@pytest.mark.parametrize("source", [Guided(), GuidedAsTold(highest=3.0)], ids=lambda s: type(s).__name__)
def test_what_guidance_compares_has_one_dropout_mask(source):
    """A network that ignores its label has nothing to exaggerate, whatever the mask."""
    torch.manual_seed(0)
    net = MLP((3,), classes=2, width=16, depth=2, dropout=0.5)
    torch.nn.init.zeros_(net.labels.table.weight)
    model = MeanVelocity(net).train()
    pair, x, w, s = drawn(gaussian(), 16)
    pair = type(pair)(pair.x0, pair.x1, torch.arange(16) % 2)
    pair = source.tell(model, pair, stream()) if isinstance(source, GuidedAsTold) else pair
    before = torch.get_rng_state()
    assert (source(model, pair, x, w, s) - w).abs().max() < 1e-12
    assert torch.equal(torch.get_rng_state(), before), "and the prediction that follows has it too"
    assert (model.velocity(x, s) - model.velocity(x, s)).abs().max() > 1e-2


def test_guided_as_told_moves_by_the_scale_that_it_draws():
    flow, source = gaussian(), GuidedAsTold(lowest=1.0, highest=3.0)
    pair, x, w, s = drawn(flow, 4000)
    labels = torch.arange(4000) % 3
    pair = source.tell(Labelled(), type(pair)(pair.x0, pair.x1, labels), stream())
    a, none = pair.cond["guidance"], labels == 2
    assert torch.equal(pair.cond["label"], labels)
    assert (a[none] == 1).all()
    assert 1 <= a.min() < 1.01 < 2.99 < a.max() < 3
    assert abs(a[~none].mean() - 2) < 0.06  # five standard errors: false alarm 6e-7
    v = source(Labelled(), pair, x, w, s)
    assert torch.equal(v[none], w[none])
    assert torch.allclose(v, w + ((a - 1) * torch.where(none, 0.0, labels - 5.0))[:, None])
    assert source.tell(flow, type(pair)(pair.x0, pair.x1), stream()).cond is None, "no condition, no guidance"
    points = PlugIn(share=1.0)
    few = pair[:12]
    got = GuidedAsTold(velocity=points)(Labelled(), few, x[:12], w[:12], s[:12])
    want = points(flow, type(pair)(few.x0, few.x1, labels[:12]), x[:12], w[:12], s[:12])
    assert torch.allclose(got[2::3], want[2::3]), "what it is added to sees the label"


def test_teachers_are_guided():
    flow, other = gaussian(), gaussian(seed=5)
    pair, x, w, s = drawn(flow, 6)
    b, weak = flow.velocity(x, s), other.velocity(x, s)
    assert torch.allclose(Autoguided(flow, other, 3.0)(None, pair, x, w, s), weak + 3 * (b - weak))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    pair = type(pair)(pair.x0, pair.x1, labels)
    v = Teacher(Labelled(), 3.0)(None, pair, x, w, s)
    assert torch.allclose(v, (5 + 3 * (labels - 5.0))[:, None].expand_as(x))
    assert torch.equal(Teacher(flow)(None, pair, x, w, s), b)


def test_diagonal_of_an_average():
    """It stays what it was when the map moves on, and follows by its share."""
    average = Average(0.75)
    model = Gaussian(torch.zeros(3), torch.ones(3))
    model.register_parameter("shift", torch.nn.Parameter(torch.zeros(())))
    with pytest.raises(RuntimeError, match="must be started with begin"):
        Diagonal(average)(model, *drawn(model, 4))
    average.begin(model)
    with torch.no_grad():
        model.shift.fill_(8.0)
    assert average.copy.shift == 0
    average.follow(model)
    assert average.copy.shift == 2
    assert not average.copy.shift.requires_grad
    pair, x, w, s = drawn(model, 4)
    average.copy.std.fill_(3.0)
    assert torch.equal(Diagonal(average)(model, pair, x, w, s), average.copy.velocity(x, s))
    assert not torch.equal(Diagonal()(model, pair, x, w, s), average.copy.velocity(x, s))
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\); got 1"):
        Average(1.0)
