"""Every loss at equal work, on data whose flow is known: error against evaluations."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..build import build, find, names
from ..core.flow_map import EulerMap, FlowMap, Integrated, MeanVelocity
from ..core.interpolant import Linear
from ..core.random import fold_in
from ..core.sampling import sample
from ..core.types import Sampler
from ..metrics.energy_distance import energy_distance
from ..metrics.histogram_kl import histogram_kl
from ..metrics.map_error import map_error
from ..oracles.checkerboard import Checkerboard
from ..oracles.mixture import Mixture
from ..samplers.runge_kutta4 import RungeKutta4
from .harness import Outcome, in_parallel, over_seeds, train, write

STEPS = (1, 2, 4, 8, 16)
POINTS, SAMPLES = 2000, 20_000

# How a method's map is sampled in several steps, where it is not by its own jumps: it learned only a velocity, only
# jumps to the data, or only the one jump from noise to data.
SAMPLED = {
    "flow_matching": "euler",
    "consistency": "restart",
    "consistency_mid_training": "restart",
    "facm": "restart",
    "scm": "restart",
    "self_corrected": "restart",
    "truncated_consistency": "restart",
    "velocity_distillation": "restart",
    "distribution_matching": "one step",
    "free_flow": "one step",
    "one_step_distillation": "one step",
    "trajectory_distillation": "one step",
}
# Options that the two-dimensional work needs; everything else is the default.
OPTIONS: dict[str, dict[str, Any]] = {
    "alpha_flow": {"end": 500_000},
    "distribution_matching": {
        "critic": {
            "name": "distribution_matching",
            "critic": {"name": "velocity", "net": {"name": "mlp", "width": 128}},
        }
    },
}
# Losses that train something else than a map of one field, measured elsewhere.
LEFT_OUT = {
    "divergence_distillation": "a likelihood beside a map",
    "one_step_distillation": "on stored pairs of noise and data, the coupling reflow",
}


@dataclass(frozen=True)
class Work:
    """Data with a known flow.

    Args:
        name: of the data.
        flow: the oracle, teacher and truth.
        draw: n data [n, *] from a generator.
        width: of the network's layers.
        planar: whether a histogram of the samples is taken, on [-1, 1]^2.
    """

    name: str
    flow: FlowMap
    draw: Callable[[int, Generator], Tensor]
    width: int = 128
    planar: bool = False


def works() -> dict[str, Callable[[], Work]]:
    """The data sets by name; built on demand, once per process."""
    return {"checkerboard": _checkerboard, "eight_gaussians": _eight_gaussians, "mixture_64": _mixture_64}


def _checkerboard() -> Work:
    board = Checkerboard()
    return Work("checkerboard", board, board.sample, planar=True)


def _eight_gaussians() -> Work:
    angle = torch.arange(8) * math.pi / 4
    flow = Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.15)
    return Work("eight_gaussians", flow, flow.sample)


def _mixture_64() -> Work:
    flow = Mixture(2 * torch.randn(10, 64, generator=fold_in(7)), 0.3)
    return Work("mixture_64", flow, flow.sample, width=256)


def methods(asked: Sequence[str] = ()) -> list[str]:
    """The losses that are compared, by name."""
    known = [name for name in names("losses") if name not in LEFT_OUT]
    for name in asked:
        if name not in known:
            find("losses", name)  # says what there is
            raise ValueError(f"the loss {name!r} cannot be compared here: it trains {LEFT_OUT[name]}.")
    return list(asked) or known


def measure(method: str, work_name: str, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
    """Train one loss on one data set and measure it: a row of the table.

    Args:
        method: name of the loss.
        work_name: name of the data.
        seed: of everything.
        budget: {"seconds": processor time} or {"images": number}.
    """
    work, x0, exact = _prepared(work_name)
    shape = tuple(work.draw(1, fold_in(0)).shape[1:])
    torch.manual_seed(seed)
    table = {"name": method, **OPTIONS.get(method, {})}
    row: dict[str, Any] = {"loss": method, "data": work_name, "seed": seed}
    try:
        loss = build("losses", table, teacher=_Teacher(work.flow), shape=shape, classes=0, interpolant=Linear())
        trained = train(
            loss,
            work.draw,
            shape=shape,
            seed=seed,
            net=_network(shape, work.width),
            seconds=budget.get("seconds", 0),
            images=budget.get("images", 0),
        )
    except Exception as error:  # a method that fails is a row that says so, not the end of a table
        return row | {"failed": f"{type(error).__name__}: {error}"[:200]}
    row |= {"training steps": trained.steps, "ms per step": 1000 * trained.seconds / trained.steps}
    row |= {"passes per image": trained.passes, "skipped": trained.skipped}
    return row | _quality(trained, work, SAMPLED.get(method, "jump"), x0, exact, seed)


class _Teacher(FlowMap):
    """The oracle's velocity; its jumps by two steps of order 4, because its own take hundreds."""

    def __init__(self, flow: FlowMap) -> None:
        super().__init__()
        self.flow, self.solved = flow, Integrated(EulerMap(flow), RungeKutta4(), 2)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.flow.velocity(x, s) if s is t else self.solved.mean_velocity(x, s, t)


def _network(shape: tuple[int, ...], width: int) -> FlowMap:
    net: nn.Module = build("nets", {"name": "mlp", "width": width, "depth": 4}, shape=shape, classes=0)
    return MeanVelocity(net)


@cache
def _prepared(name: str) -> tuple[Work, Tensor, Tensor]:
    """The work, states at time 0 and where its exact map carries them; solved once per process."""
    work = works()[name]()
    x0 = torch.randn(POINTS, *work.draw(1, fold_in(0)).shape[1:], generator=fold_in(100))
    return work, x0, work.flow(x0, torch.zeros(POINTS), torch.ones(POINTS))


def _quality(trained: Outcome, work: Work, how: str, x0: Tensor, exact: Tensor, seed: int) -> dict[str, float]:
    noise = torch.randn(SAMPLES, *x0.shape[1:], generator=fold_in(101, seed))
    data, other = (work.draw(SAMPLES, fold_in(102 + i)) for i in range(2))
    floor = energy_distance(data[:POINTS], other[:POINTS])
    sampler: Sampler = build("samplers", "jump" if how == "one step" else how)
    row: dict[str, float] = {}
    for k in STEPS if how != "one step" else (1,):
        if how != "restart" or k == 1:  # fresh noise leaves the trajectory
            row[f"error {k}"] = map_error(trained.model, x0, exact, k, sampler)
        with torch.no_grad():
            grid = torch.linspace(0, 1, k + 1)
            y = sample(trained.model, noise, grid, sampler=sampler, generator=fold_in(104, seed))
        row[f"energy {k}"] = energy_distance(y[:POINTS], data[:POINTS]) / floor
        if work.planar:
            row[f"KL {k}"] = histogram_kl(data, y)
    if work.planar:
        row["KL floor"] = histogram_kl(data, other)
    return row


def run(
    out: Path, *, asked: Sequence[str] = (), data: Sequence[str] = (), seeds: int = 3,
    budget: Mapping[str, int] = {"seconds": 60},
) -> None:  # fmt: skip
    """Measure every method on every data set and write table, CSV and plot, a set per data.

    Args:
        out: folder for the results.
        asked: losses; all if empty.
        data: data sets; all if empty.
        seeds: how many times each.
        budget: {"seconds": processor time of each} or {"images": number}.
    """
    for name in data or works():
        if name not in works():
            raise ValueError(f"there are no data {name!r}. Known: {', '.join(works())}.")
        jobs = [(method, name, seed, budget) for method in methods(asked) for seed in range(seeds)]
        rows = sorted(in_parallel(measure, jobs), key=lambda row: (row["loss"], row["seed"]))
        spent = ", ".join(f"{value:g} {unit}" for unit, value in budget.items())
        title = f"{name}-{next(iter(budget))}"
        write(out, title, rows, over_seeds(rows, "loss"), f"# {name}, {spent} for each loss, {seeds} seeds\n\n{ABOUT}")
        plot(rows, out / f"{title}.png", f"{name}, {spent}")


ABOUT = (
    f"error K: K-step map against the exact map of {POINTS:,} points, relative root mean square (1 is no better than "
    "the mean of the data). energy K: energy distance over that of two sets of data. KL K: histogram of data to "
    f"histogram of {SAMPLES:,} samples, 50 x 50 cells, nats. passes per image: samples through the network in "
    "one step over the batch, derivatives counted once. Every loss with its default options, the same MLP, Adam, batch "
    "512, averaged weights; teachers have the exact velocity, and jump by two Runge-Kutta steps of it. Mean ± standard "
    "deviation over seeds."
)


def plot(rows: Sequence[Mapping[str, Any]], file: Path, title: str) -> None:
    """Error against evaluations, a line per method."""
    from matplotlib.figure import Figure

    figure = Figure((9, 6), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(dict.fromkeys(row["loss"] for row in rows)):
        group = [row for row in rows if row["loss"] == name and "error 1" in row]
        points = [(k, [r[f"error {k}"] for r in group]) for k in STEPS if group and f"error {k}" in group[0]]
        if points:
            style = ("-", "--", ":")[i // 10 % 3]
            means = [sum(v) / len(v) for _, v in points]
            axis.plot([k for k, _ in points], means, style, marker="o", ms=3, label=name)
    axis.set(
        xscale="log", yscale="log", xlabel="network evaluations", ylabel="error against the exact map", title=title
    )
    axis.set_xticks(STEPS, [str(k) for k in STEPS])
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(file, dpi=120)
