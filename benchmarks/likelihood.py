"""What few-step likelihoods are worth: log-densities by determinant, by divergence head and by solving, against truth.

python benchmarks/likelihood.py [--seconds 60]
"""

import argparse
import math
import time
from itertools import pairwise
from pathlib import Path

import torch

from flowmaps.bench.harness import train, write
from flowmaps.build import build
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.shapes import fill_time
from flowmaps.inversions.backward import Backward
from flowmaps.inversions.newton_krylov import NewtonKrylov
from flowmaps.likelihood.change_of_variables import ChangeOfVariables
from flowmaps.likelihood.continuous import Continuous
from flowmaps.likelihood.divergence_head import DivergenceHead as HeadLikelihood
from flowmaps.losses.divergence_distillation import DivergenceDistillation
from flowmaps.maps.divergence_head import DivergenceHead
from flowmaps.nets.mlp import MLP
from flowmaps.oracles.mixture import Mixture

STEPS, LINE = (1, 2, 4, 8), ("data", "map", "method", "points")
SIZES = {"eight Gaussians, 2-D": (1000, 200, 32), "five Gaussians, 64-D": (128, 16, 16)}  # points, few points, solver
ABOUT = """# Likelihood in few steps

Error of log-densities in nats per dimension, against those of the mixture in closed form, by the number of steps: mean
absolute error (median, and bias: the mean of computed minus true) [for the divergence head: its mean distance from the
determinant of the same map]. One seed, {seconds:g} processor seconds of training per map, the same network for all.
Points: "data" are drawn from the mixture; "own" are the K-step samples of the map at hand, for which
a jump gives the log-density along with the sample. At own samples the bias of an exact determinant is the divergence
KL(map || mixture), at data it is -KL(mixture || map), both per dimension and as long as the map does not fold.

- determinant: log |det grad X| of the K jumps, exact; at data the jumps are inverted, by running them backwards (exact
  map) or by Newton's method (trained maps; failed: not every point has a preimage that is found).
- divergence head: the second output of a map trained by `divergence_distillation`, from data alone or from the exact
  velocity; one evaluation per jump. At data "run back" takes the jumps from data to noise, a direction in which it was
  not trained, and "spans ahead" is the rule of the likelihood "divergence_head": steps backwards by what the heads say
  of the span after each time.
- continuous: Runge-Kutta steps of the velocity, its divergence exact or by one Hutchinson probe per point.

1,000 points in two dimensions, 128 in 64; 200 and 16 for the determinant of the exact map, which is itself solved for
in 16 steps of order 8 or more."""


class Recalled:
    """The states that a jump came from, as they were when the samples were made."""

    def __init__(self, states):
        self.states = states

    def __call__(self, model, y, s, t, cond=None):
        return self.states[float(s[0])]


def problems():
    angle = torch.arange(8) * math.pi / 4
    plane = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    wide = 2 * torch.randn(5, 64, generator=fold_in(0))
    return {"eight Gaussians, 2-D": (plane, 0.15), "five Gaussians, 64-D": (wide, 0.5)}


def normal(x):
    return -(x.square().sum(1) + x.shape[1] * math.log(2 * math.pi)) / 2


def row(flow, points, x, found):
    """Errors per dimension of log-densities found [B] at x [B, D]."""
    error = (found - flow.log_density(x, torch.ones(len(x), dtype=x.dtype))) / x.shape[1]
    size = error.abs()
    return {"points": points, "mean": float(size.mean()), "median": float(size.median()), "bias": float(error.mean())}


def own_samples(model, x0, times):
    """States at every time, the last state, and the log-density that the divergence head, if any, gives it."""
    x, found, states = x0, normal(x0), {}
    for s, t in pairwise(times):
        states[s], s, t = x, fill_time(s, x), fill_time(t, x)
        x, found = model.jump(x, found, s, t) if isinstance(model, DivergenceHead) else (model(x, s, t), found)
    return states, x, found


def backwards(model, x, times):
    """The log-density that a divergence head gives data, run from data to noise."""
    y, change = x, torch.zeros(len(x), dtype=x.dtype)
    for s, t in reversed(list(pairwise(times))):
        y, change = model.jump(y, change, fill_time(t, x), fill_time(s, x))
    return normal(y) - change


def measured(flow, maps, n, few, solver):
    """One row per map, method, steps and points."""
    data, noise = flow.sample(n, fold_in(1)), torch.randn(n, flow.shape[0], generator=fold_in(2))
    data, noise = data.double(), noise.double()
    for steps in STEPS:
        times = [k / steps for k in range(steps + 1)]
        exact = Mixture(flow.means, flow.std, steps=max(4, 16 // steps))
        found = ChangeOfVariables(Backward())(exact, data[:few], times, normal)
        yield {"map": "exact", "method": "determinant", "steps": steps} | row(flow, "data", data[:few], found)
    for name, model in maps.items():
        heads = isinstance(model, DivergenceHead)
        for steps in STEPS:
            times = [k / steps for k in range(steps + 1)]
            states, x, head = own_samples(model, noise, times)
            about = {"map": name, "method": "determinant", "steps": steps}
            own = ChangeOfVariables(Recalled(states))(model, x, times, normal)
            yield about | row(flow, "own", x, own)
            if heads:
                about["method"] = "divergence head"
                gap = float((head - own).abs().mean() / x.shape[1])
                yield about | row(flow, "own", x, head) | {"from determinant": gap}
                about["method"] = "divergence head, run back"
                yield about | row(flow, "data", data, backwards(model, data, times))
                about["method"] = "divergence head, spans ahead"
                yield about | row(flow, "data", data, HeadLikelihood()(model, data, times, normal))
                continue
            try:
                found = ChangeOfVariables(NewtonKrylov(krylov=64, tolerance=1e-5))(model, data, times, normal)
                yield about | row(flow, "data", data, found)
            except ValueError:
                yield about | {"points": "data", "failed": True}
    for name, model in {"exact": flow, "trained": maps["trained"]}.items():
        for trace in ("exact", "hutchinson"):
            times = [k / solver for k in range(solver + 1)]
            found = Continuous(trace)(model, data, times, normal, generator=fold_in(3))
            about = {"map": name, "method": f"continuous, {trace}", "steps": solver}
            yield about | row(flow, "data", data, found)


def pivot(rows):
    """A line per map, method and points, a column per number of steps, for reading."""
    lines = {}
    for r in rows:
        line = lines.setdefault(tuple(r[k] for k in LINE), {k: r[k] for k in LINE})
        column = "many" if r["method"].startswith("continuous") else str(r["steps"])
        line[column] = "failed" if "failed" in r else f"{r['mean']:.2g} ({r['median']:.2g}, {r['bias']:+.2g})"
        if "from determinant" in r:
            line[column] += f" [{r['from determinant']:.2g}]"
    return list(lines.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, began = [], time.process_time()
    for problem, (means, std) in problems().items():
        flow, shape = Mixture(means, std), (means.shape[1],)
        losses = {"trained": build("losses", "lsd"), "head, from data": DivergenceDistillation()}
        losses["head, from the exact velocity"] = DivergenceDistillation(flow)
        maps = {}
        for name, loss in losses.items():
            torch.manual_seed(0)
            net = DivergenceHead(MLP(shape, outputs=2)) if "head" in name else MeanVelocity(MLP(shape))
            outcome = train(loss, flow.sample, shape=shape, seconds=given.seconds, net=net)
            maps[name] = outcome.model.double()
            print(f"{time.process_time() - began:4.0f} s  {problem}, {name}: {outcome.steps} steps", flush=True)
        for found in measured(Mixture(means.double(), std), maps, *SIZES[problem]):
            rows.append({"data": problem} | found)
            print(f"{time.process_time() - began:4.0f} s  {rows[-1]}", flush=True)
    write(Path(__file__).parent / "likelihood", "results", rows, pivot(rows), ABOUT.format(seconds=given.seconds))


if __name__ == "__main__":
    main()
