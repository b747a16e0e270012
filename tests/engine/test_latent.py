"""Runs among the latents of an autoencoder: from its training to samples, and with a teacher."""

import dataclasses

import numpy as np
import pytest
import torch
from runs import small, train_quickly

from flowmaps.core.random import fold_in
from flowmaps.engine.autoencoder import train_autoencoder
from flowmaps.engine.checkpoint import find_checkpoint, load_weights
from flowmaps.engine.config import ConfigError, resolve_config
from flowmaps.engine.dry_run import dry_run
from flowmaps.engine.objects import build_step, open_data
from flowmaps.flow import Flow, load

TINY = {"name": "convolutional", "width": 8, "channels": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe, and the error of its autoencoder."""
    path = tmp_path_factory.mktemp("latent") / "deep" / "vae.pt"
    config = small(space={"name": "latent", "autoencoder": TINY | {"path": str(path)}})
    return config, train_autoencoder(config, images=3200, batch=32, lr=1e-2, quiet=True)


def small_flow(config):
    return Flow.built(resolve_config(config), (1, 8, 8), 10)


def test_an_autoencoder_is_trained_measured_and_kept(trained, tmp_path):
    config, error = trained
    data = open_data(resolve_config(config))
    assert error < 0.4 * data.x.std(), "half of the numbers keep most of the images"
    z = small_flow(config).space.encode(data.x, generator=fold_in(1)).transpose(0, 1).flatten(1)
    assert z.mean(1).abs().max() < 0.02  # five standard errors of 1437 x 16 dependent draws, and more: below 1e-5
    assert (z.std(1) - 1).abs().max() < 0.02
    brief = config | {"space": {"name": "latent", "autoencoder": TINY | {"path": str(tmp_path / "brief.pt")}}}
    first, again = (train_autoencoder(brief, images=96, batch=32, quiet=True) for _ in range(2))
    assert again == first, "by counters: the same again"
    with pytest.raises(ConfigError, match="the space must name an autoencoder and a file for it"):
        train_autoencoder(small(), quiet=True)


def test_a_run_among_latents(trained, tmp_path, monkeypatch):
    config, _ = trained
    run = train_quickly(config, tmp_path / "run", monkeypatch)
    flow = load(run)
    assert flow.state_shape == (2, 4, 4)
    assert flow.model.net.shape == (2, 4, 4)
    samples = flow.sample(4, 2)
    assert samples.shape == (4, 1, 8, 8)
    assert (flow.sample(2, 2, first=2) - samples[2:]).abs().max() < 1e-5, "whatever the batch"
    weights = load_weights(find_checkpoint(run), "weights")
    assert all(name.startswith("model.") for name in weights), "a checkpoint keeps what is trained"
    longer = train_quickly(config | {"images": 640}, run, monkeypatch, resume=find_checkpoint(run))
    assert load(longer).sample(1).isfinite().all()


def test_a_teacher_in_the_same_space(trained):
    config, _ = trained
    teacher, student = small_flow(config), small_flow(config | {"loss": "lmd"})
    table = resolve_config(config | {"loss": "lmd"})
    step = build_step(table, student, teacher)
    x, labels = open_data(table).__getitems__(range(4))
    assert step(x, labels, generator=fold_in(0))[0].isfinite()
    assert not any("autoencoder" in name for name in step.trained_state())
    other = dataclasses.replace(teacher, space=dataclasses.replace(teacher.space, scale=2.0))
    with pytest.raises(ConfigError, match="the teacher must have this run's data and space"):
        build_step(table, student, other)


def test_holes_are_filled_among_latents(trained, tmp_path, monkeypatch):
    config, _ = trained
    config = config | {"condition": "inpainting", "net": {"name": "unet", "width": 16, "blocks": 1}}
    run = train_quickly(config | {"images": 64}, tmp_path / "run", monkeypatch)
    flow = load(run)
    assert flow.condition.spatial == (3, 4, 4)
    images, labels = open_data(resolve_config(config)).__getitems__(range(4))
    holes = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    holes[..., 2:6, 3:] = True
    cond = flow.condition.of(images, holes, flow.space, labels, generator=fold_in(0))
    for guidance in (1.0, 2.0):
        filled = torch.where(holes, flow.sample(4, 2, cond=cond, guidance=guidance), images)
        assert filled.isfinite().all()
        assert flow.sample(4, 2, guidance=guidance).isfinite().all()
    assert "good" in dry_run(config)


def test_images_are_drawn_for_maps(tmp_path, monkeypatch):
    maps = np.random.default_rng(0).integers(0, 3, (40, 8, 8))
    np.savez(tmp_path / "scenes.npz", x=maps[:, None] / 2.0, y=maps)
    config = small(data={"name": "arrays", "path": str(tmp_path / "scenes.npz")}, condition="semantic_map", images=64)
    flow = load(train_quickly(config, tmp_path / "run", monkeypatch))
    assert flow.classes == 0
    assert flow.condition.spatial == (3, 8, 8)
    told = flow.condition(None, torch.from_numpy(maps[:5]), flow.space)
    assert flow.sample(5, cond=told).shape == (5, 1, 8, 8)
    with pytest.raises(ConfigError, match="mirror flips images, not the maps"):
        build_step(resolve_config(config | {"mirror": True}), flow, None)
