"""Sampling is composition: X_{t_{N-1}, t_N} o ... o X_{t_0, t_1}."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .random import Random
from .shapes import step_size
from .types import Sampler

if TYPE_CHECKING:
    from .flow_map import FlowMap


@dataclass(frozen=True)
class Jump:
    """Apply the flow map itself: x <- X_{s,t}(x), exact at any step size if the map is.

    Cost: 1 network evaluation per step.
    Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework
        for consistency models, 2024, arXiv:2406.07507, the definition of the flow map; the same authors, How to build a
        consistency model: learning flow maps via self-distillation, 2025, arXiv:2505.18825v2, Eq. (4).
    """

    def __call__(
        self, model: "FlowMap", x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One jump of the map."""
        return model(x, s, t, cond), None


@dataclass(frozen=True)
class Euler:
    """One Euler step of the velocity: x <- x + (t - s) b_s(x). On the linear path this is DDIM.

    Cost: 1 network evaluation per step.
    Source: Song, Meng & Ermon, Denoising diffusion implicit models, 2020, arXiv:2010.02502, Eq. (13).
    """

    order = 1

    def __call__(
        self, model: "FlowMap", x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step of order 1."""
        return torch.addcmul(x, step_size(s, t, x), model.velocity(x, s, cond)), None


@dataclass(frozen=True)
class Heun:
    """The trapezoidal predictor-corrector: k = b_s(x), x <- x + h/2 [k + b_t(x + h k)], h = t - s.

    Cost: 2 network evaluations per step.
    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364, Algorithm 1.
    Differs: the corrector is used at the last step too, where a velocity is regular.
    """

    order = 2

    def __call__(
        self, model: "FlowMap", x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step of order 2."""
        return self.from_slope(model, x, s, t, model.velocity(x, s, cond), cond), None

    def from_slope(self, model: "FlowMap", x: Tensor, s: Tensor, t: Tensor, k: Tensor, cond: Any = None) -> Tensor:
        """The same step, from a slope k = b_s(x) that is known already."""
        h = step_size(s, t, x)
        return torch.addcmul(x, h / 2, k + model.velocity(torch.addcmul(x, h, k), t, cond))


@dataclass(frozen=True)
class RungeKutta4:
    """The classical Runge-Kutta method: four slopes per step, combined 1:2:2:1.

    Cost: 4 network evaluations per step.
    Source: Kutta, Beitrag zur näherungsweisen Integration totaler Differentialgleichungen, 1901.
    """

    order = 4

    def __call__(
        self, model: "FlowMap", x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step of order 4."""
        return self.from_slope(model, x, s, t, model.velocity(x, s, cond), cond), None

    def from_slope(self, model: "FlowMap", x: Tensor, s: Tensor, t: Tensor, k: Tensor, cond: Any = None) -> Tensor:
        """The same step, from a slope k = b_s(x) that is known already."""
        h, middle = step_size(s, t, x), (s + t) / 2
        k2 = model.velocity(torch.addcmul(x, h / 2, k), middle, cond)
        k3 = model.velocity(torch.addcmul(x, h / 2, k2), middle, cond)
        k4 = model.velocity(torch.addcmul(x, h, k3), t, cond)
        return torch.addcmul(x, h / 6, torch.add(k, k2 + k3, alpha=2) + k4)


def sample(
    model: "FlowMap", x: Tensor, times: Tensor | Sequence[float], *, sampler: Sampler = Jump(), cond: Any = None,
    generator: Random = None, callback: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Carry a state through a grid of times.

    Never touches the grad mode; draws from `generator` only.

    Args:
        model: the flow map.
        x: state at times[0], [B, *].
        times: grid [N + 1], or one grid per sample [N + 1, B].
        sampler: how to go from one time to the next.
        cond: condition, batch first.
        generator: randomness of stochastic samplers.
        callback: called with (time, state) after each step.
    Returns:
        State at times[-1], [B, *].
    Cost: N times the sampler's evaluations.
    """
    state: Any = None
    each = torch.as_tensor(times).to(x.device, torch.promote_types(x.dtype, torch.float32))
    for s, t in pairwise((each if each.ndim > 1 else each[:, None].expand(-1, len(x))).unbind()):
        x, state = sampler(model, x, s, t, cond=cond, state=state, generator=generator)
        if callback is not None:
            callback(t if each.ndim > 1 else t[0], x)
    return x


def trajectory(
    model: "FlowMap", x: Tensor, times: Tensor, *, sampler: Sampler = Jump(), cond: Any = None, generator: Random = None
) -> Tensor:
    """The states at all times of a grid [N + 1], the first one too: [N + 1, B, *]; otherwise as `sample`."""
    states = [x]
    sample(
        model, x, times, sampler=sampler, cond=cond, generator=generator, callback=lambda t, state: states.append(state)
    )
    return torch.stack(states)
