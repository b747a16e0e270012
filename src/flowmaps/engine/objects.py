"""From a resolved configuration to the objects of a run."""

import dataclasses
import textwrap
from collections.abc import Mapping
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..build import build, construct, find
from ..by_name import opened
from ..core.flow_map import EulerMap, FlowMap
from ..core.random import fold_in
from ..core.reparametrize import Reparametrized
from ..core.source import around_data, check_gaussian, folded, is_gaussian, require_gaussian
from ..core.target import parts
from ..core.types import Coupling, Loss
from ..data._dataset import Dataset
from ..flow import Flow, load
from .config import ConfigError
from .lora import LoRA
from .step import Step

MEAN_OF = 10_000  # data that a mean over all of them is taken of, about


def open_data(config: Mapping[str, Any], split: str = "") -> Dataset:
    """The data of a run.

    Args:
        config: resolved configuration.
        split: "train" or "test" in place of what the configuration says, for readers that know splits.
    """
    table = dict(config["data"])
    if split and "split" in signature(find("data", table["name"])).parameters:
        table["split"] = split
    data: Dataset = build("data", table)
    return data if config["conditional"] else dataclasses.replace(data, labels=None, classes=0)


def with_data(config: Mapping[str, Any], data: Dataset) -> dict[str, Any]:
    """The configuration with the shape of its data and their number of classes.

    Raises:
        ConfigError: if it says another shape or number.
    """
    found: dict[str, Any] = {"shape": list(data.shape), "classes": data.classes}
    for key, value in found.items():
        if config[key] and config[key] != value:
            raise ConfigError(f"{key} must be that of the data, {value}; got {config[key]}. Leave {key} out.")
    labels, told = data.labels, config["condition"]["name"]
    if told == "label" and labels is not None and labels.ndim == 3 and labels.dtype == torch.long:
        raise ConfigError(
            f"labels must be one number for each datum; got maps of {tuple(labels.shape[1:])}. Set "
            "condition=semantic_map."
        )
    return {**config, **found}


def held_out(config: Mapping[str, Any], train: Dataset) -> Dataset:
    """Data that the run does not see; the training data themselves if there are no others."""
    try:
        return open_data(config, "test") if config["data"].get("split", "train") == "train" else train
    except ValueError:  # a reader whose test part is empty or missing
        return train


def build_loss(config: Mapping[str, Any], flow: Flow, teacher: Flow | None) -> Loss:
    """The objective of a run; a teacher made on another path is seen on this one.

    Raises:
        ConfigError: if the loss needs a teacher and there is none, or the teacher lives elsewhere.
    """
    context: dict[str, Any] = {
        "interpolant": flow.interpolant, "shape": flow.state_shape, "classes": flow.classes,
    }  # fmt: skip
    if teacher is not None:
        spaces = [textwrap.shorten(str(f.space), 80) for f in (teacher, flow)]
        if teacher.shape != flow.shape or teacher.space != flow.space or teacher.classes not in (0, flow.classes):
            raise ConfigError(
                f"the teacher must have this run's data and space; it has shape {teacher.shape}, {teacher.classes} "
                f"classes and {spaces[0]}, the run {flow.shape}, {flow.classes} and {spaces[1]}."
            )
        context["teacher"] = _on_this_path(teacher, flow)
    elif _needs_teacher(find("losses", config["loss"]["name"])):
        raise ConfigError(
            f"the loss {config['loss']['name']!r} learns from a teacher; none is given. Use `flowmaps distill TEACHER "
            "RECIPE`, or set teacher to a run folder."
        )
    loss = opened(config["loss"], lambda key, run: _on_this_path(load(run), flow))  # `weak`, of "autoguided"
    return build("losses", loss, **context)


def _on_this_path(teacher: Flow, flow: Flow) -> FlowMap:
    model = _unbiased(teacher)
    if teacher.interpolant == flow.interpolant:
        return model
    require_gaussian("a teacher on another path", teacher)
    return Reparametrized(model, teacher.interpolant, flow.interpolant)


def _unbiased(teacher: Flow) -> FlowMap:
    """The teacher's map; that of a loss that bends the velocity on purpose is straightened by its pairs' means."""
    config = teacher.config
    if config is None:
        return teacher.model
    loss = config["loss"]
    while isinstance(loss.get("loss"), Mapping):  # a loss around another
        loss = loss["loss"]
    if getattr(find("losses", loss["name"]), "unbiased", None) is None:
        return teacher.model
    data = open_data(config)
    sources, ends = list[Tensor](), list[Tensor]()
    for some in torch.arange(0, len(data), max(1, len(data) // MEAN_OF)).split(256):
        (x, labels), draws = data.__getitems__(some.tolist()), fold_in(0, int(some[0]))
        for seen in (x, x.flip(-1)) if config["mirror"] else (x,):
            cond = teacher.condition(seen, labels, teacher.space, generator=draws)
            with torch.no_grad():
                pair = teacher.coupling(teacher.space.encode(seen, generator=draws), cond, generator=draws)
            assert pair.x1 is not None
            sources.append(folded(pair.x0, teacher.interpolant, teacher.space))
            ends.append(pair.x1)
    made = build("losses", loss, interpolant=teacher.interpolant)
    source = None if is_gaussian(teacher) else torch.cat(sources).mean(0)
    return made.unbiased(teacher.model, torch.cat(ends).mean(0), source)


def _needs_teacher(loss: Any) -> bool:
    teacher = signature(loss).parameters.get("teacher")
    return teacher is not None and teacher.default is teacher.empty


def build_step(config: Mapping[str, Any], flow: Flow, teacher: Flow | None) -> Step:
    """The module that is trained."""
    loss = build_loss(config, flow, teacher)
    if config["from_teacher"]:
        if teacher is None:
            raise ConfigError("from_teacher needs a teacher; none is given. Set teacher to a run folder.")
        try:
            _copy_weights(flow.model, teacher.model)
        except RuntimeError as error:
            raise ConfigError(
                f"from_teacher needs a student with the teacher's network; {_apart(flow, teacher) or error}"
            ) from error
    if config["lora"]:
        try:
            construct(LoRA, config["lora"]).add(cast(Any, flow.model).net)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    coupling = flow.coupling
    if teacher is not None and "teacher" in signature(type(coupling)).parameters:  # it draws its pairs from it
        context = {"teacher": _on_this_path(teacher, flow), "interpolant": flow.interpolant, "space": flow.space}
        coupling = build("couplings", config["coupling"], **context)
    _check_fit(config, flow, loss, coupling, teacher)
    return Step(
        flow.model, loss, coupling, flow.space, config["condition_dropout"], config["mirror"], config["compile"],
        flow.condition, flow.interpolant,
    )  # fmt: skip


def _check_fit(config: Mapping[str, Any], flow: Flow, loss: Loss, coupling: Coupling, teacher: Flow | None) -> None:
    """Raise ValueError unless coupling, loss, space and teacher go together."""
    if getattr(coupling, "makes_sequences", False) and not getattr(loss, "takes_sequences", False):
        raise ConfigError(
            f"{type(coupling).__name__} makes sequences of data, which {type(loss).__name__} does not take. Use "
            "loss.name='autoregressive_flow_matching', map.name='recurrent' and net.name='arflow'."
        )
    walls = getattr(loss, "walls", None)
    if walls is not None and getattr(flow.space, "walls", None) != walls:
        raise ConfigError(
            f"{type(loss).__name__} reflects at {walls}, which the space must too; got {flow.space}. Use "
            f"space.name='reflected', space.low={walls[0]:g} and space.high={walls[1]:g}."
        )
    if walls is None and getattr(flow.space, "walls", None) is not None and around_data(flow.interpolant):
        raise ConfigError(
            f"in a box, noise on top of the data is thrown back by its walls, which {type(loss).__name__} does not do; "
            f"got {type(flow.interpolant).__name__}. Use loss.name='reflected_score_matching', or "
            "interpolant.name='linear'."
        )
    if config["mirror"] and not flow.condition.labelled:
        raise ConfigError("mirror flips images, not the maps that come with them; set mirror to false.")
    if config["mirror"] and getattr(coupling, "own_data", False):
        raise ConfigError(
            f"mirror flips the images of the batch, and {type(coupling).__name__} has its own; set mirror to false, "
            "and make its file with mirror images: flowmaps prepare RECIPE mirror=true."
        )
    check_gaussian(loss, flow)
    if teacher is not None and any(m is teacher.model for _, part in parts(loss, "") for m in part.modules()):
        check_gaussian(loss, teacher)
        if getattr(coupling, "gaussian", False) and not getattr(teacher.coupling, "gaussian", False):
            raise ConfigError(
                f"a map learns the flow of its teacher, whose source is that of {type(teacher.coupling).__name__}; got "
                f"{type(coupling).__name__}. Set coupling as in the teacher's run, or to 'reflow', its own pairs."
            )


def build_optimizer(config: Mapping[str, Any], step: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over everything in the step that is not frozen."""
    table = dict(config["optimizer"])
    name = table.pop("name", "")
    if ":" not in name:
        raise ConfigError(
            f"optimizer.name must read 'package.module:Class', for example torch.optim:Adam; got {name!r}."
        )
    cls = find("optimizers", name)
    known = signature(cls).parameters
    for key in table:
        if key not in known:
            raise ConfigError(f"optimizer {cls.__name__} has no option {key!r}. Options: {', '.join(known)}.")
    return cls([p for p in step.parameters() if p.requires_grad], **table)


def _copy_weights(model: FlowMap, teacher: FlowMap) -> None:
    source = teacher.v if isinstance(teacher, EulerMap) and isinstance(teacher.v, FlowMap) else teacher
    mine, other = (getattr(m, "net", None) for m in (model, source))
    adopt = getattr(mine, "adopt", None)  # a network around one of the teacher's kind
    if adopt is not None and type(mine) is not type(other):
        adopt(other)
    else:
        model.load_state_dict(source.state_dict())


def _apart(flow: Flow, teacher: Flow) -> str:
    """The options of its network in which a student differs from its teacher, and the fix; nothing if in none."""
    mine, other = (f.config["net"] if f.config is not None else {} for f in (flow, teacher))
    apart = [f"net.{k} is {mine[k]!r}, the teacher's {other[k]!r}" for k in mine if mine[k] != other.get(k, mine[k])]
    return f"{', '.join(apart)}. Give the student the teacher's." if apart else ""
