"""Snippets of docs/using.md run as they stand: commands in small, and code, one after the other."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import flowmaps
from flowmaps.cli.__main__ import app
from flowmaps.oracles.gaussian import Gaussian

PAGE = (Path(__file__).parents[2] / "docs" / "using.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SMALL = ["images=64", "batch=32", "net.width=16", "net.depth=2", "device=cpu", "sample.steps=[1]", "evaluate=false"]
FEWER = {"--steps 500": "--steps 5", "--n 20000": "--n 200"}


def command(line):
    """A command of the page, with a small network and few images."""
    words = shlex.split(line)
    if words[0] in ("train", "distill", "prepare"):
        recipe = 2 + (words[0] == "distill")
        words[recipe:recipe] = SMALL
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def run(section, names):
    """Every snippet of a section; code that names a file in its first line is written to it too."""
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL):
        if language == "python":
            file = re.match(r"# (\w+\.py)\n", text)
            if file:
                Path(file[1]).write_text(text)
            exec(compile(text, f"docs/using.md, {section}", "exec"), names)
        for line in text.splitlines() if language == "sh" else ():
            for many, few in FEWER.items():
                line = line.replace(many, few)
            command(re.sub(r"\s{2,}#.*", "", line).removeprefix("flowmaps "))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A map and a flow of digits, under the names that the page has for them."""
    folder = tmp_path_factory.mktemp("page")
    for name, loss in (("mine", "lsd"), ("teacher", "flow_matching")):
        command(f"train digits loss={loss} --out {folder}/runs/{name}")
    return folder


@pytest.fixture
def names(runs, monkeypatch):
    """What the code of the page knows, beside what it imports, and the folder that it is in."""
    monkeypatch.chdir(runs)
    monkeypatch.syspath_prepend(runs)
    return {"flowmaps": flowmaps}


def test_couplings_and_sources(names):
    run("Couplings and sources", names)
    assert names["images"].shape == (16, 1, 8, 8)
    last = max(Path("runs").glob("digits-*"))
    assert flowmaps.load(last).starting(1000)[0].abs().max() <= 1, "the source of one's own"


@pytest.mark.parametrize("section", ["Methods as published", "Stochastic interpolants", "Critics"])
def test_commands(section, names):
    run(section, names)


# A Gaussian law of data in closed form, as networks of EDM and of DDPM know it.
EDM = """
def denoiser(x, sigma, labels=None):
    share = 0.25 / (0.25 + sigma.reshape(-1, 1, 1, 1) ** 2)
    return 0.3 + share * (x - 0.3)
"""
DDPM = """
import torch

LOG = torch.log1p(-torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumsum(0)  # of the discrete process itself

def predictor(x, timestep, labels=None):
    low = timestep.long().clamp_max(998)
    log = LOG[low] + (timestep - low) * (LOG[low + 1] - LOG[low])
    share = log.exp().reshape(-1, 1, 1, 1).to(x.dtype)
    return (1 - share).sqrt() * (x - share.sqrt() * 0.3) / (0.25 * share + 1 - share)
"""


def test_teachers_on_other_paths(names):
    """Their velocities are those of the law on the student's path, from noise to data."""
    Path("edm.py").write_text(EDM)
    Path("ddpm.py").write_text(DDPM)
    run("Paths, and teachers on other paths", names)
    truth, x = Gaussian(torch.full((1, 8, 8), 0.3), torch.full((1, 8, 8), 0.5)), torch.randn(64, 1, 8, 8)
    t = torch.linspace(0.02, 0.98, 64)
    exact = truth.velocity(x, t)

    def off(teacher):
        error = (teacher.velocity(x, t) - exact).flatten(1).norm(dim=1)
        return float((error / exact.flatten(1).norm(dim=1)).max())

    assert off(names["teacher"]) < 1e-3  # single precision, noise levels from 49 to 0.02
    assert off(names["ddpm_teacher"]) < 0.05  # a discrete process seen as a continuous one


def test_going_back_and_likelihood(names):
    before = flowmaps.load("runs/mine")
    run("Going back, and likelihood", names)
    zero, one, labels = torch.zeros(16), torch.ones(16), before.labels(16)
    assert (before.model(names["noise"], zero, one, labels) - names["images"]).abs().max() < 1e-3
    for found in ("of_flow", "of_jumps", "log_density"):
        assert names[found].shape == (16,)
        assert names[found].isfinite().all()


@pytest.mark.slow
def test_precision_and_speed(names):
    run("Precision and speed", names)
