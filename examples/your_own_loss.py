"""Your own method in twenty lines: two half jumps teach one whole jump.

flowmaps train digits loss.name=your_own_loss:Midpoint    (in this folder)
"""

from dataclasses import dataclass

import torch

from flowmaps.core.identities import semigroup
from flowmaps.core.interpolant import Interpolant, Linear
from flowmaps.core.times import PairLaw, UniformPair
from flowmaps.losses.flow_matching import FlowMatching


@dataclass(frozen=True)
class Midpoint:
    """Flow matching on three quarters of the batch, the semigroup identity at the midpoint on the rest."""

    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()

    def __call__(self, model, pair, *, step=0, generator=None):
        on, off = pair.split(0.75)
        s, t = self.times(len(off), off.x0, generator)
        x, _ = self.interpolant.draw(off, s, generator)
        residual = semigroup(model, x, s, (s + t) / 2, t, off.cond).square().flatten(1).mean(1)
        return torch.cat([FlowMatching(self.interpolant)(model, on, generator=generator), residual])
