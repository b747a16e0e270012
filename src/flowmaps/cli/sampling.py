"""Verbs that use a run: sample, evaluate."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Run = Annotated[Path, typer.Argument(help="Run folder, or a checkpoint in it.")]
Seed = Annotated[int, typer.Option(help="Sample i depends on (seed, i) alone.")]
SamplerName = Annotated[str, typer.Option(help="How a step is taken; `flowmaps list samplers`. Or a table.")]
Guidance = Annotated[
    str, typer.Option(help="A scale; 1 is none. Or a name or a table, `flowmaps list guidance`: '{name=\"raag\"}'.")
]
Weights = Annotated[str, typer.Option(help="ema: the running average; weights: the last iterate.")]
Device = Annotated[str, typer.Option(help="For example cpu or cuda.")]
STEPS = "1,2,4"


def sample(
    run: Run,
    steps: Annotated[str, typer.Option(help="Numbers of steps, comma-separated.")] = STEPS,
    n: Annotated[int, typer.Option("--n", help="Number of samples.")] = 64,
    seed: Seed = 0,
    label: Annotated[int | None, typer.Option(help="Class of all samples; left out, the classes take turns.")] = None,
    out: Annotated[Path, typer.Option(help="Picture, .png.")] = Path("samples.png"),
    raw: Annotated[Path | None, typer.Option(help="Also save the arrays, .npz.")] = None,
    sampler: SamplerName = "jump",
    grid: Annotated[
        str, typer.Option(help="How times are chosen; `flowmaps list time_grids`. Or a table.")
    ] = "uniform",
    tolerance: Annotated[
        float, typer.Option(help="Instead of steps, sampler and grid: as few as each sample needs.")
    ] = 0.0,
    share: Annotated[
        float, typer.Option(help="Of samples within --tolerance: calibrates first, for many samples.")
    ] = 0.0,
    guidance: Guidance = "1",
    weights: Weights = "ema",
    device: Device = "cpu",
) -> None:
    """Draw samples: one picture with a block per number of steps, and the arrays if wanted."""
    numbers = step_numbers(steps)
    if tolerance < 0:
        raise typer.BadParameter(f"--tolerance must be positive, or 0 to take --steps; got {tolerance}.")
    if share and not tolerance:
        raise typer.BadParameter(f"--share must come with a --tolerance; got {share} alone.")
    if tolerance and (steps, sampler, grid) != (STEPS, "jump", "uniform"):
        raise typer.BadParameter(
            "--tolerance chooses steps, sampler and grid itself; leave --steps, --sampler and --grid out."
        )
    _writable(out, ".png")
    if raw is not None:
        _writable(raw, ".npz")
    import numpy as np

    from ..engine.config import read_value
    from ..engine.pictures import save_samples
    from ..engine.progress import ProgressLine
    from ..flow import load

    flow, steer, step = load(run, weights, device), read_value(guidance), read_value(sampler)
    if tolerance:
        aim: Any = tolerance
        if share:
            aim = flow.calibrate(tolerance, share, label=label, guidance=steer)
            print(f"calibrated: {', then '.join(map(str, aim))}")
        result = flow.sample_to_tolerance(n, aim, seed=seed, label=label, guidance=steer)
        blocks, names = {f"within_{tolerance:g}": result.x.cpu()}, [f"within {tolerance:g}"]
        spent = result.evaluations.double()
        print(
            f"evaluations per sample: mean {spent.mean():.1f}, most {spent.max():.0f}; "
            f"estimated error: mean {result.error.mean():.2g}, largest {result.error.max():.2g}"
        )
    else:
        blocks, names = {}, [f"{k} step{'s' if k > 1 else ''}" for k in numbers]
        with ProgressLine("sample", n * len(numbers), "samples") as progress:
            for i, k in enumerate(numbers):
                blocks[f"steps_{k}"] = flow.sample(
                    n, k, seed=seed, label=label, sampler=step, guidance=steer, grid=read_value(grid),
                    callback=lambda done, i=i, k=k: progress.update(i * n + done, f"{k} steps"),
                ).cpu()  # fmt: skip
    broken = sum(int((~block.flatten(1).isfinite().all(1)).sum()) for block in blocks.values())
    if broken:
        print(f"warning: {broken} of {n * len(blocks)} samples are not finite numbers", file=sys.stderr)
    save_samples(list(blocks.values()), names, out)
    print(f"picture  {out}")
    if raw is not None:
        arrays = {name: block.numpy() for name, block in blocks.items()}
        labels = flow.labels(n, label)
        table: Any = arrays if labels is None else arrays | {"labels": labels.numpy()}
        np.savez(raw, **table)
        print(f"arrays   {raw}: {', '.join(arrays)}")


def evaluate(
    run: Run,
    steps: Annotated[str, typer.Option(help="Numbers of steps, comma-separated.")] = "1,2,4,8,16",
    n: Annotated[int, typer.Option("--n", help="Number of samples, at most as many as training data.")] = 2000,
    seed: Seed = 0,
    sampler: SamplerName = "jump",
    guidance: Guidance = "1",
    weights: Weights = "ema",
    device: Device = "cpu",
    trajectories: Annotated[
        bool, typer.Option("--trajectories", help="Also how straight they are and where they turn, with a picture.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON; RUN/evaluation.json if left out.")] = None,
) -> None:
    """Measure quality against number of evaluations, beside the floors of finite samples."""
    numbers = step_numbers(steps)
    if out is not None:
        _writable(out, ".json")
    from ..engine.checkpoint import find_checkpoint
    from ..engine.config import read_config, read_value
    from ..engine.evaluate import evaluate_flow, to_json
    from ..engine.objects import held_out, open_data
    from ..engine.progress import ProgressLine
    from ..engine.report_page import write_report
    from ..engine.run_folder import EVALUATION, RunFolder
    from ..flow import load

    flow, steer = load(run, weights, device), read_value(guidance)
    checkpoint = find_checkpoint(run)
    config = read_config(checkpoint / "run.toml")
    train = open_data(config)
    with ProgressLine("evaluate", len(numbers) + 2, "parts") as progress:
        parts = iter(range(len(numbers) + 2))
        result = evaluate_flow(
            flow, train, held_out(config, train), numbers, sampler=read_value(sampler), guidance=steer, n=n,
            seed=seed, tell=lambda what: progress.update(next(parts), what),
        )  # fmt: skip
        progress.update(len(numbers) + 2)
    folder = RunFolder(checkpoint.parents[1])
    if trajectories:
        from ..engine.pictures import save_trajectories
        from ..engine.trajectories import measure_trajectories

        result["trajectories"], states = measure_trajectories(flow, guidance=steer, seed=seed)
        picture = folder.path / "trajectories.png" if out is None else out.with_suffix(".png")
        save_trajectories(result["trajectories"], states, picture)
        print(f"picture  {picture}")
    if out is None:
        folder.write(EVALUATION, to_json(result))
        write_report(folder)
    else:
        out.write_text(to_json(result), encoding="utf-8")
    print_evaluation(folder.path, out)


def print_evaluation(run: Path, file: Path | None = None) -> None:
    """The table of an evaluation on the terminal."""
    from rich.console import Console
    from rich.table import Table

    from ..engine.evaluate import COLUMNS
    from ..engine.trajectories import SHAPE

    result = json.loads((file or run / "evaluation.json").read_text("utf-8"))
    columns = [c for c in COLUMNS if c in result["rows"][0]]
    table = Table(caption=result["protocol"], caption_justify="left")
    for column in columns:
        table.add_column(COLUMNS[column], justify="right")
    for row in [*result["rows"], {"steps": "floor", **result["floor"]}]:
        table.add_row(*(f"{v:.4g}" if isinstance(v := row.get(c, ""), float) else str(v) for c in columns))
    Console().print(table)
    if "trajectories" in result:
        shape = Table("trajectories", "", caption=result["trajectories"]["protocol"], caption_justify="left")
        for measure, title in SHAPE.items():
            shape.add_row(title, f"{result['trajectories'][measure]:.4g}")
        Console().print(shape)
    accuracy = result["rows"][0].get("classifier_accuracy")
    if accuracy is not None:
        print(f"accuracy of the labelling classifier on unseen data: {accuracy:.3f}")


def step_numbers(text: str) -> list[int]:
    """Numbers of steps as typed, "1,2,4", as a list, each once."""
    try:
        numbers = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(
            f"--steps must be whole numbers from 1, separated by commas, for example 1,2,4; got {text!r}."
        )
    return numbers


def _writable(file: Path, suffix: str) -> None:
    if file.suffix != suffix or not file.absolute().parent.is_dir():
        raise ValueError(f"the output must be a {suffix} file in an existing folder; got {str(file)!r}.")
