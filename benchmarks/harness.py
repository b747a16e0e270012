"""Training for a given number of seconds, so that methods are compared at equal time on equal work."""

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from flowmaps.core.flow_map import FlowMap, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.couplings.independent import Independent
from flowmaps.engine.ema import EMA, update_average
from flowmaps.engine.schedule import Schedule
from flowmaps.engine.step import Step
from flowmaps.nets.mlp import MLP
from flowmaps.spaces.euclidean import Euclidean


@dataclass(frozen=True)
class Outcome:
    """A trained map and what it took."""

    model: FlowMap  # running average
    steps: int
    seconds: float
    skipped: int


def train_seconds(
    loss, draw, seconds, *, shape, seed=0, net=None, batch=512, lr=2e-3, clip=1.0, schedule=Schedule(hold=0.3), ema=EMA()
) -> Outcome:
    """Train a mean velocity for `seconds` of wall time; `draw(n, generator)` gives fresh data [n, *].

    Set-up and the first five steps, which warm caches up, are not counted.
    """
    torch.manual_seed(seed)
    model = MeanVelocity(net or MLP(shape))
    step = Step(model, loss, Independent(), Euclidean())
    weights = [p for p in step.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=lr)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    count = skipped = 0
    began = time.perf_counter()
    while True:
        if count == 5:
            began = time.perf_counter()
        done = (time.perf_counter() - began) / seconds if count >= 5 else 0.0
        if done >= 1:
            break
        generator = fold_in(seed, count)
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule.factor(int(1e6 * done), 10**6) * min(1, (count + 1) / 100)
        value, _ = step(draw(batch, generator), generator=generator)
        optimizer.zero_grad()
        value.backward()
        norm = float(nn.utils.clip_grad_norm_(weights, clip))
        count += 1
        if math.isfinite(norm):
            optimizer.step()
            update_average(average, model, ema.decay(count * batch, batch))
        else:
            skipped += 1
    return Outcome(average, count, time.perf_counter() - began, skipped)
