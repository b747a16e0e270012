"""Flow-map losses at equal seconds on the checkerboard, against its exact map.

    python benchmarks/checkerboard.py [--seconds 60] [--seeds 3]

Same network, optimizer and seconds on one core each. LMD and EMD have the exact velocity as teacher, whose float64
error functions are part of their time; flow matching is sampled by Euler steps, the others by jumps.
"""

import argparse

import torch
from harness import in_parallel, over_seeds, train_seconds, write

from flowmaps.build import build
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import Euler, Jump, sample
from flowmaps.metrics.histogram_kl import histogram_kl
from flowmaps.metrics.map_error import map_error
from flowmaps.oracles.checkerboard import Checkerboard

LOSSES = ("lsd", "esd", "psd", "mean_flow", "lmd", "emd", "flow_matching")
STEPS = (1, 2, 4, 8, 16)
POINTS, SAMPLES = 4000, 64_000


def measure(name: str, seed: int, seconds: float) -> dict:
    board = Checkerboard()
    teacher = {"teacher": board} if name in ("lmd", "emd") else {}
    trained = train_seconds(build("losses", name, **teacher), board.sample, seconds, shape=(2,), seed=seed)
    sampler = Euler() if name == "flow_matching" else Jump()
    x0 = torch.randn(POINTS, 2, generator=fold_in(100))
    zero, one = torch.zeros(POINTS), torch.ones(POINTS)
    exact = board(x0, zero, one)
    noise, data = torch.randn(SAMPLES, 2, generator=fold_in(101, seed)), board.sample(SAMPLES, fold_in(102))
    row = {"loss": name, "seed": seed, "training steps": trained.steps}
    row["ms per step"] = 1000 * trained.seconds / trained.steps
    row |= {f"error {k}": map_error(trained.model, x0, exact, k, sampler) for k in STEPS}
    for k in STEPS:
        with torch.no_grad():
            y = sample(trained.model, noise, torch.linspace(0, 1, k + 1), sampler=sampler)
        row[f"KL {k}"] = histogram_kl(data, y)
    return row | {"skipped": trained.skipped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    jobs = [(name, seed, asked.seconds) for name in LOSSES for seed in range(asked.seeds)]
    rows = sorted(in_parallel(measure, jobs), key=lambda row: (LOSSES.index(row["loss"]), row["seed"]))
    board = Checkerboard()
    floor = histogram_kl(board.sample(SAMPLES, fold_in(102)), board.sample(SAMPLES, fold_in(103)))
    about = (
        f"# Checkerboard, {asked.seconds:g} processor seconds on one core, {asked.seeds} seeds\n\n"
        f"error K: K-step map against the exact map of {POINTS:,} points, relative root mean square (1 is no better "
        f"than the mean of the data). KL K: histogram of {SAMPLES:,} true samples to that of {SAMPLES:,} K-step "
        f"samples, 50 x 50 cells, nats; between two sets of true samples it is {floor:.3f}. MLP 256 x 4, batch 512, "
        "Adam 2e-3 with cosine decay, averaged weights; mean ± standard deviation."
    )
    write("checkerboard", "results", rows, over_seeds(rows, "loss"), about)


if __name__ == "__main__":
    main()
