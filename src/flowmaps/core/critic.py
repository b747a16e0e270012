"""A network that learns beside the map, in the same step, without either seeing the other's gradient."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def frozen(module: nn.Module, *args: Any) -> Tensor:
    """The module's output, with gradient to its inputs but none to its weights.

    A critic's judgement of the map's samples goes through this, and its own loss sees samples detached: then one sum of
    losses, one backward pass and one optimizer train both, and data-parallel training needs nothing special.
    """
    constant = {name: p.detach() for name, p in module.named_parameters()}
    return functional_call(module, constant, args)
