"""The whole idea in one file: learn a flow map of two moons in the plane and sample it in 1, 2 and 4 steps.

Everything that the library does for you is written out: the path, the two losses, the loop, the sampler. Only torch,
and matplotlib for the picture. Run it with `python examples/two_moons.py`; it takes a minute on one core.

A flow carries noise at time 0 to data at time 1 along dx/dt = b_t(x). Its flow map X_{s,t} jumps from time s to t.
Written as X_{s,t}(x) = x + (t - s) u_{s,t}(x), its diagonal u_{t,t} is the velocity b_t, so one network holds both.
"""

import argparse
import math
from itertools import pairwise

import torch
from torch import nn


class Net(nn.Module):
    """u_{s,t}(x): a perceptron on the point, the departure time and the span."""

    def __init__(self, width=192):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 16, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x, s, t):
        rates = torch.tensor([1.0, 2.0, 4.0, 8.0])  # low: time derivatives are part of the loss
        waves = [f(z[:, None] * rates) for z in (s, t - s) for f in (torch.sin, torch.cos)]
        return self.layers(torch.cat([x, *waves], 1))


def jump(net, x, s, t):
    """X_{s,t}(x)."""
    return x + (t - s)[:, None] * net(x, s, t)


def two_moons(n, generator):
    upper = torch.rand(n, generator=generator) < 0.5
    angle = math.pi * (torch.rand(n, generator=generator) + ~upper)
    centre = torch.stack([(~upper).float() - 0.5, upper.float() * 0.5 - 0.25], 1)
    points = torch.stack([angle.cos(), angle.sin()], 1) + centre
    return 1.2 * points + 0.08 * torch.randn(n, 2, generator=generator)


def flow_matching(net, x0, x1, generator):
    """On the diagonal, the velocity by regression: |u_{t,t}(x_t) - (x1 - x0)|^2, x_t on the line from noise to data."""
    t = torch.rand(len(x0), generator=generator)
    x = torch.lerp(x0, x1, t[:, None])
    return (net(x, t, t) - (x1 - x0)).square().mean()


def lagrangian(net, x0, x1, generator):
    """Off it, the map follows its own velocity: |d_t X_{s,t}(x_s) - b_t(X_{s,t}(x_s))|^2, with b_t held fixed."""
    s, t = torch.rand(2, len(x0), generator=generator).sort(0).values
    x = torch.lerp(x0, x1, s[:, None])
    y, speed = torch.func.jvp(lambda t: jump(net, x, s, t), (t,), (torch.ones_like(t),))
    with torch.no_grad():
        velocity = net(y, t, t)
    return (speed - velocity).square().mean()


def train(steps, seed=0):
    torch.manual_seed(seed)
    generator, net = torch.Generator().manual_seed(seed), Net()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x0, x1 = torch.randn(512, 2, generator=generator), two_moons(512, generator)
        on = flow_matching(net, x0[:384], x1[:384], generator)
        loss = 0.75 * on + 0.25 * lagrangian(net, x0[384:], x1[384:], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            print(f"step {step:5d} of {steps}  loss {loss.item():.4f}", flush=True)
    return net


@torch.no_grad()
def sample(net, x, steps):
    """The number of steps is chosen here, after training."""
    grid = torch.linspace(0, 1, steps + 1)
    for s, t in pairwise(grid):
        x = jump(net, x, s.expand(len(x)), t.expand(len(x)))
    return x


def energy_distance(a, b):
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--steps", type=int, default=4000)
    options.add_argument("--out", default="two_moons.png")
    given = options.parse_args()
    net, generator = train(given.steps), torch.Generator().manual_seed(1)
    noise = torch.randn(2000, 2, generator=generator)
    real, other = two_moons(2000, generator), two_moons(2000, generator)
    print(f"energy distance between two real samples: {energy_distance(real, other):.4f}")
    found = {steps: sample(net, noise, steps) for steps in (1, 2, 4)}
    for steps, x in found.items():
        print(f"energy distance of {steps}-step samples:    {energy_distance(x, real):.4f}")

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(12, 3.2))
    shown = {f"{k} step": x for k, x in found.items()} | {"data": real}
    for axis, (title, x) in zip(axes, shown.items(), strict=True):
        axis.plot(*x.T, ".", markersize=1.5)
        axis.set(title=title, xlim=(-2.4, 2.4), ylim=(-2, 2), xticks=[], yticks=[])
    figure.savefig(given.out, dpi=100)
    print(f"picture: {given.out}")


if __name__ == "__main__":
    main()
