"""What the benchmarks share: training for a number of processor seconds, a process per core, and honest tables."""

import copy
import csv
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from ..core.flow_map import FlowMap, MeanVelocity
from ..core.random import fold_in
from ..core.types import Loss
from ..couplings.independent import Independent
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


def train(
    loss: Loss, draw: Callable[[int, torch.Generator], Tensor], *, shape: Sequence[int], seconds: float = 0.0,
    images: int = 0, seed: int = 0, net: FlowMap | None = None, batch: int = 512, lr: float = 2e-3, clip: float = 1.0,
    schedule: Schedule = Schedule(hold=0.3), ema: EMA = EMA(),
) -> Outcome:  # fmt: skip
    """Train a map on fresh data for a number of processor seconds, which a busy machine changes little, or of images.

    Set-up and the first five steps, which warm caches up, are not counted.

    Args:
        loss: the objective.
        draw: n data [n, *] from a generator.
        shape: of one datum.
        seconds: processor time; 0 if images are given.
        images: number of data to see; 0 if seconds are given.
        seed: of weights, data and noise.
        net: the map; a small MLP's mean velocity if left out.
        batch: data in a step.
        lr: Adam's rate, with 100 steps of warm-up.
        clip: largest norm of the gradient.
        schedule: of the rate.
        ema: the average that is returned.
    """
    torch.manual_seed(seed)
    model = net or MeanVelocity(MLP(shape))
    step = Step(model, loss, Independent(), Euclidean())
    weights = [p for p in step.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=lr)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    count = skipped = 0
    began = time.process_time()
    with _passes(step) as passes:
        while True:
            if count == 5:
                began = time.process_time()
            done = (time.process_time() - began) / seconds if seconds and count >= 5 else 0.0
            done = count * batch / images if images else done
            if done >= 1:
                break
            generator = fold_in(seed, count)
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule.factor(int(1e6 * done), 10**6) * min(1, (count + 1) / 100)
            value, _ = step(draw(batch, generator), images=count * batch, generator=generator)
            optimizer.zero_grad()
            value.backward()
            norm = float(nn.utils.clip_grad_norm_(weights, clip))
            count += 1
            if math.isfinite(norm):
                optimizer.step()
                step.follow()
                update_average(average, model, ema.decay(count * batch, batch))
            else:
                skipped += 1
    return Outcome(average, count, time.process_time() - began, skipped, passes[0] / (count * batch))


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
    """Results of work(*job) as they come, one process of one thread per core."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(work, *job) for job in jobs]
        for i, done in enumerate(as_completed(waiting), 1):
            print(f"[{i}/{len(waiting)}] {done.result()}", flush=True)
            yield done.result()


def over_seeds(rows: Iterable[Mapping[str, Any]], key: str, digits: int = 3) -> list[dict[str, str]]:
    """One row per value of `key`, in order of appearance: mean ± standard deviation of every number but the seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    table: list[dict[str, str]] = []
    for name, group in groups.items():
        numbers = [c for c, value in group[0].items() if isinstance(value, (int, float)) and c != "seed"]
        cells = {c: _spread([row[c] for row in group if c in row], digits) for c in numbers}
        failed = [row["failed"] for row in group if "failed" in row]
        table.append({key: name} | cells | ({"failed": failed[0]} if failed else {}))
    return table


def _spread(values: Sequence[float], digits: int) -> str:
    if all(isinstance(v, int) for v in values):
        return f"{mean(values):,.0f}"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def write(
    out: Path, name: str, rows: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, str]], about: str
) -> None:
    """Every measurement as CSV, and a table to read as Markdown, with what, where and at which commit."""
    out.mkdir(parents=True, exist_ok=True)
    heads = list(dict.fromkeys(key for row in rows for key in row))
    with (out / f"{name}.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, heads)
        writer.writeheader()
        writer.writerows(rows)
    lines = [about, "", machine(out), "", *markdown(table)]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def markdown(table: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table; what a row lacks is left empty."""
    heads = list(dict.fromkeys(key for row in table for key in row))
    return [
        f"| {' | '.join(line)} |"
        for line in (heads, ["---"] + ["--:"] * (len(heads) - 1), *([row.get(h, "") for h in heads] for row in table))
    ]


def machine(folder: Path) -> str:
    """Commit of the folder's repository, date, processor and versions, as one sentence."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=False).stdout
    return (
        f"Commit {commit.strip() or 'unknown'}, {date.today()}; {os.cpu_count()} cores {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )
