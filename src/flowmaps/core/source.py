"""Where trajectories start, and from which sources the velocity gives the score: one rule for training and sampling."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .interpolant import Interpolant
from .shapes import expand_time
from .types import Coupling, Space

T = TypeVar("T")


class Setting(Protocol):
    """What a flow says of its trajectories."""

    @property
    def coupling(self) -> Coupling: ...

    @property
    def interpolant(self) -> Interpolant: ...

    @property
    def space(self) -> Space: ...


def started(x0: Tensor, path: Interpolant, space: Space) -> Tensor:
    """The state at t = 0 [B, *] from a source [B, *], where sampling starts: alpha(0) x0, folded into a box."""
    return space.constrain(path.start(x0))


def folded(x0: Tensor, path: Interpolant, space: Space) -> Tensor:
    """The source [B, *] as training has it, from which the path starts where sampling does: started(x0) / alpha(0).

    A path of data plus noise, "variance_exploding", keeps its source: there the loss folds whole states.
    """
    first = x0[:1]
    if space.constrain(first) is first or around_data(path):  # a space that allows all gives back what it is given
        return x0
    return started(x0, path, space) / expand_time(path.alpha(x0.new_zeros(len(x0))), x0)


def around_data(path: Interpolant) -> bool:
    """Whether the path has the data in it from the beginning, with noise on top."""
    return float(path.beta(torch.zeros(()))) > 0.5


def is_gaussian(setting: Setting) -> bool:
    """Whether the source of a flow is N(0, I) and independent of the data: by its coupling, and not folded."""
    boxed = getattr(setting.space, "walls", None) is not None and not around_data(setting.interpolant)
    return getattr(setting.coupling, "gaussian", False) and not boxed


def require_gaussian(who: str, setting: Setting) -> None:
    """Raise ValueError unless the source of a flow is N(0, I) and independent of the data."""
    if is_gaussian(setting):
        return
    coupling, space = (type(part).__name__ for part in (setting.coupling, setting.space))
    raise ValueError(
        f"{who} needs a source N(0, I), independent of the data, or the velocity does not give the score; got that of "
        f"the coupling {coupling} in the space {space}. Sample by a solver without noise, such as 'heun', or train "
        "with the coupling 'independent' of scale 1 in a space without walls."
    )


def check_gaussian(method: T, setting: Setting) -> T:
    """The method, unless it or a part of it needs a Gaussian source, by its `needs_gaussian`, and the flow has another.

    Raises:
        ValueError: if so.
    """
    for who in _needing(method, set()):
        require_gaussian(who, setting)
    return method


def _needing(thing: Any, seen: set[int]) -> Iterator[str]:
    """Names of all parts of a method that need a Gaussian source."""
    if id(thing) in seen or isinstance(thing, type):
        return
    seen.add(id(thing))
    if getattr(thing, "needs_gaussian", False):
        yield type(thing).__name__
    inner: list[Any] = []
    if isinstance(thing, nn.Module):
        inner = [*vars(thing).values(), *thing.children()]
    elif dataclasses.is_dataclass(thing):
        inner = [getattr(thing, field.name) for field in dataclasses.fields(thing)]
    for part in inner:
        if isinstance(part, nn.Module) or dataclasses.is_dataclass(part):
            yield from _needing(part, seen)
