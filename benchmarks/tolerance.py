"""Sampling to a tolerance: do the share and the error estimate hold, and what do they cost beside a fixed grid?

python benchmarks/tolerance.py [--seconds 60]
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from flowmaps.bench.family import works
from flowmaps.bench.harness import train, write
from flowmaps.build import build
from flowmaps.core.adaptive import Adapted, Rung, sample_to_tolerance
from flowmaps.core.calibration import calibrate
from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import RungeKutta4, sample
from flowmaps.time_grids.shortest_path import ShortestPath

MAPS = (("lsd", "eight_gaussians"), ("psd", "eight_gaussians"), ("mean_flow", "eight_gaussians"), ("lsd", "mixture_64"))
POINTS, PROBES, TOLERANCES = 4000, 5, (0.1, 0.03, 0.01)
JUMPS, SOLVED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128), (1, 2, 3, 4, 6, 8, 12, 16)
ABOUT = """# Sampling to a tolerance

Maps trained for {seconds:g} processor seconds, {n:,} samples. Errors are root mean squares per dimension, against 200
Runge-Kutta steps of the map's own velocity.

Rules. plain: with nothing but the tolerance. calibrated: for a share of .95, on 256 other samples at 363 evaluations
each; means over {probes} probes, and the least share. jumps: 1, 2, 4, ... 256 jumps until two ends differ by less than
a quarter of the tolerance, which never asks the velocity.

within: share of samples whose error is below the tolerance. estimate / error: median over samples. above: share of
samples whose error is above the estimate. rank: rank correlation of estimate and error. The last three columns are the
fewest evaluations per sample with which as large a share is within, found with hindsight: equal jumps of the map,
jumps at searched times (up to 32), equal Runge-Kutta steps of its velocity (inf: more than were tried). They neither
check nor estimate."""


def trained(loss: str, data: str, seconds: float) -> tuple[FlowMap, tuple[int, ...]]:
    work = works()[data]()
    shape = tuple(work.draw(1, fold_in(0)).shape[1:])
    torch.manual_seed(0)
    net = MeanVelocity(build("nets", {"name": "mlp", "width": work.width, "depth": 4}, shape=shape, classes=0))
    return train(build("losses", loss), work.draw, shape=shape, seconds=seconds, net=net).model, shape


def errors(x: Tensor, exact: Tensor) -> Tensor:
    return (x - exact).flatten(1).square().mean(1).sqrt()


def rank_correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.stack([v.argsort().argsort().double() for v in (a, b)]).corrcoef()[0, 1])


def hindsight(model: FlowMap, x0: Tensor, exact: Tensor) -> dict[str, dict[int, Tensor]]:
    """Errors of ways without a check, by evaluations per sample."""
    probe = torch.randn(256, *x0.shape[1:], generator=fold_in(2))
    searched = {k: sample(model, x0, ShortestPath()(k, model, probe)) for k in JUMPS if k <= 32}
    ends = {
        "equal jumps": {k: Rung(build("samplers", "jump"), k).climb(model, x0)[0] for k in JUMPS},
        "searched jumps": searched,
        "equal Runge-Kutta": {4 * k: Rung(RungeKutta4(), k).climb(model, x0)[0] for k in SOLVED},
    }
    return {kind: {k: errors(x, exact) for k, x in found.items()} for kind, found in ends.items()}


def measured(result: Adapted, true: Tensor, tolerance: float) -> dict[str, float]:
    return {
        "within": float((true <= tolerance).double().mean()),
        "evaluations": float(result.evaluations.double().mean()),
        "most": float(result.evaluations.max()),
        "estimate / error": float((result.error / true).median()),
        "above": float((true > result.error).double().mean()),
        "rank": rank_correlation(result.error, true),
    }


def deciles(result: Adapted, true: Tensor) -> list[tuple[float, float, float, float]]:
    """Of each tenth of the samples by estimate: the median estimate, and low, median and high of the true errors."""
    parts = result.error.argsort().chunk(10)
    low, middle, high = (torch.tensor([float(true[p].quantile(q)) for p in parts]) for q in (0.1, 0.5, 0.9))
    guess = torch.tensor([float(result.error[p].median()) for p in parts])
    return [tuple(map(float, row)) for row in zip(guess, low, middle, high, strict=True)]


def rows_of(loss: str, data: str, seconds: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    model, shape = trained(loss, data, seconds)
    with torch.no_grad():
        x0 = torch.randn(POINTS, *shape, generator=fold_in(1))
        exact, rows, points = Rung(RungeKutta4(), 200).climb(model, x0)[0], [], []
        unchecked = hindsight(model, x0, exact)
        for tolerance in TOLERANCES:
            probes = [[(torch.randn(256, *shape, generator=fold_in(3, i)), None)] for i in range(PROBES)]
            ladders: dict[str, Sequence[float | Sequence[Rung]]] = {
                "jumps": [[Rung(build("samplers", "jump"), 2**k, accept=tolerance / 4) for k in range(9)]],
                "plain": [tolerance],
                "calibrated": [calibrate(model, probe, tolerance) for probe in probes],
            }
            for rule, ladder in ladders.items():
                results = [sample_to_tolerance(model, x0, rungs) for rungs in ladder]
                true = [errors(r.x, exact) for r in results]
                found = [measured(r, e, tolerance) for r, e in zip(results, true, strict=True)]
                row: dict[str, Any] = {"map": f"{loss}, {data}", "tolerance": tolerance, "rule": rule}
                row |= {key: sum(f[key] for f in found) / len(found) for key in found[0]}
                row["least within"] = min(f["within"] for f in found)
                for kind, tried in unchecked.items():
                    enough = [k for k, e in tried.items() if float((e <= tolerance).double().mean()) >= row["within"]]
                    row[kind] = min(enough, default=math.inf)
                rows.append(row)
                names = ("estimate", "low", "error", "high")
                for i, point in enumerate(deciles(results[0], true[0])):
                    where = {"map": row["map"], "tolerance": tolerance, "rule": rule, "decile": i + 1}
                    points.append(where | dict(zip(names, point, strict=True)))
    return rows, points


def by_tenths(points: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A row per map, tolerance and rule."""
    table: dict[tuple[str, ...], dict[str, str]] = {}
    for point in points:
        key = {"map": point["map"], "tolerance": f"{point['tolerance']:g}", "rule": point["rule"]}
        row = table.setdefault(tuple(key.values()), key)
        row[str(point["decile"])] = f"{point['error'] / point['estimate']:.2f}"
    return list(table.values())


def draw(points: Sequence[dict[str, Any]], file: Path) -> None:
    """Estimate against error, a tenth of the samples a point, one panel a map."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    maps = list(dict.fromkeys(p["map"] for p in points))
    figure, panels = plt.subplots(2, len(maps), figsize=(3.4 * len(maps), 6.6), sharex=True, sharey=True, squeeze=False)
    for panel, (rule, name) in zip(panels.flat, [(r, m) for r in ("plain", "calibrated") for m in maps], strict=True):
        panel.loglog([1e-4, 3], [1e-4, 3], color="gray", linewidth=0.8)
        for color, tolerance in zip(("C0", "C1", "C2"), TOLERANCES, strict=True):
            mine = [p for p in points if (p["rule"], p["map"], p["tolerance"]) == (rule, name, tolerance)]
            guess, middle = [p["estimate"] for p in mine], [p["error"] for p in mine]
            bars = [[p["error"] - p["low"] for p in mine], [p["high"] - p["error"] for p in mine]]
            panel.errorbar(
                guess, middle, bars, fmt="o", markersize=3, linewidth=0.8, color=color, label=f"{tolerance:g}"
            )
            panel.axhline(tolerance, color=color, linewidth=0.5, linestyle=":")
        panel.set_title(f"{name}, {rule}", fontsize=8)
    for panel in panels[:, 0]:
        panel.set_ylabel("error: median, 10% to 90%")
    for panel in panels[1]:
        panel.set_xlabel("estimate, tenth by tenth")
    panels[0, 0].legend(title="tolerance", fontsize=7, title_fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    out, rows, points = Path(__file__).parent / "tolerance", [], []
    about = (
        "# Calibration of the error estimate\n\nSamples by tenths of their estimate, lowest first: the median error of "
    )
    about += "each tenth over its median estimate. The calibrated rule's first probe. Quantiles are in the CSV."
    for loss, data in MAPS:  # written map by map: training takes a while
        found, estimates = rows_of(loss, data, seconds)
        rows, points = rows + found, points + estimates
        table = [{k: v if isinstance(v, str) else f"{v:.3g}" for k, v in row.items()} for row in rows]
        write(out, "results", rows, table, ABOUT.format(seconds=seconds, n=POINTS, probes=PROBES))
        write(out, "calibration", points, by_tenths(points), about)
        draw(points, out / "calibration.png")


if __name__ == "__main__":
    main()
