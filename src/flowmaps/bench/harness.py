"""What the benchmarks share: training for a number of processor seconds, a process per core, and honest tables."""

import copy
import csv
import math
import os
import platform
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from ..core.flow_map import FlowMap, MeanVelocity
from ..core.random import fold_in
from ..core.types import Coupling, Loss
from ..couplings.independent import Independent
from ..engine.compiled import Compiled
from ..engine.ema import EMA, update_average
from ..engine.schedule import Schedule
from ..engine.step import Step
from ..nets.mlp import MLP
from ..spaces.euclidean import Euclidean


@dataclass(frozen=True)
class Outcome:
    """A trained map and what it took."""

    model: FlowMap  # running average
    steps: int
    seconds: float
    skipped: int
    passes: float  # samples through the network per image, each derivative counted as one


@dataclass(frozen=True)
class Training:
    """How a map is trained on fresh data.

    Args:
        batch: data in a step.
        lr: Adam's rate, with 100 steps of warm-up.
        schedule: of the rate, over the share of the training that is done.
        clip: largest norm of the gradient.
        ema: the average that is measured.
        compiled: evaluate the loss through the compiler; passes through the network are not counted then.
    """

    batch: int = 512
    lr: float = 2e-3
    schedule: Schedule = Schedule(hold=0.3)
    clip: float = 1.0
    ema: EMA = EMA()
    compiled: bool = False

    def steps(
        self, loss: Loss, draw: Callable[[int, torch.Generator], Tensor], net: FlowMap, *,
        share: Callable[[Outcome], float], coupling: Coupling = Independent(), seed: int = 0,
    ) -> Iterator[Outcome]:  # fmt: skip
        """The state after every step, until share(state) says that 1 is done.

        The seconds are of the processor, which a busy machine changes little; set-up, the first five steps, which warm
        caches up, and what the caller does between steps are not counted.

        Args:
            loss: the objective.
            draw: n data [n, *] from a generator.
            net: the map.
            share: of the training that is done.
            coupling: of noise and data.
            seed: of data and noise.
        """
        step = Step(net, Compiled(loss) if self.compiled else loss, coupling, Euclidean())
        weights = [p for p in step.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=self.lr, fused=True)
        average = copy.deepcopy(net).requires_grad_(False).eval()
        now = Outcome(average, 0, 0.0, 0, 0.0)
        with _passes(step) if not self.compiled else nullcontext([0]) as passes:
            while (done := share(now)) < 1:
                began, images = time.process_time(), (now.steps + 1) * self.batch
                generator = fold_in(seed, now.steps)
                for group in optimizer.param_groups:
                    warm = min(1, (now.steps + 1) / 100)
                    group["lr"] = self.lr * self.schedule.factor(int(1e6 * done), 10**6) * warm
                value, _ = step(draw(self.batch, generator), images=images - self.batch, generator=generator)
                optimizer.zero_grad()
                value.backward()
                finite = math.isfinite(float(nn.utils.clip_grad_norm_(weights, self.clip)))
                if finite:
                    optimizer.step()
                    step.follow()
                    update_average(average, net, self.ema.decay(images, self.batch))
                spent = time.process_time() - began if now.steps >= 5 else 0.0
                now = Outcome(
                    average, now.steps + 1, now.seconds + spent, now.skipped + (not finite), passes[0] / images
                )
                yield now


def train(
    loss: Loss, draw: Callable[[int, torch.Generator], Tensor], *, shape: Sequence[int], seconds: float = 0.0,
    images: int = 0, seed: int = 0, net: FlowMap | None = None, coupling: Coupling = Independent(),
    training: Training = Training(),
) -> Outcome:  # fmt: skip
    """Train a map for a number of processor seconds or, without, of images.

    Args:
        loss: the objective.
        draw: n data [n, *] from a generator.
        shape: of one datum.
        seconds: processor time; 0 if images are given.
        images: number of data to see; 0 if seconds are given.
        seed: of weights, data and noise.
        net: the map; a small MLP's mean velocity if left out.
        coupling: of noise and data.
        training: rate, batch and the like.
    """
    torch.manual_seed(seed)
    net = net or MeanVelocity(MLP(shape))

    def share(now: Outcome) -> float:
        return now.seconds / seconds if seconds else now.steps * training.batch / images

    every = training.steps(loss, draw, net, share=share, coupling=coupling, seed=seed)
    return deque(every, maxlen=1).pop()


@contextmanager
def _passes(step: nn.Module) -> Iterator[list[int]]:
    """Count the samples that go through networks: every module of the folder nets, teachers and critics too."""
    seen = [0]

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen[0] += len(inputs[0])

    nets = {m for m in step.modules() if type(m).__module__.startswith("flowmaps.nets.")}
    inner = {child for m in nets for child in m.modules() if child is not m}
    hooks = [m.register_forward_hook(count) for m in nets - inner]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def in_parallel(work: Callable[..., Any], jobs: Iterable[tuple]) -> Iterator[Any]:
    """Results of work(*job) as they come, one process of one thread per core that this process may use."""
    cores = os.cpu_count()
    with suppress(AttributeError):  # not every system says which cores a process may use
        cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(work, *job) for job in jobs]
        for i, done in enumerate(as_completed(waiting), 1):
            print(f"[{i}/{len(waiting)}] {str(done.result())[:150]}", flush=True)
            yield done.result()


def over_seeds(rows: Iterable[Mapping[str, Any]], key: str, digits: int = 3) -> list[dict[str, str]]:
    """One row per value of `key`, in order of appearance: mean ± standard deviation of every number but the seed.

    Rows marked as diverged are counted, in the column "diverged", and left out of the other numbers.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    table: list[dict[str, str]] = []
    for name, group in groups.items():
        kept = [row for row in group if not row.get("diverged")]
        numbers = [
            c for c, v in group[0].items() if isinstance(v, (int, float)) and c not in ("seed", "diverged", "budget")
        ]
        cells = {c: _spread([row[c] for row in kept if c in row], digits) for c in numbers}
        if any("diverged" in row for row in group):
            cells["diverged"] = f"{sum(row.get('diverged', 0) for row in group)} of {len(group)}"
        failed = [row["failed"] for row in group if "failed" in row]
        table.append({key: name} | cells | ({"failed": failed[0]} if failed else {}))
    return table


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    if all(isinstance(v, int) for v in values):
        return f"{mean(values):,.0f}"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def write(
    out: Path, name: str, rows: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, str]], about: str
) -> None:
    """Every measurement as CSV, and a table to read as Markdown, with what, where and at which commit."""
    write_rows(out / f"{name}.csv", rows)
    write_table(out / f"{name}.md", table, about)


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Measurements as CSV; at no moment is the file half written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    with new.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    new.replace(file)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote, numbers as numbers but for the commit; none if there is no such file."""

    def read(key: str, text: str) -> Any:
        for kind in () if key == "commit" else (int, float):  # a hash of digits alone is no number
            with suppress(ValueError):
                return kind(text)
        return text

    if not file.exists():
        return []
    with file.open(newline="") as f:
        return [{key: read(key, text) for key, text in row.items() if text} for row in csv.DictReader(f)]


def write_table(file: Path, table: Sequence[Mapping[str, str]], about: str, commits: str = "") -> None:
    """A table to read, with what was measured, where and at which commit, or those given."""
    lines = [about, "", machine(commits), "", *markdown(table)]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def markdown(table: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table; what a row lacks is left empty."""
    heads = list(dict.fromkeys(key for row in table for key in row))
    return [
        f"| {' | '.join(line)} |"
        for line in (heads, ["---"] + ["--:"] * (len(heads) - 1), *([row.get(h, "") for h in heads] for row in table))
    ]


def machine(commits: str = "") -> str:
    """Commit of this code or those given, date, processor and versions, as one sentence."""
    return (
        f"Commit {commits or commit()}, {date.today()}; {os.cpu_count()} cores {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )


def commit() -> str:
    """Short name of the commit of this code, if it lies in a repository."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
