"""Predicting data or velocities: a spiral of two dimensions, embedded in up to 512.

python benchmarks/data_prediction.py [--steps 2000] [--seeds 3]
"""

import argparse
import math
from itertools import product
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment

from flowmaps.bench.harness import Training, over_seeds, write
from flowmaps.build import build
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import sample

DIMENSIONS, SAMPLES = (2, 16, 128, 512), 2000
FORMS = {
    "data": ({"name": "data_prediction"}, {"name": "flow_matching", "velocity": "clamped"}),
    "velocity": ({"name": "mean_velocity"}, {"name": "flow_matching"}),
}
ABOUT = """# Predicting data or velocities

A spiral in the plane, of root mean square 1 per dimension, embedded in D dimensions by a random isometry, with noise in
all of them; the experiment of Li & He, arXiv:2511.13720, Section 3. Network: {net}, {steps} steps of {batch}; 100 Euler
steps. W2: the 2-Wasserstein distance of {n} samples, projected back on the plane, to as many data; {floor:.3f} between
two sets of data. off the plane: root mean square distance from it. Mean ± standard deviation over {seeds} seeds of
weights, data and noise."""
NET = {"name": "mlp", "width": 256, "depth": 5}


def spiral(n: int, generator: torch.Generator) -> torch.Tensor:
    """Points on two turns of a spiral [n, 2]."""
    angle = 4 * math.pi * torch.rand(n, generator=generator).sqrt()
    return angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1) / (2 * math.pi)


def wasserstein(a: torch.Tensor, b: torch.Tensor) -> float:
    """The 2-Wasserstein distance of two samples of one size."""
    cost = torch.cdist(a, b).square()
    return float(cost[linear_sum_assignment(cost.numpy())].mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    steps, seeds = vars(parser.parse_args()).values()
    torch.set_num_threads(1)
    training = Training(lr=1e-3)
    grid = torch.cat([torch.linspace(0, 0.95, 100), torch.ones(1)])  # the last step begins where the divisor is bounded
    data, again = (spiral(SAMPLES, fold_in(200 + i)) for i in range(2))
    rows = []
    for d in DIMENSIONS:
        plane = torch.linalg.qr(torch.randn(d, 2, generator=fold_in(d))).Q
        for (name, (form, objective)), seed in product(FORMS.items(), range(seeds)):
            torch.manual_seed(seed)
            model = build("maps", form, net=build("nets", NET, shape=(d,), classes=0))
            draw = lambda n, g, plane=plane: spiral(n, g) @ plane.T  # noqa: E731
            *_, now = training.steps(
                build("losses", objective), draw, model, share=lambda now: now.steps / steps, seed=seed
            )
            with torch.no_grad():
                noise = torch.randn(SAMPLES, d, generator=fold_in(300, seed))
                x = sample(now.model, noise, grid, sampler=build("samplers", "euler"))
            off = float((x - x @ plane @ plane.T).square().sum(1).mean().sqrt())
            row = {"prediction": f"{name}, {d} dimensions", "seed": seed, "W2": wasserstein(x @ plane, data)}
            rows.append(row | {"off the plane": off})
            print(rows[-1], flush=True)
    about = ABOUT.format(
        net=NET, steps=steps, batch=training.batch, n=SAMPLES, floor=wasserstein(data, again), seeds=seeds
    )
    write(Path(__file__).parent / "data_prediction", "results", rows, over_seeds(rows, "prediction"), about)


if __name__ == "__main__":
    main()
