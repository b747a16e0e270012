"""What every network does with its two times and with its labels or texts."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def wave_features(t: Tensor, count: int, highest: float) -> Tensor:
    """Sines and cosines of t [B] at `count` frequencies spread geometrically from 1 to `highest` rad: [B, 2 count].

    Low frequencies on purpose: time derivatives are part of the losses, and grow with the frequency.
    """
    rate = torch.exp(torch.linspace(0, math.log(highest), count, device=t.device, dtype=t.dtype))
    angle = t[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


class Waves(nn.Module):
    """Waves of departure time and span side by side, [B], [B] -> [B, 4 count]; no weights.

    Args:
        count: frequencies per time.
        highest: highest frequency in radians per unit of time.
    """

    def __init__(self, count: int, highest: float) -> None:
        super().__init__()
        self.count, self.highest = count, highest

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """[B], [B] -> [B, 4 count]."""
        return torch.cat([wave_features(z, self.count, self.highest) for z in (s, t - s)], 1)


class TwoTimes(nn.Module):
    """Embeds departure time and span: MLP(waves of s) + MLP(waves of t - s), [B], [B] -> [B, width].

    Args:
        width: of the embedding.
        count: frequencies per time.
        highest: highest frequency in radians per unit of time.
    Source: Geng, Deng, Bai, Kolter & He, Mean flows for one-step generative modeling, 2025, arXiv:2505.13447, Section
        4.3 and Table 1c (embedding the time of the state and the span is best).
    """

    def __init__(self, width: int, count: int = 16, highest: float = 32.0) -> None:
        super().__init__()
        self.count, self.highest = count, highest
        self.departure = nn.Sequential(nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width))
        self.span = nn.Sequential(nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """[B], [B] -> [B, width]."""
        return self.departure(wave_features(s, self.count, self.highest)) + self.span(
            wave_features(t - s, self.count, self.highest)
        )


class Text(nn.Module):
    """Embeds short texts, [B, L] -> [B, width]: a perceptron of the mean over words of silu(word + place).

    Words are token ids from 1 to vocabulary - 1; 0 stands for no word. Words add up after the silu, not before it, so
    that their order counts; what stands at the place of no word does not, so that texts may be padded to any length.

    Args:
        vocabulary: number of token ids, with the 0.
        width: of the embedding.
    Source: Zaheer, Kottur, Ravanbakhsh, Poczos, Salakhutdinov & Smola, Deep sets, 2017, arXiv:1703.06114, Theorem 2,
        for the sum inside a perceptron, here a mean over pairs of word and place.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.place = nn.Linear(16, width, bias=False)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> [B, width]."""
        weight = self.place.weight
        place = torch.arange(tokens.shape[1], device=tokens.device, dtype=weight.dtype)
        each = nn.functional.silu(self.words(tokens) + self.place(wave_features(place / 64, 8, 64.0)))
        said = (tokens != 0).to(weight.dtype)[..., None]
        return self.mix((each * said).sum(1) / said.sum(1).clamp_min(1))


# What a number is when it is not given: no guidance, or guidance at all times; every other number is zero.
NEUTRAL = {"guidance": 1.0, "high": 1.0}


class Condition(nn.Module):
    """Embeds a condition: a label or a text, and named numbers such as a guidance scale.

    A condition is None, labels [B] (0 ... classes - 1, or `classes` for none), or a dict of "label" and the numbers,
    each [B]. With a vocabulary, token ids [B, L] take the place of labels, and the text without words that of the null
    label. No condition is the null label; a number that is not given is the same as its neutral value, which is 1 for
    "guidance" and "high" and 0 for all others, and adds nothing.

    Args:
        classes: number of classes.
        width: of the embedding.
        numbers: names of the numbers.
        vocabulary: number of token ids, with 0 for no word; 0 for labels.
    """

    def __init__(self, classes: int, width: int, numbers: Sequence[str] = (), vocabulary: int = 0) -> None:
        super().__init__()
        if classes and vocabulary:
            raise ValueError(
                f"a network must take labels or texts; got {classes} classes and a vocabulary of {vocabulary}. Leave "
                "net.vocabulary out, or write the labels as words."
            )
        self.classes, self.vocabulary = classes, vocabulary
        if vocabulary:
            self.table = Text(vocabulary, width)
        else:
            self.table = nn.Embedding(classes + 1, width)
            nn.init.normal_(self.table.weight, std=0.3)
        self.numbers = nn.ModuleDict({name: nn.Sequential(nn.Linear(16, width), nn.SiLU()) for name in numbers})
        mix = {name: nn.Linear(width, width, bias=False) for name in numbers}
        for layer in mix.values():
            nn.init.zeros_(layer.weight)
        self.mix = nn.ModuleDict(mix)

    def forward(self, cond: Any, batch: int) -> Tensor:
        """A condition -> [B, width]."""
        given: dict[str, Any] = cond if isinstance(cond, dict) else {} if cond is None else {"label": cond}
        unknown = set(given) - {"label", *self.numbers}
        if unknown:
            raise ValueError(
                f"a condition must hold what the network was built for, label and {list(self.numbers)}; got "
                f"{sorted(unknown)}. Name them in net.numbers."
            )
        label = given["label"] if "label" in given else self.null(batch)
        if label.ndim != (2 if self.vocabulary else 1):
            raise ValueError(
                f"a condition must be {'token ids [B, L]' if self.vocabulary else 'labels [B]'}; got shape "
                f"{tuple(label.shape)}. Texts need net.vocabulary, labels go without it."
            )
        y = self.table(label)
        for name, layer in self.numbers.items():
            if name in given:
                number = given[name].to(y.dtype)
                neutral = torch.full_like(number, NEUTRAL.get(name, 0.0))
                y = y + self.mix[name](layer(wave_features(number, 8, 8.0)) - layer(wave_features(neutral, 8, 8.0)))
        return y

    def null(self, batch: int) -> Tensor:
        """The null label for a batch [B]; a text of no words [B, 1], which broadcasts against texts of any length."""
        device = next(self.table.parameters()).device
        if self.vocabulary:
            return torch.zeros(batch, 1, dtype=torch.long, device=device)
        return torch.full((batch,), self.classes, device=device)
