"""Verbs that look for trouble: doctor."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(run: Annotated[Path | None, typer.Argument(help="Run folder to examine as well.")] = None) -> None:
    """Check this machine and, given a run, say what went wrong in it. Exit code 1 if something did."""
    from ..engine.doctor import examine_machine, examine_run

    found = [] if run is None else examine_run(run)  # a run that is not there is told at once
    findings = [*examine_machine(), *found]
    for finding in findings:
        print(f"{'ok  ' if finding.good else 'BAD '} {finding.what}: {finding.detail}")
        if finding.fix:
            print(f"      -> {finding.fix}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)
