"""The examples run, and what the README shows is what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(*words, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_two_moons_ends_at_the_floor(tmp_path):
    text = python(ROOT / "examples" / "two_moons.py", "--steps", 1500, "--out", tmp_path / "m.png", cwd=tmp_path)
    one = float(re.search(r"of 1-step samples: +([\d.]+)", text)[1])
    # Between real samples of this size it is 0.002 on average; an untrained map has about 1.
    assert one < 0.02
    assert (tmp_path / "m.png").stat().st_size > 10_000


def test_two_moons_runs(tmp_path):
    assert "picture" in python(
        ROOT / "examples" / "two_moons.py", "--steps", 20, "--out", tmp_path / "m.png", cwd=tmp_path
    )


INSTAFLOW = (
    r"one step of.*guided flow +([\d.]+) +([\d.]+).*after reflow +([\d.]+).*its distillation +([\d.]+) +([\d.]+)"
)


@pytest.mark.slow
def test_instaflow_runs(tmp_path):
    text = python(ROOT / "examples" / "instaflow.py", "--steps", 3, "--pairs", 64, "--test", 100, cwd=tmp_path)
    assert re.search(INSTAFLOW, text, re.DOTALL)


@pytest.mark.slow
def test_instaflow_makes_one_step_of_a_guided_text_to_point_flow(tmp_path):
    text = python(ROOT / "examples" / "instaflow.py", "--steps", 800, "--pairs", 8000, cwd=tmp_path)
    before, words, reflowed, after, obeyed = map(float, re.search(INSTAFLOW, text, re.DOTALL).groups())
    # Found 1.288 -> 0.169 -> 0.066, and words obeyed by 0.863 -> 0.993 of the samples.
    assert before > 1 > 0.3 > reflowed > after
    assert after < 0.13
    assert words < 0.9 < 0.98 < obeyed


LINKS = r"noise +([\d.]+) +0\nthe chain of links +([\d.]+) +60\none jump +([\d.]+) +1\nthe jump ends ([\d.]+) from"


@pytest.mark.slow
def test_local_flow_matching_makes_one_jump_of_a_chain(tmp_path):
    text = python(ROOT / "examples" / "local_flow_matching.py", "--steps", 500, "--pairs", 8000, cwd=tmp_path)
    noise, chain, jump, error = map(float, re.search(LINKS, text).groups())
    # Found 159, 8.2 and 8.2 floors, and 0.014; 1.0 and 1.0 after twice the steps.
    assert noise > 100 > 20 > max(chain, jump)
    assert error < 0.05


PLANS = r"recorded.* ([\d.]+)\n" + r".*scale (?:\d) +([\d.]+)\n" * 6


@pytest.mark.slow
def test_planning_runs(tmp_path):
    text = python(ROOT / "examples" / "planning.py", "--steps", 3, "--walks", 5, cwd=tmp_path)
    assert re.search(PLANS, text)


@pytest.mark.slow
def test_guided_plans_do_better_than_what_was_recorded(tmp_path):
    text = python(ROOT / "examples" / "planning.py", "--steps", 1500, "--walks", 200, cwd=tmp_path)
    recorded, none, asked, guided, _, one, ten = map(float, re.search(PLANS, text).groups())
    # Found .27 recorded; .09 without a return, .65 with one, .81 guided; 1 step .04, 10 steps .93, of 500 walks.
    assert none < recorded < 0.45 < asked < guided
    assert one < 0.3 < 0.7 < ten


def test_your_own_loss_trains_from_the_command_line(tmp_path):
    words = [
        "train",
        "digits",
        "loss={name = 'your_own_loss:Midpoint'}",
        "images=320",
        "batch=32",
        "net.width=16",
        "sample.steps=[1]",
        "device=cpu",
        "evaluate=false",
        "--out",
        tmp_path / "run",
    ]
    python("-m", "flowmaps.cli", *words, "--quiet", cwd=ROOT / "examples")
    assert (tmp_path / "run" / "report.html").exists()
    body = (ROOT / "examples" / "your_own_loss.py").read_text().partition("@dataclass")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_python_in_the_readme_runs(tmp_path):
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks
    words = [
        "train",
        "digits",
        "images=320",
        "batch=32",
        "net.width=16",
        "sample.steps=[1]",
        "device=cpu",
        "evaluate=false",
        "--out",
        "runs/digits-001",
        "--quiet",
    ]
    python("-m", "flowmaps.cli", *words, cwd=tmp_path)
    python("-c", "\n".join(blocks), cwd=tmp_path)
