"""Chains of flow maps: each block on its part of the time, exactly, in both directions and any mixture of spans."""

import pytest
import torch
from test_identities import residuals
from truth import SHAPES, draws, gaussian, stream

from flowmaps.build import build
from flowmaps.core.calculus import d_dt, divided_difference
from flowmaps.core.chain import Chain
from flowmaps.core.flow_map import Counted, EulerMap, FlowMap, Integrated, MeanVelocity
from flowmaps.core.sampling import RungeKutta4
from flowmaps.nets.mlp import MLP


class Link(FlowMap):
    """The exact flow between two Gaussians with covariance c between their draws, on the linear path.

    Jointly normal ends make an affine velocity, whose map keeps the mean path and scales by the deviation.
    """

    def __init__(self, means, deviations, covariance):
        super().__init__()
        self.ends = means, deviations, covariance

    def mean(self, t):
        return torch.lerp(*self.ends[0], t)

    def deviation(self, t):
        (_, (a, b), c) = self.ends
        return (((1 - t) * a) ** 2 + (t * b) ** 2 + 2 * t * (1 - t) * c).sqrt()

    def mean_velocity(self, x, s, t, cond=None):
        s, t = (r.reshape(-1, *[1] * (x.ndim - 1)) for r in (s, t))
        growth = divided_difference(self.deviation, s, t) / self.deviation(s)
        return divided_difference(self.mean, s, t) + growth * (x - self.mean(s))


def process(shape, times=(0.1, 0.3), independent=False):
    """Local flow matching's chain for Gaussian data in closed form, and the law of the data."""
    data = gaussian(shape)
    mean, std, blocks = data.mean, data.std, []
    for time in times:
        shrink = torch.tensor(-time).exp()
        before, after = (mean * shrink, mean), ((1 + shrink**2 * (std**2 - 1)).sqrt(), std)
        blocks.append(Link(before, after, torch.zeros_like(std) if independent else shrink * std**2))
        mean, std = before[0], after[0]
    blocks.append(Link((torch.zeros_like(mean), mean), (torch.ones_like(std), std), torch.zeros_like(std)))
    return Chain(blocks[::-1]), data


def by_hand(chain, x, s, t):
    """Sample by sample, knot by knot."""
    k, ends = len(chain.blocks), []
    for y, a, b in zip(x, s.tolist(), t.tolist(), strict=True):
        y = y[None]
        for i in range(k) if b >= a else reversed(range(k)):
            inner, outer = (torch.tensor([min(max(r * k - i, 0.0), 1.0)]) for r in (a, b))
            y = chain.blocks[i](y, inner, outer)
        ends.append(y)
    return torch.cat(ends)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_chain_is_its_blocks_one_after_the_other(shape):
    """Spans in one block and over several knots, forward, backward and none, ends on knots, all in one batch."""
    chain, _ = process(shape)
    s, t = torch.cartesian_prod(*[torch.tensor([0.0, 0.1, 1 / 3, 0.5, 0.6, 2 / 3, 0.9, 1.0])] * 2).T
    x = torch.randn(len(s), *shape, generator=stream())
    assert (chain(x, s, t) - by_hand(chain, x, s, t)).abs().max() < 1e-9  # rounding over spans of 1e-5
    assert torch.equal(chain(x, s, s), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_chain_keeps_every_identity(shape):
    chain, _ = process(shape)
    x, s, u, t = draws(64, shape)
    # As tolerant as for the maps of its blocks; all but the Lagrangian and the Eulerian hold in either order of times.
    assert all(r < 1e-9 for r in residuals(chain, x, s, u, t).values())
    back = residuals(chain, x, t, u, s)
    assert all(back[k] < 1e-9 for k in ("semigroup", "inverse", "lagrangian", "eulerian"))
    slope = d_dt(chain, x, s, s)[1]
    assert (slope - chain.velocity(x, s)).abs().max() < 1e-12
    home = (3 * u).long()
    for k, block in enumerate(chain.blocks):
        mine = home == k
        gap = chain.velocity(x, u)[mine] - 3 * block.velocity(x[mine], 3 * u[mine] - k)
        assert gap.abs().max() < 1e-12, "the block runs three times as fast"
    end = torch.ones(64)
    assert (chain.velocity(x, end) - 3 * chain.blocks[-1].velocity(x, end)).abs().max() < 1e-12


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_chain_of_links_carries_noise_to_the_data(shape, independent):
    """Whether the links are dependent or not; in one jump, back, and with blocks that are solved for."""
    chain, data = process(shape, independent=independent)
    x, zero, one = torch.randn(16, *shape, generator=stream()), torch.zeros(16), torch.ones(16)
    # Diagonal Gaussians: the chain is monotone and affine in each dimension, so there is one map it can be.
    want = data.mean + data.std * x
    assert (chain(x, zero, one) - want).abs().max() < 1e-12
    assert (chain(want, one, zero) - x).abs().max() < 1e-12
    solved = Chain([Integrated(EulerMap(block), RungeKutta4(), 32) for block in chain.blocks])
    assert (solved(x, zero, one) - want).abs().max() < 1e-5  # the fourth power of the step, at velocities of order one


def test_the_flow_of_a_link_is_that_of_its_pairs():
    """The coupling's draws have the covariance that the links above take: regressed, their velocity is the link's."""
    data, g = gaussian((1,)), stream()
    shrink, x1 = torch.tensor(-0.3).exp(), data.sample(200_000, g)
    for independent in (False, True):
        pair = build("couplings", {"name": "ornstein_uhlenbeck", "time": 0.3, "independent": independent})(
            x1, generator=g
        )
        link = Link(
            (shrink * data.mean, data.mean), ((1 + shrink**2 * (data.std**2 - 1)).sqrt(), data.std),
            torch.zeros(1) if independent else shrink * data.std**2,
        )  # fmt: skip
        for time in (0.2, 0.7):
            x, w = torch.lerp(pair.x0, pair.x1, time), pair.x1 - pair.x0
            slope = ((x - x.mean()) * w).mean() / x.var()
            y, t = torch.stack([x.mean(0), x.mean(0) + 1]), torch.full((2,), time)
            v = link.velocity(y, t)
            # Five standard errors of a mean and of a slope, eight in all: false alarm 5e-6.
            assert abs(v[0] - w.mean()) < 5 * w.std() / 200_000**0.5
            assert abs(v[1] - v[0] - slope) < 5 * w.std() / x.std() / 200_000**0.5


def test_a_chain_asks_only_the_blocks_on_the_way():
    blocks = [Counted(b) for b in process((3,))[0].blocks]
    x, one = torch.randn(4, 3, generator=stream()), torch.ones(4)
    Chain(blocks)(x, 0.1 * one, 0.5 * one)
    assert [b.calls for b in blocks] == [1, 1, 0]
    Chain(blocks).velocity(x, one)
    assert [b.calls for b in blocks] == [1, 1, 1]


def test_a_chain_has_the_parameters_and_the_null_condition_of_its_blocks():
    chain = Chain([MeanVelocity(MLP((3,), classes=4, width=8)).double() for _ in range(2)])
    assert torch.equal(chain.null_condition(2), torch.full((2,), 4))
    x, s, _, t = draws(8, (3,))
    chain(x, s, t, torch.zeros(8, dtype=torch.long)).sum().backward()
    assert all(p.grad is not None for p in chain.parameters())
    with pytest.raises(ValueError, match="a chain must have at least one block; got none"):
        Chain([])


def test_short_spans_inside_a_block_are_exact_in_single_precision():
    """Ten blocks of velocity 1: u = 10, however short the span."""
    chain = Chain([EulerMap(lambda x, t, cond: torch.ones_like(x))] * 10)
    s = 0.05 + 0.1 * torch.arange(10).float()
    u = chain.mean_velocity(torch.zeros(10, 2).float(), s, s + 1e-6)
    assert (u - 10).abs().max() < 1e-4  # rounding
