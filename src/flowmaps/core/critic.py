"""A network that learns beside the map, in the same step, without either seeing the other's gradient."""

from typing import Any, Protocol

from torch import Tensor, nn
from torch.func import functional_call

from .random import Random
from .types import Pair


class SampleCritic(Protocol):
    """Judges the map's one-step samples and learns to, at once.

    Args:
        sample: X_{0,1}(x0) [B, *], with gradient to the map.
        pair: the coupled draw that the samples were made from; data and condition are those of a real batch.
        generator: randomness.
    Returns:
        Loss [B]: what the map is to lower, through frozen weights, and the critic's own loss on detached samples.
    """

    def __call__(self, sample: Tensor, pair: Pair, *, generator: Random = None) -> Tensor: ...


class OnlineVelocity(SampleCritic, Protocol):
    """A critic that learns the velocity of the flow from noise to the map's samples."""

    def velocity(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """That velocity [B, *] at states [B, *] and times [B], without gradient to the critic's weights."""
        ...


def check_judges(critic: SampleCritic | None) -> None:
    """Raise ValueError for a critic with `judges = False`, which learns a velocity and gives the map no gradient."""
    if not getattr(critic, "judges", True):
        raise ValueError(
            f"the critic must judge samples; {type(critic).__name__} learns their velocity, and gives the map no "
            "gradient. Put it into one that compares it with the teacher's: critic.name='distribution_matching', "
            "critic.critic.name='velocity'; or use 'discriminator'."
        )


def frozen(module: nn.Module, *args: Any) -> Tensor:
    """The module's output, with gradient to its inputs but none to its weights.

    A critic's judgement of the map's samples goes through this, and its own loss sees samples detached: then one sum of
    losses, one backward pass and one optimizer train both, and data-parallel training needs nothing special.
    """
    constant = {name: p.detach() for name, p in module.named_parameters()}
    return functional_call(module, constant, args)
