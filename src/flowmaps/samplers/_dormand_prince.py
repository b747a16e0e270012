"""The Runge-Kutta pair of Dormand and Prince: its numbers, a step, and the walk of a batch through its steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shapes import expand_time
from ..core.types import map_condition

# When the slopes 2 to 7 are taken, in units of the step, and how earlier slopes lead there. The last is the new state.
FRACTIONS = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Order 5 minus order 4.
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# Weight of each slope in the state at share r of the step, as coefficients of r, r^2, r^3, r^4.
DENSE = (
    (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
    (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
    (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
    (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
    (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
)


def combined(start: Tensor | None, weights: tuple[float, ...], parts: list[Tensor]) -> Tensor:
    """The sum of a start and of parts, each with its weight; one kernel per weight that is not zero."""
    total = parts[0] * weights[0] if start is None else torch.add(start, parts[0], alpha=weights[0])
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        if weight:
            total.add_(part, alpha=weight)
    return total


def step(
    model: FlowMap, x: Tensor, s: Tensor, h: Tensor, slope: Tensor, fractions: Tensor, cond: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One step of every sample, with a step size of its own.

    Args:
        model: the flow map.
        x: states [B, *].
        s: times [B].
        h: step sizes [B], signed.
        slope: velocities at (x, s) [B, *].
        fractions: FRACTIONS [6, 1], on the device.
        cond: condition.
    Returns:
        New states; the velocities there, with which the next step begins; and h times each of the seven slopes.
    Cost: 6 network evaluations.
    """
    full = expand_time(h, x).to(x.dtype).expand_as(x).contiguous()  # small trailing dimensions broadcast slowly
    parts, new = [full * slope], x
    for weights, time in zip(STAGES, torch.addcmul(s, fractions, h).unbind(), strict=True):
        new = combined(x, weights, parts)
        slope = model.velocity(new, time, cond)
        parts.append(full * slope)
    return new, slope, parts


def interpolated(x: Tensor, parts: list[Tensor], share: Tensor) -> Tensor:
    """The states at shares [n] of the steps of n samples, of order 4: [n, *].

    Args:
        x: states where the steps begin [n, *].
        parts: h times the slopes of the steps, each [n, *].
        share: from 0, where the step begins, to 1.
    """
    powers = share[:, None] ** torch.arange(1, 5, device=share.device)
    weights = powers @ torch.tensor(DENSE, dtype=share.dtype, device=share.device).T
    for weight, part in zip(weights.unbind(1), parts, strict=True):
        x = x + expand_time(weight, x).to(x.dtype) * part
    return x


LEAST = 2 * math.log(1e-4)  # log of the least squared error that the control of steps reckons with


@dataclass(frozen=True)
class Control:
    """Tolerances, relative and absolute, and the most steps of a walk."""

    relative: float
    absolute: float
    steps: int


@dataclass(frozen=True)
class Progress:
    """How far a batch has come.

    Args:
        x: the states it has reached [B, *].
        slope: the velocities there [B, *].
        size: the step sizes it would take next [B], positive.
        error: log of the squared error of each sample's last accepted step [B], in units of the tolerance.
        evaluations: of the velocity so far [B].
    """

    x: Tensor
    slope: Tensor
    size: Tensor
    error: Tensor
    evaluations: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors."""
        return self.x, self.slope, self.size, self.error, self.evaluations


Record = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]], None]
"""Told of every step: rows of the samples [b], times from [b] and to [b], steps h [b], states [b, *] and parts."""


def complaint(lost: Tensor, rows: Tensor, s: Tensor, must: str) -> str:
    """What to tell of samples that cannot go on: which of them, and the times at which they are."""
    which = [f"{row} (at time {time:.6g})" for row, time in zip(rows[lost].tolist(), s[lost].tolist(), strict=True)]
    return (
        f"every sample must {must}; got {len(which)} that do not: {', '.join(which[:5])}{', ...' * (len(which) > 5)}. "
        "Loosen the tolerances, allow more steps, or look for a velocity that is not smooth or not finite there."
    )


def walk(
    model: FlowMap, start: Progress, s: Tensor, t: Tensor, cond: Any, control: Control, record: Record | None = None
) -> Progress:
    """Carry every sample from s to t in steps of its own.

    Few kernels per step and one look at the device's results, since small networks cost no more than what surrounds them.
    """
    x, slope, size, error, evaluations = start.parts()
    rows = torch.arange(len(x), device=x.device)
    fractions = torch.tensor(FRACTIONS, dtype=s.dtype, device=s.device)[:, None]
    least, most, none = (torch.tensor(v, dtype=s.dtype, device=s.device) for v in (0.2, 10.0, 1.0))
    cap = most.expand(len(x))
    waiting: list[tuple[Tensor, Progress]] = []
    for _ in range(control.steps):
        rest = t - s
        distance = rest.abs()
        now = torch.minimum(size, distance)
        moving = now > 0
        h = now.copysign(rest)
        new, last, parts = step(model, x, s, h, slope, fractions, cond)
        with torch.no_grad():  # steps are chosen, not differentiated
            scale = torch.maximum(x.abs(), new.abs()).mul_(control.relative).add_(control.absolute)
            square = combined(None, ERROR, parts).div_(scale).square_().flatten(1).mean(1)
            accept = square <= 1
            arrived = accept & (now == distance)
            log = square.clamp_min(1e-20).log_().to(s.dtype)
            factor = torch.add(error.mul(0.02).add_(math.log(0.9)), log, alpha=-0.085).exp_()
            # fmax takes the bound where the error is not a number; after a rejected step the next is not longer.
            grown = now * torch.fmin(torch.fmax(factor, least), cap)
            size = torch.where(arrived, torch.maximum(size, grown), grown)
            error = torch.where(accept & moving, log.clamp_min(LEAST), error)
            evaluations = torch.add(evaluations, moving, alpha=6)
            cap = torch.where(accept, most, none)
            end = torch.where(arrived, t, s + h)
            accepted, finished = torch.stack((accept.sum(), arrived.sum())).tolist()
        if accepted < len(x):
            lost = ~accept & ~(grown > 16 * torch.finfo(s.dtype).eps * torch.maximum(s.abs(), t.abs()))
            if bool(lost.any()):
                raise RuntimeError(complaint(lost, rows, s, "get on with steps that times can resolve"))
            inside = expand_time(accept, x)
            new, last, end = torch.where(inside, new, x), torch.where(inside, last, slope), torch.where(accept, end, s)
        if record is not None:
            record(rows, s, end, h, x, parts)
        x, slope, s = new, last, end
        if finished == len(x):
            return _together(Progress(x, slope, size, error, evaluations), waiting)
        if 2 * finished >= len(x):
            left = (~arrived).nonzero()[:, 0]
            waiting.append((left, Progress(x, slope, size, error, evaluations)))
            x, slope, size, error, evaluations = (v[left] for v in waiting[-1][1].parts())
            s, t, cap, rows, cond = s[left], t[left], cap[left], rows[left], _chosen(cond, left)
    raise RuntimeError(complaint(s != t, rows, s, f"arrive within {control.steps} steps"))


def _together(done: Progress, waiting: list[tuple[Tensor, Progress]]) -> Progress:
    """Put the samples that went on alone back among those that had arrived."""
    for left, whole in reversed(waiting):
        pairs = zip(whole.parts(), done.parts(), strict=True)
        done = Progress(*(a.index_copy(0, left, b) for a, b in pairs))
    return done


def _chosen(cond: Any, i: Tensor) -> Any:
    def selected(c: Tensor) -> Tensor:
        return c[i]

    return map_condition(selected, cond)
