"""Every network: shapes, conditions, two times, forward derivatives, compilation-free of surprises."""

import math

import pytest
import torch
from torch import nn
from truth import draws

from flowmaps.build import build, names
from flowmaps.core.calculus import Central, Exact, d_dt, stopped_derivative
from flowmaps.core.concatenated import Concatenated
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.core.text import wave_features
from flowmaps.nets._embedding import TwoTimes
from flowmaps.nets.gated_span import GatedSpan

SMALL = {
    "blockwise_dit": {"width": 32, "segments": 3, "trunk": 1, "depth": 1, "residual": 1, "heads": 2, "rank": 8},
    "arflow": {"width": 32, "depth": 2, "heads": 2},
    "edm2_unet": {"width": 16, "multipliers": [1, 2], "blocks": 1, "head": 16, "attention": [4]},
    "jit": {"width": 32, "depth": 2, "heads": 2, "patch": 2, "bottleneck": 6, "context": 3, "start": 1},
    "mmdit": {"width": 32, "depth": 2, "heads": 2},
    "mlp": {"width": 32, "depth": 3},
    "dit": {"width": 32, "depth": 2, "heads": 2},
    "unet": {"width": 16, "multipliers": [1, 2], "blocks": 1, "heads": 2},
    "temporal": {"width": 16, "depth": 2, "outputs": 1},
    "gated_span": {"net": {"name": "mlp", "width": 32, "depth": 3}},
    "cached": {"net": {"name": "dit", "width": 32, "depth": 3, "heads": 2}},
    "block_split": {"net": {"name": "dit", "width": 32, "depth": 2, "heads": 2}, "share": 0.5},
}
SHAPE = (2, 8, 8)


# Networks that give zero at the start, whatever they see.
ZERO = ["blockwise_dit", "arflow", "edm2_unet", "jit", "mmdit", "dit", "unet"]


def fresh(name, classes=3, shape=SHAPE, **options):
    torch.manual_seed(0)
    table = {"name": name, **SMALL[name]}
    if "net" in table:  # around another network, which the options are for
        table["net"] = table["net"] | options
    else:
        table |= options
    return build("nets", table, shape=shape, classes=classes)


def net(name, classes=3, **options):
    made = fresh(name, classes, **options)
    for p in made.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)  # zero-initialised layers would hide everything behind them
    return made


@pytest.mark.parametrize("name", names("nets"))
def test_shapes_and_conditions(name):
    made = net(name)
    x, s, _, t = draws(4, SHAPE)
    labels = torch.tensor([0, 1, 2, 0])
    y = made(x, s, t, labels)
    assert y.shape == x.shape
    assert torch.equal(made.null_condition(4), torch.full((4,), 3))
    assert torch.equal(made(x, s, t), made(x, s, t, made.null_condition(4))), "no condition is the null condition"
    assert not torch.equal(y[0], made(x, s, t, torch.ones(4, dtype=torch.long))[0])
    for other in (made(x + 0.1, s, t, labels), made(x, s + 0.1, t, labels), made(x, s, t + 0.1, labels)):
        assert (other - y).abs().flatten(1).amax(1).min() > 1e-6, "state and both times matter to every sample"
    assert (made(x[:2], s[:2], t[:2], labels[:2]) - y[:2]).abs().max() < 1e-10, "samples do not mix"
    (y.sum() + sum(p.sum() for p in made.parameters())).backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("name", names("nets"))
def test_images_need_not_be_square(name):
    made = net(name, shape=(3, 4, 8))
    x, s, _, t = draws(2, (3, 4, 8))
    assert made(x, s, t).shape == x.shape


@pytest.mark.parametrize("name", ZERO)
def test_zero_at_the_start(name):
    x, s, _, t = draws(2, SHAPE)
    assert not fresh(name)(x, s, t).any()


@pytest.mark.parametrize("name", names("nets"))
def test_forward_derivative_is_the_derivative(name):
    model = MeanVelocity(net(name).eval())
    x, s, _, t = draws(4, SHAPE)
    exact, rough = (d_dt(model, x, s, t, None, jvp)[1].detach() for jvp in (Exact(), Central(1e-5)))
    # The difference's own error: 1e-10 of third derivatives and 1e-16 / 1e-5 of rounding.
    assert (exact - rough).norm() / rough.norm() < 1e-7


@pytest.mark.parametrize("name", names("nets"))
def test_gradient_of_a_derivative(name):
    """Backward through the forward derivative, against the gradient of a difference quotient; weights may have none."""
    made = net(name)
    x, s, _, t = draws(2, SHAPE)
    gradients = []
    for jvp in (Exact(), Central(1e-4)):
        loss = d_dt(MeanVelocity(made), x, s, t, None, jvp)[1].square().mean()
        found = torch.autograd.grad(loss, [*made.parameters()], materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", names("nets"))
def test_compiled_without_breaks(name):
    """The gradient beside a stopped derivative, as run eagerly; the compiler has dropped tangents before."""
    made = net(name)
    x, s, _, t = (z.clone() for z in draws(4, SHAPE))  # the compiler fails on tangents of views

    def loss(x, s, t):
        return sum(stopped_derivative(MeanVelocity(made), x, s, t, dx=1.0 + 0 * x, ds=1.0)).square().mean()

    torch._dynamo.reset()
    want, found = (
        torch.cat([z.flatten() for z in torch.autograd.grad(value, [*made.parameters()], materialize_grads=True)])
        for value in (f(x, s, t) for f in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)))
    )
    assert (found - want).norm() / want.norm() < 1e-9  # rounding


@pytest.mark.parametrize("name", names("nets"))
def test_dropout_only_in_training(name):
    made = net(name, dropout=0.5)
    x, s, _, t = draws(2, SHAPE)
    assert not torch.equal(made.train()(x, s, t), made(x, s, t))
    assert torch.equal(made.eval()(x, s, t), made(x, s, t))


@pytest.mark.parametrize("name", names("nets"))
def test_mixed_precision_returns_the_dtype_of_the_state(name):
    model = MeanVelocity(net(name).float())
    x, s, _, t = (z.float() for z in draws(2, SHAPE))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x, s, t)
    assert y.dtype == torch.float32
    assert (y - model(x, s, t)).norm() / y.norm() < 0.02  # bfloat16 rounds at 0.4 %


def test_waves_are_low_in_frequency():
    t = torch.linspace(0, 1, 5)
    waves = wave_features(t, 4, 8.0)
    assert waves.shape == (5, 8)
    angle = t[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert torch.allclose(waves, torch.cat([angle.sin(), angle.cos()], 1))


def test_two_times_tells_departure_from_span():
    torch.manual_seed(0)
    embed = TwoTimes(8, 4)
    a, b = torch.tensor([0.2]), torch.tensor([0.7])
    assert not torch.allclose(embed(a, b), embed(b, a))
    assert not torch.allclose(embed(a, a), embed(b, b))
    assert torch.allclose(embed(a, a + 0.2) - embed(a, a), embed(b, b + 0.2) - embed(b, b)), "the span is seen alone"


def test_attention_does_not_know_the_order_of_its_tokens():
    x, order = draws(2, (16, 8, 8))[0], torch.randperm(64, generator=torch.Generator().manual_seed(0))
    attend = next(m for m in net("unet", width=8).modules() if type(m).__name__ == "Attention")
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    assert (attend(shuffled) - attend(x).flatten(2)[..., order].reshape(x.shape)).abs().max() < 1e-12
    tokens, told, block = draws(2, (64, 32))[0], torch.ones(2, 1, 32), net("dit").blocks[0]
    assert (block(tokens[:, order], told) - block(tokens, told)[:, order]).abs().max() < 1e-12


def test_patches_go_back_where_they_came_from():
    """Without attention, a change of one patch changes this patch and no other."""
    made = net("dit", depth=0)
    x, s, _, t = draws(1, SHAPE)
    other = x.clone()
    other[:, :, 2:4, 6:8] += 1
    changed = (made(x, s, t) != made(other, s, t)).any(1)[0]
    assert changed[2:4, 6:8].all()
    assert changed.sum() == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dit", {"patch": 3}, "patch must divide the image and heads the width; got patch 3 for 8 x 8"),
        ("dit", {"heads": 5}, "heads the width"),
        ("unet", {"multipliers": [1, 1, 1, 1, 1]}, "the image must halve 4 times"),
    ],
)
def test_sizes_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        net(name, **options)


def test_mlp_takes_any_shape():
    made = build("nets", {"name": "mlp", "width": 16, "depth": 2, "residual": True}, shape=(5,))
    x, s, _, t = draws(3, (5,))
    assert made(x, s, t).shape == (3, 5)
    assert math.prod(made.shape) == 5


@pytest.mark.parametrize("name", ZERO)
def test_networks_of_images_say_which_takes_points(name):
    with pytest.raises(ValueError, match=r"must have images, of shape \(C, H, W\); got \(2,\). Set net=mlp"):
        fresh(name, shape=(2,))


def test_mlp_with_waves_of_the_state_sees_sharp_edges():
    """Fits a step function of x far better than without; 40 waves of sd 20 resolve what layers alone smooth."""
    x = torch.rand(512, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y, s = torch.where((x * 4).floor() % 2 == 0, 1.0, -1.0), torch.zeros(512)
    left = {}
    for waves in (0, 40):
        torch.manual_seed(0)
        made = build("nets", {"name": "mlp", "width": 32, "depth": 2, "waves": waves, "wave_scale": 20.0}, shape=(1,))
        optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
        for _ in range(150):
            loss = (made(x, s, s) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[waves] = float(loss)
    assert left[40] < left[0] / 2
    assert "waves" in made.state_dict(), "the waves are random: a saved network must bring its own"


def blocks_of(made):
    """The blocks that features are counted by, from first to last, and what of their outputs is the image's."""
    if type(made).__name__ == "BlockwiseDiT":
        return made.trunk, lambda h: h
    if type(made).__name__ == "MMDiT":
        return made.blocks, lambda both: both[0]
    if type(made).__name__ in ("EDM2UNet", "UNet"):
        layers = [*made.down, *getattr(made, "middle", []), *made.up]
        return [m for m in layers if not isinstance(m, nn.Conv2d)], lambda h: h.flatten(2).transpose(1, 2)
    return made.blocks, lambda h: h[:, -16:]


@pytest.mark.parametrize("name", ["dit", "unet", "edm2_unet", "jit", "mmdit", "blockwise_dit", "cached", "gated_span"])
def test_features_are_what_a_hook_hears_of_the_block(name):
    """Of every block, and asking for them changes nothing."""
    made = GatedSpan(net("dit")) if name == "gated_span" else net(name)
    inner = made.net if name in ("cached", "gated_span") else made
    blocks, image = blocks_of(inner)
    x, s, _, t = draws(2, SHAPE)
    label = torch.tensor([1, 2])
    for number, block in enumerate(blocks, 1):
        heard = []
        hook = block.register_forward_hook(lambda module, inputs, output, heard=heard: heard.append(output))
        plain = made(x, s, t, label)
        y, features = made.with_features(x, s, t, label, number)
        hook.remove()
        assert torch.equal(y, plain)
        assert torch.equal(features, image(heard[0]))
        assert features.shape[:2] in ((2, 64), (2, 16))
    for wrong in (0, len(blocks) + 1):
        with pytest.raises(
            ValueError, match=f"block must lie between 1 and {len(blocks)}, the number of blocks; got {wrong}"
        ):
            made.with_features(x, s, t, label, wrong)
    with pytest.raises(ValueError, match="net must give features of its blocks: a dit or unet, or another .*; got MLP"):
        MeanVelocity(net("mlp")).with_features(x, s, t)


@pytest.mark.parametrize(
    "form", ["mean_velocity", "recurrent", "data_prediction", "noise_prediction", "preconditioned", "denoiser_head"]
)
def test_maps_hand_the_features_of_their_network_on(form):
    """With the mean velocity that they have without, for the state as their network sees it."""
    name = "blockwise_dit" if form == "recurrent" else "dit"
    inner = net(name, classes=0, outputs=2 if form == "denoiser_head" else 1)
    model = build("maps", form, net=inner)
    x, s, _, t = draws(3, SHAPE)
    heard = []
    (inner.trunk if form == "recurrent" else inner.blocks)[0].register_forward_hook(lambda m, i, h: heard.append(h))
    u, features = model.with_features(x, s, t, None, 1)
    assert torch.equal(u, model.mean_velocity(x, s, t))
    assert torch.equal(features, heard[0])
    assert torch.equal(features, heard[1]), "as without being asked"


def test_a_network_beside_a_condition_hands_its_features_on():
    inner = net("dit", classes=3, shape=(5, 8, 8))
    beside, heard = Concatenated(inner, (3, 8, 8)), []
    x, s, _, t = draws(2, SHAPE)
    cond = {"label": torch.tensor([0, 2]), "spatial": torch.randn(2, 3, 8, 8)}
    inner.blocks[1].register_forward_hook(lambda m, i, h: heard.append(h))
    y, features = MeanVelocity(beside).with_features(x, s, t, cond, 2)
    assert torch.equal(features, heard[0])
    assert torch.equal(y, beside(x, s, t, cond))
    assert y.shape == x.shape
