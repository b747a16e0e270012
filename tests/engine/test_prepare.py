"""Files and numbers that couplings are made from: of the data as a run sees them, and what the run then trains on."""

import numpy as np
import pytest
import torch
from runs import small, train_quickly

from flowmaps.core.flow_map import EulerMap
from flowmaps.core.random import fold_in
from flowmaps.couplings.reflow import endpoints
from flowmaps.engine.config import ConfigError
from flowmaps.engine.prepare import prepare_coupling
from flowmaps.flow import load


def options(tmp_path, shape, coupling, **more):
    """A run on 40 data of two classes, scaled by its space, with mirror images."""
    g = fold_in(1)
    x, y = torch.randn(40, *shape, generator=g).clamp(-1, 1), torch.arange(40) % 2
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    data = {"name": "arrays", "path": str(tmp_path / "data.npz"), "split": "all"}
    space = {"name": "reflected", "low": -1.0, "high": 1.0} if len(shape) == 3 else "euclidean"
    config = small(data=data, coupling=coupling, mirror=len(shape) == 3, space=space, loss="flow_matching", **more)
    return config, x, y


@pytest.mark.parametrize("shape", [(6,), (1, 4, 4)])
def test_potentials_are_fitted_to_the_data_of_the_run(shape, tmp_path, monkeypatch):
    file = str(tmp_path / "new" / "g.pt")
    config, x, y = options(tmp_path, shape, {"name": "semidiscrete_ot", "stored": file})
    said = prepare_coupling(config, steps=100)
    held = torch.load(file)
    both = torch.cat([x, x.flip(-1)]) if config["mirror"] else x
    assert torch.equal(held["x1"], both)
    assert torch.equal(held["cond"], torch.cat([y, y]) if config["mirror"] else y)
    assert held["potentials"].abs().max() > 0
    assert float(said.split()[1].rstrip(":")) < 1, "hit as often as each other, within a factor of two"
    train_quickly(config | {"mirror": False}, tmp_path / "run", monkeypatch)  # the file has the mirror images


@pytest.mark.parametrize("shape", [(6,), (1, 4, 4)])
def test_pairs_are_those_of_the_runs_teacher(shape, tmp_path, monkeypatch):
    """With guidance if asked for, and its conditions; more than there are data have them in turns."""
    file = str(tmp_path / "p.pt")
    config, *_ = options(tmp_path, shape, {"name": "reflow", "stored": file, "steps": 3})
    teacher = train_quickly(config | {"coupling": "independent"}, tmp_path / "teacher", monkeypatch)
    for guidance in (1.0, 3.0):
        assert "160" in prepare_coupling(config | {"teacher": str(teacher)}, n=160, guidance=guidance)
        held, flow = torch.load(file), load(teacher)
        assert isinstance(flow.model, EulerMap)
        wanted = endpoints(flow.guided(guidance), held["x0"], held["cond"], 3)
        assert (held["x1"] - wanted).abs().max() < 1e-5  # rounding of another batch
        assert held["cond"].bincount().tolist() == [80, 80]
    train_quickly(config | {"mirror": False}, tmp_path / "run", monkeypatch)


def test_axes_and_lengths_are_those_of_the_data(tmp_path):
    file = str(tmp_path / "a.pt")
    config, x, _ = options(tmp_path, (30,), {"name": "pruned", "stored": file})
    assert prepare_coupling(config).startswith("axes    ")
    axes = torch.load(file)["axes"]
    assert (torch.nn.functional.normalize(x, dim=1) @ axes.T).max() < 0.011
    config["coupling"] = "norm_aligned"
    assert abs(float(prepare_coupling(config).split()[1].rstrip(":")) / x.norm(dim=1).mean() - 1) < 1e-5


@pytest.mark.parametrize(
    ("coupling", "message"),
    [
        ("minibatch_ot", "got 'minibatch_ot', for which there is nothing to prepare"),
        ("reflow", "coupling.stored must name the file to write; got none"),
        ({"name": "reflow", "stored": "p.pt"}, "teacher must be the folder of a run, to draw pairs from; got ''"),
    ],
)
def test_what_cannot_be_prepared(coupling, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        prepare_coupling(options(tmp_path, (6,), coupling)[0])
