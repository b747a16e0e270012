"""What a user sees while a run goes on."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressLine:
    """A bar with loss, rate and remaining time; on a pipe, a plain line every ten seconds.

    Args:
        label: what goes on.
        total: number of units.
        unit: what is counted, for example "images".
        done: units that were done before.
        quiet: show nothing.
    """

    def __init__(self, label: str, total: int, unit: str = "images", done: int = 0, quiet: bool = False) -> None:
        self.console = Console(stderr=True)
        self.label, self.total, self.unit, self.start, self.done = label, total, unit, done, done
        self.quiet, self.began, self.printed, self.note = quiet, time.monotonic(), 0.0, ""
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(None), TaskProgressColumn(),
                TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                console=self.console, expand=True,
            )  # fmt: skip
            self.task = self.bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> "ProgressLine":
        self.began = time.monotonic()
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif kind is None and not self.quiet:
            self._line(self.note)

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def update(self, done: int, note: str = "") -> None:
        """Say how far we are.

        Args:
            done: units done.
            note: what else to show, for example the loss.
        """
        self.done, self.note = done, note
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=f"{note}  {self.rate:,.0f} {self.unit}/s".strip())
        elif not self.quiet and time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            self._line(note)

    def message(self, text: str) -> None:
        """A line of its own."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _line(self, note: str) -> None:
        seconds = time.monotonic() - self.began
        left = (
            f", {(self.total - self.done) / self.rate:.0f} s left" if self.rate > 0 and self.done < self.total else ""
        )
        parts = [f"{self.label}: {self.done:,}/{self.total:,} {self.unit}", note, f"{self.rate:,.0f} {self.unit}/s"]
        print("  ".join(p for p in parts if p) + f"  {seconds:.0f} s{left}", file=sys.stderr, flush=True)
