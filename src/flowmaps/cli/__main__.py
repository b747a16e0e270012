"""`flowmaps`: every verb of the command line, and what happens when one fails."""

import os
import sys
from typing import Annotated

import typer

from . import benchmarking, checking, describing, sampling, training

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Flow maps: train or distil once, choose the number of sampling steps afterwards.",
)  # fmt: skip


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that every verb takes, before or after it."""


for verb in (
    training.train, training.distill, training.autoencoder, training.prepare, sampling.sample, sampling.evaluate,
    describing.list_methods, describing.show, describing.cite, checking.doctor, benchmarking.bench,
):  # fmt: skip
    app.command("list" if verb is describing.list_methods else None)(verb)


def main() -> None:
    """Run a verb. Exit codes: 0 done, 1 refused or failed, 2 a command line that cannot be read, from the parser."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if "" not in sys.path:
        sys.path.insert(0, "")  # for "my_module:MyLoss"; `python -m` looks here, a script looks where it lies itself
    try:
        app(args=arguments, prog_name="flowmaps")
    except SystemExit as stop:
        if stop.code == 2:
            _hint(arguments)
        raise
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:  # whoever read our output has gone; leave quietly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _explain(error)
        sys.exit(1)


def _explain(error: Exception) -> None:
    """Print what went wrong."""
    module = type(error).__module__.split(".")[0]
    if isinstance(error, ValueError) or module == "flowmaps" or isinstance(error, OSError):
        print(f"error: {error}", file=sys.stderr)
    else:
        print(
            f"error: unexpected {type(error).__name__}: {error}\nRun again with --debug to see where.", file=sys.stderr
        )


def _hint(words: list[str]) -> None:
    """Say how the options of a run are written, if words that could not be read look like some."""
    if words[:1] not in (["train"], ["distill"]):
        return
    from ..engine.config import DEFAULTS, dotted_names

    for word, following in zip(words, [*words[1:], ""], strict=True):
        key, equals, value = word[2:].partition("=")
        names = [key] if key.split(".")[0] in DEFAULTS else dotted_names(key, {})
        if word.startswith("--") and names:
            written = " or ".join(f"{name}={value if equals else following}" for name in names)
            print(f"Options of a run have no dashes: {written}", file=sys.stderr)


if __name__ == "__main__":
    main()
