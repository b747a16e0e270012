"""Every loss that takes a derivative, with the central difference in place of the exact one."""

import inspect

import pytest
import torch
from test_losses import VARIANTS, begun, flow_for, label, made, pairs
from truth import SHAPES, gaussian, slope, stream, true_model

from flowmaps.build import build, find, names
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.maps.divergence_head import DivergenceHead
from flowmaps.nets.mlp import MLP

# Alpha-Flow takes none before the end of its schedule; the variant alpha_flow-0 is past it.
DERIVED = [
    v for v in VARIANTS if "jvp" in inspect.signature(find("losses", v["name"])).parameters and label(v) != "alpha_flow"
]


def errors(made, model, pair, weight, steps):
    """Of value and gradient of a loss, relative, for each step of the central difference."""

    def evaluated(jvp):
        value = begun(made(jvp), model)(model, pair, generator=stream(4))
        return value.detach(), torch.autograd.grad(value.mean(), weight)[0]

    exact, *rough = map(evaluated, ("exact", *({"name": "central", "step": h} for h in steps)))
    return [[float((a - b).norm() / b.norm()) for a, b in zip(r, exact, strict=True)] for r in rough]


def assert_second_order(coarse, fine):
    """Value and gradient come from the difference (or they would agree to rounding), and err by its step squared."""
    for both in zip(coarse, fine, strict=True):
        assert both[0] < 1e-3
        assert abs(slope(both) - 2) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", DERIVED, ids=label)
def test_the_central_difference_agrees_to_the_square_of_its_step(variant, shape):
    """Away from the truth, where losses and their gradients do not vanish."""
    flow = flow_for(variant, shape)
    model, pair = true_model(flow, shape), pairs(flow, 24, stream())
    torch.nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    off = {"diagonal": 0.0} if "diagonal" in inspect.signature(find("losses", variant["name"])).parameters else {}
    assert_second_order(
        *errors(lambda jvp: made(variant, flow, jvp=jvp, **off), model, pair, model.net.head, (0.004, 0.002))
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["linear", "variance_preserving"])
@pytest.mark.parametrize("name", ["scm", "mean_flow", "lsd"])
def test_the_central_difference_close_to_noise_and_data(name, path, shape):
    """Half of the times closer to an end than the step: beyond it paths are no numbers, or the data are divided by 0."""
    flow = gaussian(shape, build("interpolants", path))
    model, pair = true_model(flow, shape), pairs(flow, 24, stream())
    torch.nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    near, options = {"name": "boundary_mixed", "start": 0.25, "end": 0.25, "width": 0.001}, {}
    if name == "scm":
        options = {"times": near, "stabiliser": "unchanged"}
    else:
        options = {"times": {"name": "span_pair", "span": near}, "diagonal": 0.0}
    loss = {"name": name, **options}
    rough = errors(lambda jvp: made(loss, flow, jvp=jvp), model, pair, model.net.head, (0.004, 0.002))
    assert all(0 < e < 0.1 for both in rough for e in both)
    if path == "linear":  # the other bends at the data over 1e-4, much less than the step
        assert all(abs(slope(both) - 2) < 0.2 for both in zip(*rough, strict=True))


def test_the_central_difference_of_a_network_with_a_divergence_head():
    torch.manual_seed(0)
    model = DivergenceHead(MLP((3,), width=16, depth=2, outputs=2))

    def loss(jvp):
        return build("losses", {"name": "divergence_distillation", "diagonal": 1.0, "jvp": jvp})

    assert_second_order(*errors(loss, model, pairs(gaussian(), 24, stream()), model.net.leave.weight, (0.02, 0.01)))


def test_every_loss_with_a_derivative_is_tested():
    with_one = {n for n in names("losses") if "jvp" in inspect.signature(find("losses", n)).parameters}
    assert with_one == {v["name"] for v in DERIVED} | {"divergence_distillation"}


@pytest.mark.parametrize("variant", [{"name": "lsd"}, {"name": "esd"}, {"name": "mean_flow"}], ids=label)
def test_the_central_difference_sees_one_dropout_mask(variant):
    """Its evaluations share the mask, or their difference would be that of two networks, over a small step."""
    torch.manual_seed(0)
    model = MeanVelocity(MLP((3,), width=32, depth=3, dropout=0.5)).train()

    def loss(jvp):
        torch.manual_seed(1)
        return made(variant, gaussian(), jvp=jvp, diagonal=0.0)

    weight, pair = model.net.leave.weight, pairs(gaussian(), 24, stream())
    assert_second_order(*errors(loss, model, pair, weight, (0.004, 0.002)))
