"""Derivatives against closed forms, through attention and norms too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from truth import SHAPES, draws, gaussian, stream

from flowmaps.core.calculus import (
    Central,
    Exact,
    derivative_along,
    divergence,
    divided_difference,
    hutchinson,
    stop_gradient,
    stopped_derivative,
)


@pytest.mark.parametrize("shape", SHAPES)
def test_divergence_of_an_affine_field(shape):
    """The Gaussian velocity at one time is affine with a diagonal matrix: its divergence is the sum of the diagonal."""
    flow = gaussian(shape)
    x, t, *_ = draws(8, shape)
    p, std = flow.interpolant, flow.std.flatten()
    a, b = p.alpha(t)[:, None], p.beta(t)[:, None]
    want = ((a * p.alpha_dot(t)[:, None] + b * p.beta_dot(t)[:, None] * std**2) / (a**2 + b**2 * std**2)).sum(1)
    value, found = divergence(lambda x: flow.velocity(x, t), x)
    assert torch.equal(value, flow.velocity(x, t))
    assert (found - want).abs().max() < 1e-12
    # Rademacher probes make Hutchinson's estimate exact for a diagonal matrix.
    probe = torch.randint(0, 2, x.shape, generator=stream()).double() * 2 - 1
    assert (hutchinson(lambda x: flow.velocity(x, t), x, probe)[1] - want).abs().max() < 1e-12


def test_hutchinson_is_unbiased():
    matrix = torch.randn(4, 4, generator=stream())
    x, probe = torch.zeros(200_000, 4), torch.randn(200_000, 4, generator=stream(1))
    assert torch.allclose(divergence(lambda x: x @ matrix.T, x[:2])[1], matrix.trace())
    found = hutchinson(lambda x: x @ matrix.T, x, probe)[1]
    # Five standard errors: false alarm 6e-7.
    assert abs(found.mean() - matrix.trace()) < 5 * found.std() / len(found) ** 0.5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, "additive", "boolean"])
def test_exact_derivative_passes_fused_attention(causal, mask):
    if causal and mask:
        pytest.skip("torch allows one of the two")
    g = stream()
    q, k, v, dq, dk, dv = torch.randn(6, 2, 3, 5, 4, generator=g)
    given = {None: None, "additive": torch.randn(5, 5, generator=g), "boolean": torch.ones(5, 5).tril(1).bool()}[mask]

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=given, is_causal=causal, scale=0.3)

    value, exact = Exact()(attend, (q, k, v), (dq, dk, dv))
    h = 1e-6
    rough = (attend(q + h * dq, k + h * dk, v + h * dv) - attend(q - h * dq, k - h * dk, v - h * dv)) / (2 * h)
    assert (value - attend(q, k, v)).abs().max() < 1e-12
    assert (exact - rough).abs().max() < 1e-8  # the difference's own error: h^2 and rounding over h


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(6),
        nn.GroupNorm(2, 6),
        nn.BatchNorm1d(6).eval(),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.InstanceNorm1d(4, affine=True),
        nn.RMSNorm(6),
        nn.GLU(),
        nn.Linear(6, 6),
        nn.Conv1d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, bias=False),
        nn.MultiheadAttention(6, 2, batch_first=True).eval(),
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).eval(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_exact_derivative_passes_layers_we_do_not_own(layer):
    torch.manual_seed(0)
    layer = layer.double()
    for p in layer.parameters():
        nn.init.normal_(p)
    stacked = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.InstanceNorm1d, nn.Conv1d, nn.Conv2d)
    tokens = isinstance(layer, stacked)
    x, d = torch.randn(2, 4, *((4, 6) if tokens else (6,)), generator=stream())
    call = (lambda x: layer(x, x, x, need_weights=False)[0]) if isinstance(layer, nn.MultiheadAttention) else layer
    value, exact = Exact()(call, (x,), (d,))
    assert (value - call(x)).abs().max() < 1e-12
    assert (exact - (call(x + 1e-6 * d) - call(x - 1e-6 * d)) / 2e-6).abs().max() < 1e-7
    # The gradient of the derivative, which torch's own layer and batch norm get wrong without a word.
    offset = torch.zeros_like(x, requires_grad=True)
    gradients = [
        torch.autograd.grad(jvp(lambda x: call(x + offset).sin(), (x,), (d,))[1].square().sum(), offset)[0]
        for jvp in (Exact(), Central(1e-4))
    ]
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-5


def test_exact_derivative_in_the_weights_of_a_layer():
    x, dx, w, dw = torch.randn(4, 3, 3, generator=stream())
    found = Exact()(F.linear, (x, w), (dx, dw))[1]
    assert (found - dx @ w.T - x @ dw.T).abs().max() < 1e-12


def flops(f):
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()


@pytest.mark.parametrize("layer", [nn.Linear(6, 6), nn.Conv2d(6, 6, 3)], ids=lambda m: type(m).__name__)
def test_exact_derivative_costs_two_evaluations(layer):
    """Not three: the weights have no tangent to be multiplied with."""
    net = nn.Sequential(layer.double(), nn.Tanh(), layer, nn.Tanh())
    x, d = torch.randn(2, 4, 6, 6, 6, generator=stream())
    assert flops(lambda: Exact()(net, (x,), (d,))) == 2 * flops(lambda: net(x))


def test_differentiable_forms_are_only_used_inside_a_derivative():
    seen = []
    original = F.layer_norm

    def spy(x):
        seen.append(torch._C._len_torch_function_stack())
        return original(x, (3,))

    x = torch.randn(2, 3, generator=stream())
    spy(x)
    Exact()(spy, (x,), (x,))
    spy(x)
    assert seen == [0, 1, 0]


def test_central_difference_has_order_two_and_is_calibrated():
    x, d = torch.randn(2, 8, 3, generator=stream())
    exact = Exact()(torch.sin, (x,), (d,))[1]
    error = [(Central(h)(torch.sin, (x,), (d,))[1] - exact).abs().max() for h in (2e-2, 1e-2)]
    assert abs(torch.log2(error[0] / error[1]) - 2) < 0.05
    assert Central.calibrated(torch.sin, (x,), (d,)).step <= 1e-4  # float64: rounding only wins below
    coarse = Central.calibrated(lambda x: torch.sin(x.bfloat16()).to(x), (x,), (d,), tolerance=2.0)
    assert coarse.step >= 1e-2, "in bfloat16 small steps drown in rounding"
    with pytest.raises(ValueError, match="a central difference must come within"):
        Central.calibrated(lambda x: torch.sin(1e6 * x), (x,), (d,))


@pytest.mark.parametrize("options", [{"ds": 1.0}, {"dt": 1.0}, {"ds": -1.0}], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_central_difference_stays_inside_the_times_and_keeps_its_order(shape, options):
    """The function is no number for times outside [0, 1]; at the ends the difference is of second order too."""

    def f(x, s, t):
        s, t = (torch.where((z >= 0) & (z <= 1), z, torch.nan).reshape(-1, *[1] * len(shape)) for z in (s, t))
        return torch.sin(x * (1 + s) + 2 * t)

    time = torch.tensor([0.0, 0.004, 0.5, 0.996, 1.0])
    (x, *_), (dx, *_) = draws(5, shape), draws(5, shape, 1)
    for at in ((time, torch.full((5,), 0.3)), (torch.full((5,), 0.3), time)):
        exact = derivative_along(f, x, *at, dx=dx, **options)[1]
        coarse, fine = (
            (derivative_along(f, x, *at, dx=dx, jvp=Central(h), **options)[1] - exact).flatten(1).norm(dim=1)
            for h in (0.01, 0.005)
        )
        assert ((coarse / fine).log2() - 2).abs().max() < 0.1


def test_derivative_in_full_precision_under_autocast():
    x, d = torch.randn(2, 64, 64, generator=stream(), dtype=torch.float32)
    w = torch.randn(64, 64, generator=stream(1), dtype=torch.float32)
    want = d @ w
    with torch.autocast("cpu", torch.bfloat16):
        full, half = Exact()(lambda x: x @ w, (x,), (d,))[1], Exact(autocast=True)(lambda x: x @ w, (x,), (d,))[1]
    assert full.dtype == torch.float32
    assert (full - want).abs().max() < 1e-4 < (half.float() - want).abs().max()


def test_derivative_along_each_argument():
    def f(x, s, t):
        return x**2 * (s * t**3)[:, None]

    x, s, _, t = draws(6, (3,))
    for options, want in (
        ({"dx": torch.ones_like(x)}, 2 * x * (s * t**3)[:, None]),
        ({"ds": 1.0}, x**2 * (t**3)[:, None]),
        ({"dt": 2.0}, 2 * x**2 * (3 * s * t**2)[:, None]),
    ):
        assert (derivative_along(f, x, s, t, **options)[1] - want).abs().max() < 1e-12


def beside(layer):
    """A loss of the value and of the stopped derivative of layer(x (s + t)) along (dx, ds = 1)."""

    def parts(x, s, t, dx):
        return stopped_derivative(lambda x, s, t: layer(x * (s + t)[:, None]), x, s, t, dx=dx, ds=1.0)

    return parts, lambda *at: sum(parts(*at)).square().sum()


def test_stopped_derivative_has_the_gradient_of_the_value_alone():
    layer = nn.Linear(3, 3, bias=False).double()
    (x, s, _, t), (dx, *_) = draws(6, (3,)), draws(6, (3,), 1)
    parts, loss = beside(layer)
    value, slope = parts(x, s, t, dx)
    still, moved = x * (s + t)[:, None], dx * (s + t)[:, None] + x
    assert (value - layer(still)).abs().max() < 1e-12
    assert (slope - layer(moved)).abs().max() < 1e-12
    assert value.requires_grad
    assert not slope.requires_grad
    (found,) = torch.autograd.grad(loss(x, s, t, dx), layer.weight)
    assert (found - 2 * (value + slope).T @ still).abs().max() < 1e-12


def test_stopped_derivative_shares_the_evaluation_under_the_compiler():
    layer = nn.Linear(3, 3, bias=False).double()
    (x, s, _, t), (dx, *_) = draws(6, (3,)), draws(6, (3,), 1)
    loss = beside(layer)[1]
    quick = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (found,), (want,) = (torch.autograd.grad(f(x, s, t, dx), layer.weight) for f in (quick, loss))
    assert (found - want).abs().max() < 1e-12
    products = []
    for f in (quick, loss):
        with torch.profiler.profile() as profile:
            f(x, s, t, dx).backward()
        products.append(sum(event.name == "aten::mm" for event in profile.events()))
    assert products == [3, 4], "value, tangent and gradient of the weights; run eagerly the value is there twice"


def test_stop_gradient_shares_dropout_and_keeps_no_graph():
    layer, x = nn.Dropout(0.5), torch.ones(64, requires_grad=True)
    torch.manual_seed(5)
    with stop_gradient():
        target = layer(x)
    prediction = layer(x)
    assert torch.equal(target, prediction), "the prediction that follows has the masks of the target"
    assert not target.requires_grad
    assert not torch.equal(layer(x), prediction), "and the stream goes on after it"


def test_divided_difference_tends_to_the_derivative():
    s = torch.tensor([0.3, 0.3, 0.0, 1.0, 0.7])
    t = torch.tensor([0.3, 0.8, 0.0, 1.0, 0.7 + 1e-9])
    want = torch.stack([s[0].exp(), (t[1].exp() - s[1].exp()) / 0.5, *s[2:].exp()])
    # The widened span of 1e-5 errs by 1e-11, and the last pair is 1e-9 apart.
    assert (divided_difference(torch.exp, s, t) - want).abs().max() < 3e-9
    slope = torch.func.jvp(lambda t: divided_difference(torch.exp, s, t), (t,), (torch.ones_like(t),))[1]
    half = s[[0, 2, 3]].exp() / 2
    assert (slope[[0, 2, 3]] - half).abs().max() < 1e-4, "its derivative on the diagonal is half the second derivative"
