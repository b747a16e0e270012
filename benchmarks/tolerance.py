"""Sampling to a tolerance: does the error estimate hold, and what does it cost beside a fixed grid?

python benchmarks/tolerance.py [--seconds 60]
"""

import argparse
import math
from pathlib import Path

import torch

from flowmaps.bench.harness import train, write
from flowmaps.build import build
from flowmaps.core.adaptive import sample_to_tolerance
from flowmaps.core.flow_map import EulerMap
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import sample
from flowmaps.oracles.mixture import Mixture
from flowmaps.samplers.runge_kutta4 import RungeKutta4
from flowmaps.time_grids.shortest_path import ShortestPath

POINTS, TOLERANCES, STEPS = 4000, (0.1, 0.03, 0.01), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
ABOUT = """# Sampling to a tolerance

Eight Gaussians in the plane, a Lagrangian map trained for {seconds:g} processor seconds, {n:,} samples. Errors are root
mean squares per dimension, against 400 Runge-Kutta steps of the map's own velocity. within: share of samples whose
error is below the tolerance. estimate / error: median over samples. rank: rank correlation of estimate and error. fixed
steps: the fewest equal steps, or searched times, of the map for which as large a share is within, found with hindsight
(inf: more than were tried)."""


def errors(x: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    return (x - exact).flatten(1).square().mean(1).sqrt()


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    angle = torch.arange(8) * math.pi / 4
    flow = Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.15)
    with torch.enable_grad():
        model = train(build("losses", "lsd"), flow.sample, shape=(2,), seconds=seconds).model
    x0 = torch.randn(POINTS, 2, generator=fold_in(1))
    exact = sample(EulerMap(model), x0, torch.linspace(0, 1, 401), sampler=RungeKutta4())
    probe = torch.randn(256, 2, generator=fold_in(2))
    grids = {
        "equal": {k: torch.linspace(0, 1, k + 1) for k in STEPS},
        "searched": {k: ShortestPath()(k, model, probe) for k in STEPS if k <= 32},
    }
    fixed = {kind: {k: errors(sample(model, x0, g), exact) for k, g in grid.items()} for kind, grid in grids.items()}
    rows = []
    for tolerance in TOLERANCES:
        result = sample_to_tolerance(model, x0, tolerance)
        true = errors(result.x, exact)
        share = float((true < tolerance).double().mean())
        row = {"tolerance": tolerance, "within": share, "evaluations": float(result.evaluations.double().mean())}
        row |= {"most": int(result.evaluations.max()), "mean error": float(true.mean())}
        row |= {"estimate / error": float((result.error / true).median()), "rank": rank_correlation(result.error, true)}
        for kind, found in fixed.items():
            enough = [k for k, e in found.items() if float((e < tolerance).double().mean()) >= share]
            row[f"fixed steps, {kind}"] = min(enough, default=math.inf)
        rows.append(row)
    table = [{k: f"{v:.3g}" for k, v in row.items()} for row in rows]
    write(Path(__file__).parent / "tolerance", "results", rows, table, ABOUT.format(seconds=seconds, n=POINTS))


if __name__ == "__main__":
    main()
