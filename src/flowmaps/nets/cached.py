"""A network that remembers what its inner blocks have made of an earlier state."""

from typing import Any

from torch import Tensor, nn

from ..core.recurrent import RecurrentNet

__all__ = ["Cached"]


class Cached(RecurrentNet):
    """Another network, whose inner blocks are evaluated at every k-th step; the steps between reuse their features.

    For the map and the sampler "recurrent", which hand the features from step to step; for any other it is the network
    inside, and so it is with every = 1. A trained network needs no training again: Recurrent(Cached(net, 3)). In a
    transformer it is what the inner blocks add to the tokens that is kept, in a U-Net what comes up to the last ones.

    Args:
        net: a network of this package whose blocks can be left out: dit or unet.
        every: k, steps from one evaluation of the inner blocks to the next.
        outer: blocks at the start that are evaluated at each step; in a transformer as many at the end, in a U-Net
            those on the way up to which they have skips.
    Cost: of the outer blocks at each step, and of all blocks at every k-th.
    Source: Ma, Fang & Wang, DeepCache: accelerating diffusion models for free, 2023, arXiv:2312.00858, for U-Nets, with
        equal intervals; Chen, Shen, Ye & others, Delta-DiT: a training-free acceleration method tailored for diffusion
        transformers, 2024, arXiv:2406.01125, for what is kept in a transformer.
    Differs: DeepCache's intervals of different lengths are left out. In a transformer the middle blocks are left out;
        Delta-DiT leaves out the last ones early and the first ones late.
    """

    def __init__(self, net: nn.Module, every: int = 3, outer: int = 1) -> None:
        super().__init__()
        halfway = getattr(net, "halfway", None)
        if halfway is None:
            raise ValueError(f"net must have blocks that can be left out: a dit or unet; got {type(net).__name__}.")
        if every < 1 or not 0 <= outer <= halfway:
            raise ValueError(
                f"every must be at least 1 and outer lie between 0 and {halfway}, or nothing is saved; got {every} and "
                f"{outer}."
            )
        self.net: Any = net
        self.every, self.outer = every, outer

    def advance(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, memory: Any) -> tuple[Tensor, Any]:
        step, inner = memory or (0, None)
        y, inner = self.net.reusing(x, s, t, cond, self.outer, inner if step % self.every else None)
        return y, (step + 1, inner)

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """Those of the network inside, without memory."""
        return self.net.with_features(x, s, t, cond, block)

    def null_condition(self, batch: int) -> Any:
        return self.net.null_condition(batch)

    def adopt(self, net: nn.Module) -> None:
        """Take over the weights of a network without a memory."""
        self.net.load_state_dict(net.state_dict())
