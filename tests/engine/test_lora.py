"""Low-rank updates: what trains, what is saved, what is loaded; without peft, what still works and what is said."""

import copy
import sys

import pytest
import torch
from runs import same, small, train_quickly
from torch import nn

from flowmaps.build import build
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.engine import train as engine
from flowmaps.engine.checkpoint import checkpoints, find_checkpoint, load_checkpoint
from flowmaps.engine.config import ConfigError, resolve_config
from flowmaps.engine.dry_run import dry_run
from flowmaps.engine.lora import LoRA, merged
from flowmaps.flow import load

LORA = {"rank": 2, "scale": 1.5, "layers": ["hidden.0", "leave"], "open": ["labels"]}


def awake(net):
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return net


def dit():
    return awake(build("nets", {"name": "dit", "width": 16, "depth": 2, "heads": 2}, shape=(1, 8, 8)))


def student(teacher, **options):
    return small(
        loss={"name": "lmd"}, teacher=str(teacher), from_teacher=True, lora=LORA,
        optimizer={"name": "torch.optim:Adam", "lr": 1e-2}, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return train_quickly(small(loss={"name": "flow_matching"}), tmp_path_factory.mktemp("teacher") / "run", patch)


def final(run):
    return load_checkpoint(find_checkpoint(run))


def test_updates_start_at_nothing_and_train_alone():
    pytest.importorskip("peft")
    net = dit()
    x, s, t = torch.randn(4, 1, 8, 8), torch.rand(4), torch.rand(4)
    before = net(x, s, t).detach()
    trained = LoRA(2, layers=("qkv",), open=("times", "blocks.0.qkv.weight")).add(net)
    assert torch.equal(net(x, s, t), before)
    assert sum("lora_A" in name for name in trained) == sum("lora_B" in name for name in trained) == 2
    rest = {name for name in trained if "lora_" not in name}
    assert {name.split(".")[0] for name in rest} == {"times", "blocks"}
    assert "blocks.0.qkv.base_layer.weight" in rest, "opened by the name it had, though it moved"
    net(x, s, t).square().sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == set(trained)


def test_every_linear_layer_is_updated_when_none_is_named():
    pytest.importorskip("peft")
    net = dit()
    count = sum(isinstance(m, nn.Linear) for m in net.modules())
    assert sum("lora_A" in name for name in LoRA(2).add(net)) == count > 10


def test_merging_adds_the_scaled_product():
    down, up = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [10.0]])
    state = {"a.base_layer.weight": torch.ones(2, 3), "a.base_layer.bias": torch.zeros(2), "b.weight": torch.ones(1)}
    state |= {"a.lora_A.default.weight": down, "a.lora_B.default.weight": up}
    found = merged(state, 0.5)
    assert found.keys() == {"a.weight", "a.bias", "b.weight"}
    assert torch.equal(found["a.weight"], torch.tensor([[1.5, 2.0, 2.5], [6.0, 11.0, 16.0]]))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_merged_weights_do_what_the_updated_network_does(scale):
    pytest.importorskip("peft")
    from peft.tuners.lora import LoraLayer

    model = MeanVelocity(dit()).double()
    plain = copy.deepcopy(model)
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    LoRA(3, scale, layers=("qkv", "project")).add(model.net)
    awake(model)
    state = merged(model.state_dict(), scale)
    plain.load_state_dict(state)
    x, s, t = torch.randn(4, 1, 8, 8).double(), torch.rand(4).double(), torch.rand(4).double()
    wanted = model(x, s, t)
    assert (plain(x, s, t) - wanted).abs().max() < 1e-13
    update = state["net.blocks.1.qkv.weight"] - model.state_dict()["net.blocks.1.qkv.base_layer.weight"]
    assert torch.linalg.matrix_rank(update, rtol=1e-9) == 3
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    theirs = {k.replace(".base_layer.", "."): v for k, v in model.state_dict().items() if ".lora_" not in k}
    assert theirs.keys() == state.keys() == before.keys()
    assert max(float((theirs[k] - state[k]).abs().max()) for k in state) < 1e-15


def test_a_run_trains_its_updates_and_leaves_the_teachers_weights(teacher, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    run = train_quickly(student(teacher), tmp_path / "run", monkeypatch)
    old, new = final(teacher).ema, final(run)
    for state, prefix in ((new.weights, "model."), (new.ema, "")):
        base = {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}
        assert base.keys() == {prefix + k for k in old}
        changed = {k.removeprefix(prefix) for k, v in base.items() if not torch.equal(v, old[k.removeprefix(prefix)])}
        assert changed == {"net.labels.table.weight"}, "only what was opened"
        updates = {k.split(".lora_")[0].removeprefix(prefix) for k in state if ".lora_B" in k}
        assert updates == {"net.hidden.0", "net.leave"}
        assert all(v.abs().max() > 0 for k, v in state.items() if ".lora_B" in k)
    assert len(new.optimizer["state"]) == 2 * 2 + 1


def test_a_loaded_flow_samples_like_the_trained_one_and_needs_no_peft(teacher, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    kept = []
    train_quickly(small(images=32), tmp_path / "patched", monkeypatch)
    monkeypatch.setattr(engine, "_finish", lambda config, run, shown, *rest: kept.append(shown))
    run = train_quickly(student(teacher), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "peft", None)
    flow = load(run)
    assert not any("lora" in name for name in flow.model.state_dict())
    trained, loaded, before = (f.sample(8, 2, seed=3) for f in (kept[0], flow, load(teacher)))
    # Rounding of one matrix product, amplified by two jumps; the fine-tuning itself moved samples 1e4 times as far.
    assert (trained - loaded).abs().max() < 2e-6
    assert (before - loaded).abs().max() > 1e-2
    last = load(run, "weights")
    assert not torch.equal(last.sample(8, 2, seed=3), loaded), "the last iterate is merged too, and another"


def test_a_resumed_run_is_the_straight_one_bit_for_bit(teacher, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    config = student(teacher, save={"every": 32 * 3, "keep": 100})
    run = train_quickly(config, tmp_path / "run", monkeypatch)
    whole = final(run)
    first, *later = checkpoints(run / "checkpoints")
    for i, folder in enumerate(later):
        folder.rename(tmp_path / str(i))
    train_quickly(config, run, monkeypatch, resume=first)
    again = final(run)
    assert again.images == whole.images == 320
    assert same([again.weights, again.ema, again.optimizer], [whole.weights, whole.ema, whole.optimizer])


def test_a_run_may_train_its_teacher_first_and_be_a_teacher(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    config = student("") | {"teacher": {"images": 64, "loss": {"name": "flow_matching"}}}
    run = train_quickly(config, tmp_path / "run", monkeypatch)
    assert not any(".lora_" in k for k in final(run / "teacher").weights), "the teacher trains all its weights"
    next_run = train_quickly(student(run, images=64), tmp_path / "next", monkeypatch)
    base = final(next_run).ema["net.leave.base_layer.weight"]
    assert torch.equal(base, load(run).model.state_dict()["net.leave.weight"]), "it starts from the merged weights"


def test_a_dry_run_counts_what_trains(teacher):
    pytest.importorskip("peft")
    # hidden 16 -> 16 and leave 16 -> 64, rank 2; labels 11 x 16.
    assert f"parameters  {2 * (16 + 16 + 16 + 64) + 11 * 16} trained" in dry_run(student(teacher))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["leave", "qkw"]}, "lora.layers must name linear layers; 'qkw' ends no name. There are enter, hid"),
        ({"open": ["time"]}, "lora.open must name weights; 'time' begins no name. There are labels.table.weight, "),
    ],
)
def test_names_that_fit_nothing(options, message, teacher, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=message):
        train_quickly(student(teacher) | {"lora": LORA | options}, tmp_path / "run", monkeypatch)


def test_a_network_without_linear_layers():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="lora needs a network with linear layers; Conv2d has none"):
        LoRA(2).add(nn.Conv2d(1, 1, 3))


def test_without_peft_the_error_says_how_to_get_it(teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="lora needs the package peft to train.*Install it with `pip install peft`"):
        train_quickly(student(teacher), tmp_path / "run", monkeypatch)


def test_options_are_checked_before_anything_is_built():
    assert resolve_config({})["lora"] == {}
    full = {"rank": 4, "scale": 1.0, "layers": [], "open": []}
    assert resolve_config({"from_teacher": True, "lora": {"rank": 4}})["lora"] == full
    for lora, message in (
        ({"rank": 0}, "lora needs rank >= 1 and scale > 0; got 0 and 1.0"),
        ({"rank": 4, "scale": 0.0}, "got 4 and 0.0"),
        ({"rank": 4, "targets": ["qkv"]}, "LoRA has no option 'targets'"),
        ({"layers": ["qkv"]}, "LoRA needs the option 'rank'"),
        ({"rank": 4, "layers": "qkv"}, "option 'layers' must be tuple; got 'qkv'"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve_config({"from_teacher": True, "lora": lora})
    with pytest.raises(ConfigError, match="lora updates the weights of a teacher; from_teacher is false"):
        resolve_config({"lora": {"rank": 4}})
