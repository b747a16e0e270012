"""Where trajectories start, the same in training as in sampling; and which sources the velocity gives a score of."""

import dataclasses

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

from flowmaps.build import build, names
from flowmaps.core.flow_map import EulerMap, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.random import Recorder, normal
from flowmaps.core.sampling import sample
from flowmaps.core.source import folded, is_gaussian, started
from flowmaps.core.types import Pair
from flowmaps.couplings.independent import Independent
from flowmaps.couplings.minibatch_ot import MinibatchOT
from flowmaps.couplings.norm_aligned import mean_norm
from flowmaps.couplings.pruned import Pruned, sparse_axes
from flowmaps.couplings.reflow import Reflow, stored_pairs
from flowmaps.couplings.semidiscrete_ot import stored_potentials
from flowmaps.engine.step import Step
from flowmaps.flow import Flow
from flowmaps.guidance.classifier import Classifier
from flowmaps.interpolants.stochastic import Stochastic
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.interpolants.variance_exploding import VarianceExploding
from flowmaps.interpolants.variance_preserving import VariancePreserving
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.nets.mlp import MLP
from flowmaps.samplers.euler_maruyama import EulerMaruyama
from flowmaps.spaces.euclidean import Euclidean
from flowmaps.spaces.reflected import Reflected

BOX = Reflected(-0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Fixed(Independent):
    """A source that is the same each time, far beyond any wall."""

    def source(self, shape, like, cond=None, *, generator=None):
        return 3 * normal(shape, like, stream(9))


class Seen:
    """A loss that keeps what it is given."""

    def __call__(self, model, pair, *, step=0, generator=None):
        self.pair = pair
        return pair.x0.flatten(1).mean(1)


# In a box


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "path", [Linear(), Trigonometric(), VariancePreserving(), Stochastic()], ids=lambda p: type(p).__name__
)
def test_training_in_a_box_starts_where_sampling_does(path, shape):
    """Draw by draw: the path of training at t = 0, without the data, is the state that samples start from."""
    seen, n = Seen(), 16
    data = 1.5 * torch.rand(n, *shape, generator=stream()) - 0.5
    Step(gaussian(shape), seen, Fixed(), BOX, interpolant=path)(data)
    flow = Flow(gaussian(shape), path, Fixed(), BOX, shape)
    starts = path.start(seen.pair.x0)
    assert (starts - flow.starting(n)[0]).abs().max() < 1e-12
    assert (starts.max() - starts.min()) > 1.2, "all over the box"
    assert starts.min() >= -0.5
    assert starts.max() <= 1
    assert torch.equal(seen.pair.x1, data)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_straight_path_never_leaves_the_box(shape):
    seen, data = Seen(), 1.5 * torch.rand(500, *shape, generator=stream()) - 0.5
    Step(gaussian(shape), seen, Independent(), BOX)(data, generator=stream(1))
    x, _ = Linear().draw(seen.pair, torch.rand(500, generator=stream(2)))
    assert x.min() >= -0.5
    assert x.max() <= 1
    unfolded = Independent()(data, generator=stream(1)).x0
    assert torch.equal(seen.pair.x0, BOX.constrain(unfolded)), "folded, and drawn as ever"
    inside = (unfolded >= -0.5) & (unfolded <= 1)
    assert torch.equal(seen.pair.x0[inside], unfolded[inside])


def test_sources_elsewhere_and_those_of_reflected_noise_stay_as_they_are():
    x0 = 5 * torch.randn(8, 3, generator=stream())
    assert folded(x0, Linear(), Euclidean()) is x0
    assert folded(x0, VarianceExploding(), BOX) is x0, "its loss folds whole states"
    assert torch.equal(started(x0, VarianceExploding(0.1, 2.0), BOX), BOX.constrain(2 * x0))


def test_flow_matching_in_a_box_learns_the_data_from_where_it_is_sampled():
    """On a line, by the 1-Wasserstein distance: found 0.065, and 0.165 when trained from unfolded noise."""
    torch.manual_seed(0)
    model = MeanVelocity(MLP((1,), width=32, depth=2))
    step, optimizer = Step(model, FlowMatching(), Independent(), BOX), torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)

    def draw(n, g):
        return 1 - 0.4 * torch.rand(n, 1, generator=g) - (torch.rand(n, 1, generator=g) < 0.2).double()

    for k in range(400):
        optimizer.zero_grad()
        step(draw(256, stream(k)), generator=stream(1000 + k))[0].backward()
        optimizer.step()
        schedule.step()
    flow = Flow(EulerMap(model), Linear(), Independent(), BOX, (1,))
    x, data = flow.sample(2000, 16, sampler="heun").sort(0).values, draw(2000, stream(5000)).sort(0).values
    # Of two sets of 2000 data 0.02 by chance; the rest is what a small network misses of the gap between the modes.
    assert (x - data).abs().mean() < 0.1


def test_pairs_of_a_teacher_in_a_box_start_inside():
    teacher, x1 = gaussian((2,)), torch.zeros(64, 2)
    for space in (None, BOX):
        pair = Reflow(teacher=teacher, steps=1, space=space)(x1, generator=stream())
        x0 = normal((64, 2), x1, stream())
        x0 = x0 if space is None else BOX.constrain(x0)
        assert torch.equal(pair.x0, x0)
        assert (pair.x1 - teacher(x0, torch.zeros(64), torch.ones(64))).abs().max() < 1e-12, (
            "and lead where it takes them"
        )


# Gaussian sources


def coupling_of(name, folder, x1, labels):
    """A coupling with what it needs to be made."""
    file, options = str(folder / "stored.pt"), {}
    if name == "semidiscrete_ot":
        stored_potentials(file, x1[:40], labels[:40], steps=200, generator=stream())
        options = {"stored": file}
    elif name == "pruned":
        sparse_axes(file, x1[:3], most=0.9)
        options = {"stored": file, "deviations": 5.0}
    elif name == "reflow":
        maker = Reflow(teacher=gaussian((3,)), steps=1)
        stored_pairs(file, maker, torch.empty(4000, 3), labels, generator=stream())
        options = {"stored": file}
    elif name == "norm_aligned":
        options = {"norm": mean_norm(x1)}
    elif name == "learned":
        options = {"net": lambda x, s, t, cond: torch.stack([x / 2, torch.zeros_like(x)], 1)}
    elif name == "same_class_sequence":
        options = {"length": 2}
    return build("couplings", {"name": name} | options, interpolant=Stochastic(power=0.5))


def looks_gaussian(x0, x1):
    """Whether x0 is N(0, I) and has no correlation with x1, to five standard errors."""
    n = len(x0)
    a, b = x0.flatten(1), ((x1 - x1.mean(0)) / x1.std(0)).flatten(1)
    off = [
        a.mean(0),
        (a.square().mean(0) - 1) / 2**0.5,
        (a**4).mean(0) / 96**0.5 - 3 / 96**0.5,
        (a.T @ b / n).flatten(),
    ]
    return bool(torch.cat(off).abs().max() < 5 / n**0.5)


@pytest.mark.parametrize("name", [n for n in names("couplings") if n not in ("ring", "posterior_mean")])
def test_a_coupling_says_whether_its_source_is_gaussian_and_independent(name, tmp_path):
    """What it says is what its draws are; a learned source where it has learned something."""
    g, labels = stream(), torch.arange(4000) % 2
    x1 = torch.randn(4000, 3, generator=stream(1)) * torch.tensor([1.0, 2.0, 0.5]) + labels[:, None]
    coupling, found = coupling_of(name, tmp_path, x1, labels), []
    for i in range(0, 4000, 200):
        found.append(coupling(x1[i : i + 200], None if name == "reflow" else labels[i : i + 200], generator=g))
    x0, ends = (torch.cat([getattr(p, k) for p in found]) for k in ("x0", "x1"))
    assert coupling.gaussian == looks_gaussian(x0, ends)


def test_what_a_source_depends_on_is_told():
    assert not Independent(2.0).gaussian
    assert Pruned("none", coupling=Independent()).gaussian, "it is trained without being pruned"
    assert not Pruned("none", coupling=MinibatchOT()).gaussian
    assert not build("couplings", "ring").gaussian
    assert not build("couplings", {"name": "posterior_mean", "estimator": lambda y: y}).gaussian


NOISY = [
    "restart", "corrected", "bottleneck", "gamma", "edm_stochastic", "euler_maruyama", "stochastic_heun",
    {"name": "dpm_solver_pp", "eta": 1.0}, {"name": "reflected", "sampler": "euler_maruyama"},
    {"name": "picard", "sampler": "stochastic_heun"}, EulerMaruyama(),
]  # fmt: skip
QUIET = [
    "heun", "jump", "unipc", "dpm_solver_pp", {"name": "gamma", "gamma": 0.0}, {"name": "edm_stochastic", "churn": 0.0},
    {"name": "euler_maruyama", "noise": 0.0}, {"name": "reflected", "sampler": "heun"},
]  # fmt: skip


def flow_of(coupling, path=Linear(), space=Euclidean()):
    return Flow(eight_gaussians(labels=torch.arange(8) % 4), path, coupling, space, (2,), 4)


@pytest.mark.parametrize("sampler", NOISY, ids=str)
def test_samplers_with_noise_refuse_other_sources(sampler):
    for coupling in (MinibatchOT(), Independent(2.0)):
        with pytest.raises(
            ValueError, match=r"needs a source N\(0, I\), independent of the data, .* Sample by a solver"
        ):
            flow_of(coupling).sample(2, 1, sampler=sampler)
    flow_of(Independent()).built_sampler(sampler)


@pytest.mark.parametrize("sampler", QUIET, ids=str)
def test_samplers_without_noise_take_any_source(sampler):
    assert flow_of(MinibatchOT()).sample(2, 2, sampler=sampler).shape == (2, 2)


@pytest.mark.parametrize("name", [n for n in names("samplers") if n not in ("bottleneck", "recurrent")])
def test_a_sampler_that_draws_says_that_it_needs_a_gaussian_source(name):
    """Whatever a sampler draws takes the place of the source."""
    sampler, recorder = build("samplers", name), Recorder(stream())
    sample(gaussian(), torch.randn(4, 3), [0.0, 0.4, 1.0], sampler=sampler, generator=recorder)
    assert bool(recorder.asked) == getattr(sampler, "needs_gaussian", False)


def test_a_head_for_the_noise_of_the_path_needs_no_gaussian_source():
    path = Stochastic(power=0.5)
    bridge = flow_of(build("couplings", "schroedinger_bridge", interpolant=path), path)
    for sampler in ("euler_maruyama", "stochastic_heun"):
        bridge.built_sampler(sampler)
    with pytest.raises(ValueError, match="Bottleneck needs a source"):
        bridge.built_sampler("bottleneck")


def test_guidance_by_gradients_refuses_other_sources():
    def log_prob(x, t, cond):
        return -x.square().sum(1)

    def classified(model):
        return Classifier(model, log_prob)

    for guidance in (
        {"name": "classifier", "log_prob": log_prob},
        {"name": "minority", "classifier": lambda x, t: x},
        classified,
        lambda model: build("guidance", {"name": "interval", "guidance": classified(model)}, model=model),
    ):
        assert flow_of(Independent()).sample(2, 2, sampler="heun", guidance=guidance).shape == (2, 2)
        with pytest.raises(ValueError, match="Classifier needs a source"):
            flow_of(MinibatchOT()).sample(2, 2, sampler="heun", guidance=guidance)
    flow_of(MinibatchOT()).guided("cfg")


def test_a_box_folds_the_source_but_not_the_noise_on_top_of_data():
    exploding = VarianceExploding(0.01, 5.0)
    for path, space, want in (
        (Linear(), Euclidean(), True), (Linear(), BOX, False), (exploding, BOX, True), (exploding, Euclidean(), True),
    ):  # fmt: skip
        assert is_gaussian(flow_of(Independent(), path, space)) == want
    with pytest.raises(ValueError, match="that of the coupling Independent in the space Reflected"):
        flow_of(Independent(), Linear(), BOX).sample(2, 2, sampler="euler_maruyama")
    flow_of(Independent(), exploding, BOX).sample(2, 2, sampler={"name": "reflected", "sampler": "euler_maruyama"})


def test_the_velocity_of_other_sources_does_not_give_the_score():
    """Why they are refused: data N(0, I) moved by optimal transport stand still, and the state never has less noise."""
    x, t = torch.randn(1000, 2, generator=stream()), torch.full((1000,), 0.5)
    still = torch.zeros_like(x)  # of pairs x1 = x0, whose state is N(0, I) at all times, with the score -x
    score = Linear().score_from_velocity(still, x, t)
    assert (score + 2 * x).abs().max() < 1e-12


# Measured pairs


@pytest.mark.parametrize("shape", SHAPES)
def test_measured_pairs_train_through_the_engine_and_are_restored(shape):
    """The measurement says where to start, in training as in sampling, and the network is told nothing."""

    class Told(MLP):
        def forward(self, x, s, t, cond=None):
            assert cond is None
            return super().forward(x, s, t, cond)

    seen, x1 = [], torch.randn(64, *shape, generator=stream())
    y = torch.stack([x1 + 1, x1], 1)  # whose first half is what is estimated from
    coupling = build(
        "couplings", {"name": "posterior_mean", "estimator": lambda y: seen.append(y) or y[:, 0] / 2, "noise": 0.1}
    )
    model = MeanVelocity(Told(shape, width=8, depth=2))
    step = Step(model, FlowMatching(), coupling, Euclidean(), condition_dropout=0.5)
    step(x1, y, generator=stream(1))[0].backward()
    assert torch.equal(seen[-1], y), "as it was given: nothing drops it"
    flow = Flow(EulerMap(model), Linear(), coupling, Euclidean(), shape)
    with torch.no_grad():
        restored = flow.sample(64, 4, cond=y)
    starts = next(flow._starts(64, None, 0, 0, 64, y))[0]
    assert (starts - y[:, 0] / 2).std() == pytest.approx(0.1, rel=0.3)
    assert (restored - sample(EulerMap(model), starts, torch.linspace(0, 1, 5))).abs().max() < 1e-9
    with pytest.raises(ValueError, match="posterior_mean must have measurements"):
        flow.sample(2, 4)


def test_labels_or_holes_may_be_the_measurement():
    """Networks of such runs are built for the state alone."""
    shape = (1, 4, 4)
    for condition, classes in (("label", 3), ("inpainting", 3), ("semantic_map", 5)):
        table = {"name": "test_sources:restoration"}
        config = {
            "interpolant": "linear", "space": "euclidean", "coupling": table, "condition": condition, "map": "mean_velocity",
            "net": {"name": "mlp", "width": 8, "depth": 2}, "loss": {"name": "flow_matching"},
        }  # fmt: skip
        flow = Flow.built(config, shape, classes)
        assert flow.model.null_condition(2) is None or int(flow.model.null_condition(2).max()) == 0, "no classes"
        given = torch.arange(8) % 3 if condition != "semantic_map" else torch.zeros(8, 4, 4, dtype=torch.long)
        data = torch.randn(8, *shape, generator=stream())
        step = Step(flow.model, FlowMatching(), flow.coupling, flow.space, condition=flow.condition)
        step(data, given, generator=stream(1))
        cond = flow.condition(data, given, flow.space, generator=stream(2))
        assert flow.sample(8, 2, cond=cond).shape == (8, *shape)


def restoration():
    """A coupling of one's own, as a recipe names it."""

    def estimate(y):
        y = y["spatial"] if isinstance(y, dict) else y[:, None]
        return y.float().flatten(1).mean(1)[:, None, None, None].expand(-1, 1, 4, 4)

    return build("couplings", {"name": "posterior_mean", "estimator": estimate})


def test_a_coupling_that_takes_the_condition_must_keep_it():
    class Leaking(Independent):
        takes_condition = True

        def __call__(self, x1, cond=None, *, generator=None):
            return Pair(x1, x1, cond)

    step = Step(MeanVelocity(MLP((3,), width=8, depth=2)), FlowMatching(), Leaking(), Euclidean())
    with pytest.raises(ValueError, match="pairs must have conditions if the data have, and none if not"):
        step(torch.zeros(4, 3), torch.zeros(4))
