"""What a coupling is made from beforehand: its file, or its number."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..build import build
from ..core.random import fold_in
from ..core.types import map_condition
from ..couplings.norm_aligned import mean_norm
from ..couplings.pruned import sparse_axes
from ..couplings.reflow import stored_pairs
from ..couplings.semidiscrete_ot import stored_potentials
from ..data._dataset import Dataset
from ..flow import Flow, Guidance, load
from .config import Config, ConfigError, resolve_config
from .objects import build_step, open_data, with_data

READ = 256  # data that are encoded at a time


def prepare_coupling(config: Config, *, n: int = 0, steps: int = 2000, guidance: Guidance = 1.0) -> str:
    """Write the file that a recipe's coupling is made from, to `coupling.stored`, or measure what it must be told.

    Args:
        config: options of the run: its data as its space encodes them, with mirror images if `mirror` is true, its
            conditions, and for reflow its teacher.
        n: number of pairs, for reflow; as many as there are data if 0.
        steps: of the ascent that fits potentials, for semidiscrete_ot.
        guidance: of the teacher, for reflow, as in `Flow.sample`.
    Returns:
        What was written or measured, a line.
    Raises:
        ConfigError: if the coupling needs nothing, no file is named, or reflow has no teacher.
    """
    config = resolve_config(config)
    name, file = config["coupling"]["name"], config["coupling"].get("stored", "")
    if name not in ("semidiscrete_ot", "pruned", "reflow", "norm_aligned"):
        raise ConfigError(
            f"coupling must be semidiscrete_ot, pruned, reflow or norm_aligned; got {name!r}, for which there is "
            "nothing to prepare."
        )
    if name != "norm_aligned" and not file:
        raise ConfigError("coupling.stored must name the file to write; got none. Set it here and in training.")
    data = open_data(config)
    config = with_data(config, data)
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    x, cond = _encoded(config, data)
    if name == "norm_aligned":
        return f"norm    {mean_norm(x):.6g}: the mean length of the data, for coupling.norm"
    if name == "pruned":
        return f"axes    {len(sparse_axes(file, x))} directions without data"
    if name == "reflow":
        return f"pairs   {len(_pairs(config, file, x, cond, n or len(data), guidance)):,}"
    source = build("couplings", config["coupling"]).coupling
    chi = stored_potentials(file, x, cond, coupling=source, steps=steps, generator=fold_in(config["seed"], 1))
    return f"uneven  {float(chi.max()):.3g}: chi-squared of how often data are hit; 0.01 is a deviation of 10 %"


def _pairs(config: Mapping[str, Any], file: str, x: Tensor, cond: Any, n: int, guidance: Guidance) -> Any:
    if not config["teacher"] or isinstance(config["teacher"], dict):
        raise ConfigError(f"teacher must be the folder of a run, to draw pairs from; got {config['teacher']!r}.")
    device = "cuda" if torch.cuda.is_available() and config["device"] != "cpu" else "cpu"
    teacher = load(config["teacher"], device=device)
    teacher = dataclasses.replace(teacher, model=teacher.guided(guidance))
    flow = Flow.built(config, config["shape"], config["classes"])
    step = build_step({**config, "from_teacher": False, "lora": {}, "mirror": False}, flow, teacher)
    coupling: Any = dataclasses.replace(step.coupling, stored="")  # pyright: ignore
    order = torch.randperm(len(x), generator=fold_in(config["seed"], 2))
    some = order[torch.arange(n) % len(x)]
    like = torch.empty(n, *x.shape[1:], device=device)
    told = map_condition(lambda c: c[some].to(device), cond)
    return stored_pairs(file, coupling, like, told, generator=fold_in(config["seed"], 3, device=device))


@torch.no_grad()
def _encoded(config: Mapping[str, Any], data: Dataset) -> tuple[Tensor, Any]:
    """All data as the space of a run encodes them, mirror images too if these are trained on, and their conditions."""
    space = build("spaces", config["space"], shape=data.shape)
    parts: list[Any] = []
    for low in range(0, len(data), READ):
        x, labels = data.__getitems__(range(low, min(low + READ, len(data))))
        for mirrored in (False, True)[: 1 + config["mirror"]]:
            g = fold_in(config["seed"], 0, low, mirrored)
            y = space.encode(x.flip(-1) if mirrored else x, generator=g)
            told = build("conditions", config["condition"], shape=tuple(y.shape[1:]), classes=data.classes)
            parts.append((y, told(x, labels, space, generator=g)))
    return map_condition(lambda *c: torch.cat(c), *parts)
