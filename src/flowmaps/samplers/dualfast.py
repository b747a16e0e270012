"""Away from what the network said when there was more noise."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.sampling import Euler
from ..core.shapes import expand_time
from ..core.types import Sampler

__all__ = ["DualFast"]


class _Extrapolated(FlowMap):
    """The velocity whose noise prediction is E + c_t (E - reference), c_t = strength t; it remembers its first E."""

    def __init__(self, model: FlowMap, path: Interpolant, strength: float, reference: Tensor | None) -> None:
        super().__init__()
        self.model, self.path, self.strength, self.reference = model, path, strength, reference
        self.first: Tensor | None = None

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if s is not t:
            raise ValueError("DualFast extrapolates velocities, it must have a sampler that asks for them; use euler.")
        v = self.model.velocity(x, t, cond)
        source = self.path.source_from_velocity(v, x, t)
        self.first = source if self.first is None else self.first
        reference = source if self.reference is None else self.reference
        a, b, a_dot, b_dot = self.path.coefficients(t, x)
        # b = (beta' x - D E) / beta, and t / beta is regular where beta begins at zero.
        share = self.strength * expand_time(t, x) / b.clamp_min(1e-12) * (a * b_dot - a_dot * b)
        return v - share * (source - reference)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)


@dataclass(frozen=True)
class DualFast:
    """Any sampler, with noise predictions extrapolated away from one made at more noise.

    E <- E + c_t (E - E_ref), c_t = strength t, where E = E[x0|x] is the noise prediction and E_ref an earlier one of
    the same sample, when noise was easier to tell from data. Few steps and an imperfect network gain; with many steps
    and a perfect one it is a bias.

    Args:
        sampler: what takes the steps, by velocities.
        strength: what c grows to at the data; 0 is the sampler alone.
        reference: the "first" prediction of the trajectory, or the "previous" step's.
        interpolant: the path the map was trained on.
    Cost: the sampler's.
    Source: Yu, Luo, Wang & Zhao, DualFast: dual-speedup framework for fast sampling of diffusion models, 2025,
        arXiv:2506.13058.
    Differs: c grows linearly in time, and the reference is one of two; their schedule of c is not reproduced.
    """

    sampler: Sampler = Euler()
    strength: float = 0.5
    reference: str = "first"
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength must be at least 0; got {self.strength}.")
        check_choice("reference", self.reference, ("first", "previous"))

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None,
        state: tuple[Tensor | None, Any] = (None, None), generator: Random = None,
    ) -> tuple[Tensor, tuple[Tensor | None, Any]]:  # fmt: skip
        """One step."""
        reference, inner = state or (None, None)
        seen = _Extrapolated(model, self.interpolant, self.strength, reference)
        x, inner = self.sampler(seen, x, s, t, cond=cond, state=inner, generator=generator)
        keep = self.reference == "first" and reference is not None
        return x, (reference if keep else seen.first, inner)
