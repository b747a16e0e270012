"""Noise paired with where a flow takes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import PerSample, Random, normal, uniform
from ..core.sampling import Jump, sample
from ..core.source import folded
from ..core.types import Pair, Sampler, Space, map_condition
from ._stored import stored

__all__ = ["Reflow"]


@dataclass(frozen=True)
class Reflow:
    """Pairs (x0, X_{0,1}(x0)) of a teacher, or of a file that `stored_pairs` wrote; the data are not used.

    Conditions of any build stay with the pairs that were made under them. A teacher with guidance, such as CFG around
    a conditional one, gives the guided pairs.

    Flow matching on them is reflow; the loss "one_step_distillation" on them is the distillation of InstaFlow.

    Args:
        stored: the file, read once, with conditions of its own in place of the batch's; left out, every batch is
            solved for when it is needed, with the batch's conditions.
        teacher: the flow map that gives the endpoints; not needed for stored pairs, nor for sampling.
        steps: steps of the teacher from noise to data.
        sampler: how it steps: its own jump, which for a mere velocity is Euler's step, or a solver.
        interpolant: the path, of which only the start is used.
        space: where the teacher's flow lives; in a box its sources are folded.
    Cost: none for stored pairs; else the teacher's, of `steps` steps, for every batch.
    Source: Liu, Gong & Liu, Flow straight and fast: learning to generate and transfer data with rectified flow, 2022,
        arXiv:2209.03003, the reflow procedure; Liu, Zhang, Ma, Peng & Liu, InstaFlow: one step is enough for
        high-quality diffusion-based text-to-image generation, 2023, arXiv:2309.06380, with conditions.
    Differs: a fixed number of steps where the released code solves adaptively, to a tolerance of 1e-5.
    """

    gaussian = False
    own_data = True

    stored: str = ""
    teacher: FlowMap | None = None
    steps: int = 100
    sampler: Sampler = Jump()
    interpolant: Interpolant = Linear()
    space: Space | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}.")

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """As many pairs as there are data x1 [B, *], of which only shape and device matter.

        Raises:
            ValueError: if there are neither stored pairs nor a teacher, or the stored ones have another shape.
        """
        if self.stored:
            return self._drawn(x1, generator)
        if self.teacher is None:
            raise ValueError("reflow must have stored pairs or a teacher; got neither. Set stored, or give a teacher.")
        x0 = self.source(x1.shape, x1, cond, generator=generator)
        x0 = x0 if self.space is None else folded(x0, self.interpolant, self.space)
        return Pair(x0, endpoints(self.teacher, x0, cond, self.steps, self.sampler, self.interpolant), cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *]."""
        return normal(shape, like, generator)

    def _drawn(self, x1: Tensor, generator: Random) -> Pair:
        every = Pair(**stored(self.stored, stored_pairs, "x0", "x1", "cond"))
        if every.x0.shape[1:] != x1.shape[1:]:
            raise ValueError(
                f"stored pairs must have the shape of the data, {tuple(x1.shape[1:])}; got "
                f"{tuple(every.x0.shape[1:])} in {self.stored}. Make them with a teacher of this space."
            )
        index = (uniform((len(x1),), x1, generator).double() * len(every)).long().clamp_max(len(every) - 1)

        def moved(z: Tensor) -> Tensor:
            return z.to(x1.device)

        some = every[index.to(every.x0.device)]
        assert some.x1 is not None
        return Pair(moved(some.x0), moved(some.x1), map_condition(moved, some.cond))


@torch.no_grad()
def endpoints(
    teacher: FlowMap, x0: Tensor, cond: Any = None, steps: int = 100, sampler: Sampler = Jump(),
    interpolant: Interpolant = Linear(),
) -> Tensor:  # fmt: skip
    """X_{0,1}(x0) [B, *] of a teacher, in a number of equal steps, without gradient."""
    dtype = torch.promote_types(x0.dtype, torch.float32)
    grid = torch.linspace(0, 1, steps + 1, dtype=dtype, device=x0.device)
    return sample(teacher, interpolant.start(x0), grid, sampler=sampler, cond=cond)


def stored_pairs(
    file: str | Path, coupling: Reflow, like: Tensor, cond: Any = None, *, batch: int = 4096, generator: Random = None
) -> Pair:
    """Draw pairs from a coupling with a teacher and keep them in a file, for `Reflow(stored=...)`.

    Args:
        file: where to; a torch file of tensors only.
        coupling: with a teacher.
        like: [n, *], the number, shape and device of the pairs.
        cond: conditions of the pairs, of any build, with n entries along the first axis of every tensor.
        batch: how many are solved for at a time.
        generator: randomness.
    Returns:
        The pairs.
    Raises:
        ValueError: if there is another number of conditions than of pairs.
    """

    def check(c: Tensor) -> Tensor:
        if c.ndim == 0 or len(c) != len(like):
            raise ValueError(
                f"conditions must have one entry for each of the {len(like)} pairs; got shape {tuple(c.shape)}."
            )
        return c

    wanted, made = Pair(like, cond=map_condition(check, cond)), list[tuple[Any, ...]]()
    for low in range(0, len(like), batch):
        part = wanted[low : low + batch]
        draws = PerSample(generator.generators[low : low + batch]) if isinstance(generator, PerSample) else generator
        pair = coupling(part.x0, part.cond, generator=draws)
        made.append((pair.x0, pair.x1, pair.cond))

    def joined(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    every = Pair(*map_condition(joined, *made))
    torch.save({"x0": every.x0, "x1": every.x1, "cond": every.cond}, file)
    return every
