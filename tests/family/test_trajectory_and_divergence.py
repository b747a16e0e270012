"""Many times in one pass, divergence heads, and networks that are opened to a second time."""

import pytest
import torch
from test_losses import pairs
from torch import nn
from truth import SHAPES, draws, gaussian, stream, true_model

from flowmaps.build import build
from flowmaps.core.calculus import divergence
from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.report import listen
from flowmaps.core.shapes import expand_time
from flowmaps.core.types import Pair
from flowmaps.losses.divergence_distillation import DivergenceDistillation
from flowmaps.losses.trajectory_distillation import TrajectoryDistillation
from flowmaps.maps.divergence_head import DivergenceHead
from flowmaps.maps.trajectory import Trajectory
from flowmaps.nets._temporal import TemporalConvolution
from flowmaps.nets.block_split import BlockSplit
from flowmaps.nets.gated_span import GatedSpan
from flowmaps.nets.mlp import MLP
from flowmaps.nets.temporal import Temporal
from flowmaps.oracles.mixture import Mixture

# Trajectories


def test_temporal_convolution_is_a_convolution():
    torch.manual_seed(0)
    layer, x = TemporalConvolution(3, 2), torch.randn(2, 8, 3)
    out = layer.convolve(x)
    assert (layer.convolve(x.roll(3, 1)) - out.roll(3, 1)).abs().max() < 1e-14, "it commutes with shifts"
    spectrum = torch.fft.rfft(out, dim=1)
    assert spectrum[:, 2:].abs().max() < 1e-14, "only the modes kept come out"
    kernel = torch.view_as_complex(layer.kernel.detach())
    want = torch.einsum("bkc,kcd->bkd", torch.fft.rfft(x, dim=1)[:, :2], kernel)
    want[:, 0].imag.zero_()  # the constant of a real signal is real
    assert (spectrum[:, :2] - want).abs().max() < 1e-14
    assert (layer(x) - x - nn.functional.leaky_relu(out)).abs().max() < 1e-14
    for m in (1, 4, 5):  # the identity on all modes is the identity, for even and odd lengths
        every = TemporalConvolution(3, m // 2 + 1)
        with torch.no_grad():
            every.kernel.zero_()[..., 0] = torch.eye(3)
        y = torch.randn(2, m, 3)
        assert (every.convolve(y) - y).abs().max() < 1e-14


def test_times_of_a_trajectory_see_each_other_and_samples_do_not():
    torch.manual_seed(0)
    net = Temporal((3,), width=16, depth=2)
    x, s, _, t = draws(4, (3,))
    y = net(x, s, t)
    assert y.shape == (4, 4, 3)
    assert (net(x[:2], s[:2], t[:2]) - y[:2]).abs().max() < 1e-14
    for mix in net.mix:
        nn.init.zeros_(mix.kernel)
    z = net(x, s, t)
    assert (z - y).abs().max() > 1e-3
    # Unmixed, each time is that of a network with this one time: a copy with the span of its share.
    assert (z[:, 1] - net(x, s, s + (t - s) / 2)[:, 3]).abs().max() < 1e-12


class TrueTrajectory(nn.Module):
    """The exact mean velocities to M equal shares of the span."""

    def __init__(self, flow, m=4):
        super().__init__()
        self.flow, self.m = flow, m
        self.offset = nn.Parameter(torch.zeros(m))

    def forward(self, x, s, t, cond=None):
        each = [self.flow.mean_velocity(x, s, s + (j + 1) / self.m * (t - s)) + self.offset[j] for j in range(self.m)]
        return torch.stack(each, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_trajectory_is_the_states_at_equal_times(shape):
    flow = gaussian(shape)
    model = Trajectory(TrueTrajectory(flow))
    x, s, _, t = draws(8, shape)
    found = model.trajectory(x, s, t)
    assert found.shape == (8, 4, *shape)
    for j in range(4):
        assert (found[:, j] - flow(x, s, s + (j + 1) / 4 * (t - s))).abs().max() < 1e-12
    assert (model(x, s, t) - found[:, -1]).abs().max() < 1e-14
    with pytest.raises(ValueError, match="an output for each time; got one"):
        Trajectory(MLP(shape, width=8))(x, s, t)


@pytest.mark.parametrize("shape", SHAPES)
def test_trajectory_distillation_sees_every_time(shape):
    flow = gaussian(shape)
    model, pair = Trajectory(TrueTrajectory(flow)), Pair(torch.randn(8, *shape, generator=stream()))
    assert TrajectoryDistillation(flow)(model, pair).max() < 1e-24
    assert TrajectoryDistillation(flow)(true_model(flow, shape), pair).max() < 1e-24, "and of any map"
    for j in range(4):
        nn.init.zeros_(model.net.offset)
        with torch.no_grad():
            model.net.offset[j] = 1
        want = ((j + 1) / 4) ** 2 / 4  # an error of 1 in the velocity moves the state by its share, one time in four
        assert (TrajectoryDistillation(flow, steps=2)(model, pair) - want).abs().max() < 1e-12


@pytest.mark.slow
def test_a_temporal_network_learns_the_trajectory():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow, g = gaussian().float(), stream(3)
    model = Trajectory(Temporal((3,), width=64, depth=3))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        TrajectoryDistillation(flow)(model, Pair(torch.randn(256, 3, generator=g))).mean().backward()
        optimizer.step()
        schedule.step()
    x, zero, one = torch.randn(2000, 3, generator=g), torch.zeros(2000), torch.ones(2000)
    found = model.trajectory(x, zero, one)
    for j in range(4):
        exact = flow(x, zero, one * (j + 1) / 4)
        assert ((found[:, j] - exact).norm() / (exact - exact.mean(0)).norm()).item() < 0.05


# Divergence


class TrueHeads(nn.Module):
    """Exact mean velocity and mean divergence, from the oracle's densities, plus an offset of each head."""

    def __init__(self, flow, shape):
        super().__init__()
        self.flow = flow
        self.head = nn.Parameter(torch.zeros(2, *shape))

    def forward(self, x, s, t, cond=None):
        u = self.flow.mean_velocity(x, s, t)
        # The change of log-density is -(t - s) d; on the diagonal d is the divergence of the velocity.
        apart = (t - s).abs() > 1e-6
        y = x + expand_time(t - s, x) * u
        span = torch.where(apart, t - s, 1.0)
        off = (self.flow.log_density(x, s) - self.flow.log_density(y, t)) / span
        on = divergence(lambda z: self.flow.velocity(z, s), x)[1]
        d = torch.where(apart, off, on)
        share = expand_time(d / x[0].numel(), x).expand_as(x)
        return torch.stack([u, share], 1) + self.head

    def null_condition(self, batch):
        return None


@pytest.mark.parametrize("shape", SHAPES)
def test_log_density_of_a_jump_is_exact(shape):
    flow = gaussian(shape)
    model = DivergenceHead(TrueHeads(flow, shape))
    x, s, _, t = draws(16, shape)
    for a, b in ((s, t), (t, s)):
        y, log_density = model.jump(x, flow.log_density(x, a), a, b)
        assert (y - flow(x, a, b)).abs().max() < 1e-12
        assert (log_density - flow.log_density(flow(x, a, b), b)).abs().max() < 1e-9  # division by spans of 1e-3
    with pytest.raises(ValueError, match="the network must have two outputs; got one"):
        DivergenceHead(MLP(shape, width=8))(x, s, t)


def residuals(loss, flow, shape, n, batches=24):
    """Mean squared z-score of the gradient on the offsets of both heads, about 1 at a stationary point."""
    model, g = DivergenceHead(TrueHeads(flow, shape)), stream(3)
    gradients = torch.stack(
        [
            torch.autograd.grad(loss(model, pairs(flow, n, g), generator=g).mean(), model.net.head)[0]
            for _ in range(batches)
        ]
    )
    return (gradients.mean(0) / (gradients.std(0) / batches**0.5 + 1e-9)).square().flatten(1).mean(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own", [False, True])
def test_the_true_heads_are_stationary_and_others_are_not(own, shape):
    """6 is exceeded with probability 2e-5 by a chi-square of 3 degrees over 3, and the draw is fixed."""
    flow = gaussian(shape)
    loss = DivergenceDistillation(None if own else flow)
    assert (residuals(loss, flow, shape, 256) < 6).all()

    class Moved(FlowMap):
        """Another spread: another velocity and another divergence."""

        other = gaussian(shape, seed=5)

        def mean_velocity(self, x, s, t, cond=None):
            return self.other.mean_velocity(x, s, t)

    if not own:
        assert (residuals(DivergenceDistillation(Moved()), flow, shape, 256) > 30).all()


def test_halves_of_a_jump_for_a_divergence_that_depends_on_the_state():
    """Two Gaussians: d varies over the plane, and the two halves of any jump average to the whole."""
    flow = Mixture(torch.tensor([[-1.0, 0.0], [1.5, 0.5]]), 0.4, torch.tensor([0.3, 0.7]), steps=32)
    model = DivergenceHead(TrueHeads(flow, (2,)))
    pair = pairs(flow, 32, stream())
    with listen() as heard:
        DivergenceDistillation(flow, diagonal=0.0)(model, pair, generator=stream(1))
    assert heard["divergence"][0].max() < 1e-10  # of the solve, over spans of 1e-2 and more
    assert heard["velocity"][0].max() < 1e-10
    _, d = model.with_divergence(pair.x0, torch.zeros(32), torch.ones(32))
    assert d.std() > 0.1


def test_random_signs_give_the_divergence_and_less_than_all_the_batch_the_diagonal():
    flow = gaussian()
    model = DivergenceHead(TrueHeads(flow, (3,)))
    with listen() as heard:
        loss = DivergenceDistillation(flow, diagonal=0.25)(model, pairs(flow, 16, stream()), generator=stream(1))
    assert [len(v) for v in heard["divergence"]] == [4, 12]
    assert heard["divergence"][0].max() < 1e-20, "the Jacobian is diagonal: random signs give its trace exactly"
    assert loss.shape == (16,)
    with torch.no_grad():
        model.net.head[1] += 0.5
    moved = DivergenceDistillation(flow, diagonal=1.0, weight=2.0)(
        model, pairs(flow, 16, stream()), generator=stream(1)
    )
    assert (moved - 2.0 * 0.25).abs().max() < 1e-10, "per dimension"
    with pytest.raises(ValueError, match="the map must have a divergence head; got MeanVelocity"):
        DivergenceDistillation(flow)(true_model(flow, (3,)), pairs(flow, 4, stream()))
    with pytest.raises(ValueError, match="diagonal must lie between 0 and 1"):
        DivergenceDistillation(flow, diagonal=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_it_learns_samples_and_their_likelihood_in_one_evaluation(own):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow, g = gaussian().float(), stream(3)
    model = DivergenceHead(MLP((3,), width=64, depth=3, outputs=2))
    loss = DivergenceDistillation(None if own else flow)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
    for _ in range(2000):
        optimizer.zero_grad()
        loss(model, pairs(flow, 256, g), generator=g).mean().backward()
        optimizer.step()
        schedule.step()
    x, zero, one = torch.randn(2000, 3, generator=g), torch.zeros(2000), torch.ones(2000)
    with torch.no_grad():
        y, log_density = model.jump(x, flow.log_density(x, zero), zero, one)
    exact = flow(x, zero, one)
    assert ((y - exact).norm() / (exact - flow.mean).norm()).item() < 0.15
    # What is learned is the change, 1.3 nats here.
    assert (log_density - flow.log_density(exact, one)).abs().mean() < 0.3


# From one time to two

SHAPE = (2, 8, 8)
INNER = {
    "mlp": {"name": "mlp", "width": 16, "depth": 2},
    "dit": {"name": "dit", "width": 16, "depth": 4, "heads": 2},
    "unet": {"name": "unet", "width": 16, "multipliers": [1, 2], "blocks": 1, "heads": 2},
    "edm2_unet": {"name": "edm2_unet", "width": 16, "multipliers": [1, 2], "blocks": 1, "head": 16},
}


def one_time(name):
    torch.manual_seed(0)
    net = build("nets", INNER[name], shape=SHAPE, classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


@pytest.mark.parametrize("name", INNER)
def test_a_gated_network_starts_as_the_velocity(name):
    known, labels = one_time(name), torch.tensor([0, 1, 2, 3])
    net = build("nets", {"name": "gated_span", "net": INNER[name]}, shape=SHAPE, classes=3)
    net.adopt(known)
    x, s, _, t = draws(4, SHAPE)
    assert torch.equal(net(x, s, t, labels), known(x, s, s, labels)), "u_{s,t} = b_s"
    nn.init.constant_(net.net.times.gate, 0.25)
    assert (net(x, s, s, labels) - known(x, s, s, labels)).abs().max() < 1e-12, "u_{s,s} = b_s for any gate"
    assert not torch.allclose(net(x, s, t, labels), known(x, s, s, labels))
    nn.init.constant_(net.net.times.gate, 1.0)
    embed = net.net.times(s, t)
    assert (embed - known.times(t, t)).abs().max() < 1e-12, "the copy is told the arrival"
    # At the start the gate itself has a gradient, though its copy has none.
    nn.init.zeros_(net.net.times.gate)
    net(x, s, t, labels).square().sum().backward()
    assert net.net.times.gate.grad.abs() > 1e-6
    assert all((p.grad == 0).all() for p in net.net.times.copy.parameters())


@pytest.mark.parametrize("name", ["dit", "unet", "edm2_unet"])
def test_a_split_network_tells_its_first_blocks_the_departure(name):
    known, labels = one_time(name), torch.tensor([0, 1, 2, 3])
    nets = {}
    for share in (0.0, 0.5, 1.0):
        nets[share] = build("nets", {"name": "block_split", "net": INNER[name], "share": share}, shape=SHAPE, classes=3)
        nets[share].adopt(known)
    x, s, _, t = draws(4, SHAPE)
    for net in nets.values():
        assert (net(x, s, s, labels) - known(x, s, s, labels)).abs().max() < 1e-12, "u_{s,s} = b_s"
        assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in known.parameters())
    assert (nets[0.0](x, s, t, labels) - known(x, t, t, labels)).abs().max() < 1e-12
    half = nets[0.5](x, s, t, labels)
    assert (half - nets[0.0](x, s, t, labels)).abs().max() > 1e-6
    assert (half - nets[1.0](x, s, t, labels)).abs().max() > 1e-6
    seen = []
    early, late = known.embed(s, s, labels), known.embed(t, t, labels)
    for module in nets[0.5].modules():
        if type(module).__name__ in ("Block", "_Block", "Residual"):
            module.register_forward_hook(lambda m, given, y: seen.append(given[1].reshape(early.shape)))
    nets[0.5](x, s, t, labels)
    assert len(seen) == known.depth
    for i, told in enumerate(seen):
        assert torch.allclose(told, early if i < round(0.5 * known.depth) else late)


def test_networks_that_cannot_be_opened():
    with pytest.raises(ValueError, match="net must have blocks that are told the time: a dit or unet; got MLP"):
        BlockSplit(one_time("mlp"))
    with pytest.raises(ValueError, match="net must embed its times: an mlp, dit or unet; got Linear"):
        GatedSpan(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        BlockSplit(one_time("dit"), 1.5)


@pytest.mark.parametrize("wrapper", ["gated_span", "block_split"])
def test_a_student_starts_from_the_weights_of_a_network_of_one_time(wrapper):
    from flowmaps.engine.objects import _copy_weights

    known = MeanVelocity(one_time("dit"))
    student = MeanVelocity(build("nets", {"name": wrapper, "net": INNER["dit"]}, shape=SHAPE, classes=3))
    _copy_weights(student, known)
    x, s, _, _ = draws(4, SHAPE)
    assert (student.velocity(x, s) - known.velocity(x, s)).abs().max() < 1e-12
    again = MeanVelocity(build("nets", {"name": wrapper, "net": INNER["dit"]}, shape=SHAPE, classes=3))
    _copy_weights(again, student)  # a teacher of its own kind is taken over as it is
    assert (again.velocity(x, s) - known.velocity(x, s)).abs().max() < 1e-12
