"""Lagrangian self-distillation on the checkerboard, trained to convergence: histogram KL beside the published one.

python benchmarks/checkerboard.py [--images 150000000]
"""

import argparse
import time
from pathlib import Path

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

STEPS, SAMPLES, POINTS = (1, 2, 4, 8, 16), 64_000, 4000
PUBLISHED = (0.086, 0.077, 0.071, 0.070, 0.071)  # Table 1 of arXiv:2505.18825v2, 150,000 steps of 100,000 samples
LOSS = {
    "name": "lsd",
    "times": {"name": "span_pair"},
    "distance": {"name": "pseudo_huber", "scale": 0.3},
    "bound": 1.0,
}
NET = {"name": "mlp", "width": 256, "depth": 4, "waves": 64, "wave_scale": 3.0}
ABOUT = """# Checkerboard, Lagrangian self-distillation to convergence

{images:,} training samples, which is {share:.1%} of the published run's 150,000 steps of 100,000; {minutes:.0f} minutes
of one core. KL: histogram of {n:,} data to that of {n:,} samples, 50 x 50 cells on [-1, 1]^2, nats; between two sets
of data it is {floor:.3f}, the floor. error: against the exact map of {points:,} points, relative root mean square.
Network: {net}. Loss: {loss}. Adam 1e-3 with cosine decay, gradients clipped to norm 0.5, batch {batch}, compiled loss,
averaged weights."""


@torch.no_grad()
def quality(model: FlowMap, x0: torch.Tensor, exact: torch.Tensor) -> list[dict[str, float]]:
    """A row per number of steps."""
    data = Checkerboard().sample(SAMPLES, fold_in(102)).float()
    noise = torch.randn(SAMPLES, 2, generator=fold_in(101))
    rows = []
    for k, published in zip(STEPS, PUBLISHED, strict=True):
        kl = histogram_kl(data, sample(model, noise, torch.linspace(0, 1, k + 1)))
        rows.append({"steps": k, "KL": kl, "published KL": published, "error": map_error(model, x0, exact, k)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=150_000_000)
    images = parser.parse_args().images
    torch.set_num_threads(1)
    torch.manual_seed(0)
    board = Checkerboard()
    x0 = torch.randn(POINTS, 2, generator=fold_in(100))
    exact = board(x0, torch.zeros(POINTS), torch.ones(POINTS))
    training = Training(lr=1e-3, clip=0.5, schedule=Schedule(hold=0.1), compiled=True)
    net = MeanVelocity(build("nets", NET, shape=(2,), classes=0))
    out = Path(__file__).parent / "checkerboard"
    total, began = images // training.batch, time.time()
    for now in training.steps(build("losses", LOSS), board.sample, net, share=lambda now: now.steps / total):
        if now.steps % 10_000 == 0 or now.steps == total:
            rows = quality(now.model, x0, exact)
            left = (time.time() - began) / now.steps * (total - now.steps) / 60
            print(
                f"{now.steps}/{total}",
                *(f"{r['steps']}: {r['KL']:.3f}" for r in rows),
                f"{left:.0f} min left",
                flush=True,
            )
            torch.save(now.model.state_dict(), "/tmp/checkerboard.pt")
    two = [board.sample(SAMPLES, fold_in(102 + i)) for i in range(2)]
    about = ABOUT.format(
        images=images, share=images / 15e9, minutes=now.seconds / 60, n=SAMPLES, floor=histogram_kl(*two),
        points=POINTS, net=NET, loss=LOSS, batch=training.batch,
    )  # fmt: skip
    write(out, "results", rows, [{k: f"{v:.3g}" for k, v in row.items()} for row in rows], about)


if __name__ == "__main__":
    main()
