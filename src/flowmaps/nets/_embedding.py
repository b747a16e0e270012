"""What every network does with its two times and with its labels or texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.text import Text, wave_features


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


class Embedded(nn.Module):
    """Texts that another network has embedded, [B, L, context] -> [B, width]: a perceptron of the mean over tokens.

    A token of zeros stands for no word. Tokens have no places here: a text encoder has told them theirs.

    Args:
        context: width of the tokens.
        width: of the embedding.
    """

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.context = context
        self.enter = nn.Linear(context, width)
        self.mix = nn.Sequential(nn.Linear(context, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, context] -> [B, width]."""
        return self.mix(tokens.sum(1) / tokens.any(-1).sum(1).clamp_min(1)[:, None])

    def each(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, context] -> the tokens [B, L, width], and where there are any [B, L]."""
        return self.enter(tokens), tokens.any(-1)


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
        context: width of the tokens of texts that are embedded already, [B, L, context] in place of ids; 0 for none.
    """

    def __init__(
        self, classes: int, width: int, numbers: Sequence[str] = (), vocabulary: int = 0, context: int = 0
    ) -> None:
        super().__init__()
        if bool(classes) + bool(vocabulary) + bool(context) > 1:
            texts = f"a vocabulary of {vocabulary}" if vocabulary else f"a context of width {context}"
            raise ValueError(
                f"a network must take labels or texts; got {classes} classes and {texts}. Leave net.vocabulary and "
                "net.context out, or write the labels as words."
            )
        self.classes, self.vocabulary = classes, vocabulary
        self.form = ("B",)
        if vocabulary:
            self.form, self.table = ("B", "L"), Text(vocabulary, width)
        elif context:
            self.form, self.table = ("B", "L", "context"), Embedded(context, width)
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
            cfg = ", or use the guidance 'cfg', of which a network need not be told" if "guidance" in unknown else ""
            raise ValueError(
                f"a condition must hold what the network was built for, {', '.join(['label', *self.numbers])}; got "
                f"{', '.join(sorted(unknown))} too. Name it in net.numbers and train with it{cfg}."
            )
        y = self.table(self._label(given, batch))
        for name, layer in self.numbers.items():
            if name in given:
                number = given[name].to(y.dtype)
                neutral = torch.full_like(number, NEUTRAL.get(name, 0.0))
                y = y + self.mix[name](layer(wave_features(number, 8, 8.0)) - layer(wave_features(neutral, 8, 8.0)))
        return y

    def tokens(self, cond: Any, batch: int) -> tuple[Tensor, Tensor | None]:
        """A condition word by word [B, L, width], and where there are words [B, L]; a label is one word, without."""
        label = self._label(cond if isinstance(cond, dict) else {} if cond is None else {"label": cond}, batch)
        if isinstance(self.table, nn.Embedding):
            return self.table(label)[:, None], None
        return self.table.each(label)

    def _label(self, given: dict[str, Any], batch: int) -> Tensor:
        label = given["label"] if "label" in given else self.null(batch)
        if label.ndim != len(self.form):
            what = {1: "labels", 2: "token ids", 3: "tokens"}[len(self.form)]
            raise ValueError(
                f"a condition must be {what} [{', '.join(self.form)}]; got shape {tuple(label.shape)}. Texts need "
                "net.vocabulary, or net.context when they are embedded; labels go without."
            )
        return label

    def null(self, batch: int) -> Tensor:
        """The null label for a batch [B]; a text of no words [B, 1], which broadcasts against texts of any length."""
        weight = next(self.table.parameters())
        device = weight.device
        if self.vocabulary:
            return torch.zeros(batch, 1, dtype=torch.long, device=device)
        if isinstance(self.table, Embedded):
            return torch.zeros(batch, 1, self.table.context, dtype=weight.dtype, device=device)
        return torch.full((batch,), self.classes, device=device)
