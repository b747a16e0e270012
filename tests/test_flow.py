"""What a user holds: sampling, mapping, labels, seeds, loading."""

import dataclasses
import math

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

import flowmaps
from flowmaps.build import build
from flowmaps.core.flow_map import EulerMap, FlowMap, MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.couplings.independent import Independent
from flowmaps.flow import Flow
from flowmaps.guidance.cfg import CFG
from flowmaps.guidance.interval import Interval
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.interpolants.variance_exploding import VarianceExploding
from flowmaps.nets.mlp import MLP
from flowmaps.samplers.flow_turbo import FlowTurbo
from flowmaps.spaces.euclidean import Euclidean


def flow_of(shape=(3,), path=Linear(), space=Euclidean()):
    return Flow(gaussian(shape, path), path, Independent(), space, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_do_not_depend_on_batch_or_number(shape):
    flow = flow_of(shape)
    whole = flow.sample(7, steps=2, seed=3)
    assert whole.shape == (7, *shape)
    assert torch.equal(flow.sample(7, steps=2, seed=3, batch=2), whole)
    assert torch.equal(flow.sample(2, steps=2, seed=3), whole[:2])
    assert torch.equal(flow.sample(3, steps=2, seed=3, first=4), whole[4:])
    assert not torch.equal(flow.sample(7, steps=2, seed=4), whole)


@pytest.mark.parametrize("path", [Linear(), VarianceExploding(0.01, 50.0)], ids=lambda p: type(p).__name__)
def test_samples_of_the_true_map_have_the_law_of_the_data(path):
    flow = flow_of((2,), path)
    x = flow.sample(20_000, steps=1, batch=20_000)
    # Five standard errors of four numbers: 0.7 % times 5, false alarm 2e-6; the exploding path adds 1e-4 of noise and 1/50 of missing mean.
    assert ((x.mean(0) - flow.model.mean) / flow.model.std).abs().max() < 0.06
    assert (x.std(0) / flow.model.std - 1).abs().max() < 0.03


def test_space_decodes():
    plain, scaled = flow_of(), flow_of(space=Euclidean(shift=10.0, scale=2.0))
    assert torch.allclose(scaled.sample(4), 2 * plain.sample(4) + 10)
    assert torch.allclose(scaled.space.decode(scaled.space.encode(torch.ones(2, 3))), torch.ones(2, 3))
    with pytest.raises(ValueError, match="scale must be > 0"):
        Euclidean(scale=0.0)


def test_map_and_velocity_take_numbers_or_tensors():
    flow, x = flow_of(), torch.randn(4, 3, generator=stream())
    y = flow.map(x, 0.2, torch.full((4,), 0.7))
    assert torch.equal(y, flow.model(x, torch.full((4,), 0.2), torch.full((4,), 0.7)))
    assert (flow.map(y, 0.7, 0.2) - x).abs().max() < 1e-12
    assert torch.equal(flow.velocity(x, 0.3), flow.model.velocity(x, torch.full((4,), 0.3)))
    assert not y.requires_grad


def test_map_and_velocity_check_states_times_and_labels():
    flow, x = dataclasses.replace(flow_of(), classes=4), torch.randn(4, 3, generator=stream())
    for states in (x[0], x[:, :2]):
        with pytest.raises(ValueError, match=r"x must be states \[B, 3\]; got"):
            flow.velocity(states, 0.5)
    for t in (1.5, -0.1, math.nan, torch.tensor([0.0, 0.5, 1.0, 2.0])):
        with pytest.raises(ValueError, match=r"times must lie in \[0, 1\]; got"):
            flow.map(x, 0.2, t)
    told = []
    flow.model.mean_velocity = lambda x, s, t, cond: told.append(cond) or x
    for label in (3, [3] * 4, torch.full((4,), 3)):
        flow.map(x, 0.0, 1.0, label)
        assert torch.equal(told[-1], torch.full((4,), 3))
    with pytest.raises(ValueError, match="label must be one class, or 4, from 0 to 3 .4 for none.; got 2, from"):
        flow.velocity(x, 0.0, [1, 2])
    for options, message in (
        ({"steps": "4"}, "steps must be a whole number, or times that increase from 0 to 1; got '4'"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"guidance": None}, "guidance must be a name, a table or an object; got None"),
        ({"label": 1.5}, "label must be one class"),
    ):
        with pytest.raises(ValueError, match=message):
            flow.sample(4, **options)


def labelled():
    model = eight_gaussians(labels=torch.arange(8) % 4, steps=24)
    return Flow(model, Linear(), Independent(), Euclidean(), (2,), 4)


def test_labels_take_turns_or_are_given():
    flow = labelled()
    assert flow.labels(6).tolist() == [0, 1, 2, 3, 0, 1]
    assert flow.labels(3, first=5).tolist() == [1, 2, 3]
    assert flow.labels(3, 2).tolist() == [2, 2, 2]
    assert flow.labels(2, [4, 0]).tolist() == [4, 0], "the number of classes stands for none"
    near = (flow.sample(6, 1)[:, None] - flow.model.means).norm(dim=2).argmin(1)
    assert (near % 4).tolist() == [0, 1, 2, 3, 0, 1]
    for wrong in (5, -1, [0, 1, 2]):
        with pytest.raises(ValueError, match="label must be one class, or 2, from 0 to 3"):
            flow.labels(2, wrong)
    with pytest.raises(ValueError, match="label must be left out: this flow has no classes"):
        flow_of().sample(2, label=1)


def test_guidance_sharpens():
    flow = labelled()
    a, b = (flow.sample(50, 20, label=0, sampler="heun", guidance=g) for g in (1.0, 3.0))
    assert not torch.equal(a, b)
    assert torch.equal(flow.sample(5, 2, label=0, guidance=1.0), flow.sample(5, 2, label=0))


def test_guidance_by_name_table_and_function():
    flow = labelled()

    def drawn(guidance, **options):
        return flow.sample(5, 3, label=1, sampler="euler", guidance=guidance, **options)

    plain, cfg = drawn(1.0), drawn(2.0)
    assert torch.equal(drawn("cfg"), cfg)
    assert torch.equal(drawn({"name": "cfg", "scale": 2.0}), cfg)
    assert torch.equal(drawn(lambda model: build("guidance", "cfg", model=model)), cfg)
    assert torch.equal(drawn({"name": "interval", "low": 0, "high": 1}), cfg)
    assert torch.equal(drawn({"name": "interval", "guidance": {"name": "raag", "scale": 1.0}}), plain)
    assert torch.allclose(drawn({"name": "autoguidance", "weak": flow.model}), plain)
    with pytest.raises(ValueError, match="no guidance named 'cgf'. Did you mean 'cfg'"):
        drawn("cgf")
    with pytest.raises(ValueError, match="CFG has no option 'scal'. Did you mean 'scale'"):
        drawn({"name": "cfg", "scal": 2.0})
    # The path goes to the guidance, and the guided map to a grid that is searched for.
    turned = dataclasses.replace(flow, interpolant=Trigonometric())
    assert turned.guided("cfg_plus_plus").interpolant == Trigonometric()
    assert flow.guided("cfg_plus_plus").interpolant == Linear()
    boss = {"name": "boss", "nodes": 12}
    assert not torch.equal(flow.times(3, boss), flow.times(3, boss, guidance=4.0))
    assert torch.equal(drawn(4.0, grid=boss), flow.sample(
        5, flow.times(3, boss, guidance=4.0).tolist(), label=1, sampler="euler", guidance=4.0
    ))  # fmt: skip
    assert not torch.equal(flow.times(3, "power"), turned.times(3, "power"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n and batch must be at least 1"),
        ({"n": 1, "steps": 0}, "steps must be at least 1"),
        ({"n": 1, "steps": [0.0, 0.7, 0.5, 1.0]}, "times that increase from 0 to 1"),
        ({"n": 1, "steps": [0.0, 0.9]}, "times that increase from 0 to 1"),
        ({"n": 1, "sampler": "hune"}, "Did you mean 'heun'"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(ValueError, match=message):
        flow_of().sample(**options)


def test_times_may_be_given_and_progress_is_told():
    flow, told = flow_of(), []
    assert torch.allclose(flow.sample(4, [0.0, 0.1, 1.0], callback=told.append, batch=3), flow.sample(4, 1))
    assert told == [3, 4]


def test_a_stochastic_path_starts_from_its_own_source():
    flow = flow_of(path=VarianceExploding(0.01, 50.0))
    silent = dataclasses.replace(flow, model=EulerMap(lambda x, t, cond: torch.zeros_like(x)))
    assert abs(silent.sample(4000, 1, batch=4000).std() - 50) < 3


def test_lazy_names():
    assert flowmaps.Flow is Flow
    assert callable(flowmaps.load)


def test_a_grid_is_searched_for_and_does_not_depend_on_what_is_drawn():
    flow = flow_of()
    times = flow.times(3, "shortest_path")
    assert torch.equal(times, flow.times(3, {"name": "shortest_path"}))
    assert torch.equal(flow.sample(5, 3, grid="shortest_path"), flow.sample(5, times.tolist()))
    assert torch.equal(flow.sample(5, 3, grid="uniform"), flow.sample(5, 3))


class Swinging(FlowMap):
    """Label 1 swings late, label 0 early, and without a label nothing moves."""

    def mean_velocity(self, x, s, t, cond=None):
        rate = torch.where(cond == 1, (s - 0.5).clamp_min(0), torch.where(cond == 0, (0.5 - s).clamp_min(0), 0))
        return (8 * rate)[:, None].expand_as(x)

    def null_condition(self, batch):
        return torch.full((batch,), 4)


def test_a_grid_is_tried_on_what_is_asked_for():
    flow, boss = dataclasses.replace(labelled(), model=EulerMap(Swinging())), {"name": "boss", "nodes": 12}
    early, late, both = (flow.times(3, boss, label=label) for label in (0, 1, [0, 1, 1]))
    assert early[-2] <= 0.5 <= late[1]
    assert both[1] < 0.5 < both[-2]
    for label, times in ((1, late), ([0, 1, 1], both)):
        asked = flow.sample(3, 3, label=label, sampler="euler", grid=boss)
        assert torch.equal(asked, flow.sample(3, times.tolist(), label=label, sampler="euler"))
    cond = torch.tensor([0, 1, 1])
    assert torch.equal(flow.times(3, boss, cond=cond), both)
    assert torch.equal(flow.sample(3, 3, cond=cond, sampler="euler", grid=boss), asked)
    with pytest.raises(ValueError, match=r"chooses the times of a number of steps; got times, \[0.0, 1.0\], too"):
        flow.sample(3, [0.0, 1.0], grid=boss)


class Watching:
    """A grid for a sampler."""

    def __init__(self, sampler):
        Watching.seen = sampler

    def __call__(self, steps, model, x0, cond=None):
        return torch.linspace(0, 1, steps + 1)


def test_runs_are_loaded_wherever_they_stand_and_refiners_guided_as_the_flow(monkeypatch):
    net = MLP((4,), classes=4, width=8, depth=2).double()
    flow = dataclasses.replace(labelled(), model=EulerMap(labelled().model))
    refiner, weak = MeanVelocity(net), eight_gaussians(labels=torch.arange(8) % 4, steps=4)
    weak.std.fill_(0.4)
    held = {"r": refiner, "w": weak}
    monkeypatch.setattr(flowmaps.flow, "load", lambda run: dataclasses.replace(flow, model=held[run]))
    turbo = {"name": "flow_turbo", "pseudo": 0, "refiner": "r"}

    def drawn(sampler, guidance):
        return flow.sample(5, 4, label=1, sampler=sampler, guidance=guidance)

    window = Interval(refiner, CFG(refiner, 3.0), 0.0, 0.6)
    for guidance, mine in (
        (1.0, refiner),
        (3.0, CFG(refiner, 3.0)),
        ({"name": "guided_flows", "scale": 3.0}, CFG(refiner, 3.0)),
        ({"name": "interval", "low": 0.0, "high": 0.6, "guidance": {"name": "cfg", "scale": 3.0}}, window),
    ):
        wanted = drawn(FlowTurbo(1, 0, mine), guidance)
        assert torch.equal(drawn(turbo, guidance), wanted)
        around = {"name": "reflected", "sampler": turbo, "low": -50.0, "high": 50.0}
        assert torch.equal(drawn(around, guidance), wanted)
    assert not torch.equal(drawn(turbo, 3.0), drawn(FlowTurbo(1, 0, refiner), 3.0))
    flow.times(3, {"name": "test_flow:Watching", "sampler": turbo}, guidance=3.0)
    assert isinstance(Watching.seen.refiner, CFG)
    assert Watching.seen.refiner.model is refiner
    inner = {"name": "autoguidance", "weak": "w", "scale": 3.0}
    guided = drawn("euler", inner | {"weak": weak})
    assert torch.equal(drawn("euler", {"name": "interval", "low": 0.0, "high": 1.0, "guidance": inner}), guided)
    assert not torch.equal(drawn("euler", 1.0), guided)
    for guidance in ("raag", {"name": "interval", "guidance": inner}, lambda model: model):
        with pytest.raises(ValueError, match="a refiner given by its run must be guided as the model is, by a scale"):
            drawn(turbo, guidance)
    flow = dataclasses.replace(flow, interpolant=Trigonometric())
    monkeypatch.setattr(flowmaps.flow, "load", lambda run: labelled())
    with pytest.raises(ValueError, match=r"weak must be a run on the flow's path, Trigonometric\(\); got w on Linear"):
        drawn("euler", inner)


def test_sampling_to_a_tolerance():
    """The true map passes its first check, whatever the batch; calibration finds that it needs no solver."""
    flow = flow_of()
    result = flow.sample_to_tolerance(5, 0.1, seed=3, batch=2)
    assert (result.evaluations == 12).all()
    assert torch.allclose(result.x, flow.sample(5, 2, seed=3, sampler="runge_kutta4"))
    assert result.error.shape == (5,)
    rungs = flow.calibrate(0.01, probe=40, batch=16)
    calibrated = flow.sample_to_tolerance(5, rungs, seed=3, batch=2)
    assert (calibrated.evaluations == 3).all()
    assert torch.allclose(calibrated.x, flow.sample(5, 2, seed=3))


def test_tolerance_sampling_and_calibration_keep_each_sample_to_its_condition():
    """A state that moves by its condition; every third swings on the way, and needs a solver."""

    class Told(FlowMap):
        def mean_velocity(self, x, s, t, cond=None):
            swing = 9 * cond["swing"] * torch.cos(9 * s)
            return (cond["move"] + swing)[:, None].expand_as(x)

    flow, move = dataclasses.replace(flow_of(), model=Told()), torch.arange(9.0)
    still, some = torch.zeros(9), (torch.arange(9) % 3 == 0).double()
    starts = flow.sample(9, 1, seed=3, cond={"move": still, "swing": still})
    result = flow.sample_to_tolerance(9, 0.01, seed=3, batch=4, cond={"move": move, "swing": some})
    end = move + math.sin(9.0) * some
    assert (result.x - starts - end[:, None]).abs().max() < 0.01
    assert torch.equal(result.evaluations > 12, some == 1)
    probe = torch.full((40,), 1.0)
    for swing in (0.0, 1.0):
        rungs = flow.calibrate(0.01, probe=40, batch=16, cond={"move": probe, "swing": swing * probe})
        spent = flow.sample_to_tolerance(9, rungs, cond={"move": move, "swing": swing * torch.ones(9)}).evaluations
        assert (spent == 3).all() if swing == 0 else (spent > 10).all()
    with pytest.raises(ValueError, match="cond must have one row for each of 256 samples"):
        flow.calibrate(0.01, cond={"move": probe, "swing": probe})
    with pytest.raises(ValueError, match="cond takes the place of label"):
        flow.sample_to_tolerance(9, 0.01, label=0, cond={"move": move})


def test_calibration_is_for_the_label_and_the_guidance_that_are_given():
    class Turning(FlowMap):
        """Label 1 swings, in Euler steps; all others stand still."""

        def mean_velocity(self, x, s, t, cond=None):
            rate = torch.where(cond == 1, 9.0, 0.0)
            return (rate * torch.cos(rate * s))[:, None].expand_as(x)

        def null_condition(self, batch):
            return torch.full((batch,), 4)

    flow = dataclasses.replace(labelled(), model=Turning())
    assert (flow.sample_to_tolerance(3, flow.calibrate(0.01, label=0), label=0).evaluations == 3).all()
    assert (flow.sample_to_tolerance(3, flow.calibrate(0.01, label=1), label=1).evaluations > 10).all()
    for guidance, calls in ((1.0, 12), (2.0, 24)):
        result = flow.sample_to_tolerance(3, 0.01, label=0, guidance=guidance)
        assert (result.evaluations == calls).all(), "guidance asks the network twice"
    twice = flow.calibrate(0.01, label=1, guidance=2.0)
    end, _ = twice[-1].climb(
        build("guidance", {"name": "cfg", "scale": 2.0}, model=Turning()), torch.zeros(1, 2), torch.ones(1)
    )
    assert (end - 2 * math.sin(9.0)).abs().max() < 0.01
