"""Verbs that make a run, or what a run needs: train, distill, autoencoder, prepare."""

from pathlib import Path
from typing import Annotated, Any

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="RECIPE or FILE.toml, then options as key=value, for example loss.diagonal=0.5."),
]
Out = Annotated[Path | None, typer.Option(help="Run folder; a new one under runs/ if left out.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what a run needs, without training.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def train(
    recipe: Overrides = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder, or checkpoint, to continue.")] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train a flow map by a recipe or a TOML file. Ctrl-C saves and says how to continue."""
    words = recipe or []
    if resume is not None:
        _resume(resume, words, out, dry_run, quiet)
    elif not words or "=" in words[0]:
        from ..engine.config import recipe_names

        raise typer.BadParameter(
            f"RECIPE must be given. Recipes: {', '.join(recipe_names())}; or a file that ends in .toml."
        )
    else:
        _start(words[0], words[1:], {}, out, dry_run, quiet)


def distill(
    teacher: Annotated[Path, typer.Argument(help="Run folder of the teacher.")],
    recipe: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train a flow map from a teacher. Continue one with `flowmaps train --resume`."""
    words = recipe or []
    if not words or "=" in words[0]:
        raise typer.BadParameter(
            "RECIPE must be given after TEACHER, for example: flowmaps distill runs/teacher digits_distill"
        )
    if any(word.startswith("teacher=") for word in words):
        raise typer.BadParameter("TEACHER is given already, before RECIPE; leave teacher= out.")
    _start(words[0], words[1:], {"teacher": str(teacher.resolve())}, out, dry_run, quiet)


def autoencoder(
    recipe: Overrides = None,
    images: Annotated[int, typer.Option(help="Length of the training.")] = 500_000,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    quiet: Quiet = False,
) -> None:
    """Train the autoencoder of a recipe's space, and write it to space.autoencoder.path."""
    from ..engine.autoencoder import train_autoencoder
    from ..engine.config import find_recipe, override, read_config

    words = recipe or []
    if not words or "=" in words[0]:
        raise typer.BadParameter(
            "RECIPE must be given: one whose space is latent, or any with space.name=latent and the rest."
        )
    config = override(read_config(find_recipe(words[0])), words[1:])
    error = train_autoencoder(config, images=images, batch=batch, lr=lr, quiet=quiet)
    print(f"file    {config['space']['autoencoder']['path']}\nerror   {error:.4f} (root mean square, held-out data)")


def prepare(
    recipe: Overrides = None,
    n: Annotated[int, typer.Option("--n", help="Number of pairs, for reflow; as many as data if left out.")] = 0,
    steps: Annotated[int, typer.Option(help="Of the fit, for semidiscrete_ot; more data need more.")] = 2000,
    guidance: Annotated[str, typer.Option(help="Of the teacher, for reflow; as for sample.")] = "1",
) -> None:
    """Write the file that a recipe's coupling is made from, coupling.stored; or measure what it must be told."""
    from ..engine.config import find_recipe, override, read_config, read_value
    from ..engine.prepare import prepare_coupling

    words = recipe or []
    if not words or "=" in words[0]:
        raise typer.BadParameter("RECIPE must be given, with a coupling: digits coupling.name=reflow, and the rest.")
    if n < 0 or steps < 1:
        raise typer.BadParameter(f"--n must be at least 0 and --steps at least 1; got {n} and {steps}.")
    config = override(read_config(find_recipe(words[0])), words[1:])
    said = prepare_coupling(config, n=n, steps=steps, guidance=read_value(guidance))
    file = config["coupling"].get("stored") if isinstance(config["coupling"], dict) else None
    print(f"file    {file}\n{said}" if file else said)


def _start(
    recipe: str, overrides: list[str], extra: dict[str, Any], out: Path | None, dry_run: bool, quiet: bool
) -> None:
    from ..engine.config import find_recipe, override, read_config

    config = override(read_config(find_recipe(recipe)), overrides) | extra
    if dry_run:
        _check(config)
        return
    from ..engine.train import train as run

    folder = out or _new_folder(Path(recipe).stem)
    run(config, folder, quiet=quiet)
    _done(folder)


def _check(config: dict[str, Any]) -> None:
    from ..engine.dry_run import dry_run

    print(dry_run(config))


def _resume(path: Path, overrides: list[str], out: Path | None, dry_run: bool, quiet: bool) -> None:
    from ..engine.checkpoint import find_checkpoint
    from ..engine.config import override, read_config
    from ..engine.train import train as run

    if out is not None:
        raise typer.BadParameter("--out and --resume exclude each other; a resumed run goes on in its own folder.")
    checkpoint = find_checkpoint(path)
    folder, config = checkpoint.parents[1], override(read_config(checkpoint / "run.toml"), overrides)
    if dry_run:
        _check(config)
        return
    run(config, folder, resume=checkpoint, quiet=quiet)
    _done(folder)


def _new_folder(name: str) -> Path:
    used = [int(f.name.rpartition("-")[2]) for f in Path("runs").glob(f"{name}-[0-9]*") if f.name[-1].isdigit()]
    return Path("runs") / f"{name}-{max(used, default=0) + 1:03d}"


def _done(folder: Path) -> None:
    from .sampling import print_evaluation

    if (folder / "evaluation.json").is_file():
        print_evaluation(folder)
    print(f"run     {folder}\nreport  {folder / 'report.html'}")
    if list((folder / "samples").iterdir()):  # empty if the map has no samples of its own
        print(f"sample  flowmaps sample {folder} --steps 1,2,4 --out grid.png")
