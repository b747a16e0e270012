"""A step that is not finite changes nothing, is counted, and ten in a row end the run."""

import json

import pytest
import torch
from runs import same, small, train_quickly

from flowmaps.data._dataset import Dataset
from flowmaps.engine import objects, train
from flowmaps.engine.checkpoint import find_checkpoint, load_checkpoint
from flowmaps.engine.train import TrainingStopped


def poisoned(bad):
    """Digits of which some, by index, are not a number."""
    real = objects.open_data

    def open_data(config, split=""):
        data = real(config, split)
        x = data.x.clone()
        x[bad] = float("nan")
        return Dataset(data.name, x, data.labels, data.classes)

    return open_data


def test_one_bad_datum_skips_one_step(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "open_data", poisoned([0]))
    config = small(images=32 * 44)  # one pass over 1,438 digits
    train_quickly(config, tmp_path / "run", monkeypatch)
    back = load_checkpoint(find_checkpoint(tmp_path / "run"))
    assert back.counters["skipped"] == 1
    assert back.counters["streak"] == 0
    assert all(w.isfinite().all() for w in [*back.weights.values(), *back.ema.values()])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (report,) = [row for row in rows if "bad_batch" in row]
    assert 0 in report["bad_batch"]
    assert len(report["bad_batch"]) == 32


def test_bad_steps_that_are_not_in_a_row_do_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "open_data", poisoned([0]))
    # One bad datum of 359 in each of twelve passes of eleven steps or more.
    train_quickly(small(images=359 * 12, data={"name": "digits", "split": "test"}), tmp_path / "run", monkeypatch)
    assert load_checkpoint(find_checkpoint(tmp_path / "run")).counters["skipped"] >= 11


def test_a_skipped_step_changes_nothing(tmp_path, monkeypatch, capsys):
    """The state after a bad step is the state before it, but for the counters."""
    slow = {"halflife": 1000, "rampup": 10.0}  # an average that is not yet the weights
    train_quickly(small(images=96, ema=slow), tmp_path / "good", monkeypatch)
    before = load_checkpoint(find_checkpoint(tmp_path / "good"))
    monkeypatch.setattr(train, "open_data", poisoned(slice(None)))
    more = small(images=128, ema=slow)
    train_quickly(more, tmp_path / "good", monkeypatch, resume=find_checkpoint(tmp_path / "good"))
    after = load_checkpoint(find_checkpoint(tmp_path / "good"))
    assert after.counters["skipped"] == 1
    assert "warning: the last 1 of 4 steps were not finite" in capsys.readouterr().err
    assert same(dict(after.weights), dict(before.weights))
    assert same(dict(after.ema), dict(before.ema))
    assert same(after.optimizer["state"], before.optimizer["state"])


def test_ten_in_a_row_end_the_run_with_the_last_good_state(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "open_data", poisoned(slice(None)))
    torch.manual_seed(0)
    with pytest.raises(TrainingStopped, match="10 steps in a row were not finite, so the run was stopped") as stopped:
        train_quickly(small(images=3200), tmp_path / "run", monkeypatch)
    assert "flowmaps doctor" in str(stopped.value)
    back = load_checkpoint(find_checkpoint(tmp_path / "run"))
    assert back.counters == back.counters | {"steps": 10, "skipped": 10}
    assert all(w.isfinite().all() for w in back.weights.values())
