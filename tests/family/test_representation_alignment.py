"""Another loss beside which features are aligned: whose features, with what, and what it trains."""

import pytest
import torch
from test_losses import begun, pairs
from torch import nn
from truth import gaussian, stream

from flowmaps.build import build, resolve
from flowmaps.core.flow_map import EulerMap, MeanVelocity
from flowmaps.core.report import listen
from flowmaps.core.target import parts
from flowmaps.core.types import Pair
from flowmaps.flow import _innermost
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.losses.representation_alignment import RepresentationAlignment

SHAPE = (1, 4, 4)


def patches(x):
    """An encoder of four places."""
    return nn.functional.pixel_unshuffle(x, 2)


def dit():
    torch.manual_seed(0)
    net = build("nets", {"name": "dit", "width": 8, "depth": 2, "heads": 2}, shape=SHAPE, classes=12)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return net


def aligned(loss="flow_matching", encoder=patches, **options):
    torch.manual_seed(1)
    return RepresentationAlignment(encoder, 8, 4, block=1, width=16, loss=build("losses", loss), **options)


@pytest.mark.parametrize("name", ["flow_matching", "mean_flow", "lsd", "psd", "improved_mean_flow"])
def test_it_is_the_loss_less_the_mean_cosine_of_each_samples_own_features(name):
    """A network whose features are the one-hot label, and an encoder that reads the label off the datum: cosine 1.

    That holds in every share of the batch only if features and data are in one order.
    """

    class Telling(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = dit()

        def forward(self, x, s, t, cond=None):
            return self.net(x, s, t, cond)

        def with_features(self, x, s, t, cond, block):
            return self(x, s, t, cond), nn.functional.one_hot(cond, 12)[:, None].to(x.dtype).expand(-1, 4, -1)

        def null_condition(self, batch):
            return None

    def reading(x):
        return (
            nn.functional.one_hot(x[:, 0, 0, 0].round().long(), 12).to(x.dtype)[:, :, None, None].expand(-1, -1, 2, 2)
        )

    model, loss = MeanVelocity(Telling()), aligned(name, reading, weight=0.7)
    object.__setattr__(loss, "projector", nn.Identity())
    x1 = torch.arange(12.0).reshape(12, 1, 1, 1).expand(12, *SHAPE)
    pair = Pair(torch.randn(12, *SHAPE, generator=stream()), x1, torch.arange(12))
    plain = build("losses", name)(model, pair, generator=stream(1))
    assert (loss(model, pair, generator=stream(1)) - (plain - 0.7)).abs().max() < 1e-12


def test_the_cosine_is_over_channels_and_the_mean_over_places():
    model, loss, pair = MeanVelocity(dit()), aligned(weight=2.0), pairs(gaussian(SHAPE), 6, stream())
    with listen() as heard:
        got = loss(model, pair, generator=stream(1))
    t = torch.rand(6, generator=stream(1))
    x, _ = loss.loss.interpolant.draw(pair, t)
    features = loss.projector(model.with_features(x, t, t, None, 1)[1])
    clean = patches(pair.x1).flatten(2).transpose(1, 2)
    cosine = (features * clean).sum(-1) / features.norm(dim=-1) / clean.norm(dim=-1)
    assert (heard["alignment"][0] - cosine.mean(1)).abs().max() < 1e-12
    plain = loss.loss(model, pair, generator=stream(1))
    assert (got - (plain - 2 * cosine.mean(1))).abs().max() < 1e-12


def test_it_trains_the_projector_and_the_blocks_up_to_its_own_and_leaves_the_encoder():
    encoder = nn.Sequential(nn.Conv2d(1, 4, 2, 2), nn.Dropout(0.5))
    net, loss = dit(), aligned(encoder=encoder)
    assert [name for name, _ in parts(loss, "loss")] == ["loss_encoder", "loss_projector"]
    assert not encoder.training
    pair = pairs(gaussian(SHAPE), 6, stream())
    both, plain = (f(MeanVelocity(net), pair, generator=stream(1)).mean() for f in (loss, loss.loss))
    wanted = [net.blocks[0].project.weight, net.blocks[1].project.weight, loss.projector[0].weight]
    first, second, outer = torch.autograd.grad(both - plain, wanted, materialize_grads=True)
    assert first.abs().max() > 1e-6
    assert second.abs().max() < 1e-12, "what comes after the block has no part in the alignment"
    assert outer.abs().max() > 1e-6
    assert not any(p.requires_grad for p in encoder.parameters())


def test_alignment_can_be_learned():
    """A hundred steps turn random features into ones from which a frozen random encoder's follow."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 2, 2), nn.Tanh(), nn.Conv2d(8, 4, 1))
    model, loss, flow = MeanVelocity(dit()), aligned(encoder=encoder), gaussian(SHAPE)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.projector.parameters()], 1e-2)
    g, seen = stream(2), []
    for _ in range(100):
        with listen() as heard:
            loss(model, pairs(flow, 32, g), generator=g).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(heard["alignment"][0].mean()))
    assert abs(sum(seen[:3]) / 3) < 0.5 < 0.7 < sum(seen[-20:]) / 20


def test_it_is_a_map_or_a_velocity_as_the_loss_beside_it_is():
    assert aligned("lsd").learns_map is True
    assert aligned().learns_map is False
    table = resolve("losses", {"name": "representation_alignment", "encoder": "torch.nn:Identity"})
    assert _innermost(table) is FlowMatching, "also when a run is loaded"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aligned("fmm"), "must evaluate the map with gradient once for each sample; FMM did so 12 times for 6"),
        (lambda: aligned(encoder=lambda x: x), r"must give features \(6, 4, 4\), a vector for each place"),
        (lambda: aligned(weight=-1.0), "block must be at least 1 and weight >= 0; got 1 and -1.0"),
    ],
)
def test_what_cannot_be_aligned(make, message):
    with pytest.raises(ValueError, match=message):
        begun(make(), MeanVelocity(dit()))(MeanVelocity(dit()), pairs(gaussian(SHAPE), 6, stream()), generator=stream())


def test_a_map_without_features_says_so():
    with pytest.raises(ValueError, match="the map must give features of its network; got EulerMap"):
        aligned()(EulerMap(MeanVelocity(dit())), pairs(gaussian(SHAPE), 6, stream()), generator=stream())


def test_the_trunk_of_blockwise_flow_matching_is_aligned():
    """Its semantic feature guidance: the last tokens of the trunk, which drive the stacks, at weight 0.05."""
    torch.manual_seed(0)
    table = {
        "name": "blockwise_dit", "width": 8, "heads": 2, "segments": 2, "trunk": 2, "depth": 1, "residual": 1, "rank": 2,
    }  # fmt: skip
    model = build("maps", "recurrent", net=build("nets", table, shape=SHAPE))
    loss = RepresentationAlignment(patches, 8, 4, block=2, weight=0.05, width=16)
    pair = pairs(gaussian(SHAPE), 6, stream())
    both, plain = (f(model, pair, generator=stream(1)).mean() for f in (loss, loss.loss))
    weights = [model.net.trunk[1].mlp[0].weight, model.net.stacks[0][0].project.weight]
    trunk, stack = torch.autograd.grad(both - plain, weights, materialize_grads=True)
    assert trunk.abs().max() == 0, "its gates are closed at the start"
    nn.init.normal_(model.net.trunk_shared.bias, std=0.5)
    both, plain = (f(model, pair, generator=stream(1)).mean() for f in (loss, loss.loss))
    trunk, stack = torch.autograd.grad(both - plain, weights, materialize_grads=True)
    assert trunk.abs().max() > 1e-6
    assert stack.abs().max() < 1e-12
