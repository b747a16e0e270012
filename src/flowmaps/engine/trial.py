"""A sample before a run goes on: what would fail at its first picture fails now."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..build import find
from ..core.types import NoSource
from ..flow import Flow, as_map
from .config import ConfigError


def starts_alone(flow: Flow) -> bool:
    """Whether samples can be drawn from noise alone, to be looked at and measured."""
    try:
        flow.starting(1)
    except NoSource:
        return False
    return True


def check_sampling(config: Mapping[str, Any], flow: Flow) -> None:
    """Draw a sample as the pictures of a run will be drawn, in its two smallest numbers of steps.

    Args:
        config: resolved configuration.
        flow: as it is built from it.
    Raises:
        ConfigError: if `sample` asks for what cannot be drawn from this run.
    """
    loss, asked, training = config["loss"], config["sample"], flow.model.training
    while isinstance(loss.get("loss"), Mapping):  # a loss around another
        loss = loss["loss"]
    flow.model.eval()
    shown = dataclasses.replace(flow, model=as_map(flow.model, find("losses", loss["name"])))
    try:
        if starts_alone(shown):
            for steps in sorted(set(asked["steps"]))[:2]:
                shown.sample(1, steps, sampler=asked["sampler"], guidance=asked["guidance"])
    except ValueError as error:
        raise ConfigError(
            f"sample.sampler, sample.guidance and sample.steps must draw samples of this run; {error}"
        ) from error
    finally:
        flow.model.train(training)
