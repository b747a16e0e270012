"""N steps are k steps and N - k more, bit for bit, wherever the run was cut."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from runs import same, small, train_quickly

from flowmaps.engine.checkpoint import CheckpointError, checkpoints, find_checkpoint, load_checkpoint
from flowmaps.engine.config import ConfigError
from flowmaps.engine.schedule import Schedule
from flowmaps.engine.step import Step
from flowmaps.engine.train import TrainingStopped

# 360 data, batches of 32: the first pass ends within step 12. A run of 20 steps is cut at its start, in mid-pass, in the
# step over the edge, right behind it, and before its last step.
CUTS = [1, 5, 11, 12, 19]


def cut_config(**options):
    return small(
        images=640, data={"name": "digits", "split": "test"}, mirror=True, condition_dropout=0.2,
        loss={"name": "lsd", "weighting": "learned"}, optimizer={"name": "torch.optim:AdamW", "lr": 1e-2}, **options,
    )  # fmt: skip


def states(path):
    back = load_checkpoint(find_checkpoint(path))
    counters = {k: v for k, v in back.counters.items() if k != "seconds"}
    return {"weights": back.weights, "ema": back.ema, "optimizer": back.optimizer, "counters": counters}


def losses(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("straight") / "run"
        train_quickly(cut_config(), path, patch)
        return states(path), losses(path)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", CUTS)
def test_resumed_is_straight_bit_for_bit(cut, workers, straight, tmp_path, monkeypatch):
    if workers and cut != 11:
        pytest.skip("one cut is enough to compare readers")
    config, path = cut_config(workers=workers), tmp_path / "run"
    config["save"] = {"every": 32 * cut, "keep": 100}
    train_quickly(config, path, monkeypatch)
    first = checkpoints(path / "checkpoints")[0]
    assert int(first.name) == 32 * cut
    for later in checkpoints(path / "checkpoints")[1:]:
        later.rename(tmp_path / later.name)
    train_quickly(config, path, monkeypatch, resume=first)
    assert same(states(path), straight[0])
    assert losses(path) == straight[1]
    assert len(losses(path)) == 2


def test_averages_of_a_loss_resume_too(tmp_path, monkeypatch):
    """A target's weights are part of the state; they move at every step."""
    table = {"name": "shortcut", "target": {"name": "average", "decay": 0.9}}
    config = small(loss=table, save={"every": 32 * 5, "keep": 100})
    train_quickly(config, tmp_path / "run", monkeypatch)
    whole = states(tmp_path / "run")
    first, last = checkpoints(tmp_path / "run" / "checkpoints")
    key = next(k for k in whole["weights"] if k.startswith("parts.loss_target.") and k.endswith("weight"))
    assert not torch.equal(load_checkpoint(first).weights[key], load_checkpoint(last).weights[key])
    last.rename(tmp_path / last.name)
    train_quickly(config, tmp_path / "run", monkeypatch, resume=first)
    assert same(states(tmp_path / "run"), whole)


def test_the_learning_rate_follows_its_schedule(straight):
    for row in straight[1]:  # logged with the rate of the step just taken
        assert row["learning_rate"] == pytest.approx(1e-2 * Schedule().factor(row["images"] - 32, 640))


def test_every_step_draws_afresh(tmp_path, monkeypatch):
    noise, dropout, forward = [], [], Step.forward

    def noted(self, *args, generator, **options):
        noise.append(generator.initial_seed())
        dropout.append(torch.initial_seed())
        return forward(self, *args, generator=generator, **options)

    monkeypatch.setattr(Step, "forward", noted)
    train_quickly(small(), tmp_path / "run", monkeypatch)
    assert len({*noise, *dropout}) == 20


def test_another_seed_is_another_run(straight, tmp_path, monkeypatch):
    train_quickly(cut_config(seed=1), tmp_path / "run", monkeypatch)
    assert not same(states(tmp_path / "run"), straight[0])


def test_interrupting_saves_and_says_how_to_continue(straight, tmp_path, monkeypatch):
    path = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)

    def interrupt():
        while not (path / "metrics.jsonl").exists():  # written by the loop, which then listens
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(TrainingStopped, match=r"interrupted. Saved at [\d,]+ of 6,400 images") as stopped:
        train_quickly(cut_config() | {"images": 6400}, path, monkeypatch)
    thread.join()
    assert f"flowmaps train --resume {path}" in str(stopped.value)
    assert 0 < load_checkpoint(find_checkpoint(path)).images < 6400
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_is_never_overwritten(tmp_path, monkeypatch):
    train_quickly(small(images=32), tmp_path / "run", monkeypatch)
    with pytest.raises(ConfigError, match="must be a folder without a run.*Continue it with --resume"):
        train_quickly(small(images=32), tmp_path / "run", monkeypatch)


def test_resuming_from_nothing_or_from_damage_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "run"
    train_quickly(small(images=64), path, monkeypatch)
    checkpoint = find_checkpoint(path)
    (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="optimizer.pt must be part of the checkpoint"):
        train_quickly(small(images=96), path, monkeypatch, resume=checkpoint)
    with pytest.raises(CheckpointError):
        train_quickly(small(images=96), path, monkeypatch, resume=tmp_path / "nowhere")


def test_resuming_into_another_network_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "run"
    train_quickly(small(images=64), path, monkeypatch)
    other = small(images=96, net={"name": "mlp", "width": 24, "depth": 2})
    with pytest.raises(ConfigError, match="must keep its network, loss and optimizer"):
        train_quickly(other, path, monkeypatch, resume=find_checkpoint(path))
