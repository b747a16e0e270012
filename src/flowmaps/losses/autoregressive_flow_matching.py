"""Flow matching on sequences of falling noise."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.recurrent import Recurrent
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["AutoregressiveFlowMatching"]


@dataclass(frozen=True)
class AutoregressiveFlowMatching:
    """Regress the velocity of each state of a sequence, which knows those before it, on the conditional one.

    E 1/S sum_i |b_{t_i}(I_{t_i}; I_{t_1}, ..., I_{t_{i-1}}) - dI_{t_i}/dt|^2, t_1 <= ... <= t_S, where each of the S
    states lies on a path of its own; all data of a sequence have one condition.

    Data come in sequences, x0 and x1 [B, S, *] with cond [B], from a coupling that makes them so. At the truth what is
    remembered adds nothing but what it says about the condition: data of a sequence are independent otherwise.

    Args:
        interpolant: the path.
        times: law of each t, independent before they are sorted.
        distance: between velocities; only the square has the conditional mean as its minimum.
        weighting: what the error of a state counts.
    Cost: 1 evaluation with gradient, of S states per sequence.
    Source: Hui, Zhu, Yang & others, ARFlow: autoregressive flow with hybrid linear attention, 2025, arXiv:2501.16085,
        with S = 5 and uniform times in the released code.
    Raises:
        ValueError: if the map cannot see sequences, or the pairs are none.
    """

    learns_map: ClassVar[bool] = False  # the diagonal only: sampling takes solver steps
    takes_sequences: ClassVar[bool] = True

    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sequence [B], mean over its states of the mean square per dimension."""
        sequence: Any = getattr(model.net, "sequence", None) if isinstance(model, Recurrent) else None
        if sequence is None or pair.x1 is None:
            raise ValueError(
                "autoregressive flow matching needs data and a network of sequences; got "
                f"{'none' if pair.x1 is None else type(model).__name__}. Use map.name='recurrent', net.name='arflow'."
            )
        batch, length = pair.x1.shape[:2]
        t = self.times(batch * length, pair.x0, generator).reshape(batch, length).sort(1).values
        each, flat = Pair(pair.x0.flatten(0, 1), pair.x1.flatten(0, 1)), t.flatten()
        x, w = self.interpolant.draw(each, flat, generator)
        b = sequence(x.reshape(pair.x0.shape), t, t, pair.cond).flatten(0, 1).to(x.dtype)
        error = self.times.reweighted(flat, self.weighting(self.distance(b, w), flat, flat))
        error = error.reshape(batch, length).mean(1)
        report("flow_matching", error)
        return error
