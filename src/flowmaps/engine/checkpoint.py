"""Checkpoints that a kill at any instant leaves loadable, and that can execute nothing when they are loaded."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says which file is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Args:
        images: images seen.
        weights: what is trained, by name.
        ema: its running average, by name.
        optimizer: the optimizer's state_dict: tensors and numbers only.
        counters: steps, skipped steps and the like.
        config: the resolved configuration, as TOML text.
    """

    images: int
    weights: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    counters: Mapping[str, float]
    config: str


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write folder/<images>, whole or not at all: into a hidden folder, to the disk, manifest last, then renamed.

    Args:
        folder: where the run keeps its checkpoints.
        checkpoint: what to write.
        keep: how many of the newest stay; at least 1. Older ones go only after the new one stands.
    Returns:
        The new folder.
    Raises:
        CheckpointError: if the disk is full or the folder cannot be written; what stood before still stands.
    """
    final = folder / f"{checkpoint.images:012d}"
    draft = folder / f".saving-{checkpoint.images:012d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        draft.mkdir()
        save_file(_plain(checkpoint.weights), draft / "weights.safetensors")
        save_file(_plain(checkpoint.ema), draft / "ema.safetensors")
        torch.save(dict(checkpoint.optimizer), draft / "optimizer.pt")
        (draft / "run.toml").write_text(checkpoint.config, encoding="utf-8")
        files = {f.name: {"bytes": f.stat().st_size, "sha256": _digest(f)} for f in sorted(draft.iterdir())}
        manifest = {
            "format": FORMAT, "images": checkpoint.images, "counters": dict(checkpoint.counters), "files": files,
        }  # fmt: skip
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in [*draft.iterdir(), draft]:
            _to_disk(file)
        if final.exists():  # the same moment, saved again
            _remove(final)
        draft.rename(final)
        _to_disk(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own when a disk fills
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint {final} must be writable; {error}. What was saved before stands."
        ) from error
    for old in checkpoints(folder)[: -max(1, keep)]:
        _remove(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first: folders with a manifest."""
    return sorted(f for f in folder.glob("[0-9]*") if (f / MANIFEST).is_file())


def find_checkpoint(path: Path) -> Path:
    """The newest finished checkpoint of a run folder; a checkpoint's own folder stands for itself.

    Raises:
        CheckpointError: if there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    found = checkpoints(path / "checkpoints")
    if not found:
        reason = "it has none: it was stopped before its first save" if path.is_dir() else "there is no such folder"
        raise CheckpointError(f"{path} must be a run folder with a checkpoint; {reason}.")
    return found[-1]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, after checking every file against the manifest. Nothing in it is executed.

    Raises:
        CheckpointError: if a file is missing, changed or of another format; the message names the file and the newest
            other checkpoint.
    """
    manifest = verify_checkpoint(path)
    try:
        return Checkpoint(
            int(manifest["images"]),
            load_file(path / "weights.safetensors"),
            load_file(path / "ema.safetensors"),
            torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
            manifest["counters"],
            (path / "run.toml").read_text(encoding="utf-8"),
        )
    except Exception as error:
        raise CheckpointError(f"{path} must be a checkpoint of this library; {error}.{_other(path)}") from error


def load_weights(path: Path, which: str = "ema") -> dict[str, Tensor]:
    """Only the weights of a checkpoint, "ema" or "weights", checked."""
    verify_checkpoint(path)
    return load_file(path / f"{which}.safetensors")


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest, once every file agrees with it in size and digest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format"], manifest["files"]
        sizes = {name: int(entry["bytes"]) for name, entry in files.items()}
        digests = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} must be a manifest; {error!r}.{_other(path)}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} must have format {FORMAT}; it has {version}. Use the version that wrote it.")
    for name in ("weights.safetensors", "ema.safetensors", "optimizer.pt", "run.toml"):
        file = path / name
        if name not in files or not file.is_file():
            raise CheckpointError(f"{file} must be part of the checkpoint; it is missing.{_other(path)}")
        if file.stat().st_size != sizes[name] or _digest(file) != digests[name]:
            raise CheckpointError(f"{file} must be what was saved; size or content changed.{_other(path)}")
    return manifest


def _other(path: Path) -> str:
    found = [f for f in checkpoints(path.parent) if f != path]
    return f" Another checkpoint stands: {found[-1]}." if found else " There is no other checkpoint."


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    (path / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed folder is no checkpoint
    shutil.rmtree(path, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed saves and removals left behind."""
    for orphan in folder.glob(".saving-*"):
        shutil.rmtree(orphan, ignore_errors=True)
    for part in folder.glob("[0-9]*"):
        if part.is_dir() and not (part / MANIFEST).is_file():
            shutil.rmtree(part, ignore_errors=True)
