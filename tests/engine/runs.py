"""Small runs for tests of the engine."""

import copy
from pathlib import Path

import torch

from flowmaps.engine import train as engine

SMALL = {
    "images": 320,
    "batch": 32,
    "device": "cpu",
    "data": {"name": "digits"},
    "net": {"name": "mlp", "width": 16, "depth": 2, "dropout": 0.2},
    "save": {"every": 1_000_000, "keep": 10},
    "sample": {"steps": [1, 2]},
}


def small(**options):
    return copy.deepcopy(SMALL) | options


def train_quickly(config, out, monkeypatch=None, **options):
    """A run without its pictures, reports and final evaluation, which other tests look at and which take longest."""
    if monkeypatch is not None:
        monkeypatch.setattr(engine, "_finish", lambda *a: None)
        monkeypatch.setattr(engine, "_show", lambda *a: None)
        monkeypatch.setattr(engine, "quality", lambda *a: {})
        monkeypatch.setattr(engine, "write_report", lambda *a: None)
    return engine.train(config, Path(out), quiet=True, **options)


def same(a, b):
    """Whether two nests of tensors are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
