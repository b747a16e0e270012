"""The files of a run: configuration, environment, measurements over time."""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config import Config, ConfigError, read_config, write_config

CONFIG, METRICS, EVALUATION, REPORT = "run.toml", "metrics.jsonl", "evaluation.json", "report.html"


@dataclass(frozen=True)
class RunFolder:
    """A run folder: run.toml, environment.json, metrics.jsonl, checkpoints/, samples/, evaluation.json, report.html.

    Args:
        path: the folder.
    """

    path: Path

    @staticmethod
    def reserved(path: Path) -> "RunFolder":
        """A folder for a new run; an existing run is never overwritten.

        Raises:
            ConfigError: if there is a run already, or the folder cannot be written.
        """
        if (path / CONFIG).exists():
            raise ConfigError(
                f"--out must be a folder without a run; {path} holds one. Continue it with --resume {path}, or choose "
                "another --out."
            )
        run = RunFolder(path)
        try:
            run.samples.mkdir(parents=True, exist_ok=True)
            run.write("environment.json", json.dumps(environment(), indent=1))
        except OSError as error:
            raise ConfigError(f"--out must be a folder that can be written; {error}.") from error
        return run

    def begin(self, config: Config) -> None:
        """Write the configuration, which makes the folder a run: not before everything could be built from it."""
        self.write(CONFIG, write_config(config))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def config(self) -> Config:
        """The resolved configuration."""
        if not (self.path / CONFIG).is_file():
            raise ConfigError(f"RUN must be a folder that `flowmaps train` wrote; {self.path} has no {CONFIG}.")
        return read_config(self.path / CONFIG)

    def write(self, name: str, text: str) -> None:
        """Write a file whole: under another name, then renamed."""
        draft = self.path / f".{name}.{os.getpid()}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.path / name)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one measurement, with its number of images seen, to metrics.jsonl."""
        with (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All measurements; a last line that a kill cut off is left out."""
        file = self.path / METRICS
        found: list[dict[str, Any]] = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def forget_after(self, images: int) -> None:
        """Drop the measurements of steps that a resumed run takes again."""
        self.write(METRICS, "".join(json.dumps(row) + "\n" for row in self.rows() if row["images"] <= images))


def environment() -> dict[str, Any]:
    """Versions, machine and command, for the record."""
    packages = ("flowmaps", "torch", "numpy", "scipy", "scikit-learn", "accelerate", "safetensors")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "command": " ".join(["flowmaps", *sys.argv[1:]]),
    }
