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
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.couplings.independent import Independent
from flowmaps.engine.ema import EMA, update_average
from flowmaps.engine.schedule import Schedule
from flowmaps.engine.step import Step
from flowmaps.nets.mlp import MLP
from flowmaps.spaces.euclidean import Euclidean

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Outcome:
    """A trained map and what it took."""

    model: FlowMap  # running average
    steps: int
    seconds: float
    skipped: int


def train_seconds(
    loss, draw, seconds, *, shape, seed=0, net=None, batch=512, lr=2e-3, clip=1.0, schedule=Schedule(hold=0.3),
    ema=EMA(),
) -> Outcome:  # fmt: skip
    """Train a mean velocity for `seconds` of processor time, which a busy machine changes little.

    `draw(n, generator)` gives fresh data [n, *].
    Set-up and the first five steps, which warm caches up, are not counted.
    """
    torch.manual_seed(seed)
    model = MeanVelocity(net or MLP(shape))
    step = Step(model, loss, Independent(), Euclidean())
    weights = [p for p in step.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=lr)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    count = skipped = 0
    began = time.process_time()
    while True:
        if count == 5:
            began = time.process_time()
        done = (time.process_time() - began) / seconds if count >= 5 else 0.0
        if done >= 1:
            break
        generator = fold_in(seed, count)
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule.factor(int(1e6 * done), 10**6) * min(1, (count + 1) / 100)
        value, _ = step(draw(batch, generator), generator=generator)
        optimizer.zero_grad()
        value.backward()
        norm = float(nn.utils.clip_grad_norm_(weights, clip))
        count += 1
        if math.isfinite(norm):
            optimizer.step()
            update_average(average, model, ema.decay(count * batch, batch))
        else:
            skipped += 1
    return Outcome(average, count, time.process_time() - began, skipped)


def in_parallel(work: Callable[..., Any], jobs: Iterable[tuple]) -> Iterator[Any]:
    """Results of work(*job) as they come, one process of one thread per core."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(work, *job) for job in jobs]
        for i, done in enumerate(as_completed(waiting), 1):
            print(f"[{i}/{len(waiting)}] {done.result()}", flush=True)
            yield done.result()


def over_seeds(rows: Iterable[Mapping[str, Any]], key: str, digits: int = 3) -> list[dict[str, str]]:
    """One row per value of `key`, in order of appearance: mean ± standard deviation of every column but the seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return [
        {key: name} | {c: _spread([row[c] for row in group], digits) for c in group[0] if c not in (key, "seed")}
        for name, group in groups.items()
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    if all(isinstance(v, int) for v in values):
        return f"{mean(values):,.0f}"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def write(folder: str, name: str, rows: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, str]], about: str):
    """Every measurement as CSV, and a table to read as Markdown, with what, where and at which commit."""
    out = HERE / folder
    out.mkdir(exist_ok=True)
    with (out / f"{name}.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [about, "", machine(), "", *markdown(table)]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def markdown(table: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table."""
    heads = list(table[0])
    return [
        f"| {' | '.join(line)} |"
        for line in (heads, ["---"] + ["--:"] * (len(heads) - 1), *([row[h] for h in heads] for row in table))
    ]


def machine() -> str:
    """Commit, date, processor and versions, as one sentence."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout
    return (
        f"Commit {commit.strip() or 'unknown'}, {date.today()}; {os.cpu_count()} cores {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )
