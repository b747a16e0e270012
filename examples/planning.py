"""Offline planning with guided flows: plans drawn from recorded walks, and guided to what pays.

A point in a square has to get from the left through a gap in a wall to a goal on the right. There are recordings of a
clumsy walker only. As in Guided Flows (Zheng, Le, Shaul, Lipman, Grover & Chen, 2023, arXiv:2311.13443):

1. a flow is trained to draw the next 12 states given the present one and how much nearer to the goal they get, a return
   that is left out of a fifth of the training data;
2. a network learns from the same recordings which action leads from one state to the next;
3. to act, a plan of high return is drawn with guidance, its first transition is carried out, and so on.

Run it with `python examples/planning.py`; it takes about a minute of one core. Measured, seed 0: share of 500
walks of 30 steps that reach the goal.

    the recorded walks                              0.270
    plans of  4 steps, no return asked for          0.088
    plans of  4 steps, a high return asked for      0.648
    plans of  4 steps under guidance of scale 2     0.814
    plans of  4 steps under guidance of scale 3     0.746
    plans of  1 step  under guidance of scale 2     0.036
    plans of 10 steps under guidance of scale 2     0.928

Steps are Heun's, of two velocities; a velocity under guidance is two network evaluations.
"""

import argparse
import time

import torch
from torch import nn

from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import sample
from flowmaps.couplings.independent import Independent
from flowmaps.guidance.guided_flows import GuidedFlows
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.nets.mlp import MLP
from flowmaps.samplers.heun import Heun

GOAL, GAP, WIDTH, STEP, HORIZON = torch.tensor([0.7, -0.5]), torch.tensor([0.0, 0.6]), 0.2, 0.15, 12


def to_go(state):
    """Length of the way to the goal, through the gap."""
    through = (state - GAP).norm(dim=-1) + (GAP - GOAL).norm()
    return torch.where(state[..., 0] < 0, through, (state - GOAL).norm(dim=-1))


def act(state, action):
    """The next state: the action is cut to one step, and the wall and the square are not left."""
    length = action.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    there = (state + action * (STEP / length).clamp_max(1)).clamp(-1, 1)
    share = state[:, 0] / (state[:, 0] - there[:, 0]).where(state[:, 0] != there[:, 0], 1.0)
    height = state[:, 1] + share * (there[:, 1] - state[:, 1])
    hit = (state[:, 0] * there[:, 0] <= 0) & ((height - GAP[1]).abs() > WIDTH)
    return torch.where(hit[:, None], state, there)


def starts(n, generator):
    return torch.rand(n, 2, generator=generator) * torch.tensor([0.8, 1.8]) - torch.tensor([0.9, 0.9])


def record(n, steps, generator):
    """States [steps + 1, n, 2] and actions [steps, n, 2] of walkers of any skill: the share of steps that lead on."""
    states, actions = [starts(n, generator)], []
    skill = torch.rand(n, 1, generator=generator)
    for _ in range(steps):
        state = states[-1]
        aim = torch.where(state[:, :1] < 0, GAP + torch.tensor([0.05, 0.0]), GOAL) - state
        stray = torch.randn(n, 2, generator=generator)
        led = torch.rand(n, 1, generator=generator) < 0.8 * skill
        way = torch.where(led, aim, stray)
        length = STEP * (0.5 + 0.5 * torch.rand(n, 1, generator=generator))
        actions.append(length * way / way.norm(dim=1, keepdim=True).clamp_min(1e-9))
        states.append(act(state, actions[-1]))
    return torch.stack(states), torch.stack(actions)


def gain(now, later):
    """The return of a plan: how much nearer the goal it ends, as a share of what full steps could do."""
    return (to_go(now) - to_go(later)) / (HORIZON * STEP)


class From(FlowMap):
    """The flow of plans from one state: its condition is the return alone, and 0 says that none is asked for."""

    def __init__(self, model, state):
        super().__init__()
        self.model, self.state = model, state

    def mean_velocity(self, x, s, t, cond=None):
        return self.model.mean_velocity(x, s, t, {"x": self.state[:, 0], "y": self.state[:, 1], "return": cond})

    def null_condition(self, batch):
        return torch.zeros(batch)


def optimise(parameters, steps, loss):
    optimizer = torch.optim.Adam(parameters, 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        value = loss(k)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


def train_planner(states, steps):
    """Flow matching on pieces of the recordings, relative to where they begin."""
    model = MeanVelocity(MLP((HORIZON, 2), width=256, numbers=("x", "y", "return")))

    def loss(k):
        g = fold_in(1, k)
        begin = torch.randint(len(states) - HORIZON, (512,), generator=g)
        who = torch.randint(states.shape[1], (512,), generator=g)
        piece = states[begin + torch.arange(HORIZON + 1)[:, None], who].transpose(0, 1)
        now, plan = piece[:, 0], (piece[:, 1:] - piece[:, :1]) / 0.5
        told = torch.where(torch.rand(512, generator=g) < 0.2, 0.0, 2 + gain(now, piece[:, -1]))
        pair = Independent()(plan, {"x": now[:, 0], "y": now[:, 1], "return": told}, generator=g)
        return FlowMatching()(model, pair, generator=g).mean()

    optimise(model.parameters(), steps, loss)
    return model


def train_inverse(states, actions, steps):
    """Which action leads from one state to the next."""
    net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    flat = torch.cat([states[:-1], (states[1:] - states[:-1]) / STEP], 2).flatten(0, 1)
    wanted = actions.flatten(0, 1) / STEP

    def loss(k):
        pick = torch.randint(len(flat), (512,), generator=fold_in(2, k))
        return (net(flat[pick]) - wanted[pick]).square().mean()

    optimise(net.parameters(), steps, loss)
    return net


@torch.no_grad()
def walk(model, inverse, n, scale, steps, wanted=0.6, length=30):
    """Share of walks that reach the goal when plans are drawn anew at every step, with some solver steps each."""
    generator = fold_in(3)
    state, arrived = starts(n, generator), torch.zeros(n, dtype=torch.bool)
    for _ in range(length):
        flow = GuidedFlows(From(model, state), scale)
        noise = torch.randn(n, HORIZON, 2, generator=generator)
        plan = sample(flow, noise, torch.linspace(0, 1, steps + 1), sampler=Heun(), cond=torch.full((n,), 2 + wanted))
        move = 0.5 * plan[:, 0]
        action = STEP * inverse(torch.cat([state, move / STEP], 1))
        state = torch.where(arrived[:, None], state, act(state, action))
        arrived |= (state - GOAL).norm(dim=1) < 0.2
    return float(arrived.double().mean())


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--steps", type=int, default=2000, help="of each training")
    options.add_argument("--walks", type=int, default=500, help="that are tried")
    given = options.parse_args()
    torch.manual_seed(0)
    began = time.process_time()
    states, actions = record(4000, 30, fold_in(0))
    inverse = train_inverse(states, actions, given.steps)
    model = train_planner(states, given.steps)
    print(f"{time.process_time() - began:.1f} s of training")
    recorded = ((states - GOAL).norm(dim=2) < 0.2).any(0).double().mean()
    print(f"recorded walks that reach the goal            {recorded:.3f}")
    for scale, steps in ((0.0, 4), (1.0, 4), (2.0, 4), (3.0, 4), (2.0, 1), (2.0, 10)):
        share = walk(model, inverse, given.walks, scale, steps)
        print(f"plans of {steps:2} steps under guidance of scale {scale:.0f}    {share:.3f}", flush=True)


if __name__ == "__main__":
    main()
