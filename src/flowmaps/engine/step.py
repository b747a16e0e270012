"""One training step as one module, so that wrappers see one forward and no derivative crosses them."""

import dataclasses
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..core.constraint import put_back
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.report import listen, report
from ..core.source import folded
from ..core.target import Average, averages, parts
from ..core.times import TimeLaw
from ..core.types import Conditioner, Coupling, Loss, Pair, Space, map_condition
from .compiled import Compiled


class Step(nn.Module):
    """Encode, couple, drop conditions, evaluate the loss: everything from data to a scalar.

    Args:
        model: the map that is trained.
        loss: the objective; modules among its fields are registered, and trained unless frozen.
        coupling: pairs data with a source.
        space: where the flow lives.
        condition_dropout: share of samples whose condition is replaced by the null condition.
        mirror: flip half of the images left to right.
        compile: evaluate the loss through the compiler, except when its terms are asked for.
        condition: makes what the network is told from what comes with the data; left out, it is told just that.
        interpolant: the path, of which only the start is used: sources begin where sampling does.
    """

    def __init__(
        self, model: FlowMap, loss: Loss, coupling: Coupling, space: Space, condition_dropout: float = 0.0,
        mirror: bool = False, compile: bool = False, condition: Conditioner | None = None,
        interpolant: Interpolant = Linear(),
    ) -> None:  # fmt: skip
        super().__init__()
        self.compiled = Compiled(loss) if compile else None
        self.model, self.loss, self.coupling, self.space = model, loss, coupling, space
        self.condition_dropout, self.mirror, self.condition = condition_dropout, mirror, condition
        self.interpolant, self.told = interpolant, False
        self.averages = averages(loss)
        for average in self.averages:
            average.begin(model)
        owners = {"loss": loss, "coupling": coupling, "space": space}  # those that are modules are registered above
        plain = {name: thing for name, thing in owners.items() if not isinstance(thing, nn.Module)}
        self.parts = nn.ModuleDict(dict(part for name, thing in plain.items() for part in parts(thing, name)))

    def train(self, mode: bool = True) -> "Step":
        """As of any module, but what is not trained stays in evaluation mode: teachers, encoders, averages."""
        super().train(mode)
        for part in self.parts.values():
            if isinstance(part, Average) or _frozen(part):
                part.eval()
        return self

    def follow(self) -> None:
        """Put constrained weights back, and move the averages of the loss; to be called after each optimizer step."""
        put_back(self)
        for average in self.averages:
            average.follow(self.model)

    def trained_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the state of all but frozen modules, such as teachers; averages are not frozen."""
        frozen = tuple(
            f"parts.{name}." for name, part in self.parts.items() if not isinstance(part, Average) and _frozen(part)
        )
        return {name: value for name, value in self.state_dict().items() if not name.startswith(frozen or ("\0",))}

    def forward(
        self, data: Tensor, cond: Any = None, *, images: int = 0, generator: Random = None, terms: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss and, if asked for, mean of each reported term, from data [B, *] and their condition."""
        if self.mirror:
            flip = uniform((len(data),), data, generator) < 0.5
            data = torch.where(flip.reshape(-1, *[1] * (data.ndim - 1)), data.flip(-1), data)
        if self.condition is not None:
            cond = self.condition(data, cond, self.space, generator=generator)
        pair = self.coupling(self.space.encode(data, generator=generator), cond, generator=generator)
        x0 = folded(pair.x0, self.interpolant, self.space)
        pair = pair if x0 is pair.x0 else dataclasses.replace(pair, x0=x0)
        if (pair.cond is None) != (cond is None or getattr(self.coupling, "takes_condition", False)):
            raise ValueError(
                f"pairs must have conditions if the data have, and none if not; {type(self.coupling).__name__} gives "
                f"{'none' if pair.cond is None else 'some'}. Write its file anew, or set conditional to "
                f"{'false' if pair.cond is None else 'true'}."
            )
        if self.condition_dropout and pair.cond is not None:
            pair = self._drop_conditions(pair, generator)
        heard: dict[str, list[Tensor]] = {}
        with listen() if terms else nullcontext(heard) as heard:
            of = self.loss if terms or self.compiled is None else self.compiled
            loss = of(self.model, pair, step=images, generator=generator)
            if self.training and not self.told:
                self._check_told()
            if pair.penalty is not None:
                report("coupling", pair.penalty)
                loss = loss + pair.penalty
        return loss.mean(), {name: torch.cat(values).mean() for name, values in heard.items()}

    def _check_told(self) -> None:
        """Raise ValueError if a law of times waits for losses that nobody tells it."""
        for law in self.modules():
            if isinstance(law, TimeLaw) and law.learns and not law.heard:
                raise ValueError(
                    f"a law of times that learns must be told its losses, which {type(self.loss).__name__} does not do "
                    f"with {type(law).__name__}. Use another law, such as 'logit_normal'."
                )
        self.told = True

    def _drop_conditions(self, pair: Pair, generator: Random) -> Pair:
        drop = uniform((len(pair),), pair.x0, generator) < self.condition_dropout
        null = self.model.null_condition(len(pair))
        if null is None:  # a network without a null condition cannot be left without one
            return pair
        cond = map_condition(lambda c, n: torch.where(drop.reshape(-1, *[1] * (c.ndim - 1)), n, c), pair.cond, null)
        return dataclasses.replace(pair, cond=cond)


def _frozen(part: nn.Module) -> bool:
    """Whether a module has parameters, and none is trained; one that has buffers only learns in its own way."""
    parameters = list(part.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
