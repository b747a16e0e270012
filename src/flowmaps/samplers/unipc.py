"""The unified predictor-corrector."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.shapes import expand_time
from ._log_snr import changes, exact, halfway, length, log_snr, straight
from ._multistep import History, remember

__all__ = ["UniPC"]


@dataclass(frozen=True)
class _Predicted:
    """Evaluations up to the step, and what it added beyond order 1, which the corrector replaces."""

    history: History
    added: Tensor


@dataclass(frozen=True)
class UniPC:
    """Predict, and correct with the evaluation that the next step needs anyway.

    x <- alpha_t / alpha_s x + beta_t int e^{-(l_t - l)} D(l) dl with the data prediction D in l = log(beta / alpha):
    the predictor takes the polynomial through the last p predictions, the corrector the one through these and D at the
    predicted state, which is then not evaluated again. Two predictions only are taken at the middle of the step, with
    mass B(h) for that of the integral. A state is corrected at the beginning of the next step, the last one never.

    A step to t = 1, or from a time without data where l is infinite, is of order 1, as in DPM-Solver++, and so are the
    first.

    Args:
        predictor: p, the order of the predictor, from 1 to 3.
        corrector: whether to correct, which gives one order more.
        mass: B(h), "bh1" for h and "bh2" for 1 - e^{-h}; of no account where three or more predictions are taken.
        interpolant: the path the map was trained on.
    Cost: 1 network evaluation per step.
    Source: Zhao, Bai, Rao, Zhou & Lu, UniPC: a unified predictor-corrector framework for fast sampling of diffusion
        models, 2023, arXiv:2302.04867, UniP and UniC with data prediction, and its code (two predictions by the
        middle).
    Differs: the code lowers the order of the last steps but one, too.
    """

    predictor: int = 2
    corrector: bool = True
    mass: str = "bh2"
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        if self.predictor not in (1, 2, 3):
            raise ValueError(f"predictor must be of order 1, 2 or 3; got {self.predictor}.")
        check_choice("mass", self.mass, ("bh1", "bh2"))

    @property
    def order(self) -> int:
        """Of convergence."""
        return self.predictor + self.corrector

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: _Predicted | None = None,
        generator: Random = None,
    ) -> tuple[Tensor, _Predicted]:  # fmt: skip
        """One step."""
        p, v = self.interpolant, model.velocity(x, s, cond)
        data, source = p.data_from_velocity(v, x, s).to(x.dtype), p.source_from_velocity(v, x, s).to(x.dtype)
        here, past = log_snr(p, s), None if state is None else state.history
        if state is not None and self.corrector:
            before = state.history.nodes[:, 0]
            known = remember(past, here, data, len(state.history) + 1)
            better = self._added(known, 1, before, length(before, here), s)
            x = x + (better - state.added)
            source = source + (better - state.added) / expand_time(p.alpha(s).clamp_min(1e-12), x).to(x.dtype)
        past = remember(past, here, data, self.predictor)
        added = self._added(past, 0, here, length(here, log_snr(p, t)), t)
        return straight(p, x, s, t, data, source) + added, _Predicted(past, added)

    def _added(self, history: History, base: int, here: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """What a polynomial through several predictions adds to the step with the prediction number `base` alone."""
        if len(history) == 1:
            return torch.zeros_like(history.values[0])
        if len(history) == 2:
            weights = halfway(history.nodes, here, h, h if self.mass == "bh1" else -torch.expm1(-h))
        else:
            weights = exact(history.nodes, here, h, h)
        added = changes(history, weights, base)
        return expand_time(self.interpolant.beta(t), added).to(added.dtype) * added
