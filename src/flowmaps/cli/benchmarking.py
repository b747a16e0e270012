"""The verb that compares methods."""

from pathlib import Path
from typing import Annotated

import typer

BENCHMARKS = ("family", "samplers", "training")


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="family: every loss at equal work. samplers: every sampler on every grid. "
            "training: couplings and laws of time."
        ),
    ] = "family",
    seconds: Annotated[int, typer.Option(help="Processor time of each training; 60 if no images are given.")] = 0,
    images: Annotated[int, typer.Option(help="Images each training sees; with seconds, measured at both.")] = 0,
    seeds: Annotated[int, typer.Option(help="Trainings of each method.")] = 3,
    methods: Annotated[
        str, typer.Option(help="Names to measure anew, comma-separated; all that are missing if left out.")
    ] = "",
    data: Annotated[str, typer.Option(help="Data sets, comma-separated; all if left out.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the results; benchmarks/NAME if left out.")] = None,
) -> None:
    """Measure methods side by side: CSV, a table to read, and a plot."""
    if name not in BENCHMARKS:
        raise typer.BadParameter(f"NAME must be one of {', '.join(BENCHMARKS)}; got {name!r}.")
    if seeds < 1 or images < 0 or seconds < 0:
        raise typer.BadParameter(
            f"--seeds must be at least 1, --seconds and --images above 0; got {seeds}, {seconds} and {images}."
        )
    asked, chosen = ([word for word in text.split(",") if word] for text in (methods, data))
    folder = out or Path("benchmarks") / name
    if name == "samplers":
        from ..bench import samplers

        samplers.run(folder, asked=asked, data=chosen)
        return
    if name == "training":
        from ..bench import training

        training.run(folder, asked=asked, data=chosen, seeds=seeds, images=images or 400_000)
        return
    from ..bench import family

    seconds = seconds or (0 if images else 60)
    budget = {unit: value for unit, value in (("seconds", seconds), ("images", images)) if value}
    family.run(folder, asked=asked, data=chosen, seeds=seeds, budget=budget)
