"""Maps that remember: their sampler, networks on sequences and in segments, and the losses of these."""

import pytest
import torch
from test_nets import SHAPE, net
from truth import SHAPES, Remembering, TrueNet, draws, eight_gaussians, gaussian, stream

from flowmaps.build import build
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.core.recurrent import Recurrent
from flowmaps.core.sampling import sample
from flowmaps.core.types import Pair
from flowmaps.nets._transformer import to_tokens
from flowmaps.nets.arflow import _across

# The sampler


def test_the_memory_goes_from_step_to_step():
    flow, seen = gaussian(), []

    class Watched(Remembering):
        def advance(self, x, s, t, cond, memory):
            seen.append((memory, torch.equal(s, t)))
            return super().advance(x, s, t, cond, memory)

    x, grid = torch.randn(4, 3, generator=stream()), torch.linspace(0, 1, 4)
    model = Recurrent(Watched(flow))
    y = sample(model, x, grid, sampler=build("samplers", "recurrent"))
    assert seen == [(None, True), ([0.0], True), ([0.0, grid[1]], True)]
    assert (y - sample(flow, x, grid, sampler=build("samplers", "euler"))).abs().max() < 1e-12
    jumped = sample(model, x, grid, sampler=build("samplers", {"name": "recurrent", "jump": True}))
    assert (jumped - sample(flow, x, grid)).abs().max() < 1e-12


def test_guidance_has_a_memory_of_its_own():
    """The velocity without condition remembers what it saw without condition: two sums that do not mix."""
    flow, cond = eight_gaussians(labels=torch.arange(8) % 3, steps=24), torch.arange(6) % 3

    class Summing(Remembering):
        def advance(self, x, s, t, cond, memory):
            total = self.flow.mean_velocity(x, s, t, cond) + (0 if memory is None else memory)
            return total, total

    x, sampler = torch.randn(6, 2, generator=stream()), build("samplers", {"name": "recurrent", "scale": 2.5})
    y = sample(Recurrent(Summing(flow)), x, [0.0, 0.5, 0.8], sampler=sampler, cond=cond)
    sums = {}
    for s, h in ((0.0, 0.5), (0.5, 0.3)):
        for name, label in (("null", flow.null_condition(6)), ("told", cond)):
            sums[name] = sums.get(name, 0) + flow.velocity(x, torch.full((6,), s), label)
        x = x + h * (sums["null"] + 2.5 * (sums["told"] - sums["null"]))
    assert (y - x).abs().max() < 1e-12


def test_maps_and_networks_without_memory_are_turned_away():
    with pytest.raises(ValueError, match="a recurrent map needs a network with a memory; got MLP"):
        build("maps", "recurrent", net=net("mlp"))
    with pytest.raises(ValueError, match="the sampler 'recurrent' needs a map with a memory; got MeanVelocity"):
        sample(MeanVelocity(net("mlp")), torch.zeros(2, *SHAPE), [0.0, 1.0], sampler=build("samplers", "recurrent"))


# ARFlow


def states(length=4, batch=3):
    g = stream()
    x, s = torch.randn(batch, length, *SHAPE, generator=g), torch.rand(batch, length, generator=g).sort(1).values
    return x, s, (s + 0.1).clamp_max(1), torch.arange(batch) % 3


def test_a_sequence_at_once_is_the_sequence_step_by_step():
    made = net("arflow")
    x, s, t, cond = states()
    memory, each = None, []
    for i in range(x.shape[1]):
        y, memory = made.advance(x[:, i], s[:, i], t[:, i], cond, memory)
        each.append(y)
    at_once = made.sequence(x, s, t, cond)
    assert (at_once - torch.stack(each, 1)).abs().max() < 1e-12
    assert torch.equal(made(x[:, 0], s[:, 0], t[:, 0], cond), each[0]), "alone, a state is the first of a sequence"
    assert [m.shape for m in memory] == [(3, 2, 16, 16)] * 2, "the memory does not grow"


def test_states_know_those_before_them_and_no_others():
    made = net("arflow")
    x, s, t, cond = states()
    x.requires_grad_()
    for i in range(4):
        (grad,) = torch.autograd.grad(made.sequence(x, s, t, cond)[:, i].square().sum(), x)
        felt = grad.flatten(2).abs().amax(2)
        assert (felt[:, : i + 1] > 1e-6).all()
        assert (felt[:, i + 1 :] == 0).all()


def test_what_was_seen_fades_by_its_gates():
    """Against the sum written out: M = sum_j of the product of all later gates times what j left."""
    g = stream()
    q, seen = torch.randn(2, 3, 2, 5, 4, generator=g), torch.randn(2, 3, 2, 4, 4, generator=g)
    fade, memory = -torch.rand(2, 3, 2, 5, generator=g), torch.randn(2, 2, 4, 4, generator=g)
    read, last = _across(q, seen, fade, memory)
    gate = fade.mean(-1).exp()
    for i in range(3):
        within = fade[:, i].cumsum(-1).exp()
        assert (read[:, i] - (q[:, i] * within[..., None]) @ memory).abs().max() < 1e-12
        memory = gate[:, i, :, None, None] * memory + seen[:, i]
    assert (last - memory).abs().max() < 1e-12


def test_attention_of_the_last_image_is_softmax_inside_and_linear_across():
    made, g = net("arflow").blocks[0].attend, stream()
    x, memory = torch.randn(2, 1, 16, 32, generator=g), torch.randn(2, 2, 16, 16, generator=g)
    q, k, v = (z.reshape(2, 16, 2, 16).transpose(1, 2) for z in made.qkv(x[:, 0]).chunk(3, -1))
    q, k, v = (z / z.square().mean(-1, keepdim=True).sqrt() for z in (q, k, v))
    fade = torch.nn.functional.logsigmoid(made.fade(x[:, 0])).transpose(1, 2)[..., None] / 16
    heard = (q @ k.transpose(2, 3) / 4).softmax(-1) @ v + q * fade.cumsum(2).exp() @ memory
    heard = heard / heard.square().mean(-1, keepdim=True).sqrt()
    want = made.project(torch.nn.functional.silu(made.gate(x[:, 0])) * heard.transpose(1, 2).reshape(2, 16, 32))
    got, after = made(x, torch.zeros(2, 1, 1, 32), memory)
    assert (got[:, 0] - want).abs().max() < 1e-10
    assert (after - (fade.mean(2, keepdim=True).exp() * memory + k.transpose(2, 3) / 4 @ v)).abs().max() < 1e-10


# Its loss


class TrueSequences(Remembering):
    """The exact velocity with a head, on every state of a sequence alone, as it is when data are independent."""

    def __init__(self, flow, shape):
        super().__init__(flow)
        self.each = TrueNet(flow, shape)

    def sequence(self, x, s, t, cond=None):
        return self.each(x.flatten(0, 1), s.flatten(), t.flatten()).reshape(x.shape)


def sequences(flow, shape, n, g):
    x1 = flow.sample(4 * n, g).reshape(n, 4, *shape)
    return Pair(torch.randn(x1.shape, generator=g), x1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_truth_is_stationary_for_sequences(shape):
    """Mean squared z-score of the head's gradient as in tests/test_losses.py, whose bound and false alarms these are."""
    flow, wrong, loss = gaussian(shape), gaussian(shape, seed=5), build("losses", "autoregressive_flow_matching")
    for true, low, high in ((flow, 0, 6), (wrong, 30, float("inf"))):
        model, g = Recurrent(TrueSequences(true, shape)), stream(3)
        head = model.net.each.head
        gradients = torch.stack(
            [
                torch.autograd.grad(loss(model, sequences(flow, shape, 128, g), generator=g).mean(), head)[0]
                for _ in range(24)
            ]
        )
        z = gradients.mean(0) / (gradients.std(0) / 24**0.5 + 1e-12)
        assert low <= z.square().mean() < high


def test_sequences_rise_in_time_and_keep_their_paths():
    flow, seen = gaussian(), []

    class Watched(TrueSequences):
        def sequence(self, x, s, t, cond=None):
            seen.append((x, s, t, cond))
            return super().sequence(x, s, t, cond)

    g = stream()
    pair = sequences(flow, (3,), 8, g)
    pair = Pair(pair.x0, pair.x1, torch.arange(8))
    value = build("losses", "autoregressive_flow_matching")(Recurrent(Watched(flow, (3,))), pair, generator=g)
    x, s, t, cond = seen[0]
    assert value.shape == (8,)
    assert torch.equal(s, t)
    assert (s.diff(dim=1) > 0).all()
    assert torch.equal(cond, pair.cond)
    s = s[..., None]
    assert (x - (1 - s) * pair.x0 - s * pair.x1).abs().max() < 1e-12
    want = (flow.velocity(x.flatten(0, 1), s.flatten()) - (pair.x1 - pair.x0).flatten(0, 1)).square().mean(1)
    assert (value - want.reshape(8, 4).mean(1)).abs().max() < 1e-9  # the exact velocity is a divided difference


def test_sequences_need_a_network_of_sequences_and_data():
    loss = build("losses", "autoregressive_flow_matching")
    with pytest.raises(ValueError, match="needs? data and a network of sequences; got MeanVelocity"):
        loss(MeanVelocity(net("mlp")), Pair(torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="got none"):
        loss(Recurrent(net("arflow")), Pair(torch.zeros(2, 3)))


@pytest.mark.slow
def test_what_was_seen_tells_the_label():
    """Constant images of -1 or 1, the same in a sequence, and no label: five states before say which.

    At times .2 to .3 the last state alone leaves 0.5 of the variance of its datum, all six leave 0.2; three quarters of
    the error of the velocity are asked for.
    """
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    made, g = build("nets", {"name": "arflow", "width": 32, "depth": 2, "heads": 2}, shape=(1, 2, 2)), stream()
    model, loss = Recurrent(made), build("losses", "autoregressive_flow_matching")
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)

    def drawn(n):
        x1 = torch.randint(2, (n, 1, 1, 1, 1), generator=g).float().mul(2).sub(1).expand(n, 6, 1, 2, 2)
        return Pair(torch.randn(x1.shape, generator=g), x1)

    for _ in range(400):
        optimizer.zero_grad()
        loss(model, drawn(64), generator=g).mean().backward()
        optimizer.step()
    pair, t = drawn(2000), torch.linspace(0.2, 0.3, 6).expand(2000, 6)
    w = pair.x1 - pair.x0
    x = pair.x0 + t[..., None, None, None] * w
    with torch.no_grad():
        told, alone = made.sequence(x, t, t)[:, -1], made(x[:, -1], t[:, -1], t[:, -1])
    error = [float((b - w[:, -1]).square().mean()) for b in (told, alone)]
    assert error[0] < 0.75 * error[1], error


# Segments


def later(made, start, share=0.5):
    """A time at a share of the segment that starts there."""
    return start + share / made.segments


def test_each_segment_has_a_stack_of_its_own():
    made = net("blockwise_dit")
    x, _, _, t = draws(6, SHAPE)
    s = torch.tensor([0.0, 0.3, 1 / 3, 0.5, 2 / 3, 1.0])
    assert made.segment(s).tolist() == [0, 0, 1, 1, 2, 2]
    assert made.segment(s.float() - 3e-8).tolist() == [0, 0, 1, 1, 2, 2], "rounding does not move borders"
    y = made(x, s, t)
    for i, own in enumerate(made.segment(s)):
        made.zero_grad()
        y[i].sum().backward(retain_graph=True)
        felt = [sum(p.grad.abs().sum() for p in stack.parameters()) > 0 for stack in made.stacks]
        assert felt == [m == own for m in range(3)], "also for arrivals beyond"
        assert sum(p.grad.abs().sum() for p in made.trunk.parameters()) > 0
        assert all(p.grad is None for p in made.residual.parameters())


def test_features_depend_on_the_departure_alone():
    made = net("blockwise_dit")
    x, s, _, t = draws(4, SHAPE)
    f = made.features(x, s, t)
    assert f.shape == (4, 16, 32)
    assert torch.equal(f, made.features(x, s, s))
    assert (made.features(x, s + 0.1, t) - f).abs().max() > 1e-6
    assert torch.equal(made.drive(x, s, t, None, f), made(x, s, t))
    assert (made.drive(x, s, t, None, f + 0.1) - made(x, s, t)).abs().max() > 1e-6


def test_features_turn_with_their_places():
    """Of tokens alike, what one hears from another depends on where this is from it, and on nothing else."""
    made = net("blockwise_dit")
    block = made.trunk[0]
    x, cond = torch.randn(1, 16, 32, generator=stream()), torch.zeros(1, 1, 6 * 32)
    q, k, _ = block.split(x.mean(1, keepdim=True).expand(x.shape), cond.chunk(6, -1), made.rotation)
    score = (q @ k.transpose(2, 3)).reshape(2, 4, 4, 4, 4)
    assert (score[:, :3, :3, :3, :3] - score[:, 1:, 1:, 1:, 1:]).abs().max() < 1e-12
    assert (score[:, 0, 0] - score[:, 1, 1]).abs().max() > 1e-3


def test_features_are_exact_at_the_start_of_a_segment():
    """And leave from there in proportion to the time, along what g says."""
    made, cond = net("blockwise_dit"), torch.tensor([0, 1, 2])
    x, start = draws(3, SHAPE)[0], torch.arange(3) / 3
    f = made.features(x, start, start, cond)
    assert (made.approximate(x, start, cond, f) - f).abs().max() < 1e-12
    one, two = (made.approximate(x, later(made, start, share), cond, 0 * f) for share in (0.25, 0.5))
    assert one.abs().max() > 1e-3
    c = made._told(later(made, start, 0.5), later(made, start, 0.5), cond)
    h = made.trunk_enter(to_tokens(x, 2))
    assert (two - 0.5 * made.residual[0](h, c, made.rotation)).abs().max() < 1e-12


def test_the_trunk_runs_once_per_segment():
    made, runs = net("blockwise_dit"), []
    made.trunk[0].register_forward_hook(lambda *_: runs.append("trunk"))
    made.residual[0].register_forward_hook(lambda *_: runs.append("g"))
    x, steps = draws(4, SHAPE)[0], build("samplers", "recurrent")
    with torch.no_grad():
        y = sample(Recurrent(made), x, torch.linspace(0, 1, 10), sampler=steps)
        assert runs == ["trunk", "g", "g"] * 3
        # By hand, and with g that says nothing, which is the trunk's features held fixed.
        for p in made.trunk_enter.parameters():
            p.zero_()
        held = sample(Recurrent(made), x, torch.linspace(0, 1, 10), sampler=steps)
        z = x
        for i in range(9):
            s = torch.full((4,), i / 9)
            if i % 3 == 0:
                f = made.features(z, s, s)
            z = z + made.drive(z, s, s, None, made.approximate(z, s, None, f)) / 9
        assert (held - z).abs().max() < 1e-9
    assert (y - held).abs().max() > 1e-6


def test_feature_residuals_train_g_alone():
    made, flow, g = net("blockwise_dit"), gaussian(SHAPE), stream()
    pair = Pair(torch.randn(64, *SHAPE, generator=g), flow.sample(64, g), torch.arange(64) % 3)
    loss = build("losses", "feature_residual")
    value = loss(Recurrent(made), pair, generator=stream(1))
    assert value.shape == (64,)
    value.mean().backward()
    touched = {name.split(".")[0] for name, p in made.named_parameters() if p.grad is not None}
    assert touched == {"residual"}
    # The same by hand, from what the docstring says.
    s = build("training_times", "uniform")(64, pair.x0, stream(1))
    start = (3 * s).floor() / 3
    x, first = (made_path(pair, r) for r in (s, start))
    error = made.approximate(x, s, pair.cond, made.features(first, start, start, pair.cond))
    error = error - made.features(x, s, s, pair.cond)
    assert (value - error.square().mean((1, 2))).abs().max() < 1e-12


def made_path(pair, s):
    s = s.reshape(-1, 1, 1, 1)
    return (1 - s) * pair.x0 + s * pair.x1


def test_the_trunk_rests_while_its_residuals_are_learned():
    """Its features are those of sampling, without dropout, though the network trains; and it is left as it was."""
    made, flow, g = net("blockwise_dit", dropout=0.5), gaussian(SHAPE), stream()
    pair = Pair(torch.randn(16, *SHAPE, generator=g), flow.sample(16, g), torch.arange(16) % 3)
    loss, model = build("losses", "feature_residual"), Recurrent(made)
    made.residual.eval()
    values = [loss(model, pair, generator=stream(1)) for _ in range(2)]
    assert torch.equal(*values)
    assert made.trunk.training
    assert torch.equal(loss(model.eval(), pair, generator=stream(1)), values[0])
    assert not made.trunk.training


@pytest.mark.slow
def test_feature_residuals_are_learned():
    """Better than to keep the features of the start, by a quarter of the error; measured 0.71 of it. What the features
    were there, given the later state, stays unknown to g."""
    torch.set_default_dtype(torch.float32)
    made, flow, g = net("blockwise_dit").float(), gaussian(SHAPE).float(), stream()
    model, loss = Recurrent(made), build("losses", "feature_residual")
    optimizer = torch.optim.Adam(made.residual.parameters(), 3e-3)

    def error(n):
        return loss(model, Pair(torch.randn(n, *SHAPE, generator=g), flow.sample(n, g).float()), generator=g).mean()

    for _ in range(300):
        optimizer.zero_grad()
        error(64).backward()
        optimizer.step()
    after = float(error(1000).detach())
    made.approximate = lambda x, s, cond, start: start
    assert after < 0.8 * float(error(1000))


def test_segments_are_checked():
    with pytest.raises(ValueError, match="segments must be at least 1; got 0"):
        net("blockwise_dit", segments=0)
    loss = build("losses", "feature_residual")
    with pytest.raises(ValueError, match="data and a network of segments; got Recurrent"):
        loss(Recurrent(net("arflow")), Pair(torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="got none"):
        loss(Recurrent(net("blockwise_dit")), Pair(torch.zeros(2, 3)))
