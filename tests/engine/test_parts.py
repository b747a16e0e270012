"""The parts of the engine: order of data, averages, learning rate, configuration, step, compiler."""

import copy
import dataclasses
import json

import pytest
import torch
from runs import same, small, train_quickly
from torch import nn
from truth import gaussian

from flowmaps.build import build, resolve
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.core.interpolant import Linear
from flowmaps.core.random import fold_in
from flowmaps.couplings.independent import Independent
from flowmaps.engine import compiled
from flowmaps.engine.compiled import Compiled, CompileError
from flowmaps.engine.config import (
    ConfigError,
    find_recipe,
    override,
    read_config,
    recipe_names,
    resolve_config,
    write_config,
)
from flowmaps.engine.dry_run import dry_run
from flowmaps.engine.ema import EMA, update_average
from flowmaps.engine.objects import build_optimizer, build_step, held_out, open_data
from flowmaps.engine.order import Order
from flowmaps.engine.run_folder import RunFolder
from flowmaps.engine.schedule import Schedule
from flowmaps.engine.step import Step
from flowmaps.engine.train import train
from flowmaps.flow import Flow, load
from flowmaps.guidance.told import Told
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.nets.mlp import MLP
from flowmaps.spaces.euclidean import Euclidean
from flowmaps.weightings.learned import Learned


def test_order_shows_every_datum_once_a_pass_and_resumes_anywhere():
    whole = list(Order(10, 4, 40, seed=3))
    flat = [i for batch in whole for i in batch]
    assert len(whole) == len(Order(10, 4, 40)) == 10
    assert all(sorted(flat[10 * k : 10 * k + 10]) == list(range(10)) for k in range(4))
    assert flat[:10] != flat[10:20]
    assert list(Order(10, 4, 40, start=12, seed=3)) == whole[3:]
    assert list(Order(10, 4, 40, seed=4)) != whole
    parts = [list(Order(10, 4, 40, seed=3, rank=r, world=2)) for r in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(b) for b in whole]
    assert [len(b) for b in Order(3, 8, 16)] == [8, 8], "batches longer than the data"


def test_average_by_power_law_is_the_weighted_mean_it_claims_to_be():
    """After n steps of one image the weight of iterate i is proportional to the decay product; check the exponent."""
    ema, average, model = EMA(power=3.0), nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    values = torch.rand(300, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for i, v in enumerate(values, 1):
        with torch.no_grad():
            model.weight.fill_(v)
        update_average(average, model, ema.decay(i, 1))
        d = (1 - 1 / i) ** 4
        total = total * d + float(v) * (1 - d)
    assert average.weight.item() == pytest.approx(total, rel=1e-5)
    age = sum(i**3 * float(v) for i, v in enumerate(values, 1)) / sum(i**3 for i in range(1, 301))
    assert average.weight.item() == pytest.approx(age, abs=0.01), "weights go as time to the power"


def test_average_by_half_life():
    ema = EMA(halflife=1000, rampup=0.1)
    assert ema.decay(1_000_000, 1000) == pytest.approx(0.5)
    assert ema.decay(100, 10) == pytest.approx(0.5)  # ramped: half-life is a tenth of the images seen
    assert EMA().decay(64, 64) == 0, "the first step copies"


def test_learning_rate():
    schedule = Schedule(warmup=100, hold=0.5, decay="cosine", floor=0.1)
    got = [schedule.factor(i, 1000) for i in (0, 49, 200, 500, 750, 1000)]
    assert got == pytest.approx([0.01, 0.5, 1, 1, 0.55, 0.1])
    assert Schedule(decay="constant").factor(999, 1000) == 1
    assert Schedule(hold=0.0, decay="linear", floor=0.0).factor(250, 1000) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="schedule.decay must be one of 'cosine', 'linear', 'constant'; got 'sine'"):
        Schedule(decay="sine")


def test_overrides():
    config = {"loss": "lsd", "net": {"name": "mlp", "width": 8}}
    new = override(
        config, ["loss.diagonal=0.5", "net.width=16", "seed=3", "optimizer.lr=1e-4", "data=toy", "sample.steps=[1, 4]"]
    )
    assert new["loss"] == {"name": "lsd", "diagonal": 0.5}
    assert new["net"] == {"name": "mlp", "width": 16}
    assert (new["seed"], new["data"]) == (3, "toy")
    assert new["optimizer"] == {"name": "torch.optim:Adam", "lr": 1e-4}, "the rest of a default table stays"
    assert new["sample"]["steps"] == [1, 4]
    assert config["net"]["width"] == 8, "the tables given are not touched"
    with pytest.raises(ConfigError, match="must read key=value"):
        override(config, ["loss"])
    with pytest.raises(ConfigError, match="must lead through tables; seed is 0"):
        override({"seed": 0}, ["seed.x=1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imgaes": 3}, "a run has no option 'imgaes'. Did you mean 'images'"),
        ({"images": "many"}, "images must be a whole number; got 'many'"),
        ({"images": 0}, "images must be a whole number, at least 1; got 0"),
        ({"batch": True}, "batch must be a whole number; got True"),
        ({"precision": "half"}, "precision must be one of 'float32', 'bfloat16'; got 'half'"),
        ({"save": {"evry": 3}}, "save has no option 'evry'. Options: every, keep"),
        ({"schedule": {"hold": 2}}, "schedule.hold must lie between 0 and 1"),
        ({"ema": {"halflive": 2}}, "EMA has no option 'halflive'. Did you mean 'halflife'"),
        ({"loss": {"name": "lds"}}, "no losses named 'lds'. Did you mean 'lsd'"),
        ({"loss": "feature_residual"}, "'feature_residual' goes on from a trained network; from_teacher is false. Set"),
        ({"net": 3}, "net must be a name or a table; got 3"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        resolve_config(options)


def test_resolved_configuration_survives_its_file(tmp_path):
    full = resolve_config(small(loss={"name": "lsd", "times": "logit_normal_pair"}))
    (tmp_path / "run.toml").write_text(write_config(full))
    assert read_config(tmp_path / "run.toml") == full
    assert resolve_config(full) == full, "resolving is idempotent"
    assert full["save"]["every"] == 1_000_000
    with pytest.raises(ConfigError, match="must be a readable TOML file"):
        (tmp_path / "bad.toml").write_text("a = = 3")
        read_config(tmp_path / "bad.toml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_and_says_its_numbers(name):
    path = find_recipe(name)
    resolve_config(read_config(path))
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Target") for line in head)
    assert any(line.startswith("# Measured") for line in head)


def test_recipes_are_found_by_name_or_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe named 'digit'. Did you mean 'digits'\?"):
        find_recipe("digit")
    with pytest.raises(ConfigError, match="must be an existing file or the name of a recipe"):
        find_recipe(str(tmp_path / "none.toml"))


def step_of(loss, **options):
    return Step(MeanVelocity(MLP((3,), classes=4, width=16, depth=2)), loss, Independent(), Euclidean(), **options)


def test_a_law_of_times_that_learns_is_told_the_losses_and_saved():
    loss = build("losses", {"name": "lsd", "diagonal_times": {"name": "loss_second_moment", "bins": 4, "history": 2}})
    step, g = step_of(loss), torch.Generator().manual_seed(0)
    for _ in range(4):
        step(torch.randn(32, 3, generator=g), torch.zeros(32, dtype=torch.long), generator=g)
    kept = step.trained_state()
    assert (kept["parts.loss_diagonal_times.seen"] >= 2).all()
    assert (loss.diagonal_times.mass() != 0.25).any()
    other = step_of(
        build(
            "losses",
            resolve(
                "losses", {"name": "lsd", "diagonal_times": {"name": "loss_second_moment", "bins": 4, "history": 2}}
            ),
        )
    )
    other.load_state_dict(kept, strict=False)
    assert torch.equal(other.loss.diagonal_times.mass(), loss.diagonal_times.mass())


def test_a_law_of_times_learns_in_training_mode():
    """It has buffers only, and is not frozen for that."""
    loss = build("losses", {"name": "flow_matching", "times": {"name": "loss_second_moment", "bins": 4, "history": 2}})
    step, g = step_of(loss), torch.Generator().manual_seed(0)
    for _ in range(3):
        step.train()(torch.randn(32, 3, generator=g), torch.zeros(32, dtype=torch.long), generator=g)
    assert (loss.times.mass() != 0.25).any()


@pytest.mark.slow
def test_a_run_that_cannot_be_built_leaves_its_folder_free(tmp_path):
    with pytest.raises(ValueError, match="patch"):
        train(small() | {"net": {"name": "dit", "patch": 3}}, tmp_path / "run", quiet=True)
    train(small(), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="holds one"):
        train(small(), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("cond", [None, torch.zeros(4, dtype=torch.long)])
def test_pairs_and_data_agree_about_conditions(cond):
    """Stored pairs without labels would train a network with labels without them."""

    class Other(Independent):
        def __call__(self, x1, cond=None, *, generator=None):
            return super().__call__(x1, torch.zeros(len(x1)) if cond is None else None, generator=generator)

    step = Step(MeanVelocity(MLP((3,), classes=2, width=8, depth=2)), FlowMatching(), Other(), Euclidean())
    with pytest.raises(ValueError, match="pairs must have conditions if the data have, and none if not; Other gives"):
        step(torch.zeros(4, 3), cond)


@pytest.mark.slow
def test_a_law_of_times_learns_in_a_compiled_loss():
    """The first call is made twice and compared: what the law hears in between must not count."""
    loss = build("losses", {"name": "flow_matching", "times": {"name": "loss_second_moment", "bins": 4, "history": 2}})
    step, g = step_of(loss, compile=True), torch.Generator().manual_seed(0)
    for _ in range(3):
        step(torch.randn(32, 3, generator=g), torch.zeros(32, dtype=torch.long), generator=g, terms=False)
    assert (loss.times.mass() != 0.25).any()


def test_step_registers_what_trains_and_leaves_out_what_is_frozen():
    teacher = MeanVelocity(MLP((3,), width=8, depth=2)).requires_grad_(False)
    step = step_of(build("losses", {"name": "lmd"}, teacher=teacher, weighting=Learned()))
    assert any(name.startswith("parts.loss_weighting.") for name in step.trained_state())
    assert not any("teacher" in name for name in step.trained_state())
    assert any("teacher" in name for name in step.state_dict()), "but it moves with the step"
    assert not step.train().loss.teacher.training, "and its dropout stays off"
    assert step.model.training
    assert step.loss.weighting.training
    trained = {n for n, p in step.named_parameters() if p.requires_grad}
    assert any("weighting" in n for n in trained)
    optimizer = build_optimizer({"optimizer": {"name": "torch.optim:SGD", "lr": 0.1}}, step)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trained)


def test_step_drops_conditions_and_mirrors_by_the_given_stream():
    class Seen:
        def __call__(self, model, pair, *, step=0, generator=None):
            self.pair, self.step = pair, step
            return pair.x0.flatten(1).mean(1)

    seen = Seen()
    step = step_of(seen, condition_dropout=0.3)
    labels = torch.arange(4000) % 4
    step(torch.zeros(4000, 3), labels, images=7, generator=fold_in(0))
    dropped = seen.pair.cond == 4
    assert seen.step == 7
    assert abs(dropped.float().mean() - 0.3) < 0.036  # five standard errors: false alarm 6e-7
    assert torch.equal(seen.pair.cond[~dropped], labels[~dropped])
    mirrored = step_of(seen, mirror=True)
    images = torch.arange(8.0).reshape(1, 2, 2, 2).repeat(1000, 1, 1, 1)
    mirrored.coupling = Independent()
    mirrored(images, generator=fold_in(0))
    flipped = (seen.pair.x1 == images.flip(-1)).flatten(1).all(1)
    assert (seen.pair.x1 == images).flatten(1).all(1).logical_xor(flipped).all()
    assert abs(flipped.float().mean() - 0.5) < 0.08


def test_step_trains_in_the_space_of_the_flow():
    class Seen:
        def __call__(self, model, pair, *, step=0, generator=None):
            self.pair = pair
            return pair.x0.mean(1)

    seen, data = Seen(), torch.randn(5, 3, generator=fold_in(1))
    Step(MeanVelocity(MLP((3,), width=8)), seen, Independent(), Euclidean(1.0, 2.0))(data, generator=fold_in(0))
    assert torch.equal(seen.pair.x1, (data - 1) / 2)


def test_nested_conditions_are_dropped_together():
    class Net(nn.Module):
        def null_condition(self, batch):
            return {"a": torch.full((batch,), -1), "b": [torch.zeros(batch, 2)]}

    class Seen:
        def __call__(self, model, pair, *, step=0, generator=None):
            self.cond = pair.cond
            return pair.x0.mean(1)

    seen = Seen()
    step = Step(MeanVelocity(Net()), seen, Independent(), Euclidean(), condition_dropout=0.5)
    step(torch.zeros(100, 3), {"a": torch.arange(100), "b": [torch.ones(100, 2)]}, generator=fold_in(0))
    dropped = seen.cond["a"] == -1
    assert 20 < dropped.sum() < 80
    assert torch.equal(seen.cond["b"][0] == 0, dropped[:, None].expand(100, 2))


def test_data_splits_do_not_meet():
    config = resolve_config(small())
    train = open_data(config)
    test = held_out(config, train)
    rows = {tuple(x.flatten().tolist()) for x in train.x}
    assert len(train) + len(test) == 1797
    assert not rows & {tuple(x.flatten().tolist()) for x in test.x}
    assert open_data(config | {"conditional": False}).classes == 0


def test_teachers_must_fit():
    config = resolve_config(small(loss={"name": "lmd"}))
    flow = Flow.built(config, (1, 8, 8), 10)
    with pytest.raises(ConfigError, match="the loss 'lmd' learns from a teacher; none is given"):
        build_step(config, flow, None)
    other = dataclasses.replace(flow, shape=(3,))
    with pytest.raises(ConfigError, match="the teacher must have this run's data and space"):
        build_step(config, flow, other)
    bigger = Flow.built(config | {"net": {"name": "mlp", "width": 99, "depth": 2}}, (1, 8, 8), 10)
    with pytest.raises(ConfigError, match="from_teacher needs a student with the teacher's network"):
        build_step(config | {"from_teacher": True}, flow, bigger)
    build_step(config | {"from_teacher": True}, flow, Flow.built(config, (1, 8, 8), 10))
    with pytest.raises(ConfigError, match=r"optimizer Adam has no option 'learning_rate'"):
        build_optimizer({"optimizer": {"name": "torch.optim:Adam", "learning_rate": 1}}, flow.model)


def test_a_teacher_on_another_path_is_seen_on_this_one():
    config = resolve_config(small(interpolant="trigonometric", loss={"name": "lmd"}))
    student = Flow.built(config, (1, 8, 8), 10)
    truth = gaussian((1, 8, 8), Linear()).float()
    teacher = Flow(truth, Linear(), student.coupling, student.space, (1, 8, 8))
    step = build_step(config, student, teacher)
    want = gaussian((1, 8, 8), student.interpolant).float()
    x, t = torch.randn(4, 1, 8, 8, generator=fold_in(0)), torch.rand(4, generator=fold_in(1)) * 0.9 + 0.05
    assert (step.loss.teacher.velocity(x, t) - want.velocity(x, t)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "name", ["lsd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("flow_matching", "mean_flow", "psd", "esd"))]
)
def test_compiled_is_eager(name):
    torch.manual_seed(0)
    model = MeanVelocity(MLP((3,), width=16, depth=2))
    pair = Independent()(torch.randn(16, 3, generator=fold_in(0)), generator=fold_in(1))
    loss = build("losses", name)
    fast = Compiled(loss)
    for i in range(3):
        eager = loss(model, pair, generator=fold_in(2, i))
        quick = fast(model, pair, generator=fold_in(2, i))
        assert (eager - quick).abs().max() < 1e-5
        gradients = [
            torch.autograd.grad(x.mean(), list(model.parameters()), materialize_grads=True) for x in (eager, quick)
        ]
        assert all((a - b).abs().max() < 1e-5 for a, b in zip(*gradients, strict=True))


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.parametrize(
    "table",
    [{"name": "soflow", "images": 4000}, {"name": "split_mean_flow", "start": 1000}],
    ids=lambda table: table["name"],
)
def test_compiled_follows_schedules(table):
    """Options that depend on the images seen neither freeze nor recompile each step; nor do draws that change."""
    torch._dynamo.reset()  # the compiler's limit of eight graphs counts those of other tests
    torch.manual_seed(0)
    model = MeanVelocity(MLP((3,), width=16, depth=2))
    pair = Independent()(torch.randn(16, 3, generator=fold_in(0)), generator=fold_in(1))
    loss = build("losses", table)
    fast, values = Compiled(loss), []
    for i in range(12):
        values.append(fast(model, pair, step=300 * i, generator=fold_in(2)))
        assert (values[-1] - loss(model, pair, step=300 * i, generator=fold_in(2))).abs().max() < 1e-5
    assert (values[0] - values[-1]).abs().max() > 1e-4, "the schedule matters"


def test_averages_are_saved_and_follow():
    """The target of a shortcut model is part of its state, though nothing trains it; a teacher is not."""
    torch.manual_seed(0)
    flow = MeanVelocity(MLP((3,), width=16, depth=2))
    table = {"name": "shortcut", "target": {"name": "average", "decay": 0.5}}
    step, other = (Step(flow, build("losses", table), Independent(), Euclidean()) for _ in range(2))
    (name,) = {key for key in step.trained_state() if key.startswith("parts.") and key.endswith("enter.bias")}
    before = step.trained_state()[name].clone()
    with torch.no_grad():
        flow.net.enter.bias += 1
    step.follow()
    assert torch.allclose(step.trained_state()[name], before + 0.5)
    other.load_state_dict(step.trained_state(), strict=False)
    assert torch.allclose(other.trained_state()[name], before + 0.5)
    taught = Step(
        flow, build("losses", "lmd", teacher=copy.deepcopy(flow).requires_grad_(False)), Independent(), Euclidean()
    )
    assert not any(key.startswith("parts.") for key in taught.trained_state())


def test_a_compiler_that_errs_is_caught(monkeypatch):
    def wrong(f, **options):
        return lambda *a: 1.01 * f(*a)

    monkeypatch.setattr(compiled.torch, "compile", wrong)
    model = MeanVelocity(MLP((3,), width=8, depth=2))
    pair = Independent()(torch.zeros(8, 3), generator=fold_in(1))
    with pytest.raises(
        CompileError, match="the value of the compiled loss must be that of the eager loss; it is off by 0.01"
    ):
        Compiled(build("losses", "lsd"))(model, pair, generator=fold_in(2))


def test_dry_run_tells_what_a_run_needs():
    text = dry_run(small())
    for word in ("parameters", "memory", "disk", "tangents", "1,438 of shape (1, 8, 8), 10 classes", "good"):
        assert word in text
    before = torch.get_rng_state()
    dry_run(small(loss={"name": "lmd"}, teacher={"loss": "flow_matching"}))
    assert torch.equal(torch.get_rng_state(), before)


def test_dry_run_refuses_a_network_whose_derivative_lies():
    """A custom function with a wrong forward derivative, the kind of error that torch reports to nobody."""
    with pytest.raises(ConfigError, match="the exact derivative of the network must agree with a central difference"):
        dry_run(small(net={"name": "lying_net:Lying"}))


def test_run_folder_rows_survive_a_cut_line(tmp_path):
    run = RunFolder.reserved(tmp_path / "run")
    run.begin(resolve_config(small()))
    for i in (1, 2, 3):
        run.append({"images": i, "loss": 1.0})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as stream:
        stream.write('{"images": 4, "lo')
    assert [row["images"] for row in run.rows()] == [1, 2, 3]
    run.forget_after(2)
    assert [row["images"] for row in run.rows()] == [1, 2]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert {"python", "versions", "command"} <= set(environment)
    assert same(run.config(), read_config(tmp_path / "run" / "run.toml"))


def test_a_run_with_told_guidance(tmp_path, monkeypatch):
    """From a configuration to samples of the loaded run; a network that cannot be told says what to set."""
    loss = {"name": "lsd", "velocity": {"name": "guided_as_told", "highest": 3.0}}
    net = {"name": "mlp", "width": 16, "depth": 2}
    with pytest.raises(ValueError, match=r"Name it in net\.numbers"):
        train_quickly(small(loss=loss, net=net), tmp_path / "untold", monkeypatch)
    train_quickly(small(loss=loss, net={**net, "numbers": ["guidance"]}), tmp_path / "run", monkeypatch)
    flow = load(tmp_path / "run", weights="weights")
    assert flow.config["loss"]["velocity"] == {
        "name": "guided_as_told", "lowest": 0.0, "highest": 3.0, "velocity": {"name": "conditional"},
    }  # fmt: skip
    assert isinstance(flow.guided(2.0), Told)
    strong, weak = (flow.sample(6, 1, label=3, guidance=a) for a in (3.0, 0.5))
    assert strong.shape == (6, 1, 8, 8)
    assert (strong - weak).abs().max() > 1e-4
