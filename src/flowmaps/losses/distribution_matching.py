"""One-step generation taught by a critic alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.critic import SampleCritic, check_judges
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.types import Pair

__all__ = ["DistributionMatching"]


@dataclass(frozen=True)
class DistributionMatching:
    """What the critic says of X_{0,1}(x0): with the critic of the same name, distribution matching distillation.

    The samples get the right law; which source goes to which datum is left open, so that the result need not be the
    teacher's map, and only the jump from 0 to 1 is learned: sample in one step, and start from a trained map.

    Args:
        critic: judges samples; "distribution_matching" for DMD, "discriminator" for a generative adversarial network.
        interpolant: the path, of which only the start is used.
    Cost: 1 evaluation with gradient, and those of the critic.
    Source: Yin, Gharbi, Park & others, Improved distribution matching distillation for fast image synthesis, 2024,
        arXiv:2405.14867, the one-step generator; with the adversary alone: Goodfellow, Pouget-Abadie, Mirza & others,
        Generative adversarial networks, 2014, arXiv:1406.2661.
    Differs: one critic, where DMD2 sums both; no simulated multi-step inputs; map and critic are trained at one rate.
    """

    critic: SampleCritic
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        check_judges(self.critic)

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        x = self.interpolant.start(pair.x0)
        s = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return self.critic(model(x, s, torch.ones_like(s), pair.cond), pair, generator=generator)
