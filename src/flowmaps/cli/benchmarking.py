"""The verb that compares methods."""

from pathlib import Path
from typing import Annotated

import typer

BENCHMARKS = ("family",)


def bench(
    name: Annotated[str, typer.Argument(help="family: every loss at equal work, against exact maps.")] = "family",
    seconds: Annotated[int, typer.Option(help="Processor time of each training; 60 if no images are given.")] = 0,
    images: Annotated[int, typer.Option(help="Images each training sees; with seconds, measured at both.")] = 0,
    seeds: Annotated[int, typer.Option(help="Trainings of each method.")] = 3,
    losses: Annotated[str, typer.Option(help="Names, comma-separated; all if left out.")] = "",
    data: Annotated[str, typer.Option(help="Data sets, comma-separated; all if left out.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the results; benchmarks/NAME if left out.")] = None,
) -> None:
    """Measure methods side by side: CSV, a table to read, and a plot."""
    if name not in BENCHMARKS:
        raise ValueError(f"NAME must be one of {', '.join(BENCHMARKS)}; got {name!r}.")
    if seeds < 1 or images < 0 or seconds < 0:
        raise ValueError(
            f"--seeds must be at least 1, --seconds and --images above 0; got {seeds}, {seconds} and {images}."
        )
    from ..bench.family import run

    seconds = seconds or (0 if images else 60)
    budget = {unit: value for unit, value in (("seconds", seconds), ("images", images)) if value}
    listed = [[word for word in text.split(",") if word] for text in (losses, data)]
    run(out or Path("benchmarks") / name, asked=listed[0], data=listed[1], seeds=seeds, budget=budget)
