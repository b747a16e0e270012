"""Sources in the plane that look like Gaussians of many dimensions: as long as the data, and pruned.

python benchmarks/rings.py [--seeds 5] [--steps 15000]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from flowmaps.bench.harness import Training, over_seeds, train, write
from flowmaps.build import build
from flowmaps.core.flow_map import EulerMap, FlowMap, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import Euler, sample
from flowmaps.core.types import Coupling
from flowmaps.couplings.norm_aligned import NormAligned, mean_norm
from flowmaps.couplings.pruned import Pruned, sparse_axes
from flowmaps.couplings.ring import Ring
from flowmaps.data._dataset import Dataset
from flowmaps.data.ring_modes import SHARES, ring_modes
from flowmaps.losses.flow_matching import FlowMatching

POINTS, TRAINING = 2048, Training(batch=32, lr=1e-3)
COSINE = 0.9  # of the cone around an axis that is pruned, as published
ABOUT = """# Sources on a ring

The simulation of Lee, Kim & Lee, arXiv:2512.18184: 1024 data in three modes of 5, 30 and 65 % on a ring of radius 25,
at random angles, sources on a ring of radius 55. norm_aligned: the source scaled to the data's radius; pruned: the same
flows, sampled without sources that lie within a cosine of {cosine} of a principal axis of the data with no datum there.
MLP 3 x 64, {steps:,} steps of {batch}. far K: percent of {points} samples that end farther than 1 from every datum
after K Euler steps; distance K: mean distance to the nearest datum; mode: percent of samples next to each, K = 50.
Published: 100,000 steps of 10, SELU, an adaptive solver, one side of the minor axis pruned."""


@torch.no_grad()
def measured(flow: FlowMap, source: Coupling, data: Dataset, seed: int) -> dict[str, float]:
    """How far from the data samples end, and next to which mode."""
    assert data.labels is not None
    x0, row = source.source((POINTS, 2), data.x, generator=fold_in(5, seed)), {}
    for steps in (5, 50):
        y = sample(EulerMap(flow), x0, torch.linspace(0, 1, steps + 1), sampler=Euler())
        gap, nearest = torch.cdist(y, data.x).min(1)
        row[f"far {steps}"] = 100 * float((gap > 1).double().mean())
        row[f"distance {steps}"] = float(gap.mean())
        shares: Tensor = data.labels[nearest].bincount(minlength=len(SHARES)) / POINTS
    return row | {f"mode {100 * share:g} %": 100 * float(s) for share, s in zip(SHARES, shares, strict=True)}


def compared(seed: int, steps: int) -> list[dict]:
    """Two trainings, each sampled from all of its source and from what pruning leaves of it: four rows."""
    data, rows = ring_modes(seed=seed), []
    with tempfile.TemporaryDirectory() as folder:
        axes = sparse_axes(f"{folder}/axes.pt", data.x, most=COSINE)
        for name, source in (("ring", Ring()), ("norm_aligned", NormAligned(mean_norm(data.x), Ring()))):
            torch.manual_seed(seed)
            net = MeanVelocity(build("nets", {"name": "mlp", "width": 64, "depth": 3}, shape=(2,), classes=0))
            draw = lambda n, g: data.x[torch.randint(len(data), (n,), generator=g)]  # noqa: E731
            flow = train(
                FlowMatching(), draw, shape=(2,), images=steps * TRAINING.batch, seed=seed, net=net, coupling=source,
                training=TRAINING,
            ).model  # fmt: skip
            pruned = Pruned(f"{folder}/axes.pt", COSINE * 2**0.5, source)
            for how, sources in ((name, source), (f"{name}, pruned", pruned)):
                rows.append({"source": how, "seed": seed, "axes": len(axes)} | measured(flow, sources, data, seed))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in range(given.seeds) for row in compared(seed, given.steps)]
    about = ABOUT.format(cosine=COSINE, steps=given.steps, batch=TRAINING.batch, points=POINTS)
    write(Path(__file__).parent / "rings", "results", rows, over_seeds(rows, "source", 2), about)


if __name__ == "__main__":
    main()
