"""What sampling, training and coupling cost beyond the network, beside the libraries of the field, in one run.

make bench-speed, or, where benchmarks/speed/requirements.txt is installed: python benchmarks/speed.py [--only sampling]
"""

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from flow_matching.path import CondOTProbPath
from flow_matching.solver import ODESolver
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm.optimal_transport import OTPlanSampler
from torchdiffeq import odeint
from torchdyn.core import NeuralODE

from flowmaps.bench.harness import machine, write_rows
from flowmaps.bench.harness import markdown as lines
from flowmaps.core.flow_map import EulerMap, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import Euler, RungeKutta4, sample
from flowmaps.couplings.independent import Independent
from flowmaps.couplings.minibatch_ot import MinibatchOT
from flowmaps.engine.step import Step
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.samplers.dormand_prince import DormandPrince
from flowmaps.spaces.euclidean import Euclidean

BATCH, STEPS, ROUNDS, TOLERANCE = 1024, 100, 41, 1e-5
OUT = Path(__file__).parent / "speed"


class Net(nn.Module):
    """Three hidden layers of width 64, seen by each library with the arguments that it likes."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 64, 64, 64, 2)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.cat([x, t[:, None]], 1)
        for layer in self.layers[:-1]:
            h = nn.functional.silu(layer(h))
        return self.layers[-1](h)


class TwoTimes(Net):
    """The same network, with the same weights, as a mean velocity is called."""

    def __init__(self, net: Net) -> None:
        nn.Module.__init__(self)
        self.layers = net.layers

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return Net.forward(self, x, s)


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median processor seconds of each way, taken in turns so that a busy machine is fair to all."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 2):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if i >= 2:
                spent[name].append(time.process_time() - began)
    return {name: sorted(values)[len(values) // 2] for name, values in spent.items()}


def sampling(net: Net) -> list[dict[str, Any]]:
    """Overhead of a step of Euler, and of Runge-Kutta per evaluation."""
    x, times = torch.randn(BATCH, 2, generator=fold_in(0)), torch.linspace(0, 1, STEPS + 1)
    full = torch.zeros(BATCH)
    ours = MeanVelocity(TwoTimes(net))
    solver = ODESolver(lambda x, t: net(x, t.expand(len(x))))
    dyn = NeuralODE(lambda t, x, args=None: net(x, t.expand(len(x))), solver="euler", sensitivity="autograd")
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)

    def bare() -> None:
        for _ in range(STEPS):
            net(x, full)

    def plain() -> None:
        y = x
        for i in range(STEPS):
            y = y + 1 / STEPS * net(y, torch.full((BATCH,), i / STEPS))

    def diffusers() -> None:
        scheduler.set_timesteps(STEPS)
        y = x
        for tau in scheduler.timesteps:
            y = scheduler.step(-net(y, (1 - tau / 1000).expand(BATCH)), tau, y).prev_sample

    quarter = torch.linspace(0, 1, STEPS // 4 + 1)
    ways: dict[str, Callable[[], Any]] = {
        "bare network": bare,
        "plain loop, euler": plain,
        "flowmaps, euler": lambda: sample(ours, x, times, sampler=Euler()),
        "flow_matching, euler": lambda: solver.sample(x, step_size=1 / STEPS, method="euler"),
        "torchdiffeq, euler": lambda: odeint(lambda t, x: net(x, t.expand(len(x))), x, times, method="euler"),
        "diffusers, FlowMatchEulerDiscreteScheduler": diffusers,
        "torchcfm, torchdyn euler": lambda: dyn.trajectory(x, times),
        "flowmaps, runge_kutta4": lambda: sample(ours, x, quarter, sampler=RungeKutta4()),
        "flow_matching, rk4": lambda: solver.sample(x, step_size=4 / STEPS, method="rk4"),
    }
    found = in_turns(ways)
    base = found.pop("bare network") / STEPS
    rows = [{"way": "bare network", "microseconds per evaluation": 1e6 * base}]
    for name, seconds in found.items():
        each = seconds / STEPS
        rows.append({"way": name, "microseconds per evaluation": 1e6 * each, "beyond the network": 1e6 * (each - base)})
    return rows


def compiled(net: Net) -> list[dict[str, Any]]:
    """Ten Euler steps, compiled as one, beside ten bare calls of the network."""
    x, full, grid = torch.randn(BATCH, 2, generator=fold_in(0)), torch.zeros(BATCH), torch.linspace(0, 1, 11)
    ours = MeanVelocity(TwoTimes(net))
    steps = torch.compile(lambda x: sample(ours, x, grid, sampler=Euler()), fullgraph=True)

    def bare() -> None:
        for _ in range(10):
            net(x, full)

    found = in_turns({"ten bare calls": bare, "flowmaps, ten Euler steps, compiled": lambda: steps(x)})
    return [
        {"way": n, "microseconds": 1e6 * s, "over ten bare calls": s / found["ten bare calls"]}
        for n, s in found.items()
    ]


def adaptive(net: Net) -> list[dict[str, Any]]:
    """Dormand-Prince of every library, its error against a tight solve, and its overhead per evaluation."""
    import torchode

    x, full = torch.randn(BATCH, 2, generator=fold_in(0)), torch.zeros(BATCH)
    model = EulerMap(lambda x, t, cond: 4 * net(x, t))
    ends = torch.tensor([0.0, 1.0])

    def field(t: Tensor, x: Tensor) -> Tensor:
        return 4 * net(x, t.expand(len(x)))

    term = torchode.ODETerm(lambda t, y: 4 * net(y, t))
    step = torchode.Dopri5(term=term)
    control = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
    adjoint = torchode.AutoDiffAdjoint(step, control)
    problem = torchode.InitialValueProblem(y0=x, t_start=torch.zeros(BATCH), t_end=torch.ones(BATCH))
    solver, ours = ODESolver(lambda x, t: field(t, x)), DormandPrince(TOLERANCE, TOLERANCE)
    one = torch.ones(BATCH)
    ways: dict[str, Callable[[], Tensor]] = {
        "flowmaps": lambda: ours(model, x, full, one)[0],
        "torchdiffeq": lambda: odeint(field, x, ends, method="dopri5", atol=TOLERANCE, rtol=TOLERANCE)[-1],
        "flow_matching": lambda: solver.sample(x, step_size=None, method="dopri5", atol=TOLERANCE, rtol=TOLERANCE),
        "torchode": lambda: adjoint.solve(problem).ys[:, -1],
    }
    exact = sample(model, x, torch.linspace(0, 1, 201), sampler=RungeKutta4())
    calls, errors = dict.fromkeys(ways, 0), {}
    for name, way in ways.items():
        hook = net.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        errors[name] = float((way() - exact).square().mean().sqrt())
        hook.remove()
    found = in_turns({"bare network": lambda: 4 * net(x, full), **ways})
    base = found.pop("bare network")
    return [
        {
            "way": f"{name}, dopri5", "milliseconds": 1e3 * s, "evaluations": calls[name], "error": errors[name],
            "beyond the network, microseconds per evaluation": 1e6 * (s / calls[name] - base),
        }
        for name, s in found.items()
    ]  # fmt: skip


def training(_: Net) -> list[dict[str, Any]]:
    """A training step over the same network's forward, backward and Adam."""
    made: dict[str, tuple[Net, torch.optim.Optimizer]] = {}
    names = ("bare network", "plain loss", "flowmaps", "flow_matching", "torchcfm")
    for name in names:
        torch.manual_seed(0)
        net = Net()
        made[name] = net, torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    x1, t, target = torch.randn(BATCH, 2), torch.rand(BATCH), torch.randn(BATCH, 2)
    path, matcher = CondOTProbPath(), ConditionalFlowMatcher(sigma=0.0)
    step = Step(MeanVelocity(TwoTimes(made["flowmaps"][0])), FlowMatching(), Independent(), Euclidean())
    generator = fold_in(0)

    def plain(net: Net) -> Tensor:
        x0, t = torch.randn_like(x1), torch.rand(BATCH)
        s = t[:, None]
        return (net((1 - s) * x0 + s * x1, t) - (x1 - x0)).square().mean()

    def meta(net: Net) -> Tensor:
        drawn = path.sample(t=torch.rand(BATCH), x_0=torch.randn_like(x1), x_1=x1)
        return (net(drawn.x_t, drawn.t) - drawn.dx_t).square().mean()

    def cfm(net: Net) -> Tensor:
        t, x, u = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        return (net(x, t) - u).square().mean()

    losses: dict[str, Callable[[Net], Tensor]] = {
        "bare network": lambda net: (net(x1, t) - target).square().mean(),
        "plain loss": plain,
        "flowmaps": lambda net: step(x1, generator=generator, terms=False)[0],
        "flow_matching": meta,
        "torchcfm": cfm,
    }

    def one(name: str) -> None:
        net, optimizer = made[name]
        optimizer.zero_grad()
        losses[name](net).backward()
        optimizer.step()

    with torch.enable_grad():
        found = in_turns({name: lambda name=name: one(name) for name in names}, 20 * ROUNDS)
    base = found["bare network"]
    return [{"way": n, "microseconds per step": 1e6 * s, "over the bare network": s / base} for n, s in found.items()]


def coupling(_: Net) -> list[dict[str, Any]]:
    """Pairing a batch with noise that is drawn, by optimal transport; the share of the data that is used."""
    rows, ours, theirs = list[dict[str, Any]](), MinibatchOT(), OTPlanSampler(method="exact")
    for d in (2, 784):
        for n in (64, 128, 256, 512, 1024):
            x0, x1 = torch.randn(2, n, d, generator=fold_in(1, n, d))
            x1 = x1 + 2 * (torch.arange(n) % 8)[:, None] / d**0.5
            found = in_turns(
                {
                    "flowmaps": lambda x1=x1: ours(x1, generator=fold_in(0)),
                    "torchcfm": lambda x1=x1: theirs.sample_plan(torch.randn_like(x1), x1),
                },
                11 if n > 256 else 41,
            )
            used = len(torch.unique(theirs.sample_plan(x0, x1)[1], dim=0)) / n
            rows.append(
                {"dimension": d, "batch": n}
                | {f"{k}, milliseconds": 1e3 * s for k, s in found.items()}
                | {"ratio": found["flowmaps"] / found["torchcfm"], "targets used, torchcfm": used}
            )
    return rows


PARTS = {
    "sampling": (sampling, f"Sampling, {STEPS} evaluations, batch {BATCH}"),
    "compiled": (compiled, f"Compiled sampling, batch {BATCH}"),
    "adaptive": (adaptive, f"Adaptive solvers, tolerance {TOLERANCE:g}, batch {BATCH}"),
    "training": (training, f"Training step, batch {BATCH}, fused Adam"),
    "coupling": (coupling, "Optimal transport within a batch (exact); flowmaps uses every datum once"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=PARTS, default="")
    asked = parser.parse_args().only
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Net().requires_grad_(False)
    for name in [asked] if asked else PARTS:
        measure, title = PARTS[name]
        with torch.no_grad():
            rows = measure(net)
        write_rows(OUT / f"{name}.csv", rows)
        cells = [{k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows]
        text = [f"## {title}", "", f"Median processor time, in turns, one thread. {machine()}", "", *lines(cells)]
        (OUT / f"{name}.md").write_text("\n".join(text) + "\n", "utf-8")
        print("\n".join(text), flush=True)


if __name__ == "__main__":
    main()
