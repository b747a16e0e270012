"""Most steps at a low resolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.sampling import Euler, sample
from ..core.shapes import fill_time
from ..core.types import Pair, Sampler

__all__ = ["Bottleneck"]


@dataclass(frozen=True)
class Bottleneck:
    """From noise to data in stages of high, low and again high resolution, all in one step of the sampler.

    Each stage goes to the data: x <- its steps from t_k to 1. What it arrives at is resampled to the next resolution
    and noised again, x <- alpha e + beta R x at t_{k+1}, e ~ N(0, I). So the first stage settles where things are, the
    low one most of what they are, at a fraction of the cost, and the last one the details. The times of a stage are
    equally spaced before a shift that multiplies alpha / beta, as the time grid "shift": higher resolutions need more.

    For images [B, C, H, W], and maps of networks that take several resolutions and were trained on them, such as unet.
    Sample with steps = 1.

    Args:
        sampler: how the steps of a stage are taken.
        steps: of each stage.
        scales: sides of each stage's images over those of the samples; the first and the last must be 1.
        starts: where each stage starts, t_k; 0 for the first.
        shifts: of each stage's times; 1 is none.
        resample: how images are resampled: "area" (means, and repetition), "bilinear" or "bicubic".
        interpolant: the path the map was trained on, with a source N(0, I).
    Cost: the sampler's evaluations per step, `steps` of them in each stage; those of an image scaled by a take about
        a^2 of the time of a whole one, with attention less.
    Source: Tian, Xia, Ren, Lin & others, Training-free diffusion acceleration with bottleneck sampling, 2025,
        arXiv:2503.18940: high, low, high; noise reintroduction; scheduler re-shifting. Steps of the stages: as
        Jeong, Lee, Seo & Chun, Upsample what matters, 2025, arXiv:2507.08422, Appendix B, set them for it.
    Differs: where stages start, how their times are shifted and images resampled was tuned there for each model; the
        defaults are ours. That a stage goes to the data is, with Euler's steps on the linear path, to end it earlier
        and predict the data from there.
    """

    needs_gaussian = True

    sampler: Sampler = Euler()
    steps: Sequence[int] = (4, 12, 5)
    scales: Sequence[float] = (1.0, 0.5, 1.0)
    starts: Sequence[float] = (0.0, 0.2, 0.5)
    shifts: Sequence[float] = (3.0, 1.5, 3.0)
    resample: str = "bicubic"
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        stages = {len(each) for each in (self.steps, self.scales, self.starts, self.shifts)}
        if len(stages) != 1 or 0 in stages:
            raise ValueError(
                "steps, scales, starts and shifts must each have one number per stage; got "
                f"{self.steps}, {self.scales}, {self.starts} and {self.shifts}."
            )
        if self.scales[0] != 1 or self.scales[-1] != 1 or min(self.scales) <= 0:
            raise ValueError(f"scales must be > 0, and 1 in the first and the last stage; got {self.scales}.")
        if self.starts[0] != 0 or not all(0 <= s < 1 for s in self.starts):
            raise ValueError(f"starts must lie in [0, 1), and the first be 0; got {self.starts}.")
        if min(self.steps) < 1 or min(self.shifts) <= 0:
            raise ValueError(f"steps must be at least 1 and shifts > 0; got {self.steps} and {self.shifts}.")
        check_choice("resample", self.resample, ("area", "bilinear", "bicubic"))

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """All stages.

        Raises:
            ValueError: if the states are no images, the step does not lead from noise to data, or the network takes
                images of one size only.
        """
        if x.ndim != 4 or not bool((s == 0).all() & (t == 1).all()):
            raise ValueError(
                "bottleneck takes images [B, C, H, W] from time 0 to 1 in one step; got states "
                f"{tuple(x.shape)} from {float(s.min()):g} to {float(t.max()):g}. Set steps to 1."
            )
        size = x.shape[2:]
        for k, (start, scale) in enumerate(zip(self.starts, self.scales, strict=True)):
            if k > 0:
                sides = [round(scale * side) for side in size]
                full = x.to(torch.promote_types(x.dtype, torch.float32))  # as antialiasing on a processor wants it
                clean = F.interpolate(full, sides, mode=self.resample, antialias=self.resample != "area")
                noise = normal(clean.shape, clean, generator)
                x = self.interpolant.draw(Pair(noise, clean), fill_time(start, clean), generator)[0].to(x.dtype)
            try:
                x = sample(model, x, self.times(k), sampler=self.sampler, cond=cond, generator=generator)
            except RuntimeError as error:
                if scale == 1 or type(error) is not RuntimeError:  # others are of memory, of draws, of the compiler
                    raise
                raise ValueError(
                    "bottleneck needs a network that takes images of several sizes, such as unet; this one took "
                    f"{tuple(size)} and not {tuple(x.shape[2:])}: {error}"
                ) from error
        return x, None

    def times(self, stage: int) -> Tensor:
        """Times of a stage, from where it starts to 1: [steps + 1], float64."""
        shift, start = self.shifts[stage], self.starts[stage]
        before = start * shift / (1 - start + start * shift)  # where the shift makes it the start
        u = torch.linspace(before, 1, self.steps[stage] + 1, dtype=torch.float64)
        return u / (u + shift * (1 - u))
