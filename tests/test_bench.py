"""The benchmarks: what is counted, what is averaged, what is written."""

import pytest
import torch

from flowmaps.bench import family, samplers, training
from flowmaps.bench.harness import Training, over_seeds, read_rows, train, write_rows
from flowmaps.build import build
from flowmaps.core.flow_map import EulerMap
from flowmaps.oracles.gaussian import Gaussian


@pytest.mark.slow
def test_a_training_is_measured_when_each_budget_is_spent(tmp_path):
    family.run(tmp_path, asked=["psd", "lsd"], data=["two_gaussians"], seeds=1, budget={"seconds": 1, "images": 4096})
    measured = read_rows(tmp_path / "two_gaussians.csv")
    assert [(row["loss"], row["equal"]) for row in measured] == [
        (m, u) for m in ("lsd", "psd") for u in ("images", "seconds")
    ]
    for row in measured:
        assert (tmp_path / f"two_gaussians-{row['equal']}.png").exists()
        # The first step after the budget is spent: a step takes well under a second.
        assert (row["training steps"] == 4096 // 512) if row["equal"] == "images" else (1 <= row["seconds"] < 2)
        assert 0 < row["error 1"] < 2
        assert row["energy 1"] > 0
        assert row["diverged"] == 0
    # On the diagonal 1 pass; off it, a quarter of the batch, LSD takes a derivative with its forward pass and a target.
    assert measured[0]["passes per image"] == pytest.approx(1.25)


@pytest.mark.slow
def test_what_was_measured_is_kept_unless_asked_for_by_name(tmp_path):
    budget = {"images": 512}
    old = [
        {"loss": m, "seed": 0, "equal": "images", "budget": 512, "error 1": 7.5, "commit": "12345678"}
        for m in ("lsd", "psd")
    ]
    other = {"loss": "psd", "seed": 0, "equal": "images", "budget": 1024, "error 1": 7.5, "commit": "1e3456"}
    write_rows(tmp_path / "two_gaussians.csv", [*old, other])
    family.run(tmp_path, asked=["psd"], data=["two_gaussians"], seeds=1, budget=budget)
    rows = {(row["loss"], row["budget"]): row for row in read_rows(tmp_path / "two_gaussians.csv")}
    assert {key: row["error 1"] == 7.5 for key, row in rows.items()} == {
        ("lsd", 512): True,
        ("psd", 512): False,
        ("psd", 1024): True,
    }
    assert rows["psd", 1024]["commit"] == "1e3456", "a hash is text, also one that reads as a number"
    text = (tmp_path / "two_gaussians-images.md").read_text()
    assert "12345678" in text
    assert "1e3456" not in text, "another budget is another table"


def test_diverged_trainings_are_counted_and_left_out_of_the_mean():
    rows = [
        {"loss": "a", "seed": i, "error 1": e, "diverged": d} for i, (e, d) in enumerate([(0.1, 0), (0.3, 0), (9e9, 1)])
    ]
    assert over_seeds(rows, "loss") == [{"loss": "a", "error 1": "0.200 ± 0.141", "diverged": "1 of 3"}]
    assert over_seeds(rows[2:], "loss") == [{"loss": "a", "error 1": "", "diverged": "1 of 1"}]


@pytest.mark.slow
def test_samplers_are_compared_at_equal_evaluations(tmp_path):
    samplers.run(tmp_path, data=["eight_gaussians"], asked=["euler", "runge_kutta4", "flow_turbo", "picard"])
    rows = {(r["sampler"], r["grid"], r["evaluations"]): r for r in read_rows(tmp_path / "eight_gaussians.csv")}
    assert rows["euler", "uniform", 10]["steps"] == 10
    assert rows["runge_kutta4", "uniform", 10]["used"] == 8, "two steps of four"
    assert ("runge_kutta4", "uniform", 3) not in rows, "one step costs four"
    assert rows["flow_turbo", "uniform", 10]["steps"] == 9, "Heun's first step costs two, the others one"
    assert sum(grid == samplers.OWN for _, grid, _ in rows) == 4
    errors = [rows["euler", "uniform", n]["error"] for n in (3, 5, 10, 20)]
    assert errors == sorted(errors, reverse=True)
    assert "| runge_kutta4 | uniform |  | " in (tmp_path / "eight_gaussians.md").read_text()
    assert (tmp_path / "eight_gaussians.png").exists()
    with pytest.raises(ValueError, match="there is no flow 'nothing' to sample"):
        samplers.run(tmp_path, data=["nothing"])


def test_what_failed_is_told_and_tried_again(tmp_path, monkeypatch):
    """And what was found is not measured anew, setting by setting."""
    monkeypatch.setattr(samplers, "commit", lambda: "new")
    monkeypatch.setattr(samplers, "plot", lambda *args: None)
    monkeypatch.setattr(samplers, "in_parallel", lambda work, jobs: (work(*job) for job in jobs))
    monkeypatch.setattr(samplers, "names", lambda kind: {"samplers": ["euler", "ghvb"]}.get(kind, ["boss", "uniform"]))
    jobs, broken = [], {"ghvb order=2 beta=0.5"}

    def measure(name, table, grid):
        jobs.append((samplers.title(table), grid))
        base = {"flow": name, "sampler": samplers.title(table), "grid": grid}
        values = {"used": 3, "steps": 3, "seconds": 1.0, "error": 0.5, "energy": 2.0}
        bad = {"failed": "RuntimeError: another type"} if jobs[-1][0] in broken and grid == "boss" else {}
        return [base | {"evaluations": 3} | values, base | {"evaluations": 5} | (bad or values)]

    monkeypatch.setattr(samplers, "measure", measure)
    for again in ([(m, g) for m in ("euler", "ghvb order=2 beta=0.5", "ghvb order=4 beta=0.5") for g in ("boss", "uniform")],
                  [("ghvb order=2 beta=0.5", "boss")]):  # fmt: skip
        jobs.clear()
        samplers.run(tmp_path, data=["eight_gaussians"])
        assert jobs == again
        assert len(read_rows(tmp_path / "eight_gaussians.csv")) == 12, "the new rows take the place of the failed"
        text = (tmp_path / "eight_gaussians.md").read_text()
        assert "| ghvb order=2 beta=0.5 | boss | 0.5 | failed |  |  |  | failed |  |" in text
        assert "tried again by the next run: ghvb order=2 beta=0.5 on boss: RuntimeError: another type" in text
    broken.clear()
    samplers.run(tmp_path, data=["eight_gaussians"])
    assert "failed" not in (tmp_path / "eight_gaussians.md").read_text().lower()
    jobs.clear()
    samplers.run(tmp_path, data=["eight_gaussians"])
    assert jobs == []


def test_samplers_that_choose_have_a_row_at_the_evaluations_they_take(monkeypatch):
    flow = EulerMap(lambda x, t, cond: 0 * x + 1.0)
    x0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).float()
    on = samplers.Field(flow, x0, x0 + 1, x0 + 1, 1.0)
    monkeypatch.setattr(samplers, "POINTS", 20)
    monkeypatch.setattr(samplers, "field", lambda name: on)
    torch.set_default_dtype(torch.float32)
    for table, turns, used in (
        # A constant velocity: two evaluations to begin with, some steps that grow tenfold, each of six.
        ({"name": "dormand_prince", "relative": 0.1, "absolute": 0.1}, None, None),
        # The first round is right, and the second says so.
        ({"name": "picard", "steps": 20, "tolerance": 1e-3}, 2, 40),
    ):
        (row,) = samplers.measure("any", table, samplers.OWN)
        assert row["error"] < 1e-6
        assert row["evaluations"] == turns if turns else (row["evaluations"] - 2) % 6 == 0
        assert row["used"] == (used or row["evaluations"])
        assert f"| {samplers.title(table)} | {row['evaluations']:.3g} |" in "\n".join(samplers._chosen([row]))
        assert samplers._table([row]) == []
    compared = {table["name"] for table in samplers.samplers()}
    assert {"flow_turbo", "dormand_prince", "picard"} <= compared


@pytest.mark.slow
def test_couplings_and_laws_are_compared_at_equal_images(tmp_path):
    methods = ["semidiscrete_ot", "learned", "norm_aligned", "reflow", "mode"]
    training.run(tmp_path, data=["eight_gaussians"], asked=methods, seeds=1, images=512)
    rows = read_rows(tmp_path / "eight_gaussians.csv")
    assert [row["method"] for row in rows] == methods
    assert not any("failed" in row for row in rows)
    assert all(row["energy many"] > 0 and row["own error 8"] > 0 for row in rows)
    with pytest.raises(ValueError, match="there is no 'nothing' to train with"):
        training.run(tmp_path, asked=["nothing"])


def test_the_overview_ranks_by_one_step_and_marks_the_best(tmp_path):
    def row(loss, seed, error, diverged=0):
        return {"loss": loss, "seed": seed, "equal": "seconds", "budget": 9, "diverged": diverged, "commit": "c"} | {
            f"error {k}": error for k in (1, 4)
        }

    rows = [row("psd", 0, 0.1), row("psd", 1, 0.3), row("psd", 2, 99.0, 1), row("lsd", 0, 0.1)]
    write_rows(tmp_path / "eight_gaussians.csv", [*rows, row("esd", 0, 0.0) | {"budget": 8}])
    write_rows(tmp_path / "checkerboard.csv", [row("lmd", 0, 0.5), row("psd", 0, 0.4), row("lsd", 0, 0.3)])
    family.overview(tmp_path, "seconds", 9)
    lines = [line for line in (tmp_path / "overview-seconds.md").read_text().splitlines() if line.startswith("|")]
    assert lines[0] == "| loss | teacher | checkerboard 1 | checkerboard 4 | eight_gaussians 1 | eight_gaussians 4 |"
    assert lines[2:5] == [
        "| `lsd` |  | **0.3** | **0.3** | **0.1** | **0.1** |",
        "| `psd` |  | 0.4 | 0.4 | 0.2 | 0.2 |",
        "| `lmd` | yes | 0.5 | 0.5 |  |  |",
    ]


def test_a_loss_that_cannot_be_compared_says_why():
    with pytest.raises(ValueError, match="a likelihood beside a map"):
        family.methods(["divergence_distillation"])
    with pytest.raises(ValueError, match="no data 'nothing'"):
        family.run(None, data=["nothing"])
    with pytest.raises(ValueError, match="'lmd' has no other options as published"):
        family.variants(["facm as published", "lmd as published"])


def test_a_table_says_how_many_trainings_it_holds():
    rows = [{"loss": "lsd", "seed": i} for i in range(3)]
    assert family._seeds(rows) == "3 seeds"
    assert family._seeds([*rows, {"loss": "psd", "seed": 0}]) == "1 or 3 seeds"
    assert family._seeds(rows[:1]) == "1 seed"


def test_losses_are_compared_as_published_too(monkeypatch):
    """What is built for the row of that name, before it trains, and how it is told from the defaults."""
    built = []
    monkeypatch.setattr(family, "build", lambda kind, table, **_: built.append((kind, table)) or 1 / 0)
    assert {"facm", "facm as published", "lmd"} <= set(family.variants())
    assert "lmd as published" not in family.variants()
    for name in ("alpha_flow", "alpha_flow as published"):
        (row,) = family.measure(name, "two_gaussians", 0, {"images": 512})
        assert row["loss"] == name
        assert "ZeroDivisionError" in row["failed"]
    (_, plain), (_, published) = built
    assert plain == {"name": "alpha_flow", **family.OPTIONS["alpha_flow"]}
    assert published == {**plain, "weighting": published["weighting"], "rescale": False, "limit": 4.0}
    assert published["weighting"]["name"] == "adaptive_power"


@pytest.mark.slow
def test_compiled_and_eager_trainings_agree():
    """The same draws, so that ten steps lead to the same weights up to float32 rounding, which Adam magnifies."""
    flow, ends = Gaussian(torch.ones(2), torch.ones(2)), []
    for compiled in (False, True):
        training = Training(batch=32, compiled=compiled)
        made = train(build("losses", "lsd"), flow.sample, shape=(2,), images=320, training=training)
        ends.append(torch.cat([p.flatten() for p in made.model.parameters()]))
    torch.testing.assert_close(*ends, atol=2e-3, rtol=0)
