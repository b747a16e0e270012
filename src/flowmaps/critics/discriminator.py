"""A network that tells data from samples."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..core.critic import frozen
from ..core.random import Random
from ..core.report import report
from ..core.text import Text
from ..core.types import Pair

__all__ = ["Discriminator"]


class _Logit(nn.Module):
    """State [B, *] and label or text -> how real it looks [B]: convolutions that halve an image, or a perceptron."""

    def __init__(self, shape: Sequence[int], classes: int, width: int, depth: int, vocabulary: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if len(shape) == 3:
            channels, height, side = shape
            for i in range(depth):
                stride = 2 if min(height, side) > 1 and i else 1
                layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.LeakyReLU(0.2)]
                channels, height, side = width, -(-height // stride), -(-side // stride)
            size = width * height * side
        else:
            size = math.prod(shape)
            for _ in range(depth):
                layers += [nn.Linear(size, width), nn.LeakyReLU(0.2)]
                size = width
            layers.insert(0, nn.Flatten())
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, width), nn.LeakyReLU(0.2))
        self.leave, self.form = nn.Linear(width, 1), "token ids [B, L]" if vocabulary else "labels [B]"
        self.label = Text(vocabulary, width) if vocabulary else nn.Embedding(classes + 1, width)
        for p in (self.label.mix[-1] if isinstance(self.label, Text) else self.label).parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, cond: Any) -> Tensor:
        h, label = self.features(x), cond
        while isinstance(label, dict):  # a whole condition where guidance has put its scale around one
            label = label.get("label")
        if label is None:
            return self.leave(h)[:, 0]
        if label.ndim != self.form.count(",") + 1:
            raise ValueError(
                f"the discriminator was built for {self.form}; got a condition of shape {tuple(label.shape)}. Texts "
                "need critic.vocabulary, labels go without."
            )
        return self.leave(h)[:, 0] + (h * self.label(label)).sum(1)


class Discriminator(nn.Module):
    """A non-saturating adversary: the map is to look real, the network is to tell.

    The map: weight softplus(-D(x)); the network: softplus(D(sg x)) + softplus(-D(x1)) + penalty / 2 |grad D(x1)|^2.

    Args:
        shape: of one state.
        classes: number of labels; 0 for none.
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        width: of the hidden layers.
        depth: number of hidden layers; for images the second and later ones halve the resolution.
        weight: what the map's term counts.
        penalty: of the gradient at the data (R1); 0 is none, without which it may diverge.
    Cost: 3 evaluations of the small network, and 1 gradient of it with the penalty.
    Source: Goodfellow, Pouget-Abadie, Mirza & others, Generative adversarial networks, 2014, arXiv:1406.2661, the
        non-saturating game; Mescheder, Geiger & Nowozin, Which training methods for GANs do actually converge?, 2018,
        arXiv:1801.04406, the R1 penalty; Miyato & Koyama, cGANs with projection discriminator, 2018, arXiv:1802.05637,
        the label as an inner product.
    Differs: a small network on the states themselves in place of a large pretrained one; one optimizer trains it and
        the map; of a condition only the label or text is seen.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, width: int = 128, depth: int = 3, weight: float = 0.1,
        penalty: float = 1.0, vocabulary: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if weight < 0 or penalty < 0 or depth < 1:
            raise ValueError(
                f"weight and penalty must be >= 0 and depth at least 1; got {weight}, {penalty} and {depth}."
            )
        if classes and vocabulary:
            raise ValueError(
                f"a discriminator must be told labels or texts; got {classes} classes and a vocabulary of {vocabulary}."
                " Leave critic.vocabulary out, or write the labels as words."
            )
        self.net, self.weight, self.penalty = _Logit(shape, classes, width, depth, vocabulary), weight, penalty

    def forward(self, sample: Tensor, pair: Pair, *, generator: Random = None) -> Tensor:
        """Loss [B] of map and network from samples [B, *] and the data of the pair."""
        if pair.x1 is None:
            raise ValueError("a discriminator needs data; got a pair with x1 = None. Use a critic with a teacher.")
        real, cond = pair.x1.to(sample.dtype), pair.cond
        fool = softplus(-frozen(self.net, sample, cond))
        tell = softplus(self.net(sample.detach(), cond)) + softplus(-self.net(real, cond))
        report("fool", fool)
        report("tell", tell)
        if self.penalty:
            slope = torch.func.grad(lambda x: self.net(x, cond).sum())(real)
            tell = tell + self.penalty / 2 * slope.square().flatten(1).sum(1)
        return self.weight * fool + tell
