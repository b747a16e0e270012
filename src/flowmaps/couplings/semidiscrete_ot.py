"""Sources paired with a stored data set by optimal transport, with potentials fitted beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.random import Random
from ..core.types import Coupling, Pair, map_condition
from ._stored import stored
from ._transport import alike, as_rows
from .independent import Independent

__all__ = ["SemidiscreteOT"]


@dataclass(frozen=True)
class SemidiscreteOT:
    """Each source draw goes to the datum argmax_j <x0, y_j> - |y_j|^2 / 2 + g_j: optimal pairs.

    With the right potentials g every datum is hit equally often. `stored_potentials` fits them once and writes a file;
    training then has no transport problem to solve, and the pairing does not depend on the batch.

    The data of the batch are not used. If the file has conditions, sources are paired among the data with the batch's
    condition, or, if it was fitted across conditions, with all data, whose conditions they get.

    Args:
        stored: the file; not needed for sampling.
        coupling: draws the sources, as when the file was made; they must not depend on the data.
    Cost: an inner product with every datum for each source draw.
    Source: Mousavi-Hosseini, Zhang, Klein & Cuturi, Flow matching with semidiscrete couplings, 2025, arXiv:2509.25519.
    Differs: the search is exhaustive, and the plan has no entropy.
    """

    gaussian = False
    own_data = True

    stored: str = ""
    coupling: Coupling = Independent()

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """As many pairs as there are data x1 [B, *], of which only shape and device matter.

        Raises:
            ValueError: if there is no file, its data have another shape, or it lacks the condition of a sample.
        """
        held = stored(self.stored, stored_potentials, "x1", "potentials", "cond", "within_conditions")
        y, g = held["x1"], held["potentials"]
        if y.shape[1:] != x1.shape[1:]:
            raise ValueError(
                f"stored data must have the shape of the batch's, {tuple(x1.shape[1:])}; got {tuple(y.shape[1:])} in "
                f"{self.stored}. Fit potentials to the data as the space encodes them."
            )
        x0 = self.coupling.source(x1.shape, x1, cond, generator=generator)
        here, hit = x0.cpu(), torch.empty(len(x0), dtype=torch.long)
        within = held["within_conditions"] and held["cond"] is not None
        rows = as_rows(held["cond"], y) if within else None
        if rows is not None and rows.shape[1] != as_rows(cond, x1).shape[1]:
            raise ValueError(
                f"the batch must have conditions as those of {self.stored}; got {'none' if cond is None else 'others'}."
                " Fit the potentials with within_conditions=False, or to the conditions of the run."
            )
        for i in alike(None if rows is None else cond, here):
            among = torch.arange(len(y))
            if rows is not None:
                among = (rows == as_rows(cond, x1)[i[0]]).all(1).nonzero()[:, 0]
                if not len(among):
                    raise ValueError(f"{self.stored} must have data with the condition of every sample; one has none.")
            hit[i] = among[nearest(here[i], y[among], g[among])]

        def moved(z: Tensor) -> Tensor:
            return z[hit].to(x1.device)

        return Pair(x0, moved(y), map_condition(moved, held["cond"]))

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *]."""
        return self.coupling.source(shape, like, cond, generator=generator)


def nearest(x0: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """Argmax_j <x0_i, y_j> - |y_j|^2 / 2 + g_j, [B], for states [B, *], data [N, *] and potentials [N]."""
    x0, y = x0.flatten(1).to(g.dtype), y.flatten(1).to(g.dtype)
    with torch.autocast(g.device.type, enabled=False):
        return (x0 @ y.T + (g - y.square().sum(1) / 2)).argmax(1)


def stored_potentials(
    file: str | Path, x1: Tensor, cond: Any = None, *, coupling: Coupling = Independent(), steps: int = 2000,
    batch: int = 1024, rate: float = 0.1, within_conditions: bool = True, generator: Random = None,
) -> Tensor:  # fmt: skip
    """Fit potentials by averaged stochastic gradient ascent of the semidual, and keep them with the data in a file.

    g_j <- g_j - r_k (share of a batch of sources that hits j - 1 / N), averaged over the second half of the steps.

    Args:
        file: where to; a torch file of tensors only.
        x1: the data, as the space encodes them [N, *]; N up to some ten thousand.
        cond: their conditions, of any build, with N entries along the first axis of every tensor.
        coupling: draws the sources.
        steps: of the ascent; more data need more.
        batch: sources per step.
        rate: first step, relative to the spread of the scores and sqrt(N); it falls as k^(-3/4).
        within_conditions: a transport problem for each condition, so that no condition prefers a part of the source.
        generator: randomness.
    Returns:
        Chi-squared of the shares with which data are hit against equal ones, sum_j (N q_j - 1)^2 / N, estimated
        without bias from 100 fresh batches: one number for each condition. 0.01 is a deviation of 10 %.
    """
    y = x1.detach().cpu()
    g, chi = torch.zeros(len(y), dtype=torch.promote_types(y.dtype, torch.float32)), list[Tensor]()
    for i in alike(cond if within_conditions else None, y):
        some, average = y[i], torch.zeros_like(g[i])
        part, scale = _start(some.flatten(1).to(g.dtype))
        scale = rate * len(some) ** 0.5 * scale

        def hits(part: Tensor, some: Tensor = some, i: Tensor = i) -> Tensor:
            like = some[:1].expand(batch, *some.shape[1:])
            told = map_condition(lambda c, i=i: c[i[:1]].expand(batch, *c.shape[1:]), cond)
            x0 = coupling.source(like.shape, like, told, generator=generator)
            return nearest(x0, some, part).bincount(minlength=len(some)).to(part.dtype)

        for k in range(steps):
            part = part - scale * (1 + 50 * k / steps) ** -0.75 * (hits(part) / batch - 1 / len(some))
            average += (part - average) / max(1, k + 1 - steps // 2)
        g[i] = average - average.mean()
        count = sum((hits(average) for _ in range(100)), torch.zeros_like(average)).double()
        chi.append(len(some) * (count * (count - 1)).sum() / (100 * batch * (100 * batch - 1)) - 1)
    held = {"x1": y, "potentials": g, "cond": map_condition(_on_cpu, cond), "within_conditions": within_conditions}
    torch.save(held, file)
    return torch.stack(chi)


def _start(y: Tensor) -> tuple[Tensor, float]:
    """Potentials that are right up to the shape of the data, as if their mean were zero, and the spread of the scores.

    The mean of the data [N, D] does not matter to the pairing: moved there, every source has as much farther to go.
    """
    centred = (y - y.mean(0)).square().sum(1)
    variance = y.var(0, correction=0).sum() + centred.var(correction=0) / 4
    return (y.square().sum(1) - centred) / 2, float(variance.clamp_min(1e-12).sqrt())


def _on_cpu(c: Tensor) -> Tensor:
    return c.cpu()
