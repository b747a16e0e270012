"""Losses as published: what `Published:` in a docstring says can be built, differs from the defaults, and trains."""

import copy

import pytest
import torch
from truth import gaussian, stream
from typer.testing import CliRunner

from flowmaps.build import build, find, names, resolve
from flowmaps.cli.__main__ import app
from flowmaps.couplings.independent import Independent
from flowmaps.describe import section
from flowmaps.engine.config import override, published, read_value, resolve_config, tomllib
from flowmaps.engine.step import Step
from flowmaps.spaces.euclidean import Euclidean

LOSSES = [name for name in names("losses") if section(find("losses", name), "Published")]
# Losses that are not trained on a plain map: the map, and the outputs of its network.
MAPS = {"divergence_distillation": ("divergence_head", 2)}


def options(name):
    """Every option that the docstring names, as on a command line."""
    return [f"loss.{option}" for option in section(find("losses", name), "Published").split()]


def at(table, path):
    """What stands in a table at a path, None if nothing does."""
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def test_there_are_some():
    assert {"mean_flow", "facm", "lsd"} <= set(LOSSES)
    assert published("losses", "flow_matching") == {}


def needed(name, option):
    """Whether a table is another one without an option, or none at all."""
    table = override({"loss": {"name": name}}, [other for other in options(name) if other != option])["loss"]
    try:
        return resolve("losses", table) != resolve("losses", published("losses", name))
    except ValueError:  # a part without its name
        return True


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_is_read_and_differs_from_the_defaults(name):
    mine, defaults = resolve("losses", published("losses", name)), resolve("losses", name)
    for option in options(name):
        path, _, value = option.removeprefix("loss.").partition("=")
        assert at(mine, path.split(".")) == read_value(value)
        assert at(defaults, path.split(".")) != read_value(value) or needed(name, option), f"{option} is the default"
    assert resolve_config({"loss": published("losses", name), "teacher": "runs/teacher"})["loss"] == mine


@pytest.mark.parametrize("name", LOSSES)
def test_show_prints_the_options_that_differ(name):
    shown = CliRunner().invoke(app, ["show", f"losses/{name}"], catch_exceptions=False).output
    assert tomllib.loads(shown.split("# as published\n")[1])["loss"] == published("losses", name)


@pytest.mark.parametrize("name", LOSSES)
def test_it_trains(name):
    """One step on vectors in the plane: finite, also in its gradients, and it moves the map."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    flow, generator = gaussian((2,)), stream()
    map_, outputs = MAPS.get(name, ("mean_velocity", 1))
    net = build("nets", {"name": "mlp", "width": 16, "depth": 2, "outputs": outputs}, shape=(2,), classes=0)
    model = build("maps", map_, net=net, interpolant=flow.interpolant)
    loss = build("losses", published("losses", name), teacher=flow, interpolant=flow.interpolant, shape=(2,), classes=0)
    step = Step(model, loss, Independent(), Euclidean())
    trained = [p for p in step.parameters() if p.requires_grad]
    optimizer, before = torch.optim.SGD(trained, 1e-3), copy.deepcopy(model.state_dict())
    value, _ = step(flow.sample(64, generator), images=10_000, generator=generator)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in trained if p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    optimizer.step()
    step.follow()
    assert any((model.state_dict()[k] != v).any() for k, v in before.items())
