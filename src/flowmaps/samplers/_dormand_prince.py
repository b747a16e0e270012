"""The Runge-Kutta pair of Dormand and Prince: its numbers, a step, and the walk of a batch through its steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shapes import expand_time
from ..core.types import Velocity, map_condition

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


class Slopes:
    """The seven slopes of a step in one buffer, so that one matrix product combines them.

    Args:
        x: states [B, *].
        slope: the velocities there, the first slopes.
    """

    def __init__(self, x: Tensor, slope: Tensor) -> None:
        self.all = torch.empty_like(x.expand(7, *x.shape), memory_format=torch.contiguous_format)
        self._first = [self.all.view(7, -1)[:i].t() for i in range(1, 8)]
        self._weights = [x.new_tensor(w) for w in (*STAGES, ERROR)]
        self._ones = torch.ones_like(x)
        self.restart(slope)

    def restart(self, slope: Tensor) -> None:
        """Put the first slopes of a new step into the buffer."""
        self.all[0].copy_(slope)

    def combined(self, i: int) -> Tensor:
        """The first i + 1 slopes with the weights of stage i, all of them with those of the error for i = 6: [B, *]."""
        return torch.mv(self._first[i], self._weights[i]).view(self.all.shape[1:])

    def spread(self, h: Tensor) -> Tensor:
        """Numbers [B] as [B, *], in memory: small trailing dimensions broadcast slowly."""
        return self._ones * expand_time(h.to(self._ones.dtype), self._ones)


def step(velocity: Velocity, x: Tensor, s: Tensor, h: Tensor, full: Tensor, slopes: Slopes, cond: Any) -> Tensor:
    """One step of every sample, with a step size of its own.

    Args:
        velocity: v(x, t, cond).
        x: states [B, *].
        s: times [B].
        h: step sizes [B], signed.
        full: step sizes as [B, *].
        slopes: the first, the velocity at (x, s), is given; the others are filled in.
        cond: condition.
    Returns:
        New states.
    Cost: 6 network evaluations.
    """
    new = x
    for i, fraction in enumerate(FRACTIONS):
        new = torch.addcmul(x, full, slopes.combined(i))
        slopes.all[i + 1].copy_(velocity(new, torch.add(s, h, alpha=fraction), cond))
    return new


def interpolated(x: Tensor, h: Tensor, slopes: Tensor, share: Tensor) -> Tensor:
    """The states at shares [n] of the steps h [n] of n samples, of order 4: [n, *].

    Args:
        x: states where the steps begin [n, *].
        h: step sizes [n], signed.
        slopes: of the steps [7, n, *].
        share: from 0, where the step begins, to 1.
    """
    powers = share[:, None] ** torch.arange(1, 5, device=share.device)
    weights = h[:, None] * (powers @ torch.tensor(DENSE, dtype=share.dtype, device=share.device).T)
    for weight, slope in zip(weights.unbind(1), slopes, strict=True):
        x = x + expand_time(weight, x).to(x.dtype) * slope
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


Record = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""Told of every step: rows of the samples [b], from and to [b], steps h [b], states [b, *], slopes [7, b, *]."""


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

    A step takes few kernels and one look at the device, since small networks cost no more than what surrounds them;
    what concerns rejected steps and samples that arrive is done only when there are any.
    """
    device = start.x.device.type
    if not torch.is_autocast_enabled(device):
        return _walk(model.velocity, start, s, t, cond, control, record)
    lower = torch.get_autocast_dtype(device)

    def velocity(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        with torch.autocast(device, lower):
            return model.velocity(x, t, cond)

    with torch.autocast(device, enabled=False):  # slopes are combined in full precision
        return _walk(velocity, start, s, t, cond, control, record)


def _walk(
    velocity: Velocity, start: Progress, s: Tensor, t: Tensor, cond: Any, control: Control, record: Record | None
) -> Progress:
    x, slope, size, error, evaluations = start.parts()
    rows, slopes, longest = torch.arange(len(x), device=x.device), Slopes(x, slope), torch.full_like(s, 10.0)
    waiting: list[tuple[Tensor, Progress]] = []
    uncounted, most = 0, longest
    for _ in range(control.steps):
        rest = t - s
        distance = rest.abs()
        now = torch.minimum(size, distance)
        h = now.copysign(rest)
        full = slopes.spread(h)
        new = step(velocity, x, s, h, full, slopes, cond)
        uncounted += 6
        with torch.no_grad():  # steps are chosen, not differentiated
            scale = torch.maximum(x.abs(), new.abs()).mul_(control.relative).add_(control.absolute)
            square = slopes.combined(6).mul_(full).div_(scale).square_().flatten(1).mean(1).to(s.dtype)
            log = square.clamp_min(1e-20).log_()
            # 0.9 err^-0.17 err_last^0.04
            factor = torch.add(error.mul(0.02).add_(math.log(0.9)), log, alpha=-0.085).exp_().clamp_(0.2, 10)
            grown, end = torch.minimum(factor, longest).mul_(now), s + h
            log.clamp_min_(LEAST)
            worst, nearest = torch.stack((square.max(), (distance - now).min())).tolist()
        if record is not None:
            there = torch.where(now == distance, t, end)  # s + (t - s) may miss t by rounding
            record(rows, s, torch.where(square <= 1, there, s), h, x, slopes.all)
        if worst <= 1 and nearest > 0:
            x, s, size, error, longest = new, end, grown, log, most
            slopes.restart(slopes.all[6])
            continue
        accept, moving = square <= 1, now > 0
        arrived, inside = accept & (now == distance), expand_time(accept, x)
        if not worst <= 1:  # also where it is not a number
            grown = torch.where(square.isnan(), 0.2 * now, grown)
            lost = ~accept & (grown <= 16 * torch.finfo(s.dtype).eps * torch.maximum(s.abs(), t.abs()))
            if bool(lost.any()):
                raise RuntimeError(complaint(lost, rows, s, "get on with steps that times can resolve"))
        size = torch.where(arrived, torch.maximum(size, grown), grown)
        error = torch.where(accept & moving, log, error)
        longest = torch.where(accept, most, 1.0)  # no growth right after a rejected step
        s = torch.where(arrived, t, torch.where(accept, end, s))
        x, slope = torch.where(inside, new, x), torch.where(inside, slopes.all[6], slopes.all[0])
        evaluations, uncounted = torch.add(evaluations, moving, alpha=uncounted), 0
        finished = int(arrived.sum())
        if finished == len(x):
            return _together(Progress(x, slope, size, error, evaluations), waiting)
        if 2 * finished < len(x):
            slopes.restart(slope)
            continue
        left = (~arrived).nonzero()[:, 0]
        waiting.append((left, Progress(x, slope, size, error, evaluations)))
        x, slope, size, error, evaluations = (v[left] for v in waiting[-1][1].parts())
        s, t, rows, longest, most = s[left], t[left], rows[left], longest[left], most[left]
        slopes, cond = Slopes(x, slope), _chosen(cond, left)
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
