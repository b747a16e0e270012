"""Improved MeanFlow: a regression on the velocity, through what the mean velocity says of it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, stop_gradient, stopped_derivative
from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting, same_condition
from ..core.weighting import Unweighted
from ._shares import on_and_off

__all__ = ["ImprovedMeanFlow"]


@dataclass(frozen=True)
class ImprovedMeanFlow:
    """Regress the velocity that the Eulerian identity reads off the mean velocity, along the map's own velocity.

    E |u_{s,t}(I_s) - (t - s) sg (d_s u_{s,t} + grad u_{s,t} v) - w|^2, with w = dI_s/ds and v the map's velocity at
    I_s, stopped: its second head if the map has two, or else its diagonal. A second head is also trained, by |v - w|^2.

    With a condition, and highest > 1, the network is told a guidance scale and the times it holds for, as the numbers
    "guidance", "low" and "high" beside it, and w grows by (1 - 1 / scale) (v(condition) - v(null)). The scale is
    log-uniform on [1, highest], low uniform on [0, 1/2] and high on [1/2, 1]; on the diagonal it holds always.

    Args:
        diagonal: share of the batch with t = s.
        highest: largest guidance scale; 1 is none, and then the network needs no numbers.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        weighting: what either error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 1 evaluation with gradient; off the diagonal, or with a condition, 1 without; off it 1 derivative; with a
        condition another evaluation without.
    Source: Geng, Lu, Wu & others, Improved mean flows: on the challenges of fastforward generative models, 2025,
        arXiv:2512.02012, the loss on the compound velocity, the auxiliary head and the flexible guidance, with the
        released code (imf.py).
    Differs: time reversed with respect to the paper; labels are dropped before the loss, so that v of such a sample is
        unconditional too; guidance scales are log-uniform only; conditions enter the network as our networks take them.
        As published, offset and laws of times are MeanFlow's.
    Published: weighting.name=adaptive_power weighting.power=1.0 weighting.offset=2.4e-6 times.name=logit_normal_pair
        times.mean=0.4 times.std=1.0 diagonal_times.name=logit_normal diagonal_times.mean=-0.16 diagonal_times.std=0.83
    """

    diagonal: float = 0.5
    highest: float = 8.0
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        if self.highest < 1:
            raise ValueError(f"highest must be at least 1, a guidance scale; got {self.highest}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension; the sum of two with a second head."""
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: self._part(model, on, None, generator),
            lambda off: self._part(model, off, step, generator),
        )

    def _part(self, model: FlowMap, pair: Pair, step: int | None, generator: Random) -> Tensor:
        """Loss of one share of the batch [B]; `step` is None on the diagonal."""
        if step is None:
            s = t = self.diagonal_times(len(pair), pair.x0, generator)
        else:
            s, t = self.times(len(pair), pair.x0, generator, step=step)
        x, w = self.interpolant.draw(pair, s, generator)
        cond, null, v = pair.cond, model.null_condition(len(pair)), None
        if self.highest > 1 and cond is not None and null is not None:
            cond = self._draw_guidance(pair, x, step is None, generator)
            holds = (cond["low"] <= s) & (s <= cond["high"])
            scale = torch.where(holds, cond["guidance"], 1.0)
            with stop_gradient():
                v = self._heads(model, x, s, s, _always(cond | {"guidance": scale}))[:, -1]
            with stop_gradient():  # the same dropout mask
                free = self._heads(model, x, s, s, _always(_named(null) | {"guidance": torch.ones_like(scale)}))[:, -1]
            kept = torch.where(same_condition(pair.cond, null), 0.0, 1 - 1 / scale)
            w = w + expand_time(kept, x) * (v - free)
        if step is None:
            heads, target = self._heads(model, x, s, t, cond), w
        else:
            if v is None:
                with stop_gradient():
                    v = self._heads(model, x, s, s, cond)[:, -1]
            along = lambda x, s, t: self._heads(model, x, s, t, cond)  # noqa: E731
            heads, slopes = stopped_derivative(along, x, s, t, dx=v, ds=1.0, jvp=self.jvp)
            target = w + expand_time(t - s, x) * slopes[:, 0]
        error = square_error(heads[:, 0], target)
        report("flow_matching" if step is None else "improved_mean_flow", error)
        loss = self.weighting(error, s, t)
        if heads.shape[1] == 2:
            error = square_error(heads[:, 1], w)
            report("head", error)
            loss = loss + self.weighting(error, s, t)
        return loss

    def _heads(self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Mean velocity and, for a map with two heads, velocity: [B, heads, *]."""
        heads = getattr(model, "heads", None)
        both = (model.mean_velocity(x, s, t, cond),) if heads is None else heads(x, s, t, cond)
        return torch.stack(both, 1)

    def _draw_guidance(self, pair: Pair, x: Tensor, always: bool, generator: Random) -> dict[str, Tensor]:
        draws = uniform((len(pair), 3), x, generator)
        cond = _named(pair.cond) | {"guidance": (draws[:, 0] * math.log(self.highest)).exp()}
        return _always(cond) if always else cond | {"low": draws[:, 1] / 2, "high": (1 + draws[:, 2]) / 2}


def _named(cond: Any) -> dict[str, Any]:
    """The condition as a dict: a label alone gets its name."""
    return cond if isinstance(cond, dict) else {"label": cond}


def _always(cond: dict[str, Tensor]) -> dict[str, Tensor]:
    """The condition with guidance at all times."""
    return cond | {"low": torch.zeros_like(cond["guidance"]), "high": torch.ones_like(cond["guidance"])}
