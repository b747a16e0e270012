"""The yardsticks themselves, against sampling, autograd and brute force."""

import math

import pytest
import torch
from truth import SHAPES, draws, eight_gaussians, gaussian, stream

from flowmaps.core.interpolant import Linear
from flowmaps.core.sampling import sample
from flowmaps.interpolants.stochastic import Stochastic
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.oracles.checkerboard import Checkerboard
from flowmaps.oracles.discrete_chain import DiscreteChain
from flowmaps.oracles.gaussian import Gaussian
from flowmaps.oracles.linear_gaussian import LinearGaussian
from flowmaps.oracles.mixture import Mixture
from flowmaps.samplers.runge_kutta4 import RungeKutta4


def log_slope(flow, x, t):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(flow.log_density(x, t).sum(), x)[0]


def continuity(flow, x, t):
    """d/dt log rho + div b + b . grad log rho, zero by the continuity equation."""
    h = 1e-5
    d_dt = (flow.log_density(x, t + h) - flow.log_density(x, t - h)) / (2 * h)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x, t: flow.velocity(x[None], t[None])[0]))(x, t)
    div = jacobian.flatten(1).reshape(len(x), x[0].numel(), -1).diagonal(dim1=1, dim2=2).sum(1)
    return d_dt + div + (flow.velocity(x, t) * log_slope(flow, x, t)).flatten(1).sum(1)


def correlated():
    g = stream(4)
    root = torch.randn(3, 4, 4, generator=g) * 0.4
    covariances = root @ root.mT + 0.1 * torch.eye(4)
    return LinearGaussian(
        torch.randn(2, 4, generator=g),
        0.3,
        torch.randn(3, 2, 2, generator=g),
        covariances,
        torch.tensor([1.0, 2.0, 3.0]),
    )


FLOWS = {
    "gaussian": lambda: gaussian((4,)),
    "gaussian-image": lambda: gaussian((1, 2, 2), Trigonometric()),
    "gaussian-latent-noise": lambda: gaussian((4,), Stochastic()),
    "mixture": eight_gaussians,
    "mixture-image-unequal": lambda: Mixture(
        torch.randn(3, 1, 2, 2, generator=stream()), torch.tensor([0.3, 0.5, 0.7]), torch.tensor([1.0, 2.0, 1.0])
    ),
    "mixture-full-covariance": lambda: correlated().prior(),
}


@pytest.mark.parametrize("name", FLOWS)
def test_velocity_score_and_density_belong_together(name):
    flow = FLOWS[name]()
    shape = tuple((flow.mean if isinstance(flow, Gaussian) else flow.means[0]).shape)
    x, _, t, _ = draws(16, shape)
    t = 0.05 + 0.9 * t
    assert (flow.score(x, t) - log_slope(flow, x, t)).abs().max() < 1e-9 * (1 + flow.score(x, t).abs().max())
    # The time derivative is a central difference: 1e-10 times third derivatives of some thousands.
    assert continuity(flow, x, t).abs().max() < 1e-5
    zero = torch.zeros(len(x))
    standard = -(x.flatten(1) ** 2).sum(1) / 2 - x[0].numel() * math.log(2 * math.pi) / 2
    assert (flow.log_density(x, zero) - standard).abs().max() < 1e-9, "the source is N(0, I)"


def test_velocity_is_the_mean_of_conditional_velocities():
    """By brute force: the regression that flow matching solves, for the mixture and the board, in cells of the plane."""
    for flow, t in ((eight_gaussians(), 0.6), (Checkerboard(), 0.7)):
        g = stream(9)
        n = 400_000
        x0, x1 = torch.randn(n, 2, generator=g), flow.sample(n, g).double()
        times = torch.full((n,), t)
        x, v = Linear().state(x0, x1, times), Linear().velocity(x0, x1, times)
        for corner in ((0.2, 0.2), (-0.6, 0.3)):
            inside = ((x - torch.tensor(corner)).abs() < 0.1).all(1)
            gap = v[inside] - flow.velocity(x[inside], times[inside])
            # Five standard errors of a mean of hundreds of draws, in two coordinates of four cells: false alarm 5e-6.
            assert inside.sum() > 300
            assert (gap.mean(0).abs() < 5 * gap.std(0) / inside.sum() ** 0.5).all()


def test_samples_follow_the_density():
    for flow in (FLOWS["gaussian"](), FLOWS["mixture"](), FLOWS["mixture-full-covariance"]()):
        x = flow.sample(100_000, stream(2)).double()
        one = torch.ones(len(x))
        # E[score] = 0 and E[x . score] = -d under the density itself; five standard errors, ten times: 6e-6.
        score = flow.score(x, one).flatten(1)
        assert (score.mean(0).abs() < 5 * score.std(0) / len(x) ** 0.5).all()
        inner = (x.flatten(1) * score).sum(1) + score.shape[1]
        assert abs(inner.mean()) < 5 * inner.std() / len(x) ** 0.5


def test_checkerboard_velocity_against_quadrature():
    board = Checkerboard()
    x = 1.2 * torch.randn(64, 2, generator=stream())
    fine = (torch.arange(16_000) + 0.5) / 16_000 * 2 - 1
    cell = ((fine + 1) * 2).long()
    for time in (0.0, 1e-6, 0.01, 0.1, 0.5, 0.9, 0.99):
        t = torch.full((64,), time)
        log = -(((fine * time - x[:, :, None]) / (1 - time)) ** 2) / 2
        mass = torch.stack([log[:, :, cell == k].logsumexp(2) for k in range(4)], 2)
        mean = torch.stack([(log[:, :, cell == k].softmax(2) * fine[cell == k]).sum(2) for k in range(4)], 2)
        joint = (mass[:, 0, :, None] + mass[:, 1, None, :]).masked_fill(~board.dark, -math.inf).flatten(1).softmax(1)
        joint = joint.reshape(64, 4, 4)
        want = torch.stack([(joint.sum(2) * mean[:, 0]).sum(1), (joint.sum(1) * mean[:, 1]).sum(1)], 1)
        # The sum has 1.25e-4 between nodes; its error grows as the kernel (1 - t) / t narrows to some tens of them.
        assert (board.data_prediction(x, t) - want).abs().max() < (1e-5 if time < 0.95 else 1e-4)


def test_checkerboard_map_lands_on_the_dark_squares_and_inverts():
    board = Checkerboard(steps=24)
    x = torch.randn(256, 2, generator=stream())
    zero, one = torch.zeros(256), torch.ones(256)
    y = board(x, zero, one)
    assert y.abs().max() <= 1
    square = ((y + 1) * 2).long().clamp(0, 3)
    assert board.dark[square[:, 0], square[:, 1]].double().mean() > 0.995  # edges are cut 1e-4 before the data
    assert board.map_error(x, zero, one) < 1e-4
    assert (board(board(x, zero, 0.8 * one), 0.8 * one, zero) - x).abs().max() < 1e-5
    points = board.sample(20_000, stream(1)).double()
    counts = torch.bincount((((points + 1) * 2).long() @ torch.tensor([4, 1])), minlength=16).reshape(4, 4)
    assert (counts[~board.dark] == 0).all()
    # Binomial with deviation 47 about 2,500; five of them.
    assert (counts[board.dark] - 2500).abs().max() < 235


def test_mixture_conditions_choose_components():
    flow = eight_gaussians(labels=torch.arange(8) % 2)
    only = Mixture(flow.means[::2], 0.15)
    x, t, *_ = draws(8, (2,))
    even, null = torch.zeros(8, dtype=torch.long), flow.null_condition(8)
    assert (flow.velocity(x, t, even) - only.velocity(x, t)).abs().max() < 1e-12
    assert (flow.log_density(x, t, even) - only.log_density(x, t)).abs().max() < 1e-12
    assert torch.equal(flow.velocity(x, t, null), flow.velocity(x, t))
    _, component = flow.sample_labelled(1000, stream())
    assert component.unique().numel() == 8


def test_posterior_of_a_linear_inverse_problem_by_importance_sampling():
    problem, g = correlated(), stream(3)
    y = torch.tensor([0.4, -0.7])
    x = problem.prior().sample(400_000, g)
    log = -((y - x.flatten(1) @ problem.matrix.T) ** 2).sum(1) / (2 * 0.3**2)
    weight = log.softmax(0)
    size = 1 / weight.square().sum()
    assert size > 2000
    mean = torch.einsum("n,n...->...", weight, x)
    gap = (x - mean).flatten(1)
    covariance = torch.einsum("n,ni,nj->ij", weight, gap, gap)
    # Five standard errors from the effective sample size, some ten times: false alarm 6e-6.
    spread = covariance.diagonal().sqrt().max()
    assert (problem.posterior_mean(y) - mean).abs().max() < 5 * spread / size**0.5
    assert (problem.posterior_covariance(y) - covariance).abs().max() < 10 * spread**2 / size**0.5
    evidence = log.logsumexp(0) - math.log(len(x)) - math.log(2 * math.pi * 0.3**2)
    assert abs(problem.log_evidence(y) - evidence) < 5 / size**0.5
    posterior = problem.posterior(y)
    drawn = posterior.sample(100_000, g)
    assert (drawn.mean(0) - problem.posterior_mean(y)).abs().max() < 5 * spread / 316
    # Bayes: the posterior's density is the prior's times the likelihood over the evidence.
    one, some = torch.ones(16), drawn[:16]
    likelihood = -((y - some.flatten(1) @ problem.matrix.T) ** 2).sum(1) / (2 * 0.3**2) - math.log(2 * math.pi * 0.3**2)
    bayes = problem.prior().log_density(some, one) + likelihood - problem.log_evidence(y)
    assert (posterior.log_density(some, one) - bayes).abs().max() < 1e-8


def test_one_component_is_the_linear_gaussian_problem():
    matrix, cov, mean = torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0, 0.3], [0.3, 1.0]]), torch.tensor([0.5, -1.0])
    problem, y = LinearGaussian(matrix, 0.5, mean[None], cov[None], torch.ones(1)), torch.tensor([1.0])
    precision = cov.inverse() + matrix.T @ matrix / 0.25
    want = precision.inverse() @ (cov.inverse() @ mean + matrix.T @ y / 0.25)
    assert (problem.posterior_mean(y) - want).abs().max() < 1e-12
    assert (problem.posterior_covariance(y) - precision.inverse()).abs().max() < 1e-12
    assert problem.measure(mean[None].expand(5, 2), stream()).shape == (5, 1)


def test_discrete_chain_laws_by_counting():
    start, transition = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    chain = DiscreteChain(start, transition, 3)
    assert abs(chain.probability.sum() - 1) < 1e-12
    assert len(chain.words) == sum(
        bool(start[a] * transition[a, b] * transition[b, c]) for a in range(3) for b in range(3) for c in range(3)
    )
    words = chain.sample(50_000, stream()).argmax(2)
    first = torch.bincount(words[:, 0], minlength=3) / 50_000
    assert (first - start).abs().max() < 0.012  # five standard errors of three shares: 2e-6
    tokens, mask = torch.tensor([[0, 1, 2]]), torch.tensor([[False, True, False]])
    law = chain.token_posterior(tokens, mask)[0, 1]
    want = transition[0] * transition[:, 2]
    assert (law - want / want.sum()).abs().max() < 1e-12
    with pytest.raises(ValueError, match="the seen letters must be possible"):
        chain.token_posterior(torch.tensor([[0, 0, 0]]), torch.zeros(1, 3, dtype=torch.bool))


def test_discrete_chain_flow_ends_at_its_words_with_their_probabilities():
    chain = DiscreteChain(torch.tensor([0.7, 0.3]), torch.tensor([[0.9, 0.1], [0.5, 0.5]]), 2, blur=0.1)
    x = torch.randn(4000, 2, 2, generator=stream())
    end = sample(chain, x, torch.linspace(0, 1, 65), sampler=RungeKutta4())
    index = (end.argmax(2) * torch.tensor([2, 1])).sum(1)
    share = torch.bincount(index, minlength=4) / 4000
    assert (share - chain.probability).abs().max() < 0.04  # five standard errors of four shares: 2e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(torch.zeros(3), torch.zeros(3)), "std be positive"),
        (lambda: Gaussian(torch.zeros(3), torch.ones(2)), "must have one shape"),
        (lambda: Mixture(torch.zeros(2, 3), 1.0, torch.ones(3)), "for 2 components in 3 dimensions"),
        (lambda: Mixture(torch.zeros(2, 3), 1.0, interpolant=Stochastic()), "no latent noise"),
        (lambda: Checkerboard(3), "cells must be even"),
        (lambda: LinearGaussian(torch.ones(1, 3), 1.0, torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1)), "matrix must be M x 2"),
        (lambda: DiscreteChain(torch.ones(2), torch.eye(2), 2), "start must hold laws"),
        (lambda: DiscreteChain(torch.ones(4) / 4, torch.ones(4, 4) / 4, 9), "at most 65536 words"),
    ],
)  # fmt: skip
def test_bad_yardsticks(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", SHAPES)
def test_oracles_are_modules_that_move_and_save(shape):
    flow = gaussian(shape)
    assert {"mean", "std"} <= set(flow.state_dict())
    low = gaussian(shape).float()
    x, s, _, t = (z.float() for z in draws(4, shape))
    assert low(x, s, t).dtype == torch.float32
    assert (low(x, s, t) - flow(x.double(), s.double(), t.double())).abs().max() < 1e-4


def test_masses_of_cells_of_the_checkerboard():
    board = Checkerboard()
    masses = board.masses(50)  # squares are 12.5 cells wide, so that edges cut cells
    data = board.sample(200_000, stream())
    cell = ((data.double() + 1) * 25).long().clamp_max(49)
    counts = torch.bincount(cell @ torch.tensor([50, 1]), minlength=2500).reshape(50, 50)
    z = (counts - 200_000 * masses) / (200_000 * masses).clamp_min(1e-9).sqrt()
    assert masses.sum() == pytest.approx(1)
    assert float(counts[masses == 0].sum()) == 0
    assert float(z[masses > 0].abs().max()) < 5  # Poisson counts; false alarm 1e-3 over 1,300 cells
    assert (board.masses(4) - board.dark / 8).abs().max() < 1e-15
