"""Checkpoints: whole or not at all, checked, and nothing in them is executed."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flowmaps.engine.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)


def checkpoint(images=64, fill=1.0, size=10):
    w = torch.full((size,), fill)
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": w}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return Checkpoint(images, {"model.w": w}, {"w": 2 * w}, optimizer, {"steps": 3}, "seed = 0\n")


def test_what_is_loaded_is_what_was_saved(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint())
    back = load_checkpoint(path)
    assert back.images == 64
    assert torch.equal(back.weights["model.w"], torch.ones(10))
    assert torch.equal(back.ema["w"], torch.full((10,), 2.0))
    assert torch.equal(back.optimizer["state"][0]["exp_avg"], torch.ones(10))
    assert back.counters == {"steps": 3}
    assert back.config == "seed = 0\n"
    assert torch.equal(load_weights(path)["w"], torch.full((10,), 2.0))
    assert sorted(f.name for f in path.iterdir()) == sorted(
        [MANIFEST, "weights.safetensors", "ema.safetensors", "optimizer.pt", "run.toml"]
    )


def test_the_newest_stay_and_orphans_go(tmp_path):
    (tmp_path / ".saving-000000000001-999").mkdir()
    (tmp_path / "000000000002").mkdir()  # a removal that was killed: no manifest
    assert not checkpoints(tmp_path), "without a manifest it is no checkpoint"
    for i in range(1, 5):
        save_checkpoint(tmp_path, checkpoint(i), keep=2)
    assert [f.name for f in checkpoints(tmp_path)] == ["000000000003", "000000000004"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["000000000003", "000000000004"]
    save_checkpoint(tmp_path, checkpoint(4, fill=5.0))
    assert load_checkpoint(tmp_path / "000000000004").weights["model.w"][0] == 5, "the same moment, saved again"


@pytest.mark.parametrize("file", ["weights.safetensors", "ema.safetensors", "optimizer.pt", "run.toml", MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "swap"])
def test_damage_is_detected_and_named(tmp_path, file, damage):
    older = save_checkpoint(tmp_path, checkpoint(1))
    path = save_checkpoint(tmp_path, checkpoint(2, fill=3.0))
    target = path / file
    if damage == "flip":
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif damage == "truncate":
        target.write_bytes(target.read_bytes()[:-3])
    elif damage == "delete":
        target.unlink()
    else:
        shutil.copy(older / file, target)
    if file == MANIFEST and damage in ("flip", "delete"):
        with pytest.raises(CheckpointError):  # a flipped bit may land in a number, in a name or in the syntax
            load_checkpoint(path)
        return
    if file == "run.toml" and damage == "swap":
        load_checkpoint(path)  # the same configuration, byte by byte
        return
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*") as caught:
        load_checkpoint(path)
    named = "weights.safetensors" if file == MANIFEST and damage == "swap" else file
    assert named in str(caught.value)
    assert f"Another checkpoint stands: {older}" in str(caught.value)


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.system, (f"touch {self.file}",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    path, trace = save_checkpoint(tmp_path, checkpoint()), tmp_path / "executed"
    for file in ("optimizer.pt", "weights.safetensors"):
        if file == "optimizer.pt":
            torch.save({"state": Bomb(trace)}, path / file)
        else:
            (path / file).write_bytes(pickle.dumps(Bomb(trace)))
        manifest = json.loads((path / MANIFEST).read_text())
        from flowmaps.engine.checkpoint import _digest

        manifest["files"][file] = {"bytes": (path / file).stat().st_size, "sha256": _digest(path / file)}
        (path / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
        assert not trace.exists()


def test_finding(tmp_path):
    with pytest.raises(CheckpointError, match="must be a run folder with a checkpoint; there is no such folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="stopped before its first save"):
        find_checkpoint(tmp_path)
    path = save_checkpoint(tmp_path / "checkpoints", checkpoint())
    assert find_checkpoint(tmp_path) == path == find_checkpoint(path)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(CheckpointError, match="must have format 1; it has 99"):
        load_checkpoint(path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="must be writable"):
        save_checkpoint(tmp_path / "checkpoints", checkpoint())


def test_a_full_disk_is_an_error_and_what_stood_stands(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        first = save_checkpoint(disk, checkpoint(1, size=1000))
        with pytest.raises(CheckpointError, match="must be writable"):
            save_checkpoint(disk, checkpoint(2, size=300_000))
        assert load_checkpoint(first).images == 1
        assert checkpoints(disk) == [first]
        assert save_checkpoint(disk, checkpoint(3, size=1000)).exists(), "and there is room again"
    finally:
        subprocess.run(["umount", str(disk)], check=False)


CHILD = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoint import checkpoint
from flowmaps.engine.checkpoint import save_checkpoint
i = int(sys.argv[3])
print("ready", flush=True)
while True:
    i += 1
    save_checkpoint(Path(sys.argv[1]), checkpoint(i, float(i), 2_000_000))
    print(i, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_a_loadable_run(tmp_path):
    """Twenty kills at different instants of a loop that only saves; each leaves the last saved state or the next."""
    generator = torch.Generator().manual_seed(0)
    here = str(Path(__file__).parent)
    saved, duration = 0, 0.0
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), here, str(saved)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline().strip() == "ready"
        if saved == 0:
            saved = int(child.stdout.readline())
            began = time.monotonic()
            saved = int(child.stdout.readline())
            duration = time.monotonic() - began  # of one save, on this machine, as busy as it is
        time.sleep(2 * duration * torch.rand(1, generator=generator).item())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        reported = int(rest[-1]) if rest else saved
        back = load_checkpoint(checkpoints(tmp_path)[-1])
        assert back.images in (reported, reported + 1)
        assert torch.equal(back.weights["model.w"], torch.full((2_000_000,), float(back.images)))
        saved = back.images
    assert saved >= 5, "some children lived long enough to save"
