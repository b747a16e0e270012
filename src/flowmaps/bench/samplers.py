"""Every sampler on every grid at equal evaluations, against where the flow itself ends."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..build import build, names
from ..core.flow_map import Counted, EulerMap, FlowMap
from ..core.interpolant import Linear
from ..core.random import fold_in
from ..core.sampling import RungeKutta4, sample
from ..core.types import Sampler
from ..metrics.energy_distance import energy_distance
from .family import works
from .harness import commit, in_parallel, markdown, read_rows, write_rows, write_table

EVALUATIONS = (3, 5, 8, 10, 20)
POINTS, PROBE, FINE = 1000, 256, 128
FAR = 10.0  # errors beyond are not drawn
FLOWS = ("eight_gaussians", "mixture_64", "digits")

# Samplers with options that change what they are; the others stand with their defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "adams_bashforth": [{"order": k} for k in (2, 3, 4)],
    "dpm_solver_pp": [{"solver_order": k} for k in (2, 3)],
    "ghvb": [{"order": k, "beta": 0.5} for k in (2, 4)],
    "unipc": [{"predictor": k} for k in (2, 3)],
}
# Samplers that are not a way of integrating a velocity on a grid by themselves.
LEFT_OUT = {
    "bottleneck": "needs a network of several resolutions",
    "gamma": "takes jumps of a map",
    "jump": "takes jumps of a map",
    "recurrent": "needs a network with a memory",
    "reflected": "wraps another sampler",
    "restart": "takes jumps of a map",
}
# Samplers that choose how often they evaluate, at several settings: the whole way is one step of theirs.
CHOOSING: dict[str, list[dict[str, Any]]] = {
    "dormand_prince": [{"relative": tol, "absolute": tol} for tol in (0.1, 0.03, 0.01, 0.001)],
    "picard": [{"steps": 20, "tolerance": tol} for tol in (0.3, 0.1, 0.03, 0.0)],
}
# Grids that need a law, with one; the others stand with their defaults.
GRIDS: dict[str, dict[str, Any]] = {"quantiles": {"times": {"name": "logit_normal"}}}
OWN = "its own"  # what stands for the grid of those that choose


@dataclass(frozen=True)
class Field:
    """A velocity, points at time 0, and where it carries them."""

    flow: FlowMap
    x0: Tensor
    ends: Tensor
    data: Tensor
    floor: float  # energy distance of two sets of data


@cache
def field(name: str) -> Field:
    """The flow of that name, solved once per process."""
    with torch.enable_grad():  # the flow of the digits is trained here
        work = works()[name]()
    flow = EulerMap(work.flow)
    shape = work.draw(1, fold_in(0)).shape[1:]
    x0 = torch.randn(POINTS, *shape, generator=fold_in(100))
    with torch.no_grad():
        if work.exact:
            ends = work.flow(x0, torch.zeros(POINTS), torch.ones(POINTS))
        else:
            ends = sample(flow, x0, torch.linspace(0, 1, FINE + 1), sampler=RungeKutta4())
    data, other = (work.draw(POINTS, fold_in(102 + i)) for i in range(2))
    return Field(flow, x0, ends, data, energy_distance(data, other))


def samplers() -> list[dict[str, Any]]:
    """The tables of the samplers that are compared."""
    known = [name for name in names("samplers") if name not in LEFT_OUT]
    return [{"name": name, **options} for name in known for options in (VARIANTS | CHOOSING).get(name, [{}])]


def title(table: Mapping[str, Any]) -> str:
    """Name and options of a sampler, as they stand in the results."""
    return " ".join([table["name"], *(f"{k}={v}" for k, v in table.items() if k != "name")])


def steps_within(sampler: Sampler, field: Field, grid: str, evaluations: int) -> tuple[int, Tensor | None]:
    """The largest number of steps that costs at most so many evaluations, and its times."""
    for steps in range(evaluations, 0, -1):
        counted = Counted(field.flow)
        sample(counted, field.x0[:2], torch.linspace(0, 1, steps + 1), sampler=sampler, generator=fold_in(0))
        if counted.calls <= evaluations:
            chosen = {"name": grid, **GRIDS.get(grid, {})}
            table = build("time_grids", chosen, sampler=sampler, interpolant=Linear())
            probe = torch.randn(PROBE, *field.x0.shape[1:], generator=fold_in(99))
            return counted.calls, table(steps, field.flow, probe)
    return 0, None


@torch.no_grad()
def measure(name: str, table: Mapping[str, Any], grid: str) -> list[dict[str, Any]]:
    """A row for each number of evaluations of one sampler on one grid; for one that chooses its own, a row."""
    on, rows = field(name), list[dict[str, Any]]()
    sampler = build("samplers", table, interpolant=Linear())
    for evaluations in (0,) if grid == OWN else EVALUATIONS:
        row: dict[str, Any] = {"flow": name, "sampler": title(table), "grid": grid, "evaluations": evaluations}
        try:
            if grid == OWN:
                row |= _choosing(on, sampler)
            else:
                used, times = steps_within(sampler, on, grid, evaluations)
                if times is None:
                    continue
                began = time.process_time()
                y = sample(on.flow, on.x0, times, sampler=sampler, generator=fold_in(104))
                row |= {"used": used, "steps": len(times) - 1, "seconds": time.process_time() - began} | _off(on, y)
        except Exception as error:  # what fails is a row that says so, not the end of a table
            row["failed"] = f"{type(error).__name__}: {error}"[:200]
        rows.append(row)
    return rows


def _choosing(on: Field, sampler: Sampler) -> dict[str, Any]:
    """What a sampler that chooses its evaluations took, the mean over the points, and where they end.

    `evaluations` follow each other, by the sampler's own count; `used` is what the network was asked for in all.
    """
    counted, zero, began = Counted(on.flow), torch.zeros(POINTS), time.process_time()
    y, state = sampler(counted, on.x0, zero, zero + 1)
    seconds = time.process_time() - began
    turns = state if isinstance(state, Tensor) else state.evaluations  # rounds of Picard, each an Euler step
    return {
        "evaluations": float(turns.double().mean()), "used": counted.states / POINTS, "steps": 1, "seconds": seconds,
    } | _off(on, y)  # fmt: skip


def _off(on: Field, y: Tensor) -> dict[str, float]:
    """How far the ends of trajectories are from where they should be, and from the data."""
    spread = (on.ends - on.ends.mean(0)).double().square().sum()
    error = ((y - on.ends).double().square().sum() / spread).sqrt()
    return {"error": float(error), "energy": energy_distance(y, on.data) / on.floor}


def run(out: Path, *, data: Sequence[str] = (), asked: Sequence[str] = ()) -> None:
    """Measure every sampler on every grid and write CSV, tables and plots.

    What stands in the CSV is kept, unless it failed: then that sampler is tried on that grid once more.

    Args:
        out: folder for the results.
        data: flows; all if empty.
        asked: samplers to measure anew; all that are missing if empty.
    """
    for name in data or FLOWS:
        if name not in FLOWS:
            raise ValueError(f"there is no flow {name!r} to sample. Known: {', '.join(FLOWS)}.")
        file = out / f"{name}.csv"
        every = [row for row in read_rows(file) if row["sampler"].split()[0] not in asked]
        failed = {_pair(row) for row in every if "failed" in row}
        every = [row for row in every if _pair(row) not in failed]
        found = {_pair(row) for row in every}
        jobs = [
            (name, table, grid) for table in samplers()
            for grid in ([OWN] if table["name"] in CHOOSING else names("time_grids"))
            if (title(table), grid) not in found and (not asked or table["name"] in asked)
        ]  # fmt: skip
        for rows in in_parallel(measure, jobs):
            every = sorted([*every, *({**row, "commit": commit()} for row in rows)], key=_order)
            write_rows(file, every)
        commits = ", ".join(sorted({row["commit"] for row in every}))
        about = "\n".join([f"# Samplers on {name}", "", ABOUT, *_chosen(every), *_failures(every)])
        write_table(out / f"{name}.md", _table(every), about, commits)
        plot(every, out / f"{name}.png", f"samplers on {name}")


def _pair(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["sampler"], row["grid"]


def _order(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["sampler"], row["grid"], row["evaluations"]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A line per sampler and grid, best at ten evaluations first."""
    lines: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["grid"] != OWN:
            lines.setdefault(_pair(row), {})[row["evaluations"]] = row

    def cell(row: Mapping[str, Any], what: str) -> str:
        return f"{row[what]:.3g}" if what in row else "failed" if "failed" in row else ""

    def cells(each: Mapping[int, Mapping[str, Any]], what: str, at: Sequence[int]) -> dict[str, str]:
        return {f"{what} {n}": cell(each.get(n, {}), what) for n in at}

    ranked = sorted(lines.items(), key=lambda item: item[1].get(10, {}).get("error", math.inf))
    return [
        {"sampler": s, "grid": g} | cells(each, "error", EVALUATIONS) | cells(each, "energy", (5, 10))
        for (s, g), each in ranked
    ]


def _chosen(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table of the samplers that choose how often they evaluate, in order of that."""
    own = sorted((row for row in rows if row["grid"] == OWN and "error" in row), key=lambda row: row["evaluations"])
    heads = {"in turn": "evaluations", "in all": "used", "error": "error", "energy": "energy"}
    lines = [{"sampler": row["sampler"]} | {head: f"{row[c]:.3g}" for head, c in heads.items()} for row in own]
    return ["", CHOOSE, "", *markdown(lines)] if lines else []


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each message, with all that failed with it."""
    told: dict[str, dict[str, None]] = {}
    for row in rows:
        if "failed" in row:
            told.setdefault(row["failed"], {})[f"{row['sampler']} on {row['grid']}"] = None
    return [f"\nFailed, and tried again by the next run: {', '.join(who)}: {error}" for error, who in told.items()]


ABOUT = (
    f"error N: where {POINTS:,} points of the source end after at most N evaluations of the velocity, against where "
    "the flow carries them (in closed form for the mixtures; for the digits, whose flow is trained, by "
    f"{FINE} Runge-Kutta steps): relative root mean square, 1 is no better than the mean. energy N: energy distance to "
    "the data over that of two sets of data, which is what a stochastic sampler should be judged by: it leaves the "
    "trajectory on purpose. A sampler takes as many steps as the evaluations allow, start-up counted; searched grids "
    f"were tried on {PROBE} other points, whose evaluations are not counted."
)
CHOOSE = (
    "Samplers that choose how often they evaluate: how many evaluations follow each other, and how many there are in "
    "all, means over the points. Picard iterates on Euler's steps, all at once; with Dormand and Prince some points "
    "that have arrived stay in the batch."
)


def plot(rows: Sequence[Mapping[str, Any]], file: Path, title: str) -> None:
    """Error against evaluations on the uniform grid, and on each sampler's best one."""
    from matplotlib.figure import Figure

    figure = Figure((13, 6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:  # the settings of one that chooses are one curve
        curves.setdefault(row["sampler"].split()[0] if row["grid"] == OWN else row["sampler"], []).append(row)
    for i, (name, every) in enumerate(curves.items()):
        style = {"ls": ("-", "--", ":")[i // 10 % 3], "marker": "o", "ms": 3, "label": name}
        own = [r for r in every if r.get("error", math.inf) < FAR]
        for axis, grids in zip(axes, (("uniform",), names("time_grids")), strict=True):
            errors = {n: [r["error"] for r in own if r["evaluations"] == n and r["grid"] in grids] for n in EVALUATIONS}
            points = [(n, min(e)) for n, e in errors.items() if e]
            points += [(r["evaluations"], r["error"]) for r in own if r["grid"] == OWN]
            axis.plot([n for n, _ in sorted(points)], [e for _, e in sorted(points)], **style)
    for axis, what in zip(axes, ("equal steps", "its best grid"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", title=f"{title}, {what}")
        axis.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    axes[0].set_ylabel("error against the flow's own end")
    axes[1].legend(fontsize=7, ncols=2)
    figure.savefig(file, dpi=120)
