"""Every coupling keeps both marginals, labels and shapes; optimal ones lower the cost."""

import math
from itertools import permutations

import pytest
import torch
from truth import SHAPES, stream

from flowmaps.build import build, names
from flowmaps.core.flow_map import FlowMap
from flowmaps.core.random import PerSample
from flowmaps.core.times import Uniform
from flowmaps.core.types import NoSource, Pair
from flowmaps.couplings._transport import assignment, drawn, sinkhorn, square_distances
from flowmaps.couplings.learned import Learned
from flowmaps.couplings.norm_aligned import mean_norm
from flowmaps.couplings.posterior_mean import PosteriorMean
from flowmaps.couplings.pruned import Pruned, sparse_axes
from flowmaps.couplings.semidiscrete_ot import SemidiscreteOT, stored_potentials
from flowmaps.interpolants.stochastic import Stochastic

SMALL = 200  # optimal transport is at least quadratic in the batch
OTHER = {"reflow", "semidiscrete_ot", "same_class_sequence"}  # whose data are not the batch's
SPECIAL = {"norm_aligned", "pruned", "ring", "ornstein_uhlenbeck", "posterior_mean"}  # whose source is not N(0, I)
LEARNED = {"learned"}  # whose source is N(0, I) as far as it has learned


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
@pytest.mark.parametrize("name", [n for n in names("couplings") if n not in OTHER | SPECIAL | LEARNED])
def test_marginals_and_labels(name, shape):
    coupling, g = build("couplings", name, interpolant=Stochastic(power=0.5)), stream()
    labels, before = torch.arange(10_000) % 2, torch.get_rng_state()
    x1 = torch.rand(10_000, *shape, generator=g) - 2 + 3 * labels.reshape(-1, *[1] * len(shape))
    pair = coupled(coupling, x1, labels, g)
    assert pair.x0.shape == x1.shape
    assert torch.equal(pair.x1, x1), "every datum is used once"
    assert torch.equal(pair.cond, labels), "labels stay with their data"
    # Under each label too, or else sampling with a label starts where training did not.
    for x0 in (pair.x0, pair.x0[labels == 0], pair.x0[labels == 1], coupling.source(x1.shape, x1, labels, generator=g)):
        assert_standard_normal(x0)
    assert torch.equal(torch.get_rng_state(), before), "no draw from the global stream"


def test_independent_scale():
    coupling = build("couplings", {"name": "independent", "scale": 3.0})
    x0 = coupling(torch.zeros(50_000, 1), generator=stream()).x0
    assert abs(x0.std() - 3) < 0.05  # five standard errors: false alarm 6e-7
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
    assert (share - plan).abs().max() < 0.04  # five standard errors of nine shares: 5e-6
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
    # The upper half of a normal has mean sqrt(2 / pi) = 0.80, with a standard error of 0.03; five: 6e-7.
    assert abs(skewed.x0[labels == 1, 0].mean() - (2 / torch.pi) ** 0.5) < 0.15


def test_minibatch_ot_says_what_is_wrong():
    with pytest.raises(ValueError, match="plan must be one of 'exact', 'sinkhorn'; got 'best'"):
        build("couplings", {"name": "minibatch_ot", "plan": "best"})
    with pytest.raises(ValueError, match="regularisation must be > 0; got 0.0"):
        build("couplings", {"name": "minibatch_ot", "regularisation": 0.0})
    with pytest.warns(UserWarning, match="no two of the 8 conditions of a batch are alike: no sources are exchanged"):
        build("couplings", "minibatch_ot")(torch.zeros(8, 3), torch.arange(8.0))
    nested = build("couplings", {"name": "minibatch_ot", "coupling": {"name": "independent", "scale": 2.0}})
    assert nested.coupling.scale == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_semidiscrete_ot_hits_every_datum_equally_within_conditions(shape, tmp_path):
    file, g = str(tmp_path / "g.pt"), stream()
    labels = torch.arange(30) % 3
    y = torch.randn(30, *shape, generator=stream(1)) + 3 * labels.reshape(-1, *[1] * len(shape))
    cond = {"label": labels, "name": torch.arange(30)[:, None]}
    chi = stored_potentials(file, y, {"label": labels}, steps=800, batch=512, generator=g)
    assert chi.shape == (3,)
    assert chi.abs().max() < 0.01, "a tenth of a share"
    asked = torch.arange(9000) % 3
    pair = SemidiscreteOT(file)(torch.empty(9000, *shape), {"label": asked}, generator=g)
    assert torch.equal(pair.cond["label"], asked)
    far = torch.cdist(pair.x1.flatten(1), y.flatten(1))
    hit = far.argmin(1)
    assert torch.equal(y[hit], pair.x1), "data are those of the file"
    assert torch.equal(labels[hit], asked), "and have the condition"
    # 300 hits of each, with a standard error of 17; potentials that are off by a tenth add 30; false alarm 2e-5.
    assert (hit.bincount(minlength=30) - 300).abs().max() < 5 * 17 + 30
    for k in range(3):
        assert_standard_normal(pair.x0[asked == k])
        assert cost(pair[asked == k]) < cost(Pair(pair.x0[asked == k], pair.x1[asked == k].roll(1, 0)))
    across = stored_potentials(file, y, cond, steps=10, within_conditions=False, generator=g)
    assert across.shape == (1,)
    pair = SemidiscreteOT(file)(torch.empty(50, *shape), None, generator=g)
    assert torch.equal(y[pair.cond["name"][:, 0]], pair.x1), "conditions stay with their data"
    assert torch.equal(labels[pair.cond["name"][:, 0]], pair.cond["label"])


def test_semidiscrete_ot_on_a_line_cuts_the_normal_into_equal_parts(tmp_path):
    file, y = str(tmp_path / "g.pt"), torch.randn(12, 1, generator=stream(1))
    stored_potentials(file, y, steps=3000, generator=stream())
    pair = SemidiscreteOT(file)(torch.empty(4000, 1), generator=stream(2))
    part = (torch.special.ndtr(pair.x0[:, 0]) * 12).long()
    wrong = pair.x1[:, 0] != y[:, 0].sort().values[part]
    # Cuts that are off by 0.01 put 12 * 0.004 of the draws on the wrong side.
    assert wrong.double().mean() < 0.05


def test_semidiscrete_ot_says_what_is_wrong(tmp_path):
    file = str(tmp_path / "g.pt")
    with pytest.raises(
        ValueError,
        match=r"got none. Write one with .* in Python with flowmaps.couplings.semidiscrete_ot.stored_potentials",
    ):
        build("couplings", "semidiscrete_ot")(torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match="stored must name a file; there is none at .*/no.pt. Write one with `flowmaps prepare`"
    ):
        SemidiscreteOT(str(tmp_path / "no.pt"))(torch.zeros(2, 3))
    (tmp_path / "text").write_text("no tensors")
    torch.save({"axes": torch.zeros(3)}, tmp_path / "axes.pt")
    for name, message in (("text", "cannot be read"), ("axes.pt", "holds axes")):
        with pytest.raises(
            ValueError,
            match=f"must be a file that flowmaps.couplings.semidiscrete_ot.stored_potentials wrote; .*{name} {message}",
        ):
            SemidiscreteOT(str(tmp_path / name))(torch.zeros(2, 3))
    assert_standard_normal(build("couplings", "semidiscrete_ot").source((4000, 2), torch.empty(0), generator=stream()))
    stored_potentials(file, torch.randn(4, 3, generator=stream()), torch.arange(4) % 2, steps=1, generator=stream())
    with pytest.raises(ValueError, match=r"the shape of the batch's, \(2,\); got \(3,\)"):
        SemidiscreteOT(file)(torch.zeros(2, 2), generator=stream())
    with pytest.raises(ValueError, match="the condition of every sample; one has none"):
        SemidiscreteOT(file)(torch.zeros(2, 3), torch.tensor([0, 7]), generator=stream())


# Sources


@pytest.mark.parametrize("shape", [(1,), *SHAPES])
def test_norm_aligned_sources_are_as_long_as_the_data(shape):
    x1 = 5 + torch.randn(20_000, *shape, generator=stream(1))
    coupling = build("couplings", {"name": "norm_aligned", "norm": mean_norm(x1)})
    pair = coupling(x1, generator=stream())
    assert torch.equal(pair.x1, x1)
    length = pair.x0.flatten(1).norm(dim=1)
    assert abs(length.mean() - mean_norm(x1)) < 5 * length.std() / 20_000**0.5
    assert_standard_normal(pair.x0 / pair.x0.std())
    assert torch.equal(coupling.source(x1.shape, x1, generator=stream()), pair.x0), "sampling starts there too"
    with pytest.raises(ValueError, match=r"Use the mean length of the data, mean_norm\(data\)"):
        build("couplings", {"name": "norm_aligned", "norm": 0.0})


def test_norm_aligned_around_other_sources():
    ring = {"name": "ring", "dimensions": 300}
    aligned = build("couplings", {"name": "norm_aligned", "norm": 5.0, "coupling": ring})
    x0 = aligned(torch.zeros(5000, 2), generator=stream()).x0
    assert abs(x0.norm(dim=1).mean() - 5) < 5 * 5 / 600**0.5 / 70  # five standard errors
    plain = build("couplings", ring).source((5000, 2), torch.empty(0), generator=stream())
    assert (x0 / plain - x0[0, 0] / plain[0, 0]).abs().max() < 1e-12
    scaled = {"name": "norm_aligned", "norm": 5.0, "coupling": {"name": "independent", "scale": 3.0}}
    both = [
        build("couplings", t).source((9, 3), torch.empty(0), generator=stream())
        for t in (scaled, scaled | {"coupling": "independent"})
    ]
    assert (both[0] - both[1]).abs().max() < 1e-12, "whatever the scale was"
    with pytest.raises(ValueError, match="must know the mean length of its source; got MinibatchOT. Use 'independent'"):
        build("couplings", {"name": "norm_aligned", "norm": 5.0, "coupling": "minibatch_ot"})


def test_mean_norm_of_cifar_sized_noise():
    """55.42, the number of the paper for noise in 3072 dimensions."""
    assert mean_norm(torch.tensor([[[3.0], [4.0]], [[0.0], [1.0]]])) == 3
    coupling = build("couplings", {"name": "norm_aligned", "norm": 27.198})
    assert abs(float(coupling.source((50, 3072), torch.empty(0), generator=stream()).std()) - 27.198 / 55.42) < 0.005


def test_pruned_sources_avoid_the_axes_and_nothing_else(tmp_path):
    file = tmp_path / "axes.pt"
    x1 = torch.tensor([[3.0, 0.1], [-3.0, 0.1], [1.0, 0.5], [-1.0, 0.5]])  # no datum below
    axes = sparse_axes(file, x1)
    assert (axes - torch.tensor([[0.0, -1.0]])).abs().max() < 1e-6
    pruned = Pruned(str(file), deviations=2**0.5 * 0.5)  # cosine 1/2: within 60 degrees of the axis
    plain = build("couplings", "independent")
    x0 = pruned.source((12_000, 2), x1, generator=stream())
    angle = torch.atan2(x0[:, 1], x0[:, 0])
    assert not ((angle > -5 / 6 * torch.pi) & (angle < -torch.pi / 6)).any()
    # What is left is a normal given its direction: uniform in what is left, with lengths as before.
    place = (((angle + torch.pi / 6) % (2 * torch.pi)) / (4 / 3 * torch.pi)).sort().values
    assert (place - (torch.arange(12_000) + 0.5) / 12_000).abs().max() < 2.2 / 110  # false alarm 1e-4
    assert abs(x0.square().sum(1).mean() - 2) < 5 * 2 / 110
    assert torch.equal(pruned(x1, generator=stream()).x0, plain(x1, generator=stream()).x0), "training is unchanged"
    kept = plain.source((12_000, 2), x1, generator=stream())
    same = (kept == x0).all(1)
    assert abs(same.double().mean() - 2 / 3) < 5 * 0.47 / 110, "accepted draws stay"
    few, many = (pruned.source((n, 2), x1, generator=PerSample.seeded(0, 0, n)) for n in (5, 50))
    assert torch.equal(few, many[:5]), "sample i does not depend on the batch"


def test_sparse_axes_are_far_from_every_datum(tmp_path):
    x1 = torch.randn(500, 2, 3, generator=stream()) * torch.tensor([5.0, 3, 1]) + torch.tensor([0, 0, 2.0])
    axes = sparse_axes(tmp_path / "a.pt", x1, most=0.6)
    direction = torch.nn.functional.normalize(x1.flatten(1), dim=1)
    assert (axes.double() @ direction.T).max() <= 0.6 + 1e-6
    assert (axes.norm(dim=1) - 1).abs().max() < 1e-6
    overlap = axes @ axes.T
    assert ((overlap.abs() < 1e-5) | ((overlap.abs() - 1).abs() < 1e-5)).all(), "principal axes are at right angles"
    with pytest.raises(ValueError, match="no datum within a cosine of 0.01; all have some. Raise most"):
        sparse_axes(tmp_path / "b.pt", torch.randn(500, 2, generator=stream()))


def test_pruned_says_what_is_wrong(tmp_path):
    file = str(tmp_path / "axes.pt")
    torch.save({"axes": torch.cat([torch.eye(2), -torch.eye(2)])}, file)
    with pytest.raises(ValueError, match="0.5 with 4 axes rejects some of the 3 draws 1000 times. Raise it"):
        Pruned(file, deviations=0.5).source((3, 2), torch.empty(0), generator=stream())
    with pytest.raises(ValueError, match="axes must have the 3 dimensions of a state; got 2"):
        Pruned(file).source((3, 3), torch.empty(0), generator=stream())
    with pytest.raises(ValueError, match="deviations must be > 0"):
        Pruned(file, deviations=0.0)


def test_ring_is_a_gaussian_of_many_dimensions_from_afar():
    ring = build("couplings", {"name": "ring", "dimensions": 300})
    x0 = ring(torch.zeros(5000, 2), generator=stream()).x0
    square = x0.square().sum(1)
    assert abs(square.mean() - 300) < 5 * 600**0.5 / 70
    assert abs(square.var() / 600 - 1) < 0.12  # five standard errors, and for the mean: 1e-6
    angle = ((torch.atan2(x0[:, 1], x0[:, 0]) / (2 * torch.pi)) % 1).sort().values
    assert (angle - (torch.arange(5000) + 0.5) / 5000).abs().max() < 2.2 / 70
    with pytest.raises(ValueError, match=r"must lie in the plane, shape \(B, 2\); got \(5, 3\)"):
        ring(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="dimensions must be at least 2"):
        build("couplings", {"name": "ring", "dimensions": 1})


# Links of a chain


def moments(x0, x1):
    """Mean and variance of x0, and its covariance with x1, of each dimension."""
    a, b = x0.flatten(1), x1.flatten(1)
    return a.mean(0), a.var(0), ((a - a.mean(0)) * (b - b.mean(0))).mean(0)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_link_takes_one_step_of_the_process(shape, independent):
    """Either way the laws are those of the process in closed form, under each label too; the covariance differs."""
    g, labels, n = stream(), torch.arange(40_000) % 2, 20_000
    x1 = 3 * labels.reshape(-1, *[1] * len(shape)) + 0.5 * torch.randn(2 * n, *shape, generator=g)
    link = build("couplings", {"name": "ornstein_uhlenbeck", "time": 0.3, "independent": independent})
    pair, shrink = link(x1, labels, generator=g), math.exp(-0.3)
    assert torch.equal(pair.x1, x1)
    assert torch.equal(pair.cond, labels)
    for k in (0, 1):
        mean, variance, covariance = moments(pair.x0[labels == k], x1[labels == k])
        want = shrink**2 * 0.25 + 1 - shrink**2
        # Five standard errors: false alarm 1e-5.
        assert (mean - 3 * k * shrink).abs().max() < 5 * (want / n) ** 0.5
        assert (variance - want).abs().max() < 5 * want * (2 / n) ** 0.5
        assert (covariance - (0 if independent else shrink * 0.25)).abs().max() < 5 * (want * 0.25 / n) ** 0.5


def test_a_long_link_ends_in_noise_and_none_samples_alone():
    pair = build("couplings", {"name": "ornstein_uhlenbeck", "time": 20.0})(
        torch.rand(10_000, 2) + 5, generator=stream()
    )
    assert_standard_normal(pair.x0)
    link = build("couplings", "ornstein_uhlenbeck")
    with pytest.raises(NoSource, match="a link has no source of its own. Sample the chain of all links"):
        link.source((3, 2), torch.empty(0))
    with pytest.raises(ValueError, match="time must be > 0; got 0.0"):
        build("couplings", {"name": "ornstein_uhlenbeck", "time": 0.0})


# Restoration


def noisy(sigma):
    """A measurement y = x1 + sigma n of x1 ~ N(0, I), and its posterior mean."""
    return lambda x1, g: x1 + sigma * torch.randn(x1.shape, generator=g), lambda y: y / (1 + sigma**2)


@pytest.mark.parametrize(("sigma", "least"), [(0.5, 0.2111), (1.0, 0.5858), (2.0, 1.1056)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_flow_from_posterior_means_has_the_least_error_of_what_looks_like_data(shape, sigma, least):
    """MMSE + W2^2 in closed form. Of jointly normal pairs the flow's map is x0 std(x1) / std(x0), whatever the path."""
    measure, mean = noisy(sigma)
    x1 = torch.randn(40_000, *shape, generator=stream(1))
    pair = PosteriorMean(mean, 0.0, measure)(x1, generator=stream())
    restored = pair.x0 * (pair.x1.std() / pair.x0.std())
    error, n = (restored - x1).square().mean(), x1.numel()
    assert abs(error / least - 1) < 5 * (2 / n) ** 0.5 + 1e-3  # five errors, 6e-7, and the digits of the figures
    assert_standard_normal(restored)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_measurement_may_be_the_condition(shape):
    measure, mean = noisy(0.5)
    x1 = torch.randn(10_000, *shape, generator=stream(1))
    y = measure(x1, stream(2))
    coupling = PosteriorMean(mean, 0.3)
    pair = coupling(x1, y, generator=stream())
    assert torch.equal(pair.x1, x1)
    assert pair.cond is None, "the flow sees the state alone"
    assert_standard_normal((pair.x0 - y / 1.25) / 0.3)
    assert torch.equal(coupling.source(x1.shape, x1, y, generator=stream()), pair.x0), "sampling starts there too"


def test_posterior_mean_says_what_is_wrong():
    measure, mean = noisy(1.0)
    with pytest.raises(ValueError, match="noise must be >= 0; got -1"):
        PosteriorMean(mean, -1)
    with pytest.raises(ValueError, match=r"estimator must be frozen; .* Call estimator.requires_grad_\(False\)"):
        PosteriorMean(torch.nn.Linear(2, 2))
    with pytest.raises(NoSource, match="must have measurements as its condition; got None. Pass them as cond"):
        PosteriorMean(mean)(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"no condition beside measure; got one. Train with conditional=false"):
        PosteriorMean(mean, 0.1, measure)(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"estimates must have the shape \(3, 2\); got \(3, 1\)"):
        PosteriorMean(lambda y: y[:, :1])(torch.zeros(3, 2), torch.zeros(3, 2))
    PosteriorMean(torch.nn.Linear(2, 2).requires_grad_(False))


# Sources that learn


class Law(torch.nn.Module):
    """One mean and one deviation for all data; and what it was asked."""

    def __init__(self, shape):
        super().__init__()
        self.both = torch.nn.Parameter(0.3 * torch.randn(2, *shape, generator=stream(4)))

    def forward(self, x, s, t, cond=None):
        self.asked = s, t, cond
        return self.both.expand(len(x), *self.both.shape)


class Known(FlowMap):
    """The velocity b(x) = 3 x, whatever is learned."""

    def mean_velocity(self, x, s, t, cond=None):
        return 3 * x


@pytest.mark.parametrize("shape", SHAPES)
def test_a_learned_source_has_its_law_and_pays_its_divergence(shape):
    coupling, x1, labels = (
        Learned(Law(shape), 7.0),
        torch.randn(20_000, *shape, generator=stream(3)),
        torch.zeros(20_000),
    )
    pair = coupling(x1, labels, generator=stream())
    mean, deviation = coupling.net.both[0], (coupling.net.both[1] / 2).exp()
    assert_standard_normal(((pair.x0 - mean) / deviation).detach())
    assert torch.equal(pair.x1, x1)
    assert pair.cond is labels
    assert [c is labels or bool((c == 1).all()) for c in coupling.net.asked] == [True] * 3
    law = torch.distributions.Normal(mean, deviation)
    divergence = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).mean()
    assert (pair.penalty - 7 * divergence).abs().max() < 1e-12
    assert_standard_normal(coupling.source(x1.shape, x1, labels, generator=stream(1)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_reaches_a_learned_source_by_state_and_by_velocity(shape):
    """Of |3 I_t - (x1 - x0)|^2 with respect to x0, by hand: 2 (3 I_t - x1 + x0) (3 (1 - t) + 1)."""
    coupling, x1 = Learned(Law(shape)), torch.randn(64, *shape, generator=stream(1))
    pair = coupling(x1, generator=stream())
    build("losses", "flow_matching")(Known(), pair, generator=stream(2)).mean().backward()
    t = Uniform()(64, x1, stream(2)).reshape(-1, *[1] * len(shape))
    slope = 2 * (3 * torch.lerp(pair.x0, x1, t) - x1 + pair.x0) * (3 * (1 - t) + 1) / x1.numel()
    want = torch.stack([slope, slope * (pair.x0 - coupling.net.both[0]) / 2], 1).sum(0)
    assert (coupling.net.both.grad - want).abs().max() < 1e-12


def test_the_penalty_stays_with_its_pair():
    pair = Pair(torch.arange(4.0)[:, None], penalty=torch.arange(4.0))
    assert pair[torch.tensor([3, 1])].penalty.tolist() == [3, 1]
    assert [part.penalty.tolist() for part in pair.split(0.25)] == [[0], [1, 2, 3]]


def test_a_learned_source_says_what_is_wrong():
    with pytest.raises(ValueError, match="weight must be > 0, or sampling starts anywhere; got 0.0"):
        Learned(Law((2,)), 0.0)
    with pytest.raises(ValueError, match=r"must have two outputs; got one. Set coupling.net.outputs to 2"):
        build("couplings", {"name": "learned", "net": "mlp"}, shape=(2,))(torch.zeros(3, 2))


# Sequences


@pytest.mark.parametrize("shape", SHAPES)
def test_sequences_are_of_one_class_begin_with_the_datum_and_show_none_twice(shape):
    labels = torch.tensor([*[0] * 5, *[1] * 7, *[2] * 8])
    x1 = torch.arange(20.0).reshape(-1, *[1] * len(shape)).expand(20, *shape)
    pair = build("couplings", "same_class_sequence")(x1, {"label": labels}, generator=stream())
    assert pair.x0.shape == pair.x1.shape == (20, 5, *shape)
    assert torch.equal(pair.cond["label"], labels)
    assert len(pair.x0.unique()) == pair.x0.numel(), "each with noise of its own"
    which = pair.x1.flatten(2)[..., 0].long()
    assert torch.equal(pair.x1, x1[which]), "data of the batch"
    assert torch.equal(which[:, 0], torch.arange(20)), "each begins one"
    assert torch.equal(labels[which], labels[:, None].expand(20, 5))
    assert all(len(set(row.tolist())) == 5 for row in which), "a datum seen twice would tell its own target"
    with pytest.raises(
        ValueError, match="at least 5 data of every condition .* one of 3 has 4 of 19. Raise batch, to some"
    ):
        build("couplings", "same_class_sequence")(x1[1:], labels[1:])


def test_sequences_are_drawn_evenly_with_noise_of_their_own():
    coupling, g = build("couplings", {"name": "same_class_sequence", "length": 2}), stream()
    x1, labels = torch.arange(4.0)[:, None], torch.zeros(4)
    made = [coupling(x1, labels, generator=g) for _ in range(3000)]
    others = torch.stack([p.x1[0, 1, 0] for p in made]).long().bincount(minlength=4)
    assert others[0] == 0
    assert (others[1:] - 1000).abs().max() < 5 * (3000 * 2 / 9) ** 0.5  # five standard errors, three times: 2e-6
    noise = torch.cat([p.x0 for p in made]).flatten(1)
    assert_standard_normal(noise)
    assert abs((noise[:, 0] * noise[:, 1]).mean()) < 5 / 12_000**0.5
    assert_standard_normal(coupling.source((5000, 3), x1, generator=g))
    with pytest.raises(ValueError, match="length must be at least 1; got 0"):
        build("couplings", {"name": "same_class_sequence", "length": 0})
    with pytest.raises(ValueError, match="must have labels; got cond = None. Train with conditional=true"):
        coupling(x1)
