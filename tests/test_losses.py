"""Every loss, found by its file: shape, stationarity at the truth, learning, seeds, streams, dropout, options."""

import inspect
import math

import pytest
import torch
from truth import SHAPES, TrueNet, gaussian, stream, true_model

from flowmaps.build import build, find, names
from flowmaps.core import identities
from flowmaps.core.flow_map import EulerMap, MeanVelocity
from flowmaps.core.report import listen
from flowmaps.core.target import averages
from flowmaps.core.times import UniformPair
from flowmaps.core.types import Pair
from flowmaps.couplings.independent import Independent
from flowmaps.critics.distribution_matching import DistributionMatching
from flowmaps.critics.velocity import VelocityCritic
from flowmaps.nets.mlp import MLP

# Losses that this battery cannot build, and why; tests/family has their own.
ELSEWHERE = {
    "autoregressive_flow_matching": "needs sequences, and a network of these",
    "feature_residual": "needs a network with segments, and trains a part of it",
    "distribution_matching": "needs a critic, which must know the law of the map's samples",
    "divergence_distillation": "needs a map with a divergence head",
    "reflected_score_matching": "its states lie in a box",
    "representation_alignment": "needs an encoder, and a network that gives features",
    "stochastic_interpolant": "needs a map with a denoiser head",
    "velocity_refiner": "its map takes velocities beside the states",
}
LOSSES = [name for name in names("losses") if name not in ELSEWHERE]
# Losses that draw nothing themselves.
DETERMINISTIC = {
    "progressive_distillation-1",
    "one_step_distillation",
    "trajectory_distillation",
    "boss-[0.0, 1.0]",
}
# Terms that a loss reports for every sample, where it is more than one.
TERMS = {
    "contrastive_flow_matching": 2,
    "fmm": 2,
    "self_corrected": 3,
    "velocity_distillation": 2,
    "decoupled_mean_flow": 2,
    "terminal_velocity_matching": 2,
    "facm": 2,
    "with_critic": 3,
}
# Every published variant of a loss is tested like the loss itself.
VARIANTS = [
    *[{"name": name} for name in LOSSES],
    {"name": "lsd", "route": "stopped"},
    {"name": "lsd", "distance": "pseudo_huber"},
    {"name": "lsd", "bound": 50.0},
    {"name": "lsd", "route": "stopped", "distance": "pseudo_huber"},
    {"name": "esd", "stop": "convex"},
    {"name": "esd", "stop": "none"},
    {"name": "psd", "split": "midpoint"},
    {"name": "pfmm", "steps": 2},
    {"name": "mean_flow", "times": "logit_normal_pair"},
    {"name": "flow_matching", "interpolant": "stochastic"},
    {"name": "mean_flow", "interpolant": "stochastic"},
    {"name": "lsd", "interpolant": "trigonometric"},
    {"name": "consistency", "sampler": "jump"},
    {"name": "consistency", "sampler": "jump", "spacing": "ratio"},
    {"name": "consistency", "sampler": "jump", "times": "power_noise", "target": "average", "distance": "square"},
    {"name": "consistency", "teacher": None},
    {"name": "consistency", "teacher": None, "spacing": "ratio"},
    {"name": "scm", "interpolant": "trigonometric"},
    {"name": "scm", "stabiliser": "unchanged"},
    {"name": "scm", "velocity": "teacher"},
    {"name": "consistency_mid_training", "sampler": "jump"},
    {"name": "consistency_mid_training", "sampler": "jump", "form": "slope"},
    {"name": "progressive_distillation", "steps": 1},
    {"name": "ctm", "sampler": "jump"},
    {"name": "ctm", "sampler": "jump", "target": "own"},
    {"name": "ctm", "teacher": None, "sampler": "jump", "target": "own"},
    {"name": "fmm", "route": "eulerian"},
    {"name": "velocity_distillation", "distillation": 0.0},
    {"name": "velocity_distillation", "stabiliser": "normalised"},
    {"name": "boss", "nodes": [0.0, 1.0]},
    {"name": "alpha_flow", "end": 0},
    {"name": "soflow", "images": 0},
    {"name": "shortcut", "target": "own", "diagonal": 0.5},
    {"name": "decoupled_mean_flow", "times": "uniform_pair", "diagonal_times": "uniform"},
    {"name": "align_your_flow", "most": 1.0},
    {"name": "align_your_flow", "residual": "lagrangian"},
    {"name": "align_your_flow", "teacher": None, "velocity": "conditional", "most": 1.0, "stabiliser": "unchanged"},
]


# Losses whose objective itself does not have the truth as a stationary point, and why. What they have instead is
# asserted in tests/family.
BIASED = {
    "consistency_mid_training": "the teacher's step is a solver's; with its exact step there is no bias",
    "ctm": "the teacher's step is a solver's; with its exact step there is no bias",
    "self_corrected": "its steps are Euler's, near the data the target is the datum, and its own samples ask for straight paths",
    "velocity_distillation-normalised": "the identity asks for the derivative itself, not for its direction",
    "one_step_distillation": "with independent pairs the minimum is the mean of the data",
    "truncated_consistency": "consistency training takes the mean over each step, which shrinks the deviation",
    "consistency": "the teacher's step is a solver's; with its exact step there is no bias",
    "consistency-None": "consistency training takes the mean over each step, which shrinks the deviation",
    "consistency-None-ratio": "consistency training takes the mean over each step, which shrinks the deviation",
    "alpha_flow": "it starts as flow matching for every span",
    "balanced": "relative errors of a target that is right on average only",
    "align_your_flow": "a hundredth of the identity's derivative is left out, which favours straight paths",
    "contrastive_flow_matching": "it leads away from the mean of the data, on purpose",
}
# Samples that a loss needs before its pull away from a wrong map stands out of the noise, where 512 are not enough.
FAINT = {"scm": 8192}
# Losses that learn something else than the map from noise to data in one step, and what.
NOT_ONE_STEP = {
    "ctm": "its average is over 1000 steps",
    "ctm-jump": "its average is over 1000 steps",
    "progressive_distillation": "jumps of a quarter",
    "inductive_moment_matching": "laws, not the map, and slowly",
    "decoupled_mean_flow": "its law of times draws little near noise and data: it starts from a trained flow",
    "scm": "what it learns spreads from the data, and reaches noise on the linear path after 6000 steps only",
    "scm-unchanged": "the same",
    "scm-teacher": "the same",
    "self_corrected": "exact for straight flows only",
    "velocity_distillation": "its second term moves the jump from noise by errors elsewhere, and does not restore it",
    "velocity_distillation-normalised": "the same, and its fixed point is not the map",
    "one_step_distillation": "with independent pairs it learns the mean of the data",
    "boss": "only jumps between its nodes",
    "alpha_flow": "it starts as flow matching for every span",
    "soflow": "its first steps, of a tenth of the span, are too long for the bound",
    "shortcut": "its average is over 1000 steps, and passes through seven levels",
    "truncated_consistency": "its law of times hardly ever draws noise itself: it starts from a trained map",
    "consistency-None": "at the first of its grids, of 10 cells, the deviation shrinks by more than the bound",
    "consistency-None-ratio": "at its first stage most times are compared with the data themselves",
}


# What a loss takes besides a teacher: a critic that knows the law of the true map's samples.
EXTRAS = {
    "with_critic": lambda flow: {"critic": DistributionMatching(flow, VelocityCritic(TrueNet(flow, flow.mean.shape)))}
}


def label(variant):
    return "-".join(map(str, variant.values()))


def made(variant, flow, **options):
    extras = EXTRAS.get(variant["name"], lambda flow: {})(flow)
    return build("losses", {**extras, **variant, **options}, teacher=flow, interpolant=flow.interpolant)


def begun(loss, model):
    """The loss with its averages started, as Step does it."""
    for average in averages(loss):
        average.begin(model)
    return loss


def flow_for(variant, shape):
    return gaussian(shape, build("interpolants", variant.get("interpolant", "linear")))


def pairs(flow, n, generator):
    return Independent()(flow.sample(n, generator), generator=generator)


def stationarity(loss, flow, shape, batches=24, size=512, data=None, model=None):
    """Mean squared z-score of the gradient on the head of TrueNet, about 1 where the truth is stationary.

    Entries of the head are correlated, so that the mean of their squares spreads about 1: over 150 seeds of flow matching
    and of MeanFlow on vectors it was 1.1 with deviation 0.5 and 3.6 at most, like a chi-square of 8 degrees over 8, which
    exceeds 6 with probability 1e-7. On images it spreads less. Sign errors score 30 and more.
    """
    model, g = model or true_model(flow, shape), stream(3)
    begun(loss, model)
    gradients = torch.stack(
        [
            torch.autograd.grad(loss(model, pairs(data or flow, size, g), generator=g).mean(), model.net.head)[0]
            for _ in range(batches)
        ]
    )
    # The floor is rounding: a loss whose every sample is stationary has no spread to compare with.
    deviation = gradients.std(0) / batches**0.5 + 1e-12
    return float((gradients.mean(0) / deviation).square().mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if label(v) not in BIASED], ids=label)
def test_the_truth_is_stationary(variant, shape):
    flow = flow_for(variant, shape)
    assert stationarity(made(variant, flow), flow, shape) < 6


# Off the diagonal these vanish at the truth for every sample; the others' targets are right in mean only, or biased.
VANISHING = (
    "consistency-jump", "consistency-jump-ratio", "consistency-jump-power_noise-average-square", "ctm-jump",
    "ctm-None-jump-own", "consistency_mid_training-jump-slope", "progressive_distillation-1",
    "align_your_flow-1.0", "align_your_flow-lagrangian", "boss", "consistency_mid_training-jump", "ctm-jump-own", "emd",
    "esd", "esd-convex", "esd-none", "free_flow", "lmd", "lsd", "lsd-50.0", "lsd-pseudo_huber", "lsd-stopped", "lsd-stopped-pseudo_huber",
    "lsd-trigonometric", "pfmm", "pfmm-2", "progressive_distillation", "psd", "psd-midpoint", "scm-teacher", "split_mean_flow",
    "trajectory_distillation", "velocity_distillation",
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if label(v) in VANISHING], ids=label)
def test_residuals_vanish_at_the_truth_for_every_sample(variant, shape):
    flow, model = flow_for(variant, shape), true_model(flow_for(variant, shape), shape)
    off = {"diagonal": 0.0} if "diagonal" in inspect.signature(find("losses", variant["name"])).parameters else {}
    loss = made(variant, flow, **off)
    begun(loss, model)
    assert loss(model, pairs(flow, 64, stream()), generator=stream()).max() < 1e-15


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_a_wrong_map_is_not_stationary(variant):
    """The battery sees: against the flow of other data every loss pulls away."""
    shape, size = (3,), FAINT.get(variant["name"], 512)
    right, wrong = flow_for(variant, shape), gaussian(shape, build("interpolants", "linear"), seed=5)
    loss = made(variant, right)
    model, g = MeanVelocity(TrueNet(wrong, shape)), stream(3)
    begun(loss, model)
    gradients = torch.stack(
        [
            torch.autograd.grad(loss(model, pairs(right, size, g), generator=g).mean(), model.net.head)[0]
            for _ in range(8)
        ]
    )
    assert (gradients.mean(0) / (gradients.std(0) / 8**0.5 + 1e-12)).square().mean() > 30


# Evaluations with and without gradient that the docstrings promise off the diagonal, the teacher's among them.
EVALUATIONS = {
    "flow_matching": (1, 0),
    "contrastive_flow_matching": (1, 0),
    "lsd": (1, 1),
    "lsd-stopped": (1, 2),
    "esd": (1, 2),
    "esd-convex": (1, 1),
    "esd-none": (2, 0),
    "psd": (1, 2),
    "mean_flow": (1, 1),
    "lmd": (1, 1),
    "free_flow": (1, 2),
    "self_corrected": (2, 4),
    "velocity_distillation": (2, 4),
    "boss": (1, 100),
    "one_step_distillation": (1, 0),
    "trajectory_distillation": (4, 4),
    "emd": (1, 1),
    "pfmm": (1, 4),
    "consistency": (1, 3),
    "consistency-None": (1, 1),
    "truncated_consistency": (1, 2),
    "scm": (1, 1),
    "scm-teacher": (1, 2),
    "consistency_mid_training": (1, 32),
    "progressive_distillation": (1, 2),
    "ctm": (2, 6),
    "inductive_moment_matching": (1, 1),
    "fmm": (2, 0),
    "fmm-eulerian": (2, 0),
    "alpha_flow": (1, 0),
    "alpha_flow-0": (1, 1),
    "split_mean_flow": (1, 2),
    "shortcut": (1, 2),
    "soflow": (1, 1),
    "decoupled_mean_flow": (2, 1),
    "terminal_velocity_matching": (2, 1),
    "align_your_flow": (1, 2),
    "align_your_flow-lagrangian": (1, 2),
    "facm": (2, 1),
    "improved_mean_flow": (1, 2),
    "balanced": (2, 1),
}


@pytest.mark.parametrize("variant", [v for v in VARIANTS if label(v) in EVALUATIONS], ids=label)
def test_targets_carry_no_gradient(variant):
    """At the truth a missing stop changes nothing, since the residual is zero; so it is looked for directly."""
    seen = []

    class Watched(TrueNet):
        def forward(self, x, s, t, cond=None):
            seen.append(torch.is_grad_enabled())
            return super().forward(x, s, t, cond)

    flow = gaussian()
    off = {"diagonal": 0.0} if "diagonal" in inspect.signature(find("losses", variant["name"])).parameters else {}
    model, teacher = (MeanVelocity(Watched(flow, (3,))) for _ in range(2))
    begun(build("losses", variant | off, teacher=teacher), model)(model, pairs(flow, 4, stream()), generator=stream())
    assert (sum(seen), len(seen) - sum(seen)) == EVALUATIONS[label(variant)]


def test_stopped_lsd_moves_the_mean_velocity_against_the_residual():
    """Its gradient is that of 2 r u with r held constant: a wrong sign has the same value, and zero, at the truth."""
    flow = gaussian()
    model = true_model(flow, (3,))
    torch.nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    loss, pair = made({"name": "lsd", "route": "stopped"}, flow, diagonal=0.0), pairs(flow, 64, stream())
    s, t = UniformPair()(64, pair.x0, stream(4))
    x, _ = flow.interpolant.draw(pair, s)
    r = identities.lagrangian(model, model.velocity, x, s, t).detach()
    wanted = (2 * r * model.mean_velocity(x, s, t)).mean()
    got, want = (
        torch.autograd.grad(value, model.net.head)[0]
        for value in (loss(model, pair, generator=stream(4)).mean(), wanted)
    )
    assert (got - want).abs().max() < 1e-12


MEASURED = [
    {"name": "lsd"},
    {"name": "lsd", "route": "stopped"},
    *[{"name": name} for name in ("psd", "esd", "lmd", "emd", "pfmm", "split_mean_flow")],
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", MEASURED, ids=label)
def test_the_distance_measures_the_residual(variant, shape):
    """sqrt(|r|^2 + c^2) - c of the same residual r whose mean square the default gives."""
    flow = gaussian(shape)
    model, d = true_model(flow, shape), math.prod(shape)
    torch.nn.init.normal_(model.net.head, generator=stream(2))
    pair, distance = pairs(flow, 64, stream()), {"name": "pseudo_huber", "scale": 0.5}
    off = {"diagonal": 0.0} if "diagonal" in inspect.signature(find("losses", variant["name"])).parameters else {}
    square, length = (
        made(variant | options, flow, **off)(model, pair, generator=stream(4))
        for options in ({}, {"distance": distance})
    )
    assert square.min() > 0
    torch.testing.assert_close(length, (d * square + d * 0.25).sqrt() - 0.5 * d**0.5)  # rounding


@pytest.mark.parametrize("name", ["esd", "emd", "lmd", "psd", "pfmm"])
def test_errors_of_half_precision_are_summed_in_single(name):
    flow = gaussian().bfloat16()
    x0, x1 = torch.randn(2, 8, 3, generator=stream()).bfloat16()
    off = {"diagonal": 0.0} if name in ("esd", "psd") else {}
    assert made({"name": name}, flow, **off)(flow, Pair(x0, x1), generator=stream()).dtype == torch.float32


def test_the_bound_of_lsd_leads_strays_back_and_leaves_the_rest():
    """b + (clip(y + (1 - t) b) - (y + (1 - t) b)) / (1 - t) on the linear path; 0.95 is the last time of the divisor."""
    y, t = torch.tensor([[0.5, 0.0], [3.0, -0.2], [1.5, 0.0]]).double(), torch.tensor([0.5, 0.5, 1.0]).double()
    b = torch.tensor([[0.2, 0.1], [4.0, 0.2], [1.0, -1.0]]).double()
    followed = build("losses", {"name": "lsd", "bound": 1.0})._followed(EulerMap(lambda x, t, cond=None: b), y, t, None)
    wanted = torch.tensor([[0.2, 0.1], [(1 - 3.0) / 0.5, 0.2], [1.0 + (1 - 1.5) / 0.05, -1.0]]).double()
    torch.testing.assert_close(followed, wanted)


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_number_per_sample_from_the_given_stream_alone(variant, shape):
    flow = flow_for(variant, shape)
    model = true_model(flow, shape)
    torch.nn.init.normal_(model.net.head, std=0.1, generator=stream(2))  # some losses are zero at the truth
    loss = begun(made(variant, flow), model)
    before = torch.get_rng_state()
    x0, x1 = torch.randn(2, 12, *shape, generator=stream())
    kept = x0.clone(), x1.clone()
    first, again, other = (loss(model, Pair(x0, x1), generator=stream(i)) for i in (1, 1, 2))
    assert first.shape == (12,)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (label(variant) in DETERMINISTIC)
    assert torch.equal(torch.get_rng_state(), before), "the global stream did not move"
    assert torch.equal(x0, kept[0])
    assert torch.equal(x1, kept[1])


@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_reported(name):
    flow = gaussian()
    with listen() as heard:
        model = true_model(flow, (3,))
        begun(made({"name": name}, flow), model)(model, pairs(flow, 16, stream()), generator=stream())
    assert heard
    assert sum(v.numel() for values in heard.values() for v in values) == 16 * TERMS.get(name, 1)


@pytest.mark.parametrize("name", [n for n in LOSSES if "diagonal" in inspect.signature(find("losses", n)).parameters])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_empty_shares(name, share):
    flow = gaussian()
    loss = begun(made({"name": name}, flow, diagonal=share), true_model(flow, (3,)))
    assert loss(true_model(flow, (3,)), pairs(flow, 8, stream()), generator=stream()).shape == (8,)
    matching = made({"name": "flow_matching"}, flow)
    if share == 1:
        both = [f(true_model(flow, (3,)), pairs(flow, 8, stream()), generator=stream(4)) for f in (loss, matching)]
        assert torch.equal(*both), "with the whole batch on the diagonal it is flow matching"


def test_both_parts_of_a_small_batch_learn():
    """Rounding alone would give a batch of two to the diagonal."""
    x = torch.randn(40, 3, generator=stream())
    for n in range(2, 40):
        for share in (1e-3, 0.1, 0.5, 0.75, 0.875, 0.999):
            first, rest = Pair(x[:n]).split(share)
            assert min(len(first), len(rest)) >= 1
            assert torch.equal(torch.cat([first.x0, rest.x0]), x[:n])
            if 0 < round(share * n) < n:
                assert len(first) == round(share * n)
    assert [[len(part) for part in Pair(x[:1]).split(share)] for share in (0.25, 0.75)] == [[0, 1], [1, 0]]
    assert [[len(part) for part in Pair(x[:9]).split(share)] for share in (0.0, 1.0)] == [[0, 9], [9, 0]]


def test_balanced_counts_its_parts_as_the_loss_does():
    """Two samples, of which a share of 0.75 leaves one off the diagonal: it counts as much as the other."""
    flow, pair = gaussian(), pairs(gaussian(), 2, stream())
    model = true_model(flow, (3,))
    torch.nn.init.normal_(model.net.head, std=0.1, generator=stream(2))
    plain = {"name": "mean_flow", "diagonal": 0.75}
    loss, balanced = (
        made(v, flow)(model, pair, generator=stream(1)) for v in (plain, {"name": "balanced", "loss": plain})
    )
    assert torch.equal(balanced[0], loss[0])
    assert abs(balanced[1] / loss[0] - 1) < 1e-3, "but for the offset"
    assert abs(balanced[1] / loss[1] - 1) > 0.1


@pytest.mark.parametrize("name", ["mean_flow", "lsd", "psd", "esd", "improved_mean_flow"])
def test_target_and_prediction_share_dropout(name):
    """With t = s, a zero net but for dropout noise would see two masks; the loss of a shared mask is deterministic."""
    torch.manual_seed(0)
    net = MLP((3,), width=32, depth=3, dropout=0.5)
    model, flow = MeanVelocity(net).train(), gaussian()
    options = {"route": "stopped"} if name == "lsd" else {}
    loss = made({"name": name}, flow, diagonal=0.0, **options)

    def gap(seed):
        torch.manual_seed(seed)
        return loss(model, pairs(flow, 64, stream()), generator=stream()).mean()

    assert torch.equal(gap(1), gap(1)), "the masks are those of the global stream"
    assert not torch.equal(gap(1), gap(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    # A velocity alone gives no map; logit-normal pairs hardly ever span the whole of [0, 1].
    "variant",
    [
        v
        for v in VARIANTS
        if getattr(find("losses", v["name"]), "learns_map", True)
        and v.get("times") != "logit_normal_pair"
        and label(v) not in NOT_ONE_STEP
    ],
    ids=label,
)
def test_it_learns_the_map(variant):
    """From scratch to a one-step error below 15 %, in a minute at most; an untrained map errs by about 150 %."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    flow = flow_for(variant, (3,)).float()
    model, g = MeanVelocity(MLP((3,), width=64, depth=3)), stream(3)
    loss = begun(made(variant, flow), model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(model, pairs(flow, 256, g), generator=g).mean().backward()
        optimizer.step()
        schedule.step()
        for average in averages(loss):
            average.follow(model)
    x, zero, one = torch.randn(2000, 3, generator=g), torch.zeros(2000), torch.ones(2000)
    exact = flow(x, zero, one)
    assert ((model(x, zero, one) - exact).norm() / (exact - flow.mean).norm()).item() < 0.15


def test_targets_with_current_weights_are_the_map_itself():
    model = gaussian()
    assert build("targets", "own")(model) is model


def test_flow_matching_learns_a_velocity_only():
    assert find("losses", "flow_matching").learns_map is False
    assert getattr(find("losses", "lsd"), "learns_map", True)


def test_progressive_matching_steps_a_velocity_with_a_solver():
    """A teacher that is only a velocity must be solved: by jumps of its Euler map it would teach Euler steps."""
    flow = gaussian()
    velocity = EulerMap(flow)
    x = pairs(flow, 64, stream())
    gap = {}
    for sampler in ("jump", "runge_kutta4"):
        loss = build("losses", {"name": "pfmm", "steps": 8, "sampler": sampler}, teacher=velocity)
        gap[sampler] = loss(true_model(flow, (3,)), x, generator=stream()).mean()
    assert gap["runge_kutta4"] < 1e-9 < 1e-6 < gap["jump"]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"name": "lsd", "diagonal": 1.5}, "diagonal must lie between 0 and 1, a share; got 1.5"),
        ({"name": "lsd", "route": "fast"}, "route must be one of 'exact', 'stopped'; got 'fast'"),
        ({"name": "esd", "stop": "all"}, "stop must be one of 'full', 'convex', 'none'; got 'all'"),
        ({"name": "psd", "split": "thirds"}, "split must be one of 'uniform', 'midpoint'; got 'thirds'"),
        ({"name": "pfmm", "steps": 1}, "steps must be at least 2"),
        ({"name": "alpha_flow", "begin": 5, "end": 4}, "begin and end must satisfy 0 <= begin <= end; got 5 and 4"),
        ({"name": "split_mean_flow", "split": "thirds"}, "split must be one of 'uniform', 'midpoint'; got 'thirds'"),
        (
            {"name": "shortcut", "scale": 2.0, "velocity": "guided_as_told"},
            "guidance must come from the scale or from the velocity; got 2 and GuidedAsTold",
        ),
        ({"name": "shortcut", "diagonal": -0.5}, "diagonal must lie between 0 and 1, a share; got -0.5"),
        (
            {"name": "shortcut", "shortest": 1 / 128},
            "shortest must be the shortest span of times, 0.015625 for 7 levels",
        ),
        (
            {"name": "shortcut", "times": {"name": "dyadic_pair", "levels": 8}},
            "times, 0.0078125 for 8 levels; got 0.015625. Set both",
        ),
        ({"name": "soflow", "last": 0.0}, "steps must satisfy 0 < last <= first <= 1; got 0.0 and 0.1"),
        ({"name": "terminal_velocity_matching", "scale": 0.0}, "scale must be > 0"),
        ({"name": "align_your_flow", "residual": "both"}, "residual must be one of 'eulerian', 'lagrangian'"),
        ({"name": "align_your_flow", "most": 1.5}, "most must lie between 0 and 1"),
        (
            {"name": "align_your_flow", "teacher": None},
            "needs the option 'teacher' or 'velocity'; got neither. Use `flow",
        ),
        *[
            (
                {"name": "align_your_flow", "residual": "lagrangian", "velocity": velocity},
                f"where the map arrives; {name} is right on the path of the pair only. Use 'teacher'",
            )
            for velocity, name in (
                ("conditional", "Conditional"),
                ("plug_in", "PlugIn"),
                ("clamped", "Clamped"),
                ("guided", "Guided"),
                ("guided_as_told", "GuidedAsTold"),
            )
        ],
        ({"name": "improved_mean_flow", "highest": 0.5}, "highest must be at least 1, a guidance scale; got 0.5"),
        ({"name": "facm", "power": 0.0}, "power must be > 0; got 0.0"),
        (
            {"name": "free_flow", "prediction": 2.0},
            "prediction must lie between 0 and 1, a share; got 2.0",
        ),
        ({"name": "balanced", "offset": 0.0}, "offset must be > 0"),
        ({"name": "balanced", "loss": "flow_matching"}, "must have a share on the diagonal.*got FlowMatching with 0"),
        ({"name": "balanced", "loss": {"name": "lsd", "diagonal": 1.0}}, "got LSD with 1. Set its diagonal"),
        ({"name": "self_corrected", "reach": -0.1}, "reach must lie between 0 and 1"),
        ({"name": "boss", "nodes": [0.0, 0.6, 0.4, 1.0]}, "nodes must increase from 0 to 1; got"),
        ({"name": "boss", "steps": 0}, "steps must be at least 1; got 0"),
        ({"name": "one_step_distillation", "departure": 1.0}, r"departure must lie in \[0, 1\); got 1.0"),
        ({"name": "trajectory_distillation", "count": 0}, "count and steps must be at least 1; got 0 and 1"),
    ],
)
def test_bad_options(variant, message):
    with pytest.raises(ValueError, match=message):
        made(variant, gaussian())
