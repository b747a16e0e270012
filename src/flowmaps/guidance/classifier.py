"""Guidance by the gradient of a classifier, or of any log-probability."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear

__all__ = ["Classifier"]


class Classifier(FlowMap):
    """The velocity whose score is shifted by the gradient of a log-probability; no jumps.

    b_t(x) + scale alpha (alpha beta' - alpha' beta) / beta grad_x log p(c | x, t): on the linear path the factor is
    (1 - t) / t. With scale 1 and the law of the condition given the noisy state, it is the velocity of the conditional
    law.

    Args:
        model: the map that is guided; its velocity is used.
        log_prob: log p(c | x, t) up to a constant, from states [B, *], times [B] and the condition to [B], nats.
        scale: of the gradient; 0 is none.
        conditional: whether the map is told the condition too; else it is told none, and only `log_prob` is.
        earliest: where t is before it, the shift is that at this time: its factor is infinite where beta = 0.
        interpolant: the path the map was trained on, with a source N(0, I) and no latent noise.
    Cost: 1 network evaluation, and the gradient of log_prob with respect to the state.
    Source: Dhariwal & Nichol, Diffusion models beat GANs on image synthesis, 2021, arXiv:2105.05233, Section 4; Song,
        Sohl-Dickstein, Kingma, Kumar, Ermon & Poole, Score-based generative modeling through stochastic differential
        equations, 2020, arXiv:2011.13456, Section 5, for the score of the conditional law.
    Differs: a velocity on any path, there the score or the noise of diffusion; `earliest`.
    """

    needs_gaussian = True

    def __init__(
        self, model: FlowMap, log_prob: Callable[[Tensor, Tensor, Any], Tensor], scale: float = 1.0,
        conditional: bool = False, earliest: float = 0.01, interpolant: Interpolant = Linear(),
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 < earliest < 1:
            raise ValueError(f"earliest must lie between 0 and 1; got {earliest}.")
        self.model, self.log_prob, self.scale, self.conditional = model, log_prob, scale, conditional
        self.earliest, self.interpolant = earliest, interpolant

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if s is not t and not torch.equal(s, t):
            raise ValueError(
                "guidance by a gradient must be asked for velocities, it knows no jumps; got s != t. Use a velocity "
                "solver such as 'euler' or 'heun'."
            )
        v = self.model.velocity(x, s, cond if self.conditional else self.model.null_condition(len(x)))
        late = s.clamp_min(self.earliest)
        slope = torch.func.grad(lambda y: self.log_prob(y, late, cond).sum())(x)
        return v + self.scale * self.interpolant.velocity_from_score(slope, torch.zeros_like(x), late).to(v.dtype)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
