"""A flow learned link by link, each nearly the identity, then all links made one jump.

Local flow matching (Xu, Cheng & Xie, 2024, arXiv:2410.02548) on eight Gaussians in the plane:

1. links: small flows from the data towards noise, each between a law and one step of the Ornstein-Uhlenbeck process
   from it, trained on data that the links before it have carried there, from the weights of the last; and a free one
   from what they leave to N(0, I);
2. their chain from noise to data, sampled by a solver in each;
3. distillation: pairs of noise and where the chain takes it, and one network that jumps from one to the other.

Run it with `python examples/local_flow_matching.py`; it takes half a minute of one core. Measured, seed 0: energy
distance to the data, over its value for two sets of data; the distance of the jump from the chain's end is a root mean
square per dimension.

                                   energy distance / floor   evaluations
    noise                                      159.2                   0
    the chain of links                           1.0                  60
    one jump                                     1.0                   1
    the jump ends 0.030 from the chain, which leads back to its noise up to 0.007
"""

import argparse
import copy
import tempfile
import time

import torch

from flowmaps.core.chain import Chain
from flowmaps.core.flow_map import EulerMap, Integrated, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.couplings.independent import Independent
from flowmaps.couplings.ornstein_uhlenbeck import OrnsteinUhlenbeck
from flowmaps.couplings.reflow import Reflow, stored_pairs
from flowmaps.data.toy import toy
from flowmaps.engine.step import Step
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.losses.one_step_distillation import OneStepDistillation
from flowmaps.metrics.energy_distance import energy_distance
from flowmaps.nets.mlp import MLP
from flowmaps.samplers.heun import Heun
from flowmaps.spaces.euclidean import Euclidean

TIMES = (0.05, 0.1, 0.2, 0.4)  # of the process, link by link


def train(model, loss, coupling, data, steps, seed):
    step = Step(model, loss, coupling, Euclidean())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        generator = fold_in(seed, k)
        value, _ = step(data[torch.randint(len(data), (256,), generator=generator)], generator=generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return model


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--steps", type=int, default=1000, help="of a link's training; twice as many to distil")
    options.add_argument("--pairs", type=int, default=20_000, help="that are stored for the distillation")
    options.add_argument("--test", type=int, default=2000, help="samples that are measured")
    given = options.parse_args()
    torch.manual_seed(0)
    began = time.process_time()

    def tell(what):
        print(f"{time.process_time() - began:5.1f} s  {what}", flush=True)

    data = x = toy("eight_gaussians", 50_000).x
    net, links = MeanVelocity(MLP((2,), width=64)), []
    for k, span in enumerate([*TIMES, None]):
        coupling = Independent() if span is None else OrnsteinUhlenbeck(span)
        net = train(copy.deepcopy(net), FlowMatching(), coupling, x, given.steps, k)  # a warm start
        link = Integrated(EulerMap(net), Heun(), 6)
        links.insert(0, link)  # from noise to data
        before, one = x, torch.ones(len(x))
        with torch.no_grad():
            x = link(x, one, 0 * one)
        moved = float((x - before).square().mean().sqrt())
        tell(f"link {k + 1}, {'free' if span is None else f'time {span:g}'}: its flow moves data by {moved:.2f}")

    chain = Chain(links)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/pairs.pt"
        solved = Reflow(teacher=chain, steps=len(links))  # jumps of the chain, from knot to knot
        stored_pairs(file, solved, torch.empty(given.pairs, 2), generator=fold_in(6))
        jump = MeanVelocity(MLP((2,), width=128))
        train(jump, OneStepDistillation(), Reflow(file), data, 2 * given.steps, 99)
    tell("the chain is distilled into one jump")

    x0, zero, one = torch.randn(given.test, 2, generator=fold_in(7)), torch.zeros(given.test), torch.ones(given.test)
    real, other = data[: given.test], data[given.test : 2 * given.test]
    floor = energy_distance(real, other)
    with torch.no_grad():
        ends, jumped = chain(x0, zero, one), jump(x0, zero, one)
        back = chain(ends, one, zero)
    print("                               energy distance / floor   evaluations")
    for name, y, calls in (("noise", x0, 0), ("the chain of links", ends, 12 * len(links)), ("one jump", jumped, 1)):
        print(f"{name:30} {energy_distance(y, real) / floor:17.1f} {calls:19}")
    print(f"the jump ends {float((jumped - ends).square().mean().sqrt()):.3f} from the chain,", end=" ")
    print(f"which leads back to its noise up to {float((back - x0).square().mean().sqrt()):.3f}")


if __name__ == "__main__":
    main()
