"""What sampling costs at equal error: FlowTurbo, bottleneck sampling, kept features, Euler and Heun, on digits.

python benchmarks/accelerators.py [--images 60000] [--seeds 3]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowmaps.bench.harness import Training, over_seeds, train, write
from flowmaps.build import build
from flowmaps.core.flow_map import EulerMap, FlowMap, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.recurrent import Recurrent
from flowmaps.core.sampling import Euler, Heun, RungeKutta4, sample
from flowmaps.core.types import Loss, Pair, Sampler
from flowmaps.data.digits import digits
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.losses.velocity_refiner import VelocityRefiner
from flowmaps.metrics.energy_distance import energy_distance
from flowmaps.nets.cached import Cached
from flowmaps.samplers.bottleneck import Bottleneck
from flowmaps.samplers.flow_turbo import FlowTurbo
from flowmaps.samplers.recurrent import RecurrentSteps

SHAPE, SAMPLES, BATCH, ROUNDS = (1, 8, 8), 1000, 250, 3
NET = {"name": "unet", "width": 32, "blocks": 2}
REFINER = {"name": "dit", "width": 64, "depth": 1, "heads": 4, "shape": (2, 8, 8)}
TARGETS = (3.0, 2.0, 1.5)
STARTS, SHIFTS = (0.2, 0.3, 0.4, 0.5, 0.7), (1.0, 3.0)  # tried for the bottleneck, on half of the samples
ABOUT = """# Sampling at equal error

Digits of 8 x 8 pixels; a U-Net ({net}), trained by flow matching on {images:,} digits and, at once, on their halves of
4 x 4; a refiner ({refiner}), trained on a quarter of as many. {seeds} seeds of everything. ms: processor milliseconds
per sample, in batches of {batch}, one thread, the median of {rounds}. energy: energy distance between {n} samples and
as many of the flow itself from other noise (64 steps of Runge-Kutta), over that of two such sets. distance: root mean
square distance per pixel from where the flow carries the same noise, if the sampler draws no other.
FlowTurbo HaPbRc: steps of Heun, pseudo correctors, refiners. Bottleneck a+b+c: Euler steps at 8 x 8, 4 x 4 and 8 x 8,
resampled by means, as in training, and repetition; start and shift: where stages start after new noise, and how their
times are shifted, the best for each seed of starts {starts} and shifts {shifts} on other samples.
kept k: Euler steps, of which every k-th evaluates the inner blocks."""
EQUAL = """# Milliseconds per sample at equal error

The least over the settings of each method in results.md whose energy is at most so many floors; empty where one of
the seeds has none."""


@dataclass(frozen=True)
class TwoResolutions:
    """A loss on images, and on their halves with noise of the same deviation."""

    loss: Loss

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Any = None) -> Tensor:
        low = Pair(2 * F.avg_pool2d(pair.x0, 2), F.avg_pool2d(pair.x1, 2), pair.cond)
        return sum(self.loss(model, p, step=step, generator=generator) for p in (pair, low))


def settings(model: MeanVelocity, refiner: FlowMap) -> Iterator[tuple[str, str, FlowMap, Sampler, int]]:
    """Method, setting, map, sampler and number of steps."""
    for n in (4, 6, 8, 12, 16, 24, 32, 48):
        yield "Euler", f"{n}", EulerMap(model), Euler(), n
    for n in (2, 3, 4, 6, 8, 12, 16, 24):
        yield "Heun", f"{n}", EulerMap(model), Heun(), n
    for n in (3, 5, 7, 11, 15, 23):
        yield "FlowTurbo, no refiner", f"H1P{n - 1}", EulerMap(model), FlowTurbo(), n
    for h, p, r in ((1, 1, 1), (1, 2, 2), (1, 4, 3), (2, 4, 3), (1, 8, 3), (1, 12, 4)):
        yield "FlowTurbo", f"H{h}P{p}R{r}", EulerMap(model), FlowTurbo(h, p, refiner), h + p + r
    for steps in ((2, 4, 2), (2, 6, 4), (4, 12, 5), (4, 12, 12), (6, 18, 18)):
        yield "bottleneck", "+".join(map(str, steps)), EulerMap(model), Bottleneck(steps=steps, resample="area"), 1
    for every in (2, 3):
        for n in (8, 12, 16, 24, 32, 48):
            kept = Recurrent(Cached(model.net, every, 2))
            yield f"kept {every}", f"{n}", kept, RecurrentSteps(), n


def carried(model: FlowMap, x: Tensor, sampler: Sampler, steps: int) -> Tensor:
    """The states at time 1, batch by batch."""
    times = torch.linspace(0, 1, steps + 1)
    parts = (
        sample(model, part, times, sampler=sampler, generator=fold_in(9, i)) for i, part in enumerate(x.split(BATCH))
    )
    return torch.cat(list(parts))


def tuned(model: FlowMap, sampler: Bottleneck, noise: Tensor, flow: Tensor) -> Bottleneck:
    """The sampler with the start of its later stages and the shift of all that bring samples closest to the flow's."""
    choices = [
        replace(sampler, starts=(0, start, start), shifts=(shift,) * 3) for start in STARTS for shift in SHIFTS
    ]  # fmt: skip
    return min(choices, key=lambda choice: energy_distance(carried(model, noise, choice, 1), flow))


def seconds(work: Callable[[], Any]) -> float:
    """Processor seconds, the median of some rounds."""

    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return median(once() for _ in range(ROUNDS))


def measure(seed: int, images: int) -> Iterator[dict[str, Any]]:
    """A row for every setting, with networks of one seed."""
    data = digits("all").x
    draw = lambda n, g: data[torch.randint(len(data), (n,), generator=g)]  # noqa: E731
    torch.manual_seed(seed)
    net, small = MeanVelocity(build("nets", NET, shape=SHAPE, classes=0)), build("nets", REFINER, classes=0)
    loss, training = TwoResolutions(FlowMatching()), Training(batch=256, lr=1e-3)
    model = train(loss, draw, shape=SHAPE, images=images, seed=seed, net=net, training=training).model
    refining = VelocityRefiner(EulerMap(model))
    refiner = MeanVelocity(small)
    refiner = train(refining, draw, shape=SHAPE, images=images // 4, seed=seed, net=refiner, training=training).model
    with torch.no_grad():
        noise = [torch.randn(SAMPLES, *SHAPE, generator=fold_in(300 + i, seed)) for i in range(3)]
        own, flow, again = (carried(EulerMap(model), x, RungeKutta4(), 64) for x in noise)
        floor = energy_distance(flow, again)
        for method, setting, used, sampler, steps in settings(model, refiner):
            if isinstance(sampler, Bottleneck):
                sampler = tuned(used, sampler, noise[2][: SAMPLES // 2], flow)
            x = carried(used, noise[0], sampler, steps)
            spent = seconds(lambda: carried(used, noise[0][:BATCH], sampler, steps))  # noqa: B023
            row = {"seed": seed, "method": f"{method} {setting}", "ms": 1000 * spent / BATCH}
            row["energy"] = energy_distance(x, flow) / floor
            if isinstance(sampler, Bottleneck):
                row |= {"start": sampler.starts[-1], "shift": sampler.shifts[-1]}
            else:
                row["distance"] = float((x - own).square().mean().sqrt())
            yield row


def equal_error(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The least milliseconds of each method and seed for each target that the method reaches with all seeds."""
    best: dict[str, dict[int, dict[float, float]]] = {}
    for row in rows:
        method = row["method"].rsplit(" ", 1)[0]
        least = best.setdefault(method, {}).setdefault(row["seed"], {})
        for target in TARGETS:
            if row["energy"] <= target:
                least[target] = min(least.get(target, row["ms"]), row["ms"])
    return [
        {"method": method, "seed": seed}
        | {f"{t:g} floors": least[t] for t in TARGETS if all(t in other for other in seeds.values())}
        for method, seeds in best.items()
        for seed, least in seeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(asked.seeds):
        for row in measure(seed, asked.images):
            rows.append(row)
            print(row, flush=True)
    about = ABOUT.format(
        net=NET, refiner=REFINER, images=asked.images, seeds=asked.seeds, batch=BATCH, rounds=ROUNDS, n=SAMPLES,
        starts=", ".join(map(str, STARTS)), shifts=", ".join(map(str, SHIFTS)),
    )  # fmt: skip
    out = Path(__file__).parent / "accelerators"
    write(out, "results", rows, over_seeds(rows, "method"), about)
    best = equal_error(rows)
    write(out, "equal_error", best, over_seeds(best, "method"), EQUAL)


if __name__ == "__main__":
    main()
