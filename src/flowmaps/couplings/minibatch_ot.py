"""Source and data paired by optimal transport within the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.checks import check_choice
from ..core.random import Random
from ..core.types import Coupling, Pair
from ._transport import assignment, drawn, sinkhorn, transported
from .independent import Independent

__all__ = ["MinibatchOT"]


@dataclass(frozen=True)
class MinibatchOT:
    """Sources exchanged within the batch, so that pairs lie close: shorter, straighter and fewer crossing paths.

    The plan minimises sum_ij P_ij |x0_i - x1_j|^2 over P >= 0 whose rows and columns sum to one; an exact plan is a
    permutation. The entropic one adds `regularisation` sum_ij P_ij log P_ij, and a source is drawn for each datum.

    Every datum is used once, in its place, with its condition.

    Args:
        plan: "exact" or "sinkhorn".
        regularisation: weight of the entropy, in units of the squared distance (a sum over dimensions).
        within_conditions: exchange sources only among equal conditions. Otherwise a condition is taught on its own part
            of the source, and sampling, which starts from the whole source, is biased. A condition that few data of a
            batch have gains little, and one that a single datum has nothing.
        coupling: draws the sources; they must not depend on the data.
    Cost: no network evaluation; a plan between the sources and the data of a batch.
    Source: Pooladian, Ben-Hamu, Domingo-Enrich & others, Multisample flow matching: straightening flows with minibatch
        couplings, 2023, arXiv:2304.14772; Tong, Fatras, Malkin & others, Improving and generalizing flow-based
        generative models with minibatch optimal transport, 2023, arXiv:2302.00482, OT-CFM; equal conditions: Cheng &
        Schwing, The curse of conditions: analyzing and improving optimal transport for conditional flow-based
        generation, 2025, arXiv:2503.10636, the discrete case.
    Differs: the exact plan is taken as a permutation, where OT-CFM draws pairs from it with replacement.
    """

    gaussian = False  # the sources have been exchanged

    plan: str = "exact"
    regularisation: float = 0.05
    within_conditions: bool = True
    coupling: Coupling = Independent()

    def __post_init__(self) -> None:
        check_choice("plan", self.plan, ("exact", "sinkhorn"))
        if self.regularisation <= 0:
            raise ValueError(f"regularisation must be > 0; got {self.regularisation}. Use plan='exact' for none.")

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *]."""
        pair = self.coupling(x1, cond, generator=generator)
        return transported(pair, self._match, self.within_conditions, generator)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *]."""
        return self.coupling.source(shape, like, cond, generator=generator)

    def _match(self, cost: Tensor, u: Tensor) -> Tensor:
        return assignment(cost) if self.plan == "exact" else drawn(sinkhorn(cost, self.regularisation), u)
