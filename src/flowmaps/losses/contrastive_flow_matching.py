"""Contrastive flow matching: towards one's own velocity, away from that of another sample."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.report import report
from ..core.shapes import square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting, equal_conditions
from ..core.weighting import Unweighted

__all__ = ["ContrastiveFlowMatching"]


@dataclass(frozen=True)
class ContrastiveFlowMatching:
    """Regress the diagonal on the conditional velocity, and away from that of another sample of the batch.

    E |b_t(I_t) - dI_t/dt|^2 - contrast |b_t(I_t) - dJ_t/dt|^2, with J_t the path of another sample.

    The minimum is (v - contrast w_t) / (1 - contrast), with v the marginal velocity and w_t = E dJ_t/dt, the same at
    every state: the flow leads away from the mean of the data, on purpose, and so not to their law. `unbiased` undoes
    it; a teacher needs that, and the engine does it for a teacher that was trained with this loss.

    Args:
        contrast: weight of the other sample, less than 1.
        other_classes: take the other sample from those with another condition, where the batch has any.
        interpolant: the path.
        times: law of t.
        weighting: what the loss of a sample counts, which may be negative: a factor that depends on the time alone.
    Cost: 1 evaluation with gradient.
    Source: Stoica, Ramanujan, Fan, Farhadi, Krishna & Hoffman, Contrastive flow matching, 2025, arXiv:2506.05350, the
        contrastive objective with lambda = 0.05. That it is an affine change of the velocity: derived here.
    Differs: samples whose label was dropped are contrasted too; the released code has an option that leaves them out.
    """

    learns_map: ClassVar[bool] = False

    contrast: float = 0.05
    other_classes: bool = False
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if not 0 <= self.contrast < 1:
            raise ValueError(f"contrast must lie in [0, 1), or there is no minimum; got {self.contrast}.")
        if self.contrast > 0 and not getattr(self.weighting, "of_times", False):
            raise ValueError(
                f"weighting must depend on the time alone, since a difference of errors may be negative; got "
                f"{type(self.weighting).__name__}. Use 'unweighted', or set of_times = True on a weighting that does."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension; it may be negative."""
        t = self.times(len(pair), pair.x0, generator)
        j, counts = self._others(pair, generator)
        x, w = self.interpolant.draw(pair, t, generator)
        _, away = self.interpolant.draw(pair[j], t, generator)
        v = model.velocity(x, t, pair.cond)
        near, far = square_error(v, w), square_error(v, away) * counts
        report("flow_matching", near)
        report("contrast", far)
        return self.times.reweighted(t, self.weighting(near - self.contrast * far, t, t))

    def unbiased(self, model: FlowMap, mean: Tensor, source: Tensor | None = None) -> FlowMap:
        """The map that takes Euler steps of the marginal velocity, from the map that this loss has trained.

        v = (1 - contrast) b_t + contrast w_t, with w_t = alpha'_t source + beta'_t mean.

        Args:
            model: the trained map, of which the diagonal is used.
            mean: of the data that it was trained on, in the space of the flow [*].
            source: mean of the source [*]; left out, zero.
        Raises:
            ValueError: if the other samples were of other classes: then w_t depends on the class.
        """
        if self.other_classes:
            raise ValueError("other_classes must be false to be undone; with it the bias depends on the class.")
        return _Unbiased(model, mean, source, self.contrast, self.interpolant)

    def _others(self, pair: Pair, generator: Random) -> tuple[Tensor, Tensor]:
        """Another sample for each [B], uniform among the others that may be, and whether there is any."""
        n = len(pair)
        here = torch.eye(n, dtype=torch.bool, device=pair.x0.device)
        if self.other_classes and pair.cond is not None:
            here = equal_conditions(pair.cond, pair.cond)
        scores = uniform((n, n), pair.x0, generator).masked_fill(here, -1.0)
        return scores.argmax(1), ~here.all(1)


class _Unbiased(FlowMap):
    """The affine change of a velocity that contrastive flow matching makes, undone."""

    def __init__(
        self, model: FlowMap, mean: Tensor, source: Tensor | None, contrast: float, interpolant: Interpolant
    ) -> None:
        super().__init__()
        self.model, self.contrast, self.interpolant = model, contrast, interpolant
        self.register_buffer("mean", mean)
        self.register_buffer("source", torch.zeros_like(mean) if source is None else source)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        *_, a_dot, b_dot = self.interpolant.coefficients(s, x)
        away = (a_dot * self.source + b_dot * self.mean).to(x.dtype)
        return self.model.velocity(x, s, cond).lerp(away.expand(x.shape), self.contrast)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)

    mean: Tensor
    source: Tensor
