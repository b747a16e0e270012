"""Every loss at equal work, on data whose flow is known: error against evaluations."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..build import build, find, names
from ..core.flow_map import EulerMap, FlowMap, Integrated, MeanVelocity
from ..core.interpolant import Linear
from ..core.random import fold_in
from ..core.sampling import sample
from ..core.types import Sampler
from ..couplings.independent import Independent
from ..couplings.reflow import Reflow, stored_pairs
from ..data.digits import digits
from ..engine.config import published
from ..engine.schedule import Schedule
from ..losses.flow_matching import FlowMatching
from ..metrics.energy_distance import energy_distance
from ..metrics.histogram_kl import histogram_kl
from ..metrics.map_error import map_error
from ..metrics.sliced_wasserstein import sliced_wasserstein
from ..oracles.checkerboard import Checkerboard
from ..oracles.mixture import Mixture
from ..samplers.runge_kutta4 import RungeKutta4
from .harness import Outcome, Training, commit, in_parallel, over_seeds, read_rows, train, write_rows, write_table

STEPS = (1, 2, 4, 8, 16)
OVERVIEW = (1, 4)  # of them
POINTS, SAMPLES = 2000, 20_000
PAIRS, PAIR_STEPS, TEACHER_IMAGES = 2**16, 32, 1_000_000
FAR = 10.0  # times the size of the data: such samples have diverged
TRAINING = Training()

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
TAUGHT = ("distribution_matching", "one_step_distillation", "with_critic")  # by a critic's or a coupling's teacher
CRITIC = {
    "name": "distribution_matching",
    "critic": {"name": "velocity", "net": {"name": "mlp", "width": 128}},
}
# Options that the two-dimensional work needs; everything else is the default.
OPTIONS: dict[str, dict[str, Any]] = {
    "alpha_flow": {"end": 200_000},
    "boss": {"steps": 2},  # of the teacher between two nodes, of which each is already two steps of order 4
    "distribution_matching": {"critic": CRITIC},
    "with_critic": {"critic": CRITIC, "warmup": 100_000},
}
AS_PUBLISHED = " as published"  # behind the name of a loss with the options of its paper, where its defaults are others
# Losses that train something else than a map of one field, measured elsewhere.
LEFT_OUT = {
    "autoregressive_flow_matching": "a velocity on sequences",
    "contrastive_flow_matching": "a velocity that is biased on purpose",
    "divergence_distillation": "a likelihood beside a map",
    "feature_residual": "a part of one network",
    "reflected_score_matching": "a velocity in a box",
    "representation_alignment": "features beside a velocity",
    "stochastic_interpolant": "a denoiser beside a velocity",
    "velocity_refiner": "corrections of a velocity",
}


@dataclass(frozen=True)
class Work:
    """Data with a known flow, or with a trained one.

    Args:
        name: of the data.
        flow: the teacher; where exact, the truth.
        draw: n data [n, *] from a generator.
        width: of the network's layers.
        planar: whether a histogram of the samples is taken, on [-1, 1]^2.
        exact: whether the flow is an oracle, whose map the others are compared with.
    """

    name: str
    flow: FlowMap
    draw: Callable[[int, Generator], Tensor]
    width: int = 128
    planar: bool = False
    exact: bool = True


def works() -> dict[str, Callable[[], Work]]:
    """The data sets by name; built on demand, once per process."""
    return {
        "checkerboard": _checkerboard,
        "two_gaussians": _two_gaussians,
        "eight_gaussians": _eight_gaussians,
        "eight_gaussians_wide": _eight_gaussians_wide,
        "mixture_64": _mixture_64,
        "digits": _digits,
    }


def _checkerboard() -> Work:
    board = Checkerboard()
    return Work("checkerboard", board, board.sample, planar=True)


def _two_gaussians() -> Work:
    flow = Mixture(torch.tensor([[-1.5, 0.0], [1.5, 0.0]]), 0.3)
    return Work("two_gaussians", flow, flow.sample)


def _eight_gaussians(name: str = "eight_gaussians", radius: float = 2.0, std: float = 0.15) -> Work:
    angle = torch.arange(8) * math.pi / 4
    flow = Mixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std)
    return Work(name, flow, flow.sample)


def _eight_gaussians_wide() -> Work:
    """The eight Gaussians of FFJORD's examples."""
    return _eight_gaussians("eight_gaussians_wide", 4 / math.sqrt(2), 0.5 / math.sqrt(2))


def _mixture_64() -> Work:
    flow = Mixture(2 * torch.randn(10, 64, generator=fold_in(7)), 0.3, steps=24)
    return Work("mixture_64", flow, flow.sample, width=256)


def _digits() -> Work:
    images = digits("all").x.flatten(1)

    def draw(n: int, generator: Generator) -> Tensor:
        return images[torch.randint(len(images), (n,), generator=generator)]

    flow = train(FlowMatching(), draw, shape=(64,), net=_network((64,), 256), images=TEACHER_IMAGES).model
    return Work("digits", flow, draw, width=256, exact=False)


def methods(asked: Sequence[str] = ()) -> list[str]:
    """The losses that are compared, by name."""
    known = [name for name in names("losses") if name not in LEFT_OUT]
    for name in asked:
        if name not in known:
            find("losses", name)  # says what there is
            raise ValueError(f"the loss {name!r} cannot be compared here: it trains {LEFT_OUT[name]}.")
    return list(asked) or known


def variants(asked: Sequence[str] = ()) -> list[str]:
    """The losses that are compared, and again as published where that is something else."""
    if not asked:
        return methods() + [m + AS_PUBLISHED for m in methods() if published("losses", m)]
    for name, base in zip(asked, methods([name.removesuffix(AS_PUBLISHED) for name in asked]), strict=True):
        if name != base and not published("losses", base):
            raise ValueError(f"the loss {base!r} has no other options as published. Ask for {base!r}.")
    return list(asked)


def measure(method: str, work_name: str, seed: int, budget: Mapping[str, int]) -> list[dict[str, Any]]:
    """Train one loss on one data set and measure it when each budget is spent: a row for each.

    Args:
        method: name of the loss, with AS_PUBLISHED behind it for the options of its paper.
        work_name: name of the data.
        seed: of everything.
        budget: {"seconds": processor time, "images": number}, one or both.
    """
    work, x0, exact = _prepared(work_name)
    shape = tuple(x0.shape[1:])
    torch.manual_seed(seed)
    name = method.removesuffix(AS_PUBLISHED)
    table = {"name": name, **OPTIONS.get(name, {}), **(published("losses", name) if name != method else {})}
    training = TRAINING if len(budget) == 1 else replace(TRAINING, schedule=Schedule(decay="constant"))

    def spent(now: Outcome, unit: str) -> float:
        return (now.seconds if unit == "seconds" else now.steps * training.batch) / budget[unit]

    rows: list[dict[str, Any]] = []
    left = list(budget)
    try:
        loss = build("losses", table, teacher=_Teacher(work), shape=shape, classes=0, interpolant=Linear())
        coupling = _pairs(work_name) if name == "one_step_distillation" else Independent()
        net = _network(shape, work.width)
        for now in training.steps(
            loss, work.draw, net, share=lambda now: min(spent(now, u) for u in budget), coupling=coupling, seed=seed
        ):
            for unit in [u for u in left if spent(now, u) >= 1]:
                left.remove(unit)
                row = {"loss": method, "seed": seed, "equal": unit, "budget": budget[unit]}
                row |= {"training steps": now.steps}
                row |= {"seconds": now.seconds, "ms per step": 1000 * now.seconds / now.steps}
                row |= {"passes per image": now.passes, "skipped": now.skipped}
                rows.append(row | _quality(now.model, work, SAMPLED.get(name, "jump"), x0, exact, seed))
    except Exception as error:  # a method that fails is a row that says so, not the end of a table
        failed = f"{type(error).__name__}: {error}"[:200]
        rows += [{"loss": method, "seed": seed, "equal": u, "budget": budget[u], "failed": failed} for u in left]
    return rows


class _Teacher(FlowMap):
    """The flow's velocity; its jumps by two steps of order 4, because an oracle's own take hundreds."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.flow, self.solved = work.flow, Integrated(EulerMap(work.flow), RungeKutta4(), 2)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.flow.velocity(x, s) if s is t else self.solved.mean_velocity(x, s, t)


def _network(shape: tuple[int, ...], width: int) -> FlowMap:
    net: nn.Module = build("nets", {"name": "mlp", "width": width, "depth": 4}, shape=shape, classes=0)
    return MeanVelocity(net)


@cache
def _prepared(name: str) -> tuple[Work, Tensor, Tensor | None]:
    """The work, states at time 0 and where its exact map carries them; solved once per process."""
    work = works()[name]()
    x0 = torch.randn(POINTS, *work.draw(1, fold_in(0)).shape[1:], generator=fold_in(100))
    return work, x0, work.flow(x0, torch.zeros(POINTS), torch.ones(POINTS)) if work.exact else None


@cache
def _pairs(name: str) -> Reflow:
    """Pairs of noise and endpoint, solved for once per process, in a file of this process."""
    work = _prepared(name)[0]
    file = Path(tempfile.mkdtemp()) / "pairs.pt"
    teacher = Reflow(teacher=EulerMap(work.flow), steps=PAIR_STEPS, sampler=RungeKutta4())
    stored_pairs(file, teacher, work.draw(PAIRS, fold_in(200)), generator=fold_in(201))
    return Reflow(stored=str(file))


@torch.no_grad()
def _quality(
    model: FlowMap, work: Work, how: str, x0: Tensor, exact: Tensor | None, seed: int
) -> dict[str, float]:  # fmt: skip
    noise = torch.randn(SAMPLES, *x0.shape[1:], generator=fold_in(101, seed))
    data, other = (work.draw(SAMPLES, fold_in(102 + i)) for i in range(2))
    floor = energy_distance(data[:POINTS], other[:POINTS])
    sampler: Sampler = build("samplers", "jump" if how == "one step" else how)
    row: dict[str, float] = {"diverged": 0}
    for k in STEPS if how != "one step" else (1,):
        if exact is not None and (how != "restart" or k == 1):  # fresh noise leaves the trajectory
            row[f"error {k}"] = map_error(model, x0, exact, k, sampler)
        grid = torch.linspace(0, 1, k + 1)
        y = sample(model, noise if work.planar else noise[:POINTS], grid, sampler=sampler, generator=fold_in(104, seed))
        row["diverged"] = int(row["diverged"] or not bool(y.square().mean() < FAR**2 * data.square().mean()))
        row[f"energy {k}"] = energy_distance(y[:POINTS], data[:POINTS]) / floor
        if x0.shape[1] == 2:
            row[f"sliced W2 {k}"] = sliced_wasserstein(y[:POINTS], data[:POINTS])
        if work.planar:
            row[f"KL {k}"] = histogram_kl(data, y)
    if x0.shape[1] == 2:
        row["sliced W2 floor"] = sliced_wasserstein(other[:POINTS], data[:POINTS])
    if work.planar:
        row["KL floor"] = histogram_kl(data, other)
    return row


def run(
    out: Path, *, asked: Sequence[str] = (), data: Sequence[str] = (), seeds: int = 3,
    budget: Mapping[str, int] = {"seconds": 60},
) -> None:  # fmt: skip
    """Measure every method on every data set and write tables, CSV and plots, for each data set and budget.

    Every row is written when it is there. What stands in the CSV already, with these budgets, is not measured again,
    unless its loss is asked for by name: an interrupted run goes on where it stopped. Rows of other budgets stay.

    Args:
        out: folder for the results.
        asked: losses to measure anew; all that are missing if empty.
        data: data sets; all if empty.
        seeds: how many times each.
        budget: {"seconds": processor time of each, "images": number}, one or both.
    """
    for name in data or works():
        if name not in works():
            raise ValueError(f"there are no data {name!r}. Known: {', '.join(works())}.")
        file = out / f"{name}.csv"
        rows = read_rows(file)
        now = [row for row in rows if row["budget"] == budget.get(row["equal"])]
        every = [row for row in rows if row not in now or row["loss"] not in asked]
        found = {(row["loss"], row["seed"]) for row in now if row in every}
        jobs = [(m, name, i, budget) for i in range(seeds) for m in variants(asked) if (m, i) not in found]
        for new in in_parallel(measure, jobs):
            every = sorted([*every, *({**row, "commit": commit()} for row in new)], key=_order)
            write_rows(file, every)
        for unit, value in budget.items():
            rows = [row for row in every if (row["equal"], row["budget"]) == (unit, value)]
            title = f"{name}, {value:,} {unit} for each loss, {_seeds(rows)}"
            rate = "constant rate" if len(budget) > 1 else "rate decayed"
            commits = ", ".join(sorted({row["commit"] for row in rows}))
            about = f"# {title}\n\n{ABOUT}, {rate}."
            write_table(out / f"{name}-{unit}.md", over_seeds(rows, "loss"), about, commits)
            plot(rows, out / f"{name}-{unit}.png", title)
    for unit, value in budget.items():
        overview(out, unit, value)


def _seeds(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many trainings of each loss the rows hold, in words."""
    counts = sorted({sum(row["loss"] == loss for row in rows) for loss in {row["loss"] for row in rows}})
    return " or ".join(map(str, counts)) + (" seed" if counts == [1] else " seeds")


def overview(out: Path, unit: str, value: int) -> None:
    """One table of all data sets at one budget: means, the best of each column bold, by the mean rank in one step."""
    every, columns, commits, found = variants(), dict[str, dict[str, float]](), set[str](), set[str]()
    for name in works():
        rows = [row for row in read_rows(out / f"{name}.csv") if row["equal"] == unit and row["budget"] == value]
        commits |= {row["commit"] for row in rows}
        found |= {row["loss"] for row in rows}
        what = "error" if any("error 1" in row for row in rows) else "energy"
        for k in OVERVIEW if rows else ():
            kept = [row for row in rows if f"{what} {k}" in row and not row.get("diverged")]
            columns[f"{name} {k}"] = {
                m: fmean(row[f"{what} {k}"] for row in kept if row["loss"] == m)
                for m in every
                if any(row["loss"] == m for row in kept)
            }

    losses = [m for m in every if m in found]

    def rank(loss: str) -> float:
        first = [c for name, c in columns.items() if name.endswith(" 1")]
        return fmean(sorted(c.values()).index(c[loss]) if loss in c else len(losses) for c in first)

    def cell(loss: str, column: Mapping[str, float]) -> str:
        text = f"{column[loss]:.3g}" if loss in column else ""
        return f"**{text}**" if text and column[loss] == min(column.values()) else text

    def teacher(loss: str) -> str:
        return "yes" if loss in TAUGHT or "teacher" in signature(find("losses", loss)).parameters else ""

    table = [
        {"loss": m.replace(base, f"`{base}`"), "teacher": teacher(base)}
        | {name: cell(m, column) for name, column in columns.items()}
        for m in sorted(losses, key=rank)
        for base in [m.removesuffix(AS_PUBLISHED)]
    ]
    title = f"# The family after {value:,} {unit} of each training"
    about = f"{title}\n\n{ABOUT}. Digits: energy K, others: error K; blank: diverged, or not to be had"
    write_table(out / f"overview-{unit}.md", table, about, ", ".join(sorted(commits)))


def _order(row: Mapping[str, Any]) -> tuple[str, int, str, int]:
    return row["loss"], row["seed"], row["equal"], row["budget"]


ABOUT = (
    f"error K: K-step map against the exact map of {POINTS:,} points, relative root mean square (1 is no better than "
    "the mean of the data). energy K: energy distance over that of two sets of data. sliced W2 K: of as many "
    f"samples. KL K: histogram of data to histogram of {SAMPLES:,} samples, 50 x 50 cells, nats. passes per image: "
    "samples through the network in one step over the batch, derivatives counted once. diverged: trainings whose "
    f"samples, in any number of steps, are more than {FAR:g} times as large as the data, root mean square. Every loss "
    "with its default options, and as published where these are others, the same MLP, Adam, batch 512, averaged "
    "weights; teachers have the exact velocity, and jump by two Runge-Kutta steps of it; on the digits, where none is "
    f"exact, the teacher is flow matching after {TEACHER_IMAGES:,} images. one_step_distillation "
    f"regresses on {PAIRS:,} stored pairs of the teacher. Mean ± standard deviation over the seeds that did not diverge"
)


def plot(rows: Sequence[Mapping[str, Any]], file: Path, title: str) -> None:
    """Error, or where there is none energy distance, against evaluations, a line per method with its defaults."""
    from matplotlib.figure import Figure

    figure = Figure((9, 6), layout="constrained")
    axis = figure.subplots()
    what = "error" if any("error 1" in row for row in rows) else "energy"
    shown = dict.fromkeys(row["loss"] for row in rows if not row["loss"].endswith(AS_PUBLISHED))  # too many lines else
    for i, name in enumerate(shown):
        group = [row for row in rows if row["loss"] == name and not row.get("diverged", 1)]
        points = [(k, [r[f"{what} {k}"] for r in group]) for k in STEPS if group and f"{what} {k}" in group[0]]
        if points:
            style = ("-", "--", ":")[i // 10 % 3]
            means = [sum(v) / len(v) for _, v in points]
            axis.plot([k for k, _ in points], means, style, marker="o", ms=3, label=name)
    label = "error against the exact map" if what == "error" else "energy distance over its floor"
    axis.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=label, title=title)
    axis.set_xticks(STEPS, [str(k) for k in STEPS])
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(file, dpi=120)
