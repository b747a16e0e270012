"""The value that travels from coupling to loss, and names for the callables that cross package borders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from .random import Random

if TYPE_CHECKING:
    from .flow_map import FlowMap

Velocity = Callable[..., Tensor]
"""v(x, t, cond) -> [B, *]: a velocity that is not (yet) a flow map."""


def map_condition(f: Callable[..., Tensor], cond: Any, *others: Any) -> Any:
    """Apply f to every tensor of a condition: a tensor, None, or dicts, lists and tuples of them.

    Args:
        f: takes a tensor, and one from the same place of each of `others`.
        cond: the condition.
        others: conditions of the same build.
    Returns:
        The results, in the same build.
    """
    if isinstance(cond, Tensor):
        return f(cond, *others)
    if isinstance(cond, dict):
        return {k: map_condition(f, v, *(o[k] for o in others)) for k, v in cond.items()}  # pyright: ignore
    if isinstance(cond, (list, tuple)):
        return type(cond)(map_condition(f, *each) for each in zip(cond, *others, strict=True))  # pyright: ignore
    return cond


def chosen(cond: Any, i: slice | Tensor) -> Any:
    """What a slice or an index tensor selects of a condition."""

    def selected(c: Tensor) -> Tensor:
        return c[i]

    return map_condition(selected, cond)


def same_condition(cond: Any, other: Any) -> Tensor:
    """Whether the conditions of each sample are equal, [B]; two conditions of the same build, with tensors in them."""
    equal: list[Tensor] = []

    def compare(a: Tensor, b: Tensor) -> Tensor:
        equal.append((a == b).reshape(len(a), -1).all(1))
        return a

    map_condition(compare, cond, other)
    return torch.stack(equal).all(0)


def equal_conditions(cond: Any, other: Any) -> Tensor:
    """Which samples of two sets have equal conditions, [A, B]; built alike, with tensors in them."""
    equal: list[Tensor] = []

    def compare(a: Tensor, b: Tensor) -> Tensor:
        equal.append((a.reshape(len(a), 1, -1) == b.reshape(1, len(b), -1)).all(2))
        return a

    map_condition(compare, cond, other)
    return torch.stack(equal).all(0)


@dataclass(frozen=True)
class Pair:
    """A coupled draw.

    Args:
        x0: source [B, *].
        x1: data [B, *]; None when training needs no data.
        cond: condition, any nesting of batch-first tensors, or None.
        penalty: what a coupling that learns adds to the loss [B]; None for nothing.
    """

    x0: Tensor
    x1: Tensor | None = None
    cond: Any = None
    penalty: Tensor | None = None

    def __getitem__(self, i: slice | Tensor) -> "Pair":
        """The pairs selected by a slice or an index tensor."""
        return Pair(*(chosen(part, i) for part in (self.x0, self.x1, self.cond, self.penalty)))

    def __len__(self) -> int:
        return len(self.x0)

    def split(self, share: float) -> tuple["Pair", "Pair"]:
        """The first `part_size(share, B)` pairs, and the rest."""
        k = part_size(share, len(self))
        return self[:k], self[k:]


def part_size(share: float, n: int) -> int:
    """How many of n samples a share of them is: rounded, but neither none nor all for a share between 0 and 1.

    So both parts of a small batch learn, and not the larger one alone. A single sample cannot be in both: it is in the
    first part for a share above 1/2 and in the rest otherwise, in every step.
    """
    k = round(share * n)
    return min(max(k, 1), n - 1) if 0 < share < 1 and n > 1 else k


class Loss(Protocol):
    """Teaches a map: unreduced loss [B] of a coupled draw; `step` counts images seen."""

    def __call__(self, model: "FlowMap", pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor: ...


class NoSource(ValueError):
    """Sampling cannot start from noise alone: the coupling wants a measurement, or the link of a chain before it."""


class Coupling(Protocol):
    """Pairs data with a source, and says where sampling starts; the latter may raise NoSource.

    Class attributes that a coupling may have, and is taken not to be when it lacks them: `makes_sequences`, pairs are
    [B, S, *]; `takes_condition`, the condition says where to start and goes no further, so that the network is told
    nothing; `own_data`, the data are its own, and those of the batch do not matter.
    """

    @property
    def gaussian(self) -> bool:
        """Whether the source is N(0, I) and independent of the data, given the condition.

        Only then is -E[x0 | x] / alpha the score of the state, and only then may fresh noise take the source's place:
        stochastic samplers, guidance by gradients and some losses ask for it, by an attribute `needs_gaussian`.
        """
        ...

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair: ...

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor: ...


class Sampler(Protocol):
    """Carries x [B, *] from times s to t [B]; `state` is handed from one step to the next."""

    def __call__(
        self, model: "FlowMap", x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, Any]: ...  # fmt: skip


class Weighting(Protocol):
    """Turns the error [B] of samples at times s, t [B] into their loss [B].

    A weighting has `of_times` = True if it is a factor that depends on the times alone, and so takes negative errors.
    """

    def __call__(self, error: Tensor, s: Tensor, t: Tensor) -> Tensor: ...


class Space(Protocol):
    """Where the flow lives: data <-> x [B, *]."""

    def encode(self, data: Tensor, *, generator: Random = None) -> Tensor: ...

    def decode(self, x: Tensor) -> Tensor: ...

    def constrain(self, x: Tensor) -> Tensor: ...


class Conditioner(Protocol):
    """Makes what the network is told from the data and from what comes with them.

    `spatial` is the shape of what is put beside the state, () for nothing; `labelled` whether labels are passed on.
    """

    labelled: ClassVar[bool]

    @property
    def spatial(self) -> tuple[int, ...]: ...

    def __call__(self, data: Any, given: Any, space: Space, *, generator: Random = None) -> Any: ...
