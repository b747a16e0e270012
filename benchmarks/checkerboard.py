"""Lagrangian self-distillation on the checkerboard, trained to convergence: histogram KL beside the published one.

python benchmarks/checkerboard.py [--images 150000000] [--weights FILE]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from flowmaps.bench.harness import Training, write
from flowmaps.build import build
from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import sample
from flowmaps.engine.schedule import Schedule
from flowmaps.metrics.histogram_kl import histogram_kl
from flowmaps.metrics.map_error import map_error
from flowmaps.oracles.checkerboard import Checkerboard

STEPS, SAMPLES, DRAWS, POINTS, BINS = (1, 2, 4, 8, 16), 64_000, 5, 4000, 50
PUBLISHED = (0.086, 0.077, 0.071, 0.070, 0.071)  # Table 1 of arXiv:2505.18825v2, 150,000 steps of 100,000 samples
LOSS = {
    "name": "lsd",
    "times": {"name": "span_pair"},
    "distance": {"name": "pseudo_huber", "scale": 0.3},
    "bound": 1.0,
}
NET = {"name": "mlp", "width": 256, "depth": 4, "waves": 64, "wave_scale": 3.0}
ABOUT = """# Checkerboard, Lagrangian self-distillation to convergence

{images:,} training samples, {share:.1%} of the published 150,000 steps of 100,000; {minutes:.0f} minutes
of one core. KL: from the exact law to the histogram of {n:,} samples, 50 x 50 cells on [-1, 1]^2, nats, mean and
standard deviation over {draws} draws; {n:,} data have {floor:.4f}, the floor. error: against the exact map of
{points:,} points, relative root mean square. Network: {net}. Loss: {loss}. Adam 1e-3 with cosine decay, gradients
clipped to norm 0.5, batch
{batch}, compiled loss, averaged weights. Published: Table 1 of arXiv:2505.18825v2."""


@torch.no_grad()
def quality(model: FlowMap, draws: int) -> list[dict[str, float]]:
    """A row per number of steps."""
    board = Checkerboard()
    masses, x0 = board.masses(BINS), torch.randn(POINTS, 2, generator=fold_in(100))
    exact = board(x0, torch.zeros(POINTS), torch.ones(POINTS))
    rows = []
    for k, published in zip(STEPS, PUBLISHED, strict=True):
        grid = torch.linspace(0, 1, k + 1)
        noise = (torch.randn(SAMPLES, 2, generator=fold_in(101, i)) for i in range(draws))
        kl = torch.tensor([histogram_kl(masses, sample(model, z, grid), BINS) for z in noise])
        row = {"steps": k, "KL": float(kl.mean()), "± over draws": float(kl.std()) if draws > 1 else 0.0}
        rows.append(row | {"published KL": published, "error": map_error(model, x0, exact, k)})
    return rows


def trained(net: FlowMap, training: Training, images: int) -> dict[str, Any]:
    """Weights, and what they took; the KL in 1, 2, ... steps is printed on the way."""
    total, began = images // training.batch, time.time()
    loss = build("losses", LOSS)
    for now in training.steps(loss, Checkerboard().sample, net, share=lambda now: now.steps / total):
        if now.steps % 10_000 == 0 or now.steps == total:
            left = (time.time() - began) / now.steps * (total - now.steps) / 60
            found = " ".join(f"{row['KL']:.3f}" for row in quality(now.model, 1))
            print(f"{now.steps}/{total}: {found}, {left:.0f} min left", flush=True)
    return {"weights": now.model.state_dict(), "images": images, "minutes": now.seconds / 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=150_000_000)
    parser.add_argument("--weights", type=Path, default=Path("runs/checkerboard.pt"), help="measured if it is there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = Training(lr=1e-3, clip=0.5, schedule=Schedule(hold=0.1), compiled=True)
    net = MeanVelocity(build("nets", NET, shape=(2,), classes=0))
    if not asked.weights.exists():
        asked.weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(trained(net, training, asked.images), asked.weights)
    made = torch.load(asked.weights, weights_only=True)
    net.load_state_dict(made["weights"])
    rows = quality(net, DRAWS)
    board = Checkerboard()
    about = ABOUT.format(
        images=made["images"], share=made["images"] / 15e9, minutes=made["minutes"], n=SAMPLES, draws=DRAWS,
        floor=histogram_kl(board.masses(BINS), board.sample(SAMPLES, fold_in(102)), BINS), points=POINTS, net=NET,
        loss=LOSS, batch=training.batch,
    )  # fmt: skip
    write(
        Path(__file__).parent / "checkerboard", "results", rows,
        [{k: f"{v:.3g}" for k, v in row.items()} for row in rows], about,
    )  # fmt: skip


if __name__ == "__main__":
    main()
