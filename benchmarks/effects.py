"""What samplers, grids and guidance claim for few steps, on three trained flows of digits.

python benchmarks/effects.py [--part momentum|grids|guidance] [--images 400000]
"""

import argparse
import tempfile
from pathlib import Path

import torch

from flowmaps.bench.harness import over_seeds, write
from flowmaps.data.digits import digits
from flowmaps.engine.config import find_recipe, override, read_config
from flowmaps.engine.train import train
from flowmaps.flow import Flow, load
from flowmaps.metrics.energy_distance import energy_distance
from flowmaps.metrics.label_agreement import label_agreement

SEEDS, N, FINE = 3, 1000, 32
STRONG = 8.0
NETWORK = "the recipe digits with flow matching, {images:,} images, seeds 0 to 2, {n:,} samples of each. "
END = "error: against where the flow itself ends, by {fine} Runge-Kutta steps, relative root mean square. "
ABOUT = {
    "momentum": "# Momentum under strong guidance\n\n"
    + NETWORK
    + f"Classifier-free guidance of scale {STRONG:g}, N equal steps. "
    + END
    + "stray: share of samples with a pixel farther out than that of any sample of the flow itself.",
    "grids": "# Grids of few steps\n\n" + NETWORK + "No guidance. " + END,
    "guidance": "# Guidance in few steps\n\n"
    + NETWORK
    + "N Euler steps. labels: share of samples that a classifier gives the class asked for; energy: energy distance to "
    "held-out digits over that of training to held-out digits.",
}


def momentum(flow: Flow, seed: int) -> list[dict]:
    """Multistep solvers with and without momentum."""
    guided = {"name": "cfg", "scale": STRONG}
    end = flow.sample(N, FINE, sampler="runge_kutta4", guidance=guided)
    reach, spread = end.abs().max(), (end - end.mean(0)).square().sum()
    solvers = [{"name": "euler"}, {"name": "heavy_ball"}, {"name": "heavy_ball", "beta": 0.5}]
    for order in (2, 3, 4):
        solvers += [{"name": "adams_bashforth", "order": order}]
        solvers += [{"name": "ghvb", "order": order, "beta": beta} for beta in (0.8, 0.5)]
    rows = []
    for solver in solvers:
        row = {"method": " ".join(f"{v}" if k == "name" else f"{k}={v}" for k, v in solver.items()), "seed": seed}
        for steps in (5, 8, 10, 20):
            x = flow.sample(N, steps, sampler=solver, guidance=guided)
            row[f"error {steps}"] = float(((x - end).square().sum() / spread).sqrt())
            row[f"stray {steps}"] = float((x.flatten(1).abs().amax(1) > reach).double().mean())
        rows.append(row)
    return rows


def grids(flow: Flow, seed: int) -> list[dict]:
    """Searched and closed grids against equal steps."""
    end = flow.sample(N, FINE, sampler="runge_kutta4")
    spread, rows = (end - end.mean(0)).square().sum(), []
    for solver in ("euler", "adams_bashforth"):
        for grid in ("uniform", "shift", "power", "log_snr", "gits", "boss", "shortest_path"):
            row = {"method": f"{solver}, {grid}", "seed": seed}
            for steps in (4, 6, 8, 10):
                x = flow.sample(N, steps, sampler=solver, grid=grid)
                row[f"error {steps}"] = float(((x - end).square().sum() / spread).sqrt())
            rows.append(row)
    return rows


def guidance(flow: Flow, seed: int) -> list[dict]:
    """A fixed scale against one that knows the ratio, and others."""
    data, held = digits(), digits("test")
    floor, rows = energy_distance(data.x, held.x), []
    kinds = [{"name": "cfg", "scale": s} for s in (1.0, 2.0, 4.0, 8.0)]
    kinds += [{"name": "raag", "scale": s, "decay": d} for s, d in ((18.0, 12.0), (4.0, 3.0), (8.0, 3.0), (8.0, 6.0))]
    kinds += [{"name": "cfg_zero_star", "scale": s} for s in (2.0, 4.0)]
    for kind in kinds:
        row = {"method": " ".join(f"{v}" if k == "name" else f"{k}={v:g}" for k, v in kind.items()), "seed": seed}
        for steps in (4, 6, 8, 10):
            x = flow.sample(N, steps, sampler="euler", guidance=kind)
            row[f"labels {steps}"] = label_agreement(x, flow.labels(N), data.x, data.labels, held.x, held.labels)[0]
            row[f"energy {steps}"] = energy_distance(x, held.x) / floor
        rows.append(row)
    return rows


PARTS = {"momentum": momentum, "grids": grids, "guidance": guidance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--images", type=int, default=400_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict]] = {part: [] for part in PARTS if asked.part in (None, part)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS):
            options = ["loss=flow_matching", f"images={asked.images}", f"seed={seed}"]
            run = train(override(read_config(find_recipe("digits")), options), Path(folder) / str(seed), quiet=True)
            flow = load(run)
            for part, measured in rows.items():
                measured += PARTS[part](flow, seed)
                about = ABOUT[part].format(images=asked.images, n=N, fine=FINE)
                write(Path(__file__).parent / "effects", part, measured, over_seeds(measured, "method"), about)


if __name__ == "__main__":
    main()
