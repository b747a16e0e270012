"""Every law of times: range, order, and, for one time, density and quantile that belong together."""

from contextlib import nullcontext
from typing import get_type_hints

import pytest
import torch
from truth import gaussian, stream

from flowmaps.build import build, find, names
from flowmaps.core.interpolant import Linear
from flowmaps.core.times import PairLaw, TimeLaw
from flowmaps.engine.step import Step
from flowmaps.interpolants.variance_exploding import VarianceExploding
from flowmaps.spaces.euclidean import Euclidean

SINGLE = [n for n in names("training_times") if issubclass(find("training_times", n), TimeLaw)]
PAIRS = [n for n in names("training_times") if issubclass(find("training_times", n), PairLaw)]


def test_every_law_is_one_or_the_other():
    assert sorted(SINGLE + PAIRS) == names("training_times")


SKEWED = {"name": "logit_normal", "mean": 0.5, "std": 0.7}
MORE = [
    SKEWED,
    {"name": "mode", "scale": -0.9},
    {"name": "mode", "scale": 1.7},
    {"name": "shifted", "times": SKEWED},
    {"name": "shifted", "shift": 0.3},
    {"name": "segment", "segments": 7, "times": SKEWED},
    {"name": "boundary_mixed", "start": 0.105, "end": 0.305, "width": 0.2, "times": SKEWED},
]


@pytest.mark.parametrize("law", [*SINGLE, *MORE], ids=str)
def test_density_is_the_derivative_of_the_distribution(law):
    law = build("training_times", law)
    u = torch.linspace(0.01, 0.99, 99)
    t, speed = torch.func.jvp(law.quantile, (u,), (torch.ones_like(u),))
    assert (t.diff() > 0).all()
    assert (law.density(t) * speed - 1).abs().max() < 1e-10
    grid = (torch.arange(200_000) + 0.5) / 200_000
    assert abs(law.density(grid).mean() - 1) < 1e-4  # midpoint rule
    drawn = law(100_000, torch.empty(0), stream())
    histogram = torch.histc(drawn, 20, 0, 1) / 100_000
    fine = law.density((torch.arange(20_000) + 0.5) / 20_000).reshape(20, -1).mean(1) / 20
    assert (histogram - fine).abs().max() < 5 * (0.6 * 0.4 / 100_000) ** 0.5 + 1e-4  # of 20: 1e-5; midpoints
    short = law(1000, torch.empty(0, dtype=torch.float32), stream())
    assert short.dtype == torch.float32
    assert 0 <= short.min() <= short.max() <= 1
    assert (law.cumulative(t) - u).abs().max() < 1e-9
    assert (TimeLaw.cumulative(law, t) - u).abs().max() < 1e-9, "by bisection"
    # Kolmogorov-Smirnov against the quantile: 2.2 / sqrt(n) is exceeded with probability 1e-4.
    level = (torch.arange(100_000) + 0.5) / 100_000
    assert (torch.searchsorted(drawn.sort().values, law.quantile(level)) / 100_000 - level).abs().max() < 2.2 / 316


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_ordered_and_in_range(name):
    s, t = build("training_times", name)(10_000, torch.empty(0, dtype=torch.float32), stream())
    assert s.dtype == torch.float32
    assert s.shape == t.shape == (10_000,)
    assert (s >= 0).all()
    assert (s <= t).all()
    assert (t <= 1).all()


def test_uniform_pair_is_uniform_on_the_triangle():
    s, t = build("training_times", "uniform_pair")(200_000, torch.empty(0), stream())
    # P(t < 1/2) = 1/4, P(s > 1/2) = 1/4, P(t - s < 1/2) = 3/4; five standard errors are 0.5 %: false alarm 2e-6.
    for share, want in (((t < 0.5), 0.25), ((s > 0.5), 0.25), ((t - s < 0.5), 0.75)):
        assert abs(share.double().mean() - want) < 0.005


def test_logit_normal_pair_is_sorted_logit_normals():
    s, t = build("training_times", {"name": "logit_normal_pair", "mean": 0.4, "std": 1.2})(
        200_000, torch.empty(0), stream()
    )
    both = torch.logit(torch.cat([s, t]))
    assert abs(both.mean() - 0.4) < 0.02  # five standard errors are 0.013: below 6e-7 each
    assert abs(both.std() - 1.2) < 0.02
    assert abs((torch.logit(t) - torch.logit(s)).mean() - 2 * 1.2 / torch.pi**0.5) < 0.02  # gap of two normals


def test_logit_normal_pair_has_a_mean_for_each():
    """With means that lie far apart sorting changes nothing, and each time shows its own law."""
    law = build("training_times", {"name": "logit_normal_pair", "mean": [-4, 4.0], "std": [0.5, 0.7]})
    for z, mean, std in zip(map(torch.logit, law(100_000, torch.empty(0), stream())), (-4, 4), (0.5, 0.7), strict=True):
        assert abs(z.mean() - mean) < 5 * std / 316
        assert abs(z.std() / std - 1) < 5 / 447


@pytest.mark.parametrize("name", ["logit_normal", "logit_normal_pair"])
def test_bad_options(name):
    with pytest.raises(ValueError, match="std must be > 0; got -1"):
        build("training_times", {"name": name, "std": -1.0})


def test_to_data_sets_a_share():
    law = build("training_times", {"name": "to_data", "share": 0.25, "until": 1000})
    s, t = law(1000, torch.empty(0), stream())
    assert int((t == 1).sum()) == 250
    half = law(1000, torch.empty(0), stream(), step=500)[1]
    assert int((half == 1).sum()) == 167, "arccos(1/2) is two thirds of a right angle"
    assert int((law(1000, torch.empty(0), stream(), step=2000)[1] == 1).sum()) == 0
    plain = build("training_times", "uniform_pair")(1000, torch.empty(0), stream())
    assert torch.equal(s, plain[0])
    assert torch.equal(t[t < 1], plain[1][t < 1])
    # Drawn without replacement from 1000 places, 250 times: five standard errors of the share in a quarter.
    assert all(abs((part == 1).double().mean() - 0.25) < 5 * (0.25 * 0.75 / 250) ** 0.5 for part in t.split(250))


def test_annealed_spans_grow():
    law = build("training_times", {"name": "annealed", "images": 1000, "least": 0.1})
    for step, longest in ((0, 0.1), (500, 0.55), (1000, 1.0), (5000, 1.0)):
        s, t = law(4000, torch.empty(0), stream(), step=step)
        assert 0.95 * longest < (t - s).max() <= longest + 1e-12
    with pytest.raises(ValueError, match="images must be at least 1"):
        build("training_times", {"name": "annealed", "images": 0})


def test_span_pair_draws_span_and_place():
    law = build("training_times", {"name": "span_pair", "span": {"name": "logit_normal", "mean": -1.0}})
    s, t = law(100_000, torch.empty(0), stream())
    assert abs(torch.logit(t - s).mean() + 1) < 0.016  # five standard errors, three times: false alarm 2e-6
    place = s / (1 - (t - s))
    assert abs(place.mean() - 0.5) < 0.005
    assert abs(torch.corrcoef(torch.stack([place, t - s]))[0, 1]) < 0.016


def test_span_pair_restricts_the_law_of_the_arrival():
    """Given the span d the arrival has the law F restricted to [d, 1]: (F(t) - F(d)) / (1 - F(d)) is uniform."""
    arrival = {"name": "logit_normal", "mean": 0.4}
    law = build(
        "training_times", {"name": "span_pair", "span": {"name": "logit_normal", "mean": -0.8}, "arrival": arrival}
    )
    s, t = law(100_000, torch.empty(0), stream())
    f, d = law.arrival.cumulative, t - s
    place = ((f(t) - f(d)) / (1 - f(d))).sort().values
    level = (torch.arange(100_000) + 0.5) / 100_000
    assert (place - level).abs().max() < 2.2 / 316  # exceeded with probability 1e-4
    assert abs(torch.logit(d).mean() + 0.8) < 0.016  # five standard errors: false alarm 6e-7
    short = law(100_000, torch.empty(0, dtype=torch.float32), stream())
    assert (short[0] >= 0).all()
    assert (short[1] <= 1).all()


def test_the_papers_laws_are_the_defaults():
    """In the papers' clock: DMF's noise levels N(0.4, 1) and N(-1.2, 1), TVM's N(-0.4, 1) below 1 - span."""
    dmf, tvm = (find("losses", name)() for name in ("decoupled_mean_flow", "terminal_velocity_matching"))
    g, n = stream(), 200_000
    noise = torch.sigmoid(torch.tensor([0.4, -1.2]) + torch.randn(n, 2, generator=g))
    span = torch.sigmoid(torch.randn(n, generator=g) - 0.8)
    tried = torch.sigmoid(torch.randn(n, generator=g) - 0.4)
    kept = tried < 1 - span
    for law, departure, arrival in (
        (dmf.times, noise.amax(1), noise.amin(1)),
        (tvm.times, tried[kept] + span[kept], tried[kept]),
    ):
        s, t = law(n, torch.empty(0), stream(1))
        if law is tvm.times:  # rejection thins out long spans, the restricted law does not: compare given the span
            long = ((t - s) > 0.3) & ((t - s) < 0.31)
            near = (span[kept] > 0.3) & (span[kept] < 0.31)
            s, t, departure, arrival = s[long], t[long], departure[near], arrival[near]
        for ours, theirs in ((1 - s, departure), (1 - t, arrival)):
            error = (ours.std() ** 2 / len(ours) + theirs.std() ** 2 / len(theirs)) ** 0.5
            assert abs(ours.mean() - theirs.mean()) < 5 * error
    assert dmf.diagonal_times == build("training_times", "logit_normal")
    assert tvm.diagonal_times == build("training_times", {"name": "logit_normal", "mean": 0.4})


def test_dyadic_pairs_lie_on_their_grid():
    s, t = build("training_times", {"name": "dyadic_pair", "levels": 4})(8000, torch.empty(0), stream())
    span = t - s
    shares = torch.stack([(span == 2.0**-j).double().mean() for j in range(4)])
    assert (shares - 0.25).abs().max() < 0.025  # five standard errors of four shares: false alarm 2e-6
    assert torch.equal(s / span, (s / span).round())
    assert t.max() == 1
    with pytest.raises(ValueError, match="levels must be at least 1"):
        build("training_times", {"name": "dyadic_pair", "levels": 0})


# Laws for training that serve as grids too


def test_sd3_laws_in_the_papers_clock():
    """By decile, from the paper's formulas for the noise level: mode and CosMap are symmetric, so their clocks agree."""
    u = (torch.arange(400_000) + 0.5) / 400_000
    mode = 1 - u - 1.29 * (torch.cos(torch.pi / 2 * u) ** 2 - 1 + u)
    cos_map = 1 - 1 / (torch.tan(torch.pi / 2 * u) + 1)
    for name, noise, first in (
        ("mode", mode, (0.47, 0.55, 0.69, 1.00, 2.30)),
        ("cos_map", cos_map, (0.71, 0.86, 1.02, 1.16, 1.26)),
    ):
        law = build("training_times", name)
        theirs = torch.histc(1 - noise, 10, 0, 1) / 40_000
        assert (theirs[:5] - torch.tensor(first)).abs().max() < 0.01
        edges = torch.linspace(0, 1, 11)
        assert (10 * law.cumulative(edges).diff() - theirs).abs().max() < 1e-3
    with pytest.raises(ValueError, match=r"scale must lie from -1 to below 2 / \(pi - 2\) = 1.75; got 1.76"):
        build("training_times", {"name": "mode", "scale": 1.76})


def test_shifts_multiply_and_leave_the_ends():
    t = torch.linspace(0, 1, 11)
    by = {a: build("training_times", {"name": "shifted", "shift": a}) for a in (0.5, 3.0, 1.5, 2.0)}
    twice = build("training_times", {"name": "shifted", "shift": 0.5, "times": {"name": "shifted", "shift": 3.0}})
    assert (twice.quantile(t) - by[1.5].quantile(t)).abs().max() < 1e-12
    assert by[3.0].quantile(t)[[0, -1]].tolist() == [0, 1]
    # In the paper's clock, noise tau = 1 - t: tau <- 3 tau / (1 + 2 tau).
    tau = 1 - t
    assert (1 - by[3.0].quantile(t) - 3 * tau / (1 + 2 * tau)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="shift must be > 0; got 0.0"):
        build("training_times", {"name": "shifted", "shift": 0.0})


@pytest.mark.parametrize("n", [60, 64])
def test_segments_get_equal_shares_of_every_batch(n):
    law = build("training_times", {"name": "segment", "segments": 6, "times": SKEWED})
    g, counts = stream(), torch.zeros(6)
    for _ in range(500):
        found = torch.bincount((law.cumulative(law(n, torch.empty(0), g)) * 6).long(), minlength=6)
        assert found.min() >= n // 6
        assert found.max() <= n // 6 + (n % 6 > 0)
        counts += found
    share = counts / counts.sum()
    assert (share - 1 / 6).abs().max() < 0.004  # five standard errors of where the odd ones go, 4e-6; 0 for 60
    u = law.cumulative(law(6000, torch.empty(0), g))
    assert abs((u * 6 % 1).mean() - 0.5) < 5 * 0.29 / 77, "uniform within each"
    plain = build("training_times", {"name": "segment", "segments": 1})(n, torch.empty(0), stream())
    assert abs(plain.mean() - 0.5) < 5 * 0.29 / n**0.5
    with pytest.raises(ValueError, match="segments must be at least 1"):
        build("training_times", {"name": "segment", "segments": 0})


def test_boundary_mixed_has_its_shares_at_the_ends():
    law = build("training_times", {"name": "boundary_mixed", "start": 0.1, "end": 0.2, "width": 0.0, "times": SKEWED})
    t = law(100_000, torch.empty(0), stream())
    for hit, want in ((t == 0, 0.1), (t == 1, 0.2)):
        assert abs(hit.double().mean() - want) < 5 * (want * (1 - want) / 100_000) ** 0.5
    inner = t[(t > 0) & (t < 1)]
    assert abs(torch.logit(inner).mean() - 0.5) < 5 * 0.7 / 264
    with pytest.raises(ValueError, match="a sum below 1"):
        build("training_times", {"name": "boundary_mixed", "start": 0.5, "end": 0.5})


def taught(law, rounds=60, n=256):
    """A law that has heard losses 1 + 9 t, with noise, from its own times."""
    g = stream(3)
    for _ in range(rounds):
        t = law(n, torch.empty(0), g)
        law.reweighted(t, (1 + 9 * t) * (0.5 + torch.rand(n, generator=g)))
    return law


def test_loss_second_moment_draws_where_losses_are_large():
    law = build("training_times", {"name": "loss_second_moment", "bins": 10, "history": 50, "uniform": 0.1})
    grid = (torch.arange(1000) + 0.5) / 1000
    even = law.reweighted(grid[:200], torch.ones(200))
    assert torch.equal(even, torch.ones(200)), "uniform until every bin has its memory full"
    assert (law.density(grid) == 1).all()
    taught(law)
    p, middle = law.density(grid), (grid * 10).floor() / 10 + 0.05
    exact = 0.9 * (1 + 9 * middle) / (1 + 9 * middle).mean() + 0.1
    # The root mean square of 50 losses of deviation 0.28 varies by 4 %; the largest of ten by less than 20 %.
    assert (p / exact - 1).abs().max() < 0.2
    assert abs(p.mean() - 1) < 1e-9
    u = torch.linspace(0.001, 0.999, 500)
    t, speed = torch.func.jvp(law.quantile, (u,), (torch.ones_like(u),))
    assert (law.cumulative(t) - u).abs().max() < 1e-9
    assert (law.density(t) * speed - 1).abs().max() < 1e-9


def test_loss_second_moment_keeps_the_objective_and_lowers_its_variance():
    law = taught(build("training_times", {"name": "loss_second_moment", "bins": 10}))
    law.eval()
    t = law(200_000, torch.empty(0), stream())
    before = law.losses.clone()
    ours = law.reweighted(t, (1 + 9 * t) ** 2)
    plain = (1 + 9 * torch.rand(200_000, generator=stream())) ** 2
    assert torch.equal(law.losses, before), "it does not learn in evaluation"
    assert abs(ours.mean() - 37) < 5 * ours.std() / 447  # the integral of (1 + 9 t)^2
    assert ours.var() < 0.7 * plain.var()


def test_loss_second_moment_forgets_and_survives_bad_losses():
    law = build("training_times", {"name": "loss_second_moment", "bins": 2, "history": 3})
    t = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4])
    law.reweighted(t, torch.tensor([9.0, 1, 5, 2, 6, 3, 7]))
    assert law.losses[0].sort().values.tolist() == [5, 6, 7], "the latest three"
    assert law.losses[1].sort().values.tolist() == [1, 2, 3]
    law.reweighted(t[:2], torch.tensor([torch.nan, torch.inf]))
    assert law.losses.isfinite().all()
    with pytest.raises(ValueError, match=r"uniform lie in \(0, 1\]; got 100, 10 and 0"):
        build("training_times", {"name": "loss_second_moment", "uniform": 0.0})


LEARNING = {"name": "loss_second_moment", "bins": 4, "history": 2}


def test_a_law_that_learns_learns_through_its_segments_and_no_other_law_takes_it():
    law = build("training_times", {"name": "segment", "segments": 4, "times": LEARNING})
    assert law.learns
    taught(law, 4)
    assert (law.times.mass() != 0.25).any()
    t = law(64, torch.empty(0), stream())
    p = law.density(t)  # before it learns more
    assert (law.reweighted(t, torch.ones(64)) - 1 / p).abs().max() < 1e-12
    for name, inner in (
        ("shifted", "times"),
        ("boundary_mixed", "times"),
        ("span_pair", "span"),
        ("span_pair", "arrival"),
    ):
        for table in (LEARNING, {"name": "segment", "times": LEARNING}):
            with pytest.raises(ValueError, match="a law that learns from losses must be told those at its own times"):
                build("training_times", {"name": name, inner: table})


MODELS = {  # of losses that want another than a network's mean velocity
    "autoregressive_flow_matching": ("recurrent", {"name": "arflow", "width": 8, "depth": 1, "heads": 1}),
    "feature_residual": (
        "recurrent",
        {
            "name": "blockwise_dit",
            "width": 8,
            "segments": 2,
            "trunk": 1,
            "depth": 1,
            "residual": 1,
            "heads": 1,
            "rank": 2,
        },
    ),
    "stochastic_interpolant": ("denoiser_head", {"name": "mlp", "width": 8, "depth": 2, "outputs": 2}),
    "improved_mean_flow": ("two_heads", {"name": "mlp", "width": 8, "depth": 2, "outputs": 2}),
    "divergence_distillation": ("divergence_head", {"name": "mlp", "width": 8, "depth": 2, "outputs": 2}),
}
LAWS_OF_LOSSES = [
    (name, option)
    for name in names("losses")
    for option, hint in get_type_hints(find("losses", name).__init__).items()
    if hint is TimeLaw
]


@pytest.mark.parametrize(("name", "option"), LAWS_OF_LOSSES)
def test_a_loss_tells_a_law_that_learns_or_a_run_refuses_it(name, option):
    shape, path = (1, 4, 4), VarianceExploding() if name == "reflected_score_matching" else Linear()
    form, net = MODELS.get(name, ("mean_velocity", {"name": "mlp", "width": 8, "depth": 2}))
    channels = 2 if name == "velocity_refiner" else 1
    model = build("maps", form, net=build("nets", net, shape=(channels, 4, 4)), interpolant=path)
    table = {"name": name, option: LEARNING}
    if name == "free_flow":
        table["critic"] = {"name": "velocity", "net": net}
    loss = build("losses", table, shape=shape, teacher=gaussian(shape), interpolant=path)
    sequences = name == "autoregressive_flow_matching"
    coupling = build("couplings", {"name": "same_class_sequence", "length": 2} if sequences else "independent")
    step = Step(model, loss, coupling, Euclidean(), interpolant=path)
    data, cond = torch.randn(16, *shape, generator=stream()), torch.zeros(16) if sequences else None
    law = getattr(loss, option)
    if sequences:
        model.net.labels.forward = lambda cond, batch: torch.zeros(batch, 8)
    told = name in TELLING or (option == "diagonal_times" and name not in UNTOLD)
    refusal = pytest.raises(ValueError, match="a law of times that learns must be told its losses, which")
    with nullcontext() if told else refusal:
        step(data, cond, generator=stream())
    assert law.heard == told


TELLING = {
    "autoregressive_flow_matching", "contrastive_flow_matching", "feature_residual", "flow_matching",
    "reflected_score_matching", "stochastic_interpolant", "velocity_refiner",
}  # fmt: skip
UNTOLD = {"divergence_distillation", "improved_mean_flow", "terminal_velocity_matching"}


@pytest.mark.parametrize(
    "law", ["logit_normal", "log_normal_noise", "log_normal_angle", "student_noise", "power_noise"]
)
def test_densities_vanish_at_the_ends(law):
    """As their limits do, and are no 0 / 0."""
    ends = build("training_times", law).density(torch.tensor([0.0, 1.0]))
    assert torch.equal(ends, torch.zeros(2))
