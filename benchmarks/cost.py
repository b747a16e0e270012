"""What a training step of each loss costs over one of flow matching: measured side by side, eager and compiled.

python benchmarks/cost.py [--net dit] [--losses lsd,psd] [--compile]
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from flowmaps.bench.family import methods
from flowmaps.bench.harness import write
from flowmaps.build import build
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.target import averages
from flowmaps.core.types import Pair
from flowmaps.engine.compiled import Compiled

NETS = {
    "dit": {"name": "dit", "width": 128, "depth": 4, "heads": 4},
    "unet": {"name": "unet", "width": 32},
}
BATCH, STEPS = 64, 12
ABOUT = """# Cost of a training step, {net}

Processor time of loss and gradient over that of flow matching run eagerly: medians of {steps} steps taken in turns on
one thread; {batch} images of 8 x 8; every sample off the diagonal where the loss has a share for it. Teachers are
networks of the same size. A step of flow matching takes {base:.0f} ms."""


def seconds(step: torch.nn.Module, loss, pair: Pair, i: int) -> float:
    began = time.process_time()
    value: Tensor = loss(step, pair, step=10_000, generator=fold_in(1, i)).mean()
    value.backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", choices=NETS, default="dit")
    parser.add_argument("--losses", default="")
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, teacher = (MeanVelocity(build("nets", NETS[asked.net], shape=(1, 8, 8), classes=0)) for _ in range(2))
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    teacher.requires_grad_(False)
    pair = Pair(*torch.randn(2, BATCH, 1, 8, 8, generator=fold_in(0)))
    tables = [{"name": n} for n in (asked.losses.split(",") if asked.losses else methods())]
    tables += [{"name": "lsd", "route": "stopped"} for t in tables if t["name"] == "lsd"]
    made = {"flow_matching": build("losses", "flow_matching")}
    for table in tables:
        name = "-".join(table.values())
        for off in ({"diagonal": 0.0}, {}):
            try:
                loss = build("losses", table | off, teacher=teacher, shape=(1, 8, 8), classes=0)
            except ValueError:  # no such option, or one without a default
                continue
            for average in averages(loss):
                average.begin(model)
            made[name] = loss
            break
    ways = dict(made)
    if asked.compile:
        ways |= {f"{name}, compiled": Compiled(loss) for name, loss in made.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(-2, STEPS):  # two to warm up
        for name, loss in ways.items():
            model.zero_grad()
            spent = seconds(model, loss, pair, i)
            if i >= 0:
                found[name].append(spent)
            print(f"{name} {1000 * spent:.0f} ms", flush=True)
    median = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
    base = median["flow_matching"]
    rows = [
        {"loss": name, "eager": median[name] / base}
        | ({"compiled": median[f"{name}, compiled"] / base} if asked.compile else {})
        for name in made
    ]
    table = [{k: v if isinstance(v, str) else f"{v:.2f}" for k, v in row.items()} for row in rows]
    about = ABOUT.format(net=asked.net, steps=STEPS, batch=BATCH, base=1000 * base)
    write(Path(__file__).parent / "cost", asked.net + ("-compiled" if asked.compile else ""), rows, table, about)


if __name__ == "__main__":
    main()
