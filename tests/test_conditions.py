"""Every condition, found by its file: what it puts beside the state, and networks and flows that are shown it."""

import pytest
import torch
from torch import nn
from truth import draws, stream

from flowmaps.build import build, names
from flowmaps.core.calculus import Central, Exact, d_dt
from flowmaps.core.concatenated import Concatenated
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.couplings.independent import Independent
from flowmaps.engine.step import Step
from flowmaps.flow import Flow
from flowmaps.guidance.cfg import CFG
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.spaces.euclidean import Euclidean
from flowmaps.spaces.latent import Latent

SHAPE = (2, 8, 12)
HALF = (2, 4, 6)


class Halved(nn.Module):
    """Latents are means over squares of four pixels."""

    def encode(self, data):
        return nn.functional.avg_pool2d(data, 2)

    def decode(self, z):
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3)


def told(name, n=6, space=None, **options):
    """A condition of that name, for latents, and what it makes of some images."""
    made = build("conditions", {"name": name, **options}, shape=HALF, classes=3)
    given = torch.arange(n) % 3 if made.labelled else torch.randint(3, (n, *SHAPE[1:]), generator=stream(2))
    data = torch.randn(n, *SHAPE, generator=stream())
    return made, data, given, made(data, given, space or Latent(Halved()), generator=stream(1))


@pytest.mark.parametrize("name", names("conditions"))
def test_what_is_put_beside_the_state(name):
    made, data, given, cond = told(name)
    if not made.spatial:
        assert torch.equal(cond, given)
        return
    assert made.spatial[1:] == HALF[1:]
    assert cond["spatial"].shape == (6, *made.spatial)
    assert ("label" in cond) == made.labelled
    again = made(data, given, Latent(Halved()), generator=stream(1))
    assert torch.equal(again["spatial"], cond["spatial"]), "drawn from the generator alone"


def test_holes_and_what_is_around_them():
    made, data, given, _ = told("inpainting", fill=-3.0)
    holes = torch.rand(6, 1, *SHAPE[1:], generator=stream(3)) < 0.3
    cond = made.of(data, holes, Latent(Halved(), shift=1.0, scale=2.0), given)
    assert torch.equal(cond["label"], given)
    blanked = data.clone()
    blanked[holes.expand_as(data)] = -3.0
    want = (blanked.reshape(6, 2, 4, 2, 6, 2).mean((3, 5)) - 1) / 2
    assert (cond["spatial"][:, :2] - want).abs().max() < 1e-12
    assert torch.equal(cond["spatial"][:, 2:], torch.where(holes[:, :, ::2, ::2], 1.0, -1.0)), "1 in holes"
    assert made.of(data, holes, Latent(Halved())).keys() == {"spatial"}
    own = build("conditions", {"name": "inpainting", "holes": lambda data, generator: holes, "fill": -3.0}, shape=HALF)
    assert torch.equal(own(data, None, Latent(Halved(), 1.0, 2.0))["spatial"], cond["spatial"])


def test_holes_are_boxes():
    """Their number, sides and places; limits of five standard errors, some 40 times: false alarm 2e-5."""
    made, n = build("conditions", {"name": "inpainting", "boxes": 1, "low": 0.2, "high": 0.5}, shape=(1, 20, 40)), 4000
    holes = made._boxes(torch.zeros(n, 1, 20, 40), stream())[:, 0]
    some = holes.flatten(1).any(1)
    assert abs(some.double().mean() - 0.5) < 0.04, "none or one"
    rows, columns = holes.any(2), holes.any(1)
    assert torch.equal(holes, rows[:, :, None] & columns[:, None]), "a box"
    for inside, length in ((rows[some], 20), (columns[some], 40)):
        assert (inside.int().diff(dim=1) == 1).sum(1).max() <= 1, "in one piece"
        sides = inside.sum(1).double() / length
        assert sides.min() == 0.2
        assert sides.max() == 0.5
        assert abs(sides.mean() - 0.35) < 0.02
        assert inside[:, [0, -1]].any(0).all(), "up to both edges"
        assert (inside.double().mean(0) - inside.double().mean(0).flip(0)).abs().max() < 0.09, "no side is preferred"
    three = build("conditions", "inpainting", shape=(1, 20, 40))._boxes(torch.zeros(n, 1, 20, 40), stream())
    assert abs(three.flatten(1).any(1).double().mean() - 0.75) < 0.035, "0 to 3"


def test_a_map_is_its_shares_of_classes():
    _, _, maps, cond = told("semantic_map")
    want = torch.stack([(maps == k).double().reshape(6, 4, 2, 6, 2).mean((2, 4)) for k in range(3)], 1)
    assert (cond["spatial"] - want).abs().max() < 1e-6  # single precision


# Networks that are shown it

SMALL = {
    "mlp": {"width": 16, "depth": 2},
    "unet": {"width": 16, "multipliers": [1, 2], "blocks": 1, "heads": 2},
    "dit": {"width": 16, "depth": 1, "heads": 2},
    "gated_span": {"net": {"name": "mlp", "width": 16, "depth": 2}},
}


def shown(name, shape, channels, **options):
    torch.manual_seed(0)
    table = {"name": name, **SMALL[name]} | options
    inner = build("nets", table, shape=(shape[0] + channels, *shape[1:]), classes=3)
    for p in inner.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return Concatenated(inner, (channels, *shape[1:]))


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (3,)), ("mlp", HALF), ("unet", HALF), ("dit", HALF), ("gated_span", HALF)]
)
def test_networks_see_it_behind_the_state(name, shape):
    made = shown(name, shape, 4)
    x, s, _, t = draws(5, shape)
    beside, labels = torch.randn(5, 4, *shape[1:], generator=stream(1)), torch.arange(5) % 3
    y = made(x, s, t, {"label": labels, "spatial": beside})
    assert torch.equal(y, made.net(torch.cat([x, beside], 1), s, t, labels)[:, : shape[0]])
    assert torch.equal(made(x, s, t, labels), made(x, s, t, {"label": labels, "spatial": 0 * beside}))
    assert torch.equal(made(x, s, t), made(x, s, t, made.null_condition(5)))
    assert torch.equal(made(x, s, t, {"spatial": beside}), made(x, s, t, made.null_condition(5) | {"spatial": beside}))
    assert (made(x, s, t, {"spatial": beside}) - made(x, s, t)).abs().flatten(1).amax(1).min() > 1e-6
    exact, rough = (
        d_dt(MeanVelocity(made), x, s, t, {"label": labels, "spatial": beside}, jvp)[1].detach()
        for jvp in (Exact(), Central(1e-5))
    )
    assert (exact - rough).norm() / rough.norm() < 1e-7  # the difference's own error
    with pytest.raises(ValueError, match=r"a spatial condition must have shape \[B, 4.*; got \(5, 3"):
        made(x, s, t, {"spatial": beside[:, :3]})


def test_several_outputs_and_a_scale_around_a_whole_condition():
    made = shown("mlp", (3,), 2, outputs=2, numbers=["guidance"])
    nn.init.normal_(made.net.labels.mix["guidance"].weight)
    x, s, _, t = draws(5, (3,))
    beside, scale = torch.randn(5, 2, generator=stream(1)), torch.full((5,), 3.0)
    cond = {"label": torch.arange(5) % 3, "spatial": beside}
    y = made(x, s, t, {"label": cond, "guidance": scale})
    assert y.shape == (5, 2, 3)
    assert torch.equal(y, made(x, s, t, cond | {"guidance": scale}))
    assert not torch.equal(y, made(x, s, t, cond))
    assert torch.equal(
        made(x, s, t, {"label": {"spatial": beside}, "guidance": scale}),
        made(x, s, t, {"spatial": beside, "guidance": scale}),
    )


def test_it_is_dropped_with_the_label():
    class Watched:
        def __call__(self, model, pair, *, step=0, generator=None):
            self.cond = pair.cond
            return pair.x0.flatten(1).mean(1)

    condition, data, labels, _ = told("inpainting", n=64)
    watched = Watched()
    model = MeanVelocity(shown("mlp", HALF, 3))
    Step(model, watched, Independent(), Latent(Halved()), 0.5, condition=condition)(data, labels, generator=stream())
    dropped = watched.cond["label"] == 3
    assert 16 < dropped.sum() < 48
    assert torch.equal(watched.cond["spatial"].flatten(1).any(1), ~dropped)


def test_a_step_shows_each_image_with_its_own_holes():
    class Watched:
        def __call__(self, model, pair, *, step=0, generator=None):
            self.pair = pair
            return pair.x0.flatten(1).mean(1)

    condition = build("conditions", "inpainting", shape=SHAPE)
    watched, data = Watched(), torch.randn(8, *SHAPE, generator=stream())
    model = MeanVelocity(shown("mlp", SHAPE, 3))
    Step(model, watched, Independent(), Euclidean(), mirror=True, condition=condition)(data, generator=stream())
    seen, holes = watched.pair.cond["spatial"].split((2, 1), 1)
    assert torch.equal(seen, torch.where(holes > 0, -1.0, watched.pair.x1)), "mirrored with it"


# Flows


class Painted(nn.Module):
    """The exact mean velocity to N(colour of the class, 1/4) at each place, from the shares beside the state."""

    colours = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, z, s, t, cond=None):
        x, shares = z[:, :1], z[:, 1:]
        s, t = (r[:, None, None, None] for r in (s, t))
        mean = (shares * self.colours[:, None, None]).sum(1, keepdim=True)
        spread = ((1 - s) ** 2 + s**2 / 4).sqrt()
        there = t * mean + ((1 - t) ** 2 + t**2 / 4).sqrt() / spread * (x - s * mean)
        slope = mean + (s / 4 - (1 - s)) / spread**2 * (x - s * mean)
        u = torch.where(t == s, slope, (there - x) / (t - s).where(t != s, 1.0))
        return torch.cat([u, 100 + shares], 1)

    def null_condition(self, batch):
        return torch.zeros(batch)


def painter():
    condition = build("conditions", "semantic_map", shape=(1, 4, 6), classes=3)
    model = MeanVelocity(Concatenated(Painted(), condition.spatial))
    return Flow(model, Linear(), Independent(), Euclidean(), (1, 4, 6), condition=condition)


def test_samples_have_the_colours_of_their_maps():
    """Each is its map's colours plus noise that its index alone decides, whatever batches it is drawn in."""
    flow = painter()
    maps = torch.randint(3, (7, 4, 6), generator=stream())
    x = flow.sample(7, 1, cond=flow.condition(None, maps, flow.space), batch=3)
    noise = x[:, 0] - Painted.colours[maps]
    other = flow.sample(7, 2, cond=flow.condition(None, maps.flip(0), flow.space))
    assert (other[:, 0] - Painted.colours[maps.flip(0)] - noise).abs().max() < 1e-6  # maps are single precision
    assert abs(noise.std() - 0.5) < 0.14  # five standard errors: false alarm 6e-7
    plain = flow.sample(7)[:, 0]
    assert (plain - noise).abs().max() < 1e-6, "no condition is the null condition, here of colour 0"
    guided = flow.sample(7, 1, cond=flow.condition(None, maps, flow.space), guidance=CFG.__name__.lower())
    assert (guided[:, 0] - 2 * Painted.colours[maps] - noise).abs().max() < 1e-6, "twice as far from it"


def test_the_truth_is_the_minimum_of_the_loss():
    """Flow matching at the exact velocity for the right maps is below that for wrong ones, and as low as it can be."""
    flow, n = painter(), 20_000
    maps = torch.randint(3, (n, 4, 6), generator=stream())
    data = Painted.colours[maps][:, None] + 0.5 * torch.randn(n, 1, 4, 6, generator=stream(1))
    step = Step(flow.model, FlowMatching(), Independent(), flow.space, condition=flow.condition)
    with torch.no_grad():
        right, wrong = (float(step(data, m, generator=stream(2))[0]) for m in (maps, maps.roll(1, 0)))
    # E Var(x1 - x0 | x_t) = int (1/4) / ((1 - t)^2 + t^2 / 4) dt = pi / 4.
    assert abs(right - torch.pi / 4) < 0.01  # five standard errors of 480,000 squares: 6e-7
    assert wrong > 2


def test_conditions_of_flows_are_checked():
    flow = painter()
    cond = flow.condition(None, torch.zeros(4, 4, 6, dtype=torch.long), flow.space)
    with pytest.raises(ValueError, match=r"cond must have one row for each of 5 samples; got shape \(4, 3, 4, 6\)"):
        flow.sample(5, cond=cond)
    with pytest.raises(ValueError, match="cond takes the place of label; got label 2 too"):
        flow.sample(4, cond=cond, label=2)
    with pytest.raises(ValueError, match=r"what comes with the data must be maps \[B, H, W\] of classes; got \(4,\)"):
        flow.condition(None, torch.zeros(4), flow.space)


@pytest.mark.parametrize(
    ("table", "shape", "message"),
    [
        ({"name": "inpainting"}, (3,), r"states must be images \(C, h, w\) to have holes; got shape \(3,\)"),
        (
            {"name": "inpainting", "low": 0.5, "high": 0.4},
            HALF,
            "there must be boxes >= 1, and low <= high; got 3, 0.5",
        ),
        ({"name": "semantic_map"}, (3,), r"semantic maps need states \(C, h, w\) and classes; got \(3,\) and 3"),
    ],
)
def test_bad_options(table, shape, message):
    with pytest.raises(ValueError, match=message):
        build("conditions", table, shape=shape, classes=3)
