"""Every coupling keeps both marginals, labels and shapes; optimal ones lower the cost."""

from itertools import permutations

import pytest
import torch
from truth import SHAPES, stream

from flowmaps.build import build, names
from flowmaps.core.types import Pair
from flowmaps.couplings._transport import assignment, drawn, sinkhorn, square_distances

SMALL = 200  # optimal transport is at least quadratic in the batch
OTHER = {"reflow"}  # whose data are not the batch's


def coupled(coupling, x1, cond=None, g=None):
    """The pairs of many small batches, as one."""
    conds = [None] * (len(x1) // SMALL) if cond is None else cond.split(SMALL)
    made = [coupling(x, c, generator=g) for x, c in zip(x1.split(SMALL), conds, strict=True)]
    return Pair(
        *(torch.cat([getattr(p, k) for p in made]) for k in ("x0", "x1")),
        torch.cat(conds) if conds[0] is not None else None,
    )


def cost(pair):
    return float((pair.x0 - pair.x1).square().flatten(1).sum(1).mean())


def assert_standard_normal(x):
    """Five standard errors of mean, variance and fourth moment: false alarm 1e-5."""
    x = x.flatten(1)
    for moment, exact, deviation in ((1, 0, 1), (2, 1, 2**0.5), (4, 3, 96**0.5)):
        assert ((x**moment).mean(0) - exact).abs().max() < 5 * deviation / len(x) ** 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [n for n in names("couplings") if n not in OTHER])
def test_marginals_and_labels(name, shape):
    coupling, g = build("couplings", name), stream()
    labels = torch.arange(10_000) % 2
    x1 = torch.rand(10_000, *shape, generator=g) - 2 + 3 * labels.reshape(-1, *[1] * len(shape))
    pair = coupled(coupling, x1, labels, g)
    assert pair.x0.shape == x1.shape
    assert torch.equal(pair.x1, x1), "every datum is used once"
    assert torch.equal(pair.cond, labels), "labels stay with their data"
    # Under each label too, or else sampling with a label starts where training did not.
    for x0 in (pair.x0, pair.x0[labels == 0], pair.x0[labels == 1], coupling.source(x1.shape, x1, labels, generator=g)):
        assert_standard_normal(x0)


def test_independent_scale():
    coupling = build("couplings", {"name": "independent", "scale": 3.0})
    x0 = coupling(torch.zeros(50_000, 1), generator=stream()).x0
    assert abs(x0.std() - 3) < 0.05  # five standard errors
    with pytest.raises(ValueError, match="scale must be > 0"):
        build("couplings", {"name": "independent", "scale": 0.0})


# Optimal transport


def test_square_distances():
    a, b = (torch.randn(4, 2, 3, generator=stream(k)) for k in (1, 2))
    assert (square_distances(a, b) - torch.cdist(a.flatten(1), b.flatten(1)) ** 2).abs().max() < 1e-12


def test_exact_plans_use_every_source_once():
    x1, labels = torch.randn(60, 2, generator=stream(1)), torch.arange(60) % 3
    pair = build("couplings", "minibatch_ot")(x1, labels, generator=stream())
    plain = build("couplings", "independent")(x1, labels, generator=stream())
    for k in range(3):
        ours, theirs = pair.x0[labels == k], plain.x0[labels == k]
        assert torch.equal(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()])
        assert cost(Pair(ours, x1[labels == k])) < cost(Pair(theirs, x1[labels == k]))


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_assignments_are_those_of_brute_force(n):
    for seed in range(5):
        c = square_distances(torch.randn(n, 3, generator=stream(seed)), torch.randn(n, 3, generator=stream(seed + 9)))
        best = min(permutations(range(n)), key=lambda p: sum(c[i, j] for j, i in enumerate(p)))
        assert assignment(c).tolist() == list(best)


@pytest.mark.parametrize("n", [96, 97, 300])
@pytest.mark.parametrize("dimensions", [1, 2, 100])
def test_large_assignments_are_optimal(n, dimensions):
    """Beyond 96 points potentials of Sinkhorn's algorithm come first; in one dimension the order is the optimum."""
    a, b = (torch.randn(n, dimensions, generator=stream(k), dtype=torch.float32) for k in (1, 2))
    p = assignment(square_distances(a, b))
    if dimensions == 1:
        assert torch.equal(a[p, 0].argsort(), b[:, 0].argsort())
    # No exchange of two and no shift along three pairs gains more than rounding.
    gap = square_distances(a, b)[p] - square_distances(a, b)[p].diagonal()
    two = gap + gap.T
    assert two.fill_diagonal_(0).min() > -1e-4
    three = gap[:, :, None] + gap[None] + gap.T[:, None, :]
    assert three[:50].min() > -1e-4
    assert assignment(torch.ones(n, n)).sort().values.tolist() == list(range(n)), "equal costs"


def test_entropic_plans_go_from_independence_to_the_assignment():
    a, b = (torch.randn(30, 2, generator=stream(k)) for k in (1, 2))
    c = square_distances(a, b)
    exact = float(c[assignment(c), torch.arange(30)].sum())
    found = []
    for regularisation in (1e3, 1.0, 0.1, 0.01):
        plan = sinkhorn(c, regularisation, tolerance=1e-5)
        assert (plan.sum(0) - 1).abs().max() < 1e-9
        assert (plan.sum(1) - 1).abs().mean() < 1e-5
        found.append(float((plan * c).sum()))
        # The optimum is the one plan of the form exp((f_i + g_j - c_ij) / r): beside c its logarithm only has f and g.
        rest = plan.log() + c / regularisation
        rest = rest - rest[:1] - rest[:, :1] + rest[0, 0]
        assert regularisation < 0.1 or rest.abs().max() < 1e-9  # below, entries underflow
    assert abs(found[0] / float(c.mean() * 30) - 1) < 1e-2, "much entropy: independent"
    assert found == sorted(found, reverse=True)
    assert abs(found[-1] / exact - 1) < 1e-2


def test_sources_are_drawn_by_the_plan():
    plan = torch.tensor([[0.2, 0.0, 0.8], [0.5, 0.5, 0.0], [0.3, 0.5, 0.2]])
    g = stream()
    share = torch.stack([drawn(plan, torch.rand(3, generator=g)) for _ in range(4000)])
    share = torch.stack([(share == i).double().mean(0) for i in range(3)])
    assert (share - plan).abs().max() < 0.04  # five standard errors
    assert drawn(plan, torch.ones(3)).max() <= 2


@pytest.mark.parametrize("plan", ["exact", "sinkhorn"])
@pytest.mark.parametrize("shape", SHAPES)
def test_optimal_transport_lowers_the_cost(plan, shape):
    x1 = torch.randn(2000, *shape, generator=stream(1))
    apart = cost(coupled(build("couplings", "independent"), x1, None, stream()))
    near = cost(coupled(build("couplings", {"name": "minibatch_ot", "plan": plan}), x1, None, stream()))
    # Two standard normals are 2 D apart, and at no distance if coupled optimally; with 200 points found .10 and .69.
    assert near < {3: 0.15, 12: 0.75}[x1[0].numel()] * apart


def test_exchange_across_conditions_skews_the_source_of_each():
    """What within_conditions = false does, and why it is not the default: a label's sources are those on its side."""
    labels = torch.arange(2000) % 2
    x1 = torch.stack([6.0 * labels, torch.zeros(2000)], 1)
    skewed = coupled(build("couplings", {"name": "minibatch_ot", "within_conditions": False}), x1, labels, stream())
    assert torch.equal(skewed.cond, labels)
    # The upper half of a normal has mean sqrt(2 / pi) = 0.80, with a standard error of 0.03.
    assert abs(skewed.x0[labels == 1, 0].mean() - (2 / torch.pi) ** 0.5) < 0.15


def test_minibatch_ot_says_what_is_wrong():
    with pytest.raises(ValueError, match="plan must be one of 'exact', 'sinkhorn'; got 'best'"):
        build("couplings", {"name": "minibatch_ot", "plan": "best"})
    with pytest.raises(ValueError, match="regularisation must be > 0; got 0.0"):
        build("couplings", {"name": "minibatch_ot", "regularisation": 0.0})
    nested = build("couplings", {"name": "minibatch_ot", "coupling": {"name": "independent", "scale": 2.0}})
    assert nested.coupling.scale == 2
