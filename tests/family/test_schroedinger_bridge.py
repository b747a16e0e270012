"""The Schrödinger bridge between Gaussians, in closed form: the plan, both regressions, and the equations they give."""

import math
from itertools import pairwise

import pytest
import torch
from truth import SHAPES, TrueHeads, stream

from flowmaps.build import build
from flowmaps.core.flow_map import FlowMap
from flowmaps.core.random import Tape, normal
from flowmaps.core.sampling import sample
from flowmaps.core.shapes import expand_time
from flowmaps.core.stochastic import drift_and_diffusion
from flowmaps.core.types import Pair
from flowmaps.interpolants.stochastic import Stochastic
from flowmaps.maps.denoiser_head import DenoiserHead


class Bridge(FlowMap):
    """The fields of the bridge between N(0, I) and N(mean, diag(std^2)); of the map only the diagonal.

    Bunne, Hsieh, Cuturi & Krause, The Schrödinger bridge between Gaussian measures has a closed form, 2022,
    arXiv:2202.05722: a Gaussian process whose ends have the covariance (sqrt(4 std^2 + sigma^4) - sigma^2) / 2.
    """

    def __init__(self, shape, sigma):
        super().__init__()
        g = stream(1)
        self.mean, self.std = torch.randn(shape, generator=g), torch.rand(shape, generator=g) + 0.5
        self.sigma, self.interpolant = sigma, Stochastic(scale=sigma, power=0.5)
        self.covariance = ((4 * self.std**2 + sigma**4).sqrt() - sigma**2) / 2

    def variance(self, t):
        return (1 - t) ** 2 + (t * self.std) ** 2 + t * (1 - t) * (2 * self.covariance + self.sigma**2)

    def mean_velocity(self, x, s, t, cond=None):
        t = expand_time(t, x)
        slope = t - 1 + t * self.std**2 + (1 - 2 * t) * (self.covariance + self.sigma**2 / 2)
        return self.mean + slope / self.variance(t) * (x - t * self.mean)

    def score(self, x, t):
        t = expand_time(t, x)
        return (t * self.mean - x) / self.variance(t)


def draws(bridge, batches, size, g, name="schroedinger_bridge"):
    """Pairs of batches of a coupling, one batch at a time."""
    context = {"interpolant": bridge.interpolant} if name == "schroedinger_bridge" else {}
    coupling = build("couplings", name, **context)
    for _ in range(batches):
        x1 = bridge.mean + bridge.std * torch.randn(size, *bridge.mean.shape, generator=g)
        yield coupling(x1, generator=g)


@pytest.mark.parametrize("sigma", [0.7, 1.5])
@pytest.mark.parametrize("shape", [(1,), (2,)])
def test_the_plan_is_that_of_the_bridge(shape, sigma):
    """Both ends and their covariance, and so the variance on the way."""
    bridge, g, n = Bridge(shape, sigma), stream(), 20_000
    made = list(draws(bridge, n // 500, 500, g))
    x0, x1 = (torch.cat([getattr(p, k) for p in made]) for k in ("x0", "x1"))
    covariance = ((x0 - x0.mean(0)) * (x1 - x1.mean(0))).mean(0)
    # Five standard errors, sqrt((std^2 + c^2) / n), false alarm 1e-6, and a bias of order 1 / 500 of plans within a batch.
    spread = (bridge.std**2 + bridge.covariance**2).sqrt()
    assert ((covariance - bridge.covariance) / spread).abs().max() < 5 / n**0.5 + 0.01
    assert (x0.var(0) - 1).abs().max() < 5 * (2 / n) ** 0.5
    for time in (0.2, 0.5, 0.9):
        t = torch.full((n,), time)
        x, _ = bridge.interpolant.draw(Pair(x0, x1), t, g)
        want = bridge.variance(t[:1])
        assert ((x.mean(0) - time * bridge.mean) / want.sqrt()).abs().max() < 5 / n**0.5
        assert (x.var(0) / want - 1).abs().max() < 5 * (2 / n) ** 0.5 + 0.01


def test_a_plan_of_correlated_data():
    """In the plane, with a matrix for the covariance of the ends: (4 S + sigma^4)^(1/2) / 2 - sigma^2 / 2."""
    sigma, g = 0.8, stream()
    root = torch.tensor([[1.0, 0.0], [0.9, 0.5]])
    values, vectors = torch.linalg.eigh(4 * root @ root.T + sigma**4 * torch.eye(2))
    want = vectors @ values.sqrt().diag() @ vectors.T / 2 - sigma**2 / 2 * torch.eye(2)
    coupling = build("couplings", "schroedinger_bridge", interpolant=Stochastic(scale=sigma, power=0.5))
    made = [coupling(torch.randn(500, 2, generator=g) @ root.T, generator=g) for _ in range(40)]
    both = torch.cat([torch.cat([p.x0, p.x1], 1) for p in made]).T.cov()[:2, 2:]
    assert (both - want).abs().max() < 0.06  # five standard errors of 1.6 / 141, 2e-6, and the batches' bias


@pytest.mark.parametrize(("shape", "sigma"), [(SHAPES[0], 0.7), (SHAPES[1], 1.5)])
def test_both_regressions_have_the_fields_of_the_bridge(shape, sigma):
    """The loss is stationary at velocity and noise of the bridge, and not if the pairs are independent."""
    bridge = Bridge(shape, sigma)
    loss = build("losses", {"name": "stochastic_interpolant", "antithetic": True}, interpolant=bridge.interpolant)
    scores = {}
    for name in ("schroedinger_bridge", "independent"):
        model, g = DenoiserHead(TrueHeads(bridge, shape)), stream(3)
        found = [
            torch.autograd.grad(loss(model, pair, generator=g).mean(), model.net.head)[0]
            for pair in draws(bridge, 24, 512, g, name)
        ]
        gradients = torch.stack(found).unflatten(2, (2, -1)).movedim(2, 0)  # one of each head
        z = gradients.mean(1) / (gradients.std(1) / 24**0.5)
        scores[name] = z.square().flatten(1).mean(1)
    assert scores["schroedinger_bridge"].max() < 6  # as in test_losses.stationarity
    assert scores["independent"].max() > 10


@torch.no_grad()
def law(step, n):
    """How a solver's last state depends on the first: factor, variance of the rest and offset, without chance.

    Gaussian fields make it affine in state and noise: row k of the batch has noise in step k alone.
    """
    x = torch.zeros(n + 2, 1)
    x[-1] = 1
    tape = Tape(list(torch.eye(n + 2)[:n, :, None]), [("normal", (n + 2, 1))] * n)
    *noise, none, one = step(x, torch.linspace(0, 1, n + 1), tape)[:, 0]
    return float(one - none), float((torch.stack(noise) - none).square().sum()), float(none)


def exact_heads(bridge):
    return DenoiserHead(TrueHeads(bridge, (1,)))


def test_the_equation_of_the_bridge_pairs_its_ends_by_the_plan():
    """dx = (b + sigma^2 / 2 grad log rho) dt + sigma dW has marginals and covariance of the ends; the flow has not."""
    bridge = Bridge((1,), 0.9)
    model = exact_heads(bridge)

    def step(x, grid, g, noise=0.9**2 / 2):
        for s, t in pairwise(grid):
            middle = ((s + t) / 2).expand(len(x))  # the ends are singular
            drift, diffusion = drift_and_diffusion(model, bridge.interpolant, torch.full_like(middle, noise), x, middle)
            x = x + (t - s) * drift + (t - s).sqrt() * diffusion[:, None] * normal(x.shape, x, g)
        return x

    for noise, covariance in ((0.9**2 / 2, bridge.covariance), (0.0, bridge.std)):
        factor, rest, offset = law(lambda x, grid, g, noise=noise: step(x, grid, g, noise), 400)
        # Errors of order 1 / 400 of a first-order step.
        assert abs(factor - covariance) < 0.02
        assert abs(factor**2 + rest - bridge.std**2) < 0.02
        assert abs(offset - bridge.mean) < 0.02


@pytest.mark.parametrize("name", ["euler_maruyama", "stochastic_heun"])
def test_stochastic_samplers_keep_the_marginals_of_a_path_with_latent_noise(name):
    bridge = Bridge((1,), 0.9)
    model, sampler = (
        exact_heads(bridge),
        build("samplers", {"name": name, "noise": 6.0}, interpolant=bridge.interpolant),
    )
    errors = []
    for n in (200, 400):
        factor, rest, offset = law(lambda x, grid, g: sample(model, x, grid, sampler=sampler, generator=g), n)
        assert rest > 0.1, "noise was added"
        errors.append(math.hypot(offset - float(bridge.mean), (factor**2 + rest) ** 0.5 - float(bridge.std)))
    assert errors[1] < 0.02
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    "path",
    ["linear", {"name": "stochastic"}, {"name": "stochastic", "power": 0.5, "base": "trigonometric"}],
    ids=str,
)
def test_only_a_brownian_bridge_will_do(path):
    with pytest.raises(ValueError, match="interpolant must be a Brownian bridge between source and data; got"):
        build("couplings", "schroedinger_bridge", interpolant=build("interpolants", path))


def test_sigma_is_that_of_the_path_and_sources_are_exchanged_among_equals():
    path = {"name": "stochastic", "power": 0.5, "scale": 0.3}
    coupling = build("couplings", {"name": "schroedinger_bridge", "interpolant": path})
    assert coupling.sigma == pytest.approx(0.3)
    labels = torch.arange(400) % 2
    x1 = torch.stack([6.0 * labels, torch.zeros(400)], 1)
    pair = coupling(x1, labels, generator=stream())
    assert torch.equal(pair.x1, x1)
    assert torch.equal(pair.cond, labels)
    assert abs(pair.x0[labels == 1, 0].mean()) < 5 / 200**0.5, "a label's sources are the whole source"
    across = build("couplings", {"name": "schroedinger_bridge", "interpolant": path, "within_conditions": False})
    assert across(x1, labels, generator=stream()).x0[labels == 1, 0].mean() > 0.5


def test_the_velocity_of_a_brownian_bridge_is_finite_at_its_ends():
    """A uniform time may be zero."""
    path, one = Stochastic(power=0.5), torch.ones(2, 1)
    assert path.velocity(one, one, torch.tensor([0.0, 1.0]), one).isfinite().all()
