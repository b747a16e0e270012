"""What a coupling, or a law of training times, does for a flow at equal images: few steps, many steps, straightness."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..build import build
from ..core.flow_map import EulerMap, FlowMap, MeanVelocity
from ..core.random import fold_in
from ..core.sampling import Euler, RungeKutta4, sample, trajectory
from ..core.shapes import fill_time
from ..core.types import Coupling
from ..couplings.independent import Independent
from ..couplings.norm_aligned import mean_norm
from ..couplings.pruned import sparse_axes
from ..couplings.reflow import Reflow
from ..couplings.semidiscrete_ot import stored_potentials
from ..losses.flow_matching import FlowMatching
from ..metrics.energy_distance import energy_distance
from ..metrics.map_error import map_error
from ..metrics.sliced_wasserstein import sliced_wasserstein
from ..metrics.straightness import straightness
from .family import Work, works
from .harness import Training, commit, in_parallel, over_seeds, read_rows, train, write_rows, write_table

STEPS, MANY, POINTS, DATA_HELD = (1, 2, 4, 8), 32, 2000, 4096
DATA = ("eight_gaussians", "checkerboard", "digits")
TRAINING = Training(batch=256)

# The loss is flow matching; a method is the coupling, or the law of times, that it is trained with.
COUPLINGS: dict[str, dict[str, Any]] = {
    "independent": {"name": "independent"},
    "minibatch_ot": {"name": "minibatch_ot"},
    "minibatch_ot, sinkhorn": {"name": "minibatch_ot", "plan": "sinkhorn"},
    "semidiscrete_ot": {"name": "semidiscrete_ot"},
    "learned": {"name": "learned"},
    "norm_aligned": {"name": "norm_aligned"},
    "pruned": {"name": "pruned"},
    "reflow": {"name": "reflow"},
}
SPARSE = ("pruned",)  # for data of many dimensions, which leave some directions empty
LAWS: dict[str, dict[str, Any]] = {
    "logit_normal": {"name": "logit_normal"},
    "mode": {"name": "mode"},
    "cos_map": {"name": "cos_map"},
    "shifted, 3": {"name": "shifted", "shift": 3.0},
    "log_normal_noise": {"name": "log_normal_noise"},
    "boundary_mixed": {"name": "boundary_mixed"},
    "loss_second_moment": {"name": "loss_second_moment"},
}


def measure(method: str, data: str, seed: int, images: int) -> list[dict[str, Any]]:
    """Train flow matching one way and measure it: one row."""
    work = works()[data]()
    row: dict[str, Any] = {"method": method, "seed": seed, "images": images}
    try:
        shape = tuple(work.draw(1, fold_in(0)).shape[1:])
        loss = FlowMatching(times=build("training_times", LAWS[method])) if method in LAWS else FlowMatching()
        torch.manual_seed(seed)
        coupling = _coupling(method, work, shape, seed, images)
        made = train(
            loss, work.draw, shape=shape, images=images, seed=seed, coupling=coupling, net=_net(shape, work.width),
            training=TRAINING,
        )  # fmt: skip
        row |= {"ms per step": 1000 * made.seconds / made.steps}
        row |= _quality(EulerMap(made.model), work, coupling, shape, seed)
    except Exception as error:  # a method that fails is a row that says so, not the end of a table
        row["failed"] = f"{type(error).__name__}: {error}"[:200]
    return [row]


def _net(shape: tuple[int, ...], width: int) -> FlowMap:
    return MeanVelocity(build("nets", {"name": "mlp", "width": width, "depth": 4}, shape=shape, classes=0))


def _coupling(method: str, work: Work, shape: tuple[int, ...], seed: int, images: int) -> Coupling:
    """The coupling of a method; a second flow for reflow, trained on as many images before."""
    if method in LAWS:
        return Independent()
    context: dict[str, Any] = {}
    data = work.draw(DATA_HELD, fold_in(300, seed))
    file = Path(tempfile.mkdtemp()) / "stored.pt"
    if method == "semidiscrete_ot":
        stored_potentials(file, data, generator=fold_in(301, seed))
        context["stored"] = str(file)
    if method == "pruned":
        sparse_axes(file, data)
        context["stored"] = str(file)
    if method == "norm_aligned":
        context["norm"] = mean_norm(data)
    if method == "learned":
        context["weight"] = 10.0 if len(shape) == 1 else 20.0  # as in the released code, for the plane and for images
        context["net"] = build("nets", {"name": "mlp", "width": 64, "depth": 3, "outputs": 2}, shape=shape, classes=0)
    if method == "reflow":
        first = train(
            FlowMatching(), work.draw, shape=shape, images=images, seed=seed + 100, net=_net(shape, work.width),
            training=TRAINING,
        )  # fmt: skip
        return Reflow(teacher=EulerMap(first.model), steps=8, sampler=RungeKutta4())
    return build("couplings", COUPLINGS[method], **context)


@torch.no_grad()
def _quality(flow: FlowMap, work: Work, coupling: Coupling, shape: tuple[int, ...], seed: int) -> dict[str, float]:
    """Samples in few and in many steps against the data and against each other, and how straight their way is."""
    data, other = (work.draw(POINTS, fold_in(102 + i)) for i in range(2))
    x0 = coupling.source((POINTS, *shape), data, generator=fold_in(101, seed))
    floor = energy_distance(data, other)
    times = torch.linspace(0, 1, MANY + 1, dtype=torch.float64)
    states = trajectory(flow, x0, times, sampler=RungeKutta4())
    velocities = torch.stack([flow.velocity(x, fill_time(t, x)) for t, x in zip(times, states, strict=True)])
    bend, _ = straightness(times, states, velocities)
    row = {"straightness": bend, "over length": bend / float((states[-1] - states[0]).double().square().mean())}
    row |= {f"own error {k}": map_error(flow, x0, states[-1], k, Euler()) for k in STEPS}
    ends: dict[str, Tensor] = {str(k): sample(flow, x0, torch.linspace(0, 1, k + 1), sampler=Euler()) for k in STEPS}
    for name, y in {**ends, "many": states[-1]}.items():
        row[f"energy {name}"] = energy_distance(y, data) / floor
        if len(shape) == 1 and shape[0] == 2:
            row[f"sliced W2 {name}"] = sliced_wasserstein(y, data)
    return row


def run(
    out: Path, *, asked: Sequence[str] = (), data: Sequence[str] = (), seeds: int = 3, images: int = 400_000
) -> None:
    """Measure every method on every data set and write CSV and tables; what stands in the CSV is kept.

    Args:
        out: folder for the results.
        asked: methods to measure anew; all that are missing if empty.
        data: data sets; all if empty.
        seeds: how many times each.
        images: that each training sees.
    """
    known = [*COUPLINGS, *LAWS]
    for name, every in (*((d, DATA) for d in data), *((m, known) for m in asked)):
        if name not in every:
            raise ValueError(f"there is no {name!r} to train with. Known: {', '.join(every)}.")
    for name in data or DATA:
        file = out / f"{name}.csv"
        rows = [row for row in read_rows(file) if row["images"] == images and row["method"] not in asked]
        found = {(row["method"], row["seed"]) for row in rows}
        can = [m for m in asked or known if m not in SPARSE or name == "digits"]
        jobs = [(m, name, i, images) for i in range(seeds) for m in can if (m, i) not in found]
        for measured in in_parallel(measure, jobs):
            rows = sorted([*rows, *({**row, "commit": commit()} for row in measured)], key=_order)
            write_rows(file, rows)
        about = f"# Flow matching on {name}, {images:,} images, {seeds} seeds\n\n{ABOUT}"
        commits = ", ".join(sorted({row["commit"] for row in rows}))
        write_table(out / f"{name}.md", over_seeds(rows, "method"), about, commits)


def _order(row: Mapping[str, Any]) -> tuple[int, int]:
    return [*COUPLINGS, *LAWS].index(row["method"]), row["seed"]


ABOUT = (
    "own error K: where K Euler steps end against the flow's own end (RungeKutta4, "
    f"{MANY} steps), relative root mean square; energy K: energy distance to the data over that of two sets of data, "
    "'many' in the limit; straightness: S = int E|X'_t - (X_1 - X_0)|^2 dt per dimension of the learned flow, and over "
    "the mean square of X_1 - X_0. The same MLP, Adam, batch 256, averaged weights; a law of times is trained with "
    "the independent coupling. reflow: a second training of as many images on the pairs of a first (which is not "
    "counted), solved for in each step by 8 Runge-Kutta steps. semidiscrete_ot, pruned and norm_aligned know "
    f"{DATA_HELD:,} data; pruned is trained as independent is. learned has the weight of its released code, 10 in the "
    "plane and 20 for images. Mean ± standard deviation over seeds."
)
