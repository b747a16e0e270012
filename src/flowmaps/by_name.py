"""What sampling is asked for by name, by table or as an object: guidance, samplers, grids of times."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .build import build
from .core.flow_map import FlowMap
from .core.grid import TimeGrid
from .core.interpolant import Interpolant
from .core.types import Sampler
from .nets._embedding import Condition

__all__ = ["Guidance"]

Guidance = float | str | Mapping[str, Any] | Callable[[FlowMap], FlowMap]
"""A scale, a name or a table of a guidance, or what makes the guided map from the map."""

Open = Callable[[str, str], FlowMap]
"""The map of a run that stands in a table: from its key there, one of HELD, and the folder."""

HELD = ("weak", "refiner")


def guided(guidance: Guidance, model: FlowMap, path: Interpolant, held: Open) -> FlowMap:
    """The map with guidance; for a scale told it if its network takes it, else mixed from two evaluations."""
    if isinstance(guidance, (int, float)):
        if guidance == 1:
            return model
        if not math.isfinite(guidance):
            raise ValueError(f"guidance must be a finite scale; got {guidance}. 1 is none.")
        guidance = {"name": "told" if _takes_scales(model) else "cfg", "scale": float(guidance)}
    if not isinstance(guidance, (str, Mapping)):
        return _callable("guidance", guidance)(model)
    return build("guidance", opened(guidance, held), model=model, interpolant=path)


def guided_refiner(guidance: Guidance, refiner: FlowMap, path: Interpolant, held: Open) -> FlowMap:
    """A refiner with the guidance of the model beside it: changes of velocities are mixed as velocities are.

    Raises:
        ValueError: if the guidance is no mix with weights that are given.
    """
    if not _mixes(guidance, refiner):
        raise ValueError(
            "a refiner given by its run must be guided as the model is, by a scale, 'cfg', 'guided_flows', or an "
            f"'interval' of these; got {guidance!r}. Use one of them, or give the sampler as an object, "
            "FlowTurbo(heun, pseudo, refiner), with a refiner that is guided in its own way."
        )
    return guided(guidance, refiner, path, held)


def built_sampler(sampler: str | Mapping[str, Any] | Sampler, path: Interpolant, held: Open) -> Sampler:
    """The sampler of a name or a table, on a path; an object is what it is."""
    named = isinstance(sampler, (str, Mapping))
    return build("samplers", opened(sampler, held), interpolant=path) if named else _callable("sampler", sampler)


def built_grid(
    grid: str | Mapping[str, Any] | TimeGrid, path: Interpolant, sampler: Sampler | None, held: Open
) -> TimeGrid:
    """The grid of a name or a table, on a path and for a sampler; an object is what it is."""
    if not isinstance(grid, (str, Mapping)):
        return _callable("grid", grid)
    context: dict[str, Any] = {"interpolant": path} | ({} if sampler is None else {"sampler": sampler})
    return build("time_grids", opened(grid, held), **context)


def opened(given: str | Mapping[str, Any], held: Open) -> dict[str, Any]:
    """A table whose maps, also those of tables in it, are loaded where they are told by their runs."""

    def value(key: str, it: Any) -> Any:
        if isinstance(it, Mapping):
            return opened(it, held)
        return held(key, it) if key in HELD and isinstance(it, str) else it

    return {"name": given} if isinstance(given, str) else {key: value(key, it) for key, it in given.items()}


def equal_or_given(steps: int | Sequence[float]) -> Tensor:
    """Times [K + 1], float64: equal steps of a number, or the times themselves, which must lead from 0 to 1."""
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"steps must be at least 1; got {steps}.")
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if isinstance(steps, (str, float)):
        raise ValueError(f"steps must be a whole number, or times that increase from 0 to 1; got {steps!r}.")
    times = torch.as_tensor(steps, dtype=torch.float64)
    if len(times) < 2 or times[0] != 0 or times[-1] != 1 or bool((times.diff() <= 0).any()):
        raise ValueError(f"steps must be a number, or times that increase from 0 to 1; got {steps!r}.")
    return times


def _takes_scales(model: FlowMap) -> bool:
    return any(isinstance(part, Condition) and "guidance" in part.numbers for part in model.modules())


def _mixes(guidance: Any, model: FlowMap) -> bool:
    """Whether a guidance mixes velocities with and without condition by weights that do not depend on them."""
    if isinstance(guidance, (int, float)):
        return True
    if not isinstance(guidance, (str, Mapping)):
        return False
    table = {"name": guidance} if isinstance(guidance, str) else guidance
    if table.get("name") == "interval":
        return _mixes(table.get("guidance", "cfg"), model)
    return table.get("name") in ("cfg", "guided_flows", *(["told"] if _takes_scales(model) else []))


def _callable(what: str, given: Any) -> Any:
    if not callable(given):
        raise ValueError(f"{what} must be a name, a table or an object; got {given!r}.")
    return given
