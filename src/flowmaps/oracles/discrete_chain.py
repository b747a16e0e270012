"""Words from a Markov chain, few enough to be counted: exact laws for discrete flows."""

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from .mixture import Mixture

__all__ = ["DiscreteChain"]


class DiscreteChain(FlowMap):
    """Words of a Markov chain as one-hot vectors: the exact flow between N(0, I) and a sum of points.

    P(word) = start[w_1] transition[w_1, w_2] ... transition[w_{L-1}, w_L]; the flow is a mixture's with one component,
    of standard deviation `blur`, at each word.

    Args:
        start: law of the first letter [V].
        transition: rows are laws of the next letter [V, V].
        length: letters in a word; V^length words are counted, at most 65,536.
        interpolant: the path.
        blur: standard deviation about each word, small and positive so that the flow has an end.
    Cost: no network.
    """

    def __init__(
        self, start: Tensor, transition: Tensor, length: int, interpolant: Interpolant = Linear(), blur: float = 0.02
    ) -> None:
        super().__init__()
        letters = len(start)
        if transition.shape != (letters, letters) or letters**length > 65536:
            raise ValueError(
                f"transition must be {letters} x {letters} and there must be at most 65536 words; got "
                f"{tuple(transition.shape)} and {letters}^{length} words."
            )
        for name, rows in (("start", start[None]), ("transition", transition)):
            if not torch.allclose(rows.sum(1), torch.ones_like(rows[:, 0])) or bool((rows < 0).any()):
                raise ValueError(
                    f"{name} must hold laws, with non-negative entries that sum to 1; got {rows.tolist()}."
                )
        words = torch.tensor(list(product(range(letters), repeat=length)))
        probability = start[words[:, 0]]
        for i in range(1, length):
            probability = probability * transition[words[:, i - 1], words[:, i]]
        possible = probability > 0
        self.register_buffer("words", words[possible])
        self.register_buffer("probability", probability[possible])
        points = one_hot(self.words, letters).to(start.dtype)
        self.flow = Mixture(points, blur, self.probability, interpolant)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.flow.mean_velocity(x, s, t)

    def token_posterior(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """P(letter at each place | the letters that are seen) [B, L, V], exactly.

        Args:
            tokens: letters [B, L].
            mask: true where a letter is hidden [B, L].
        Raises:
            ValueError: if the seen letters of some row have probability zero.
        """
        fits = ((tokens[:, None] == self.words) | mask[:, None]).all(2)  # [B, words]
        weight = fits * self.probability
        if not bool((weight.sum(1) > 0).all()):
            raise ValueError("the seen letters must be possible under the chain; a row has probability zero.")
        law = weight / weight.sum(1, keepdim=True)
        return torch.einsum("bw,wlv->blv", law, one_hot(self.words, self.flow.shape[-1]).to(law.dtype))

    def sample(self, n: int, generator: Random = None) -> Tensor:
        """N words as one-hot vectors [n, L, V]."""
        u = uniform((n,), self.probability, generator).to(self.probability.dtype)
        index = torch.searchsorted(self.probability.cumsum(0), u).clamp_max(len(self.words) - 1)
        return self.flow.means[index]

    words: Tensor
    probability: Tensor
