"""Every verb of the command line on small runs: what it writes, what it says, and how it fails."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import flowmaps
from flowmaps.build import KINDS, find, kinds, names, resolve
from flowmaps.cli import sampling
from flowmaps.cli.__main__ import app, main
from flowmaps.engine import doctor
from flowmaps.engine.config import (
    DEFAULTS,
    find_recipe,
    override,
    read_config,
    recipe_names,
    resolve_config,
    tomllib,
)
from flowmaps.samplers.dormand_prince import DormandPrince

TINY = [
    "images=640", "batch=32", "net.width=16", "net.depth=2", "save.every=320", "device=cpu", "sample.steps=[1, 2]",
    "evaluate=false",
]  # fmt: skip


def flow(*words, cwd=None, code=0, **options):
    """Run the command line as a user does."""
    environment = os.environ | {"COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flowmaps.cli", *map(str, words)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False, **options
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def inside(*words):
    """The same in this process, where starting up costs nothing."""
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False).output


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """What the command line says of words that it refuses, in one line, and its exit code; in this process too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["flowmaps", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        text = capsys.readouterr().err
        assert "unexpected" not in text, text
        return text.replace("\n", " "), stop.value.code

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    text = flow("train", "digits", *TINY, "evaluate=true", "--out", path)
    return path, text


def test_help_is_complete_and_quick():
    began = time.perf_counter()
    text = flow("--help")
    assert time.perf_counter() - began < 2  # 0.5 s is the promise, tested apart; here machines may be busy
    for verb in (
        "train",
        "distill",
        "autoencoder",
        "prepare",
        "sample",
        "evaluate",
        "list",
        "show",
        "cite",
        "doctor",
        "--debug",
    ):
        assert verb in text
    assert "--dry-run" in flow("train", "--help")


def test_train_writes_a_run_folder(run):
    path, text = run
    assert {
        "run.toml",
        "environment.json",
        "metrics.jsonl",
        "evaluation.json",
        "report.html",
        "checkpoints",
        "samples",
    } <= {p.name for p in Path(path).iterdir()}
    assert re.search(r"train: 640/640 images  loss \d+\.\d+  [\d,]+ images/s", text), "plain lines when piped"
    assert f"flowmaps sample {path}" in text
    assert "floor" in text
    result = json.loads((path / "evaluation.json").read_text())
    assert [row["steps"] for row in result["rows"]] == [1, 2, 4, 8, 16]
    assert "1438 samples (seed 0) against 359 held-out data of digits" in result["protocol"]
    assert Image.open(path / "samples" / "000000000640.png").size[0] > 100


def test_report_is_one_page_that_needs_no_network(run):
    page = (run[0] / "report.html").read_text()
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert page.count("data:image/png;base64,") == 2, "one picture per save"
    for word in (
        "Samples over time",
        "Quality against number of evaluations",
        "loss terms",
        "residuals of the three identities",
        "2505.18825",
        "[optimizer]",
        "&quot;torch&quot;",
    ):
        assert word in page
    assert page.count("<svg") == 5


def test_python_loads_the_run(run):
    held = flowmaps.load(run[0])
    assert held.sample(3, steps=2, seed=0, label=7).shape == (3, 1, 8, 8)
    raw = flowmaps.load(run[0], weights="weights")
    x = torch.zeros(2, 1, 8, 8)
    assert not torch.equal(held.velocity(x, 0.5), raw.velocity(x, 0.5)), "the average moved, and is the default"
    first = sorted((run[0] / "checkpoints").iterdir())[0]
    assert not torch.equal(flowmaps.load(first).velocity(x, 0.5), held.velocity(x, 0.5)), "a checkpoint by name"
    with pytest.raises(ValueError, match="weights must be one of 'ema', 'weights'; got 'best'"):
        flowmaps.load(run[0], weights="best")


def test_sample_to_a_tolerance(run, tmp_path):
    picture, raw = ["--out", tmp_path / "g.png"], ["--raw", tmp_path / "x.npz"]
    text = inside("sample", run[0], "--tolerance", 0.3, "--n", 5, "--label", 3, *picture, *raw)
    assert "evaluations per sample: mean" in text
    held = flowmaps.load(run[0])
    assert np.array_equal(np.load(raw[1])["within_0.3"], held.sample_to_tolerance(5, 0.3, label=3).x.numpy())
    text = inside("sample", run[0], "--tolerance", 0.3, "--share", 0.8, "--n", 5, "--label", 3, *picture, *raw)
    rungs = held.calibrate(0.3, 0.8, label=3)
    assert f"calibrated: {rungs[0]}, then {rungs[1]}" in text
    assert np.array_equal(np.load(raw[1])["within_0.3"], held.sample_to_tolerance(5, rungs, label=3).x.numpy())


def test_sample(run, tmp_path):
    text = flow(
        "sample",
        run[0],
        "--steps",
        "1,2",
        "--n",
        5,
        "--out",
        tmp_path / "g.png",
        "--raw",
        tmp_path / "x.npz",
        "--label",
        3,
    )
    assert "picture" in text
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["steps_1"].shape == arrays["steps_2"].shape == (5, 1, 8, 8)
    assert arrays["labels"].tolist() == [3] * 5
    again = flowmaps.load(run[0]).sample(5, 2, label=3)
    assert np.array_equal(arrays["steps_2"], again.numpy()), "the same seed gives the same samples everywhere"
    assert Image.open(tmp_path / "g.png").size[0] > 200


def test_evaluate(run, tmp_path):
    out = tmp_path / "e.json"
    text = inside("evaluate", run[0], "--steps", "1,3", "--n", 50, "--out", out, "--sampler", "heun", "--guidance", 1.5)
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    assert [row["evaluations"] for row in rows] == [4, 12], "Heun calls twice a step, guidance doubles"
    assert "energy" in text
    kept = (run[0] / "evaluation.json").read_text()
    assert json.loads(kept)["sampler"] == "jump", "another file leaves the run's own alone"


def test_evaluations_are_counted_where_the_flow_starts(run, tmp_path):
    """An adaptive solver takes there what it takes for samples."""
    before, held, solver = torch.get_rng_state(), flowmaps.load(run[0]), "{name='dormand_prince', absolute=0.1}"
    inside("evaluate", run[0], "--steps", 1, "--n", 9, "--sampler", solver, "--out", tmp_path / "e.json")
    (x0, cond), zero = held.starting(64), torch.zeros(64)
    _, state = DormandPrince(absolute=0.1)(held.model, x0, zero, zero + 1, cond=cond)
    mean = float(state.evaluations.double().mean())
    assert json.loads((tmp_path / "e.json").read_text())["rows"][0]["evaluations"] == pytest.approx(mean)
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn from the global stream"


def test_guidance_and_grids_by_name_or_table(run, tmp_path):
    held, weak = flowmaps.load(run[0]), sorted((run[0] / "checkpoints").iterdir())[0]
    where = ["--n", 4, "--steps", 3, "--label", 3, "--out", tmp_path / "g.png", "--raw", tmp_path / "x.npz"]
    for words, options in (
        (["--guidance", "cfg_zero_star"], {"guidance": "cfg_zero_star"}),
        (["--guidance", "{name='raag', scale=5}", "--grid", "shift"], {"guidance": {"name": "raag", "scale": 5.0}, "grid": "shift"}),
        (["--guidance", f"{{name='autoguidance', weak='{weak}'}}"], {"guidance": {"name": "autoguidance", "weak": str(weak)}}),
        (
            ["--grid", "{name='quantiles', times={name='logit_normal', std=0.5}}", "--sampler", "{name='gamma', gamma=0.3}"],
            {"grid": {"name": "quantiles", "times": {"name": "logit_normal", "std": 0.5}}, "sampler": {"name": "gamma", "gamma": 0.3}},
        ),
    ):  # fmt: skip
        inside("sample", run[0], *where, *words)
        wanted = held.sample(4, 3, label=3, **options)
        assert np.array_equal(np.load(tmp_path / "x.npz")["steps_3"], wanted.numpy()), words
        assert not torch.equal(wanted, held.sample(4, 3, label=3))
    for name, message in (
        ("rag", "no guidance named 'rag'. Did you mean 'raag'"),
        ("classifier", "Classifier needs the option 'log_prob'"),
    ):
        with pytest.raises(ValueError, match=message):
            inside("sample", run[0], *where, "--guidance", name)


def test_evaluate_trajectories(run, tmp_path):
    out = tmp_path / "e.json"
    text = inside("evaluate", run[0], "--steps", "2", "--n", 50, "--trajectories", "--guidance", "raag", "--out", out)
    result = json.loads(out.read_text())
    assert result["rows"][0]["evaluations"] == 4
    assert result["guidance"] == "raag"
    found = result["trajectories"]
    assert 0 < found["over_length"] < 10
    assert 0 < found["explained_1"] < found["explained_2"] < found["explained_3"] <= 1
    assert found["total_curvature"] > 0
    assert len(found["by_time"]["turning"]) == len(found["by_time"]["time"]) == 33
    assert Image.open(out.with_suffix(".png")).size[0] > 600
    assert re.search(rf"total curvature, radians +│ {found['total_curvature']:.4g} ", text)


@pytest.mark.slow
def test_resume_and_new_folders(tmp_path):
    flow("train", "digits", *TINY, "--quiet", cwd=tmp_path)
    first = tmp_path / "runs" / "digits-001"
    assert first.is_dir()
    half = sorted((first / "checkpoints").iterdir())[0]
    weights = flowmaps.load(first, "weights").velocity(torch.ones(1, 1, 8, 8), 0.5)
    flow("train", "--resume", half, "--quiet")
    assert torch.equal(flowmaps.load(first, "weights").velocity(torch.ones(1, 1, 8, 8), 0.5), weights)
    assert "images=960" not in flow("train", "--resume", first, "images=960", "--quiet")
    assert json.loads((first / "metrics.jsonl").read_text().splitlines()[-1])["images"] == 960
    text = flow("train", "digits", *TINY, "--out", first, code=1)
    assert f"Continue it with --resume {first}" in text


@pytest.mark.slow
def test_distill_and_two_stages(tmp_path):
    flow("train", "digits", *TINY, "loss=flow_matching", "--out", tmp_path / "t", "--quiet")
    flow("distill", tmp_path / "t", "digits_distill", *TINY, "--out", tmp_path / "s", "--quiet")
    assert not (tmp_path / "s" / "teacher").exists()
    x = torch.zeros(1, 1, 8, 8)
    teacher = flowmaps.load(tmp_path / "t")
    halves = teacher.map(teacher.map(x, 0.0, 0.5), 0.5, 1.0)
    assert torch.allclose(
        halves, x + 0.5 * teacher.velocity(x, 0.0) + 0.5 * teacher.velocity(x + 0.5 * teacher.velocity(x, 0.0), 0.5)
    )
    flow("train", "digits_distill", *TINY, "teacher.images=320", "--out", tmp_path / "both", "--quiet")
    assert (tmp_path / "both" / "teacher" / "report.html").exists()
    assert flowmaps.load(tmp_path / "both" / "teacher").config["loss"]["name"] == "flow_matching"


def test_an_autoencoder_then_a_flow_among_its_latents(tmp_path):
    file = tmp_path / "vae.pt"
    space = ["space.name=latent", "space.autoencoder.name=convolutional", f"space.autoencoder.path={file}"]
    words = ["digits", *space, "space.autoencoder.width=8", "device=cpu"]
    text = inside("autoencoder", *words, "--images", 64, "--batch", 32, "--quiet")
    assert f"file    {file}" in text
    assert re.search(r"error   \d\.\d+ \(root mean square, held-out data\)", text)
    inside("train", *words, *TINY, "images=64", "--out", tmp_path / "run", "--quiet")
    picture = tmp_path / "grid.png"
    inside("sample", tmp_path / "run", "--n", 4, "--out", picture)
    assert picture.is_file()


def test_interrupting_saves_says_how_and_fails(tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-m", "flowmaps.cli", "train", "digits", "batch=32", "device=cpu", "--out", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (path / "run.toml").exists() and child.poll() is None:
        time.sleep(0.05)
    time.sleep(2)
    child.send_signal(signal.SIGINT)
    _, text = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "Traceback" not in text
    assert f"flowmaps train --resume {path}" in text
    assert list((path / "checkpoints").iterdir())


def test_list_show_cite(tmp_path):
    flow = inside
    text = flow("list")
    assert all(kind in text for kind in kinds())
    for kind in kinds():
        listed = flow("list", kind)
        assert all(re.search(rf"^{name}\b", listed, re.MULTILINE) for name in names(kind)), kind
    assert all(name in flow("list", "recipes") for name in recipe_names())
    text = flow("show", "mean_flow")
    assert "Source: Geng" in text
    assert "diagonal = 0.75" in text
    assert "mean_flow.py" in text
    assert "images =" in flow("show", "digits")
    assert "data/digits" in flow("show", "data/digits")
    assert "arXiv:2505.18825" in flow("cite", "digits")
    assert "no match" not in flow("cite", "digits_distill")


@pytest.mark.parametrize("kind", kinds())
def test_show_prints_the_whole_table_to_paste(kind):
    """In TOML, and every option once: with its default, or as one that the run gives, or that is open."""
    for name in names(kind):
        text = inside("show", f"{kind}/{name}").split("# as published\n")[0]
        text = re.split(r"\n\n(?=(?:\[\w+\]\n)?name = )", text, maxsplit=1)[1]
        table = tomllib.loads(text)
        part = [key for key in DEFAULTS if KINDS.get(key) == kind]
        table = table[part[0]] if part else table
        assert table == resolve(kind, name)
        rest = re.findall(r"^# (?:given by the run|to be given|nothing unless given): (.+)$", text, re.MULTILINE)
        options = [*table, *", ".join(rest).split(", ")] if rest else [*table]
        assert sorted(options) == sorted(["name", *signature(find(kind, name)).parameters])
        if part:
            trained = (
                {"teacher": "run", "from_teacher": True} if getattr(find(kind, name), "needs_trained", False) else {}
            )
            assert resolve_config({part[0]: table} | trained)[part[0]] == table


def test_cite_a_run(run):
    assert "losses/lsd" in inside("cite", run[0])


def test_doctor_and_dry_run(run):
    text = flow("doctor", run[0], code=1)
    assert "BAD  quality" in text, "twenty steps are not enough"
    for word in (
        "torch",
        "forward mode through attention",
        "gradient of a derivative through norms",
        "compile",
        "disk",
        "checkpoints",
    ):
        assert re.search(rf"^(ok  |BAD ) {word}", text, re.MULTILINE), word
    assert "tangents" in inside("train", "digits", *TINY, "--dry-run")


def test_doctor_finds_what_is_wrong(run, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "examine_machine", list)
    hurt = tmp_path / "hurt"
    shutil.copytree(run[0], hurt)
    newest = sorted((hurt / "checkpoints").iterdir())[-1]
    (newest / "ema.safetensors").write_bytes(b"")
    with (hurt / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"images": 640, "skipped": 1, "bad_batch": [4, 5]}) + "\n")
    text = inside("doctor", hurt)
    assert re.search(r"BAD  checkpoints: .*ema.safetensors", text)
    assert re.search(r"BAD  finite steps: 1 steps were skipped", text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digit"], "no recipe named 'digit'. Did you mean 'digits'?"),
        (["train", "digits", "los.diagonal=1"], "a run has no option 'los'. Did you mean 'loss'?"),
        (["train", "digits", "loss.diagonl=1"], "LSD has no option 'diagonl'. Did you mean 'diagonal'?"),
        (["train", "digits", "loss.diagonal=2"], "diagonal must lie between 0 and 1"),
        (["train", "digits", "loss.diagonal=x"], "LSD's option 'diagonal' must be float; got 'x'"),
        (["train", "digits", "data=nowhere"], "no data named 'nowhere'"),
        (
            ["train", "digits", "data.name=arrays", "data.path=/none.npy"],
            "data.path must be an existing .npy or .npz file",
        ),
        (["train", "digits", "loss=lmd"], "Use `flowmaps distill TEACHER RECIPE`"),
        (
            ["distill", "/none", "digits_distill"],
            "/none must be a run folder with a checkpoint; there is no such folder",
        ),
        (["sample", "/none"], "/none must be a run folder"),
        (["sample", "/none", "--out", "x.jpg"], "must be a .png file in an existing folder"),
        (["train", "--resume", "/none"], "/none must be a run folder"),
        (["doctor", "/none"], "RUN must be a folder that `flowmaps train` wrote; /none has no run.toml"),
        (["train", "own.toml"], "batch must be a whole number, at least 1; got 0"),
        (["list", "loses"], "there is no kind 'loses'. Did you mean 'losses'?"),
        (["show", "lds"], "there is no 'lds'. Did you mean 'lsd'?"),
        (["show", "samplers/boss"], "there is no 'samplers/boss'. There is losses/boss and time_grids/boss"),
        (["show", "losses"], "To see them all, `flowmaps list losses`"),
        (["cite", "nothing"], "no recipe named 'nothing'"),
    ],
)
def test_what_is_given_is_refused_with_the_fix(words, message, refused):
    Path("own.toml").write_text("batch = 0")
    text, code = refused(*words)
    assert (message in text, code) == (True, 1), text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "RECIPE must be given. Recipes: checkerboard"),
        (["distill", "/none"], "RECIPE must be given after TEACHER"),
        (["autoencoder"], "RECIPE must be given: one whose space is latent"),
        (["prepare"], "RECIPE must be given, with a coupling"),
        (["prepare", "digits", "--steps", "0"], "--n must be at least 0 and --steps at least 1; got 0 and 0"),
        (["train", "--resume", "/none", "--out", "x"], "--out and --resume exclude each other"),
        (["sample", "/none", "--steps", "1,x"], "--steps must be whole numbers from 1"),
        (["sample", "/none", "--share", "0.9"], "--share must come with a --tolerance; got 0.9 alone"),
        (["sample", "/none", "--tolerance", "-1"], "--tolerance must be positive, or 0 to take --steps; got -1"),
        (["bench", "famly"], "NAME must be one of family, samplers, training; got 'famly'"),
        (["bench", "--seeds", "0"], "--seeds must be at least 1"),
        (["train", "digits", "--batch", "32"], "Options of a run have no dashes: batch=32"),
        (["train", "digits", "--net.width=32"], "Options of a run have no dashes: net.width=32"),
        (["distill", "/none", "digits", "--lr", "1e-3"], "Options of a run have no dashes: optimizer.lr=1e-3"),
    ],
)
def test_a_command_line_that_cannot_be_read(words, message, refused):
    text, code = refused(*words)
    assert (message in text, code) == (True, 2), text


WRONG = (
    ("lr=1e-3", "a run has no option 'lr'. Did you mean 'optimizer.lr'?"),
    ("width=3", "a run has no option 'width'. Did you mean 'net.width'?"),
    ("warmup=3", "a run has no option 'warmup'. Did you mean 'schedule.warmup'?"),
    ("images=1e5", "images must be a whole number; got 100000.0. Write 100000."),
    ("optimizer=adam", "optimizer must be a table; got 'adam'. Set its options, for example optimizer.name=torch.opti"),
    ("ema=3", "ema must be a table; got 3. Set its options, for example ema.halflife=..."),
    ("loss=3", "loss must be a name or a table; got 3."),
    ("compile=1", "compile must be true or false; got 1."),
    ("device=cuda", "device must be one of 'auto', 'cpu'; got 'cuda'"),
    ("schedule.warmup=-1", "schedule.warmup must be at least 0 images; got -1"),
    ("condition_dropout=2", "condition_dropout must lie between 0 and 1, a share; got 2"),
    ("clip=0", "clip must be a positive number; got 0"),
    ("optimizer.lr=abc", "optimizer.lr must be a positive number; got 'abc'"),
    ("optimizer.lr=nan", "optimizer.lr must be a positive number; got nan"),
    ("save.every=-5", "save.every must be a whole number, at least 0; got -5"),
    ("save.keep=0", "save.keep must be a whole number, at least 1; got 0"),
    ("net.width=0", "net.width must be a whole number, at least 1; got 0"),
    ("net.depth=-1", "net.depth must be a whole number, at least 0; got -1"),
    ("sample.steps=3", "sample.steps must be a list of whole numbers from 1, for example [1, 2, 4]; got 3"),
    ("shape=[1,9,9]", "shape must be that of the data, [1, 8, 8]; got [1, 9, 9]. Leave shape out"),
    ("classes=3", "classes must be that of the data, 10; got 3"),
    ("loss={name='lsd'", "a value that starts with a bracket must be TOML; got \"{name='lsd'\""),
    ("loss.times=uniform", "LSD's option 'times' must be one of annealed, dyadic_pair, logit_normal_pair, span_pair"),
    ("coupling=same_class_sequence", "makes sequences of data, which LSD does not take. Use loss.name='autoregressive"),
    ("interpolant=stochastic map.name=data_prediction", "Stochastic has latent noise"),
    ("loss.interpolant=trigonometric", "loss.interpolant must be the path of the run; leave it out"),
    ("loss={name='mean_flow',velocity='teacher'}", "Use `flowmaps distill TEACHER RECIPE`, or set teacher to a run"),
    (
        "interpolant=variance_exploding loss={name='reflected_score_matching'}",
        "reflects at (-1.0, 1.0), which the space must too; got Euclidean",
    ),
    (
        "loss={name='representation_alignment',encoder='unet',channels=4,dimension=4}",
        "encoder must take data alone; got UNet, a network of flows",
    ),
    ("loss.diagonal=0.5 loss.name=flow_matching", "FlowMatching has no option 'diagonal'"),
    ("net.name=temporal", "one output of a network; Temporal has 4. Use a map that takes them, such as map.name='traj"),
)


@pytest.mark.parametrize(("option", "message"), WRONG)
def test_options_that_no_run_can_have(option, message, refused):
    text, code = refused("train", "digits", *TINY, *option.split())
    assert (message in text, code) == (True, 1), text


def test_another_name_drops_the_options_of_the_one_before(tmp_path):
    config = read_config(find_recipe("digits"))
    assert config["loss"] == {"name": "lsd", "diagonal": config["loss"]["diagonal"]}
    assert override(config, ["loss.name=flow_matching"])["loss"] == {"name": "flow_matching"}
    assert override(config, ["loss.name=psd", "loss.split=midpoint"])["loss"] == config["loss"] | {
        "name": "psd", "split": "midpoint"
    }  # fmt: skip
    nested = override(config, ["loss=balanced", "loss.loss.name=lsd", "loss.loss.diagonal=0.5"])["loss"]
    assert nested == {"name": "balanced", "loss": {"name": "lsd", "diagonal": 0.5}}


def test_what_is_refused_at_its_first_step_leaves_its_folder_free(refused, tmp_path):
    words = ("train", "digits", *TINY, "--out", tmp_path / "run", "--quiet")
    assert "error" in refused(*words, "loss=divergence_distillation")[0]
    assert not (tmp_path / "run" / "run.toml").exists()
    inside(*words)
    assert (tmp_path / "run" / "run.toml").exists()


def test_maps_need_their_condition(refused, tmp_path):
    np.savez(tmp_path / "maps.npz", x=np.zeros((64, 1, 8, 8), np.float32), y=np.zeros((64, 8, 8), np.int64))
    text, _ = refused("train", "digits", *TINY, f"data={{name='arrays',path='{tmp_path}/maps.npz'}}")
    assert "labels must be one number for each datum; got maps of (8, 8). Set condition=semantic_map" in text


def test_autoencoders_need_files_and_lengths(refused):
    latent = ("digits", *TINY, "space.name=latent", "space.autoencoder.name=convolutional")
    assert "space.autoencoder.path must name the file of its weights; got none" in refused("train", *latent)[0]
    text, _ = refused("autoencoder", *latent, "space.autoencoder.path=a.pt", "--images", "-5")
    assert "images and batch must be at least 1 and lr positive; got -5, 128 and 0.001" in text


def test_a_student_of_another_width_is_told_which(run, refused):
    text, code = refused("distill", run[0], "digits_distill", *TINY, "net.width=8", "net.depth=3", "from_teacher=true")
    assert "net.width is 8, the teacher's 16, net.depth is 3, the teacher's 2. Give the student the teacher's." in text
    assert code == 1


def test_words_that_would_be_ignored_are_refused(run, refused):
    text, _ = refused("distill", run[0], "digits_distill", "teacher=other")
    assert "TEACHER is given already, before RECIPE; leave teacher= out" in text
    for words in (("--sampler", "heun"), ("--grid", "boss"), ("--steps", "7")):
        text, _ = refused("sample", run[0], "--tolerance", 0.1, *words)
        assert "--tolerance chooses steps, sampler and grid itself" in text
    before = sorted(run[0].glob("checkpoints/*"))
    assert "tangents" in inside("train", "--resume", run[0], "images=960", "--dry-run")
    assert sorted(run[0].glob("checkpoints/*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "3"], "sampler must be a name, a table or an object; got 3"),
        (["--grid", "[0, 0.5, 1]"], "grid must be a name, a table or an object; got [0, 0.5, 1]"),
        (["--sampler", "{name='heun'"], "a value that starts with a bracket must be TOML"),
        (["--guidance", "nan"], "guidance must be a finite scale; got nan. 1 is none"),
        (["--guidance", "told"], "what the network was built for, label; got guidance too. Name it in net.numbers and"),
        (["--label", "12"], "label must be one class, or 2, from 0 to 9 (10 for none); got 12."),
        (["--device", "meta"], "device must be one that this machine has, such as cpu; got 'meta'"),
        (["--device", "foo"], "device must be one that this machine has, such as cpu; got 'foo'"),
        (["--seed", 10**22], "a seed and its counters must fit into 64 bits; got (10000000000000000000000, 0)"),
    ],
)
def test_samples_that_cannot_be_drawn(words, message, run, refused):
    text, code = refused("sample", run[0], "--n", 2, "--steps", 1, *words)
    assert (message in text, code) == (True, 1), text


def test_an_evaluation_is_refused_before_it_begins(run, refused):
    assert "must be a .json file in an existing folder" in refused("evaluate", run[0], "--out", "nope/e.json")[0]
    text, _ = refused("evaluate", run[0], "--n", 1, "--out", "e.json")
    assert "n and the data must be at least 2, to be compared; got 1 and 359 held out" in text


def test_few_samples_are_measured_without_the_tests_that_need_more(run, tmp_path):
    inside("evaluate", run[0], "--n", 9, "--steps", 1, "--out", tmp_path / "e.json")
    assert "classifier_two_sample" not in json.loads((tmp_path / "e.json").read_text())["rows"][0]


def test_samples_that_are_no_numbers_are_counted(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flowmaps.Flow, "sample", lambda *a, **k: torch.full((3, 1, 8, 8), math.nan))
    sampling.sample(run[0], "1,2,2", 3, out=tmp_path / "g.png")
    assert "warning: 6 of 6 samples are not finite numbers" in capsys.readouterr().err


def test_wrong_use_of_the_parser(refused):
    for words, message in ((("sample", "x", "--stepz", "1"), "No such option"), (("sampel",), "sampel")):
        text, code = refused(*words)
        assert (message in text, code) == (True, 2)


def test_modules_of_ones_own_are_looked_for_here(tmp_path):
    """Also by the script that an installation makes, which lies elsewhere."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "flowmaps_script.py").write_text("from flowmaps.cli.__main__ import main\nmain()")
    (tmp_path / "mine.py").write_text("def coupling():\n    raise ValueError('found')")
    command = [sys.executable, "bin/flowmaps_script.py", "train", "digits", "coupling=mine:coupling", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "error: found"


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "flowmaps.cli", "train", "digit", "--debug"], capture_output=True, text=True, check=False
    )
    assert "Traceback" in done.stderr
    assert done.returncode == 1


def test_a_closed_pipe_is_no_error_message():
    command = f"{sys.executable} -m flowmaps.cli list losses | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
