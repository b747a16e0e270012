"""Inversion by Newton's method, with derivatives along directions only."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact
from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.inversion import FAILED, allowed, inverted, largest
from ..core.types import chosen

__all__ = ["NewtonKrylov"]


@dataclass(frozen=True)
class NewtonKrylov:
    """Newton's method for X_{s,t}(x) = y, with GMRES for each linear system, sample by sample.

    Solves grad X d = y - X_{s,t}(x) for the step d in a Krylov space, and halves a step that does not reduce the error.

    Args:
        iterations: most Newton steps.
        krylov: dimensions of the Krylov space; the dimension of a state makes a step exact.
        tolerance: error of a coordinate of X_{s,t}(x) at which a sample is done, over 1 + the largest coordinate of y;
            not below 16 roundings of y's type.
        failed: "raise", or "nan" to return samples that do not get there as not a number.
        jvp: how the derivative is taken.
    Cost: per Newton step `krylov` derivatives and at least 1 evaluation, of the samples that are not done.
    Source: Knoll & Keyes, Jacobian-free Newton-Krylov methods: a survey of approaches and applications, 2004, Section
        2; Saad & Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems,
        1986.
    """

    iterations: int = 20
    krylov: int = 16
    tolerance: float = 1e-6
    failed: str = "raise"
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_choice("failed", self.failed, FAILED)
        if self.iterations < 1 or self.krylov < 1 or self.tolerance <= 0:
            raise ValueError(
                "iterations and krylov must be at least 1 and tolerance > 0; got "
                f"{self.iterations}, {self.krylov} and {self.tolerance}."
            )

    @torch.no_grad()
    def __call__(self, model: FlowMap, y: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The state at time s [B, *].

        Raises:
            NotInverted: a ValueError, if some samples' errors are above the tolerance after the last step.
        """
        x, limit = model(y, t, s, cond), allowed(y, self.tolerance)  # exact if the map was trained backwards too
        error = y - model(x, s, t, cond)
        for _ in range(self.iterations):
            size = largest(error)
            left = (~(size <= limit) & size.isfinite()).nonzero()[:, 0]  # what is no number will not become one
            if len(left) == 0:
                break
            at = x[left], y[left], error[left], s[left], t[left], chosen(cond, left)
            x[left], error[left] = self._step(model, *at)
        fix = f"Use shorter jumps, more of `krylov`, more than {self.iterations} iterations, or float64."
        return inverted(x, largest(error), limit, self.failed, fix)

    def _step(
        self, model: FlowMap, x: Tensor, y: Tensor, error: Tensor, s: Tensor, t: Tensor, cond: Any
    ) -> tuple[Tensor, Tensor]:
        """The state after one Newton step, and its error: [B, *] each."""
        d = self._solve(lambda d: self.jvp(lambda x: model(x, s, t, cond), (x,), (d,))[1], error)
        size = torch.ones(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        trial = y - model(x + d, s, t, cond)
        for _ in range(8):
            worse = ~(trial.flatten(1).norm(dim=1) <= error.flatten(1).norm(dim=1))
            if not worse.any():
                break
            size = torch.where(worse.reshape(size.shape), size / 2, size)
            trial = y - model(x + size * d, s, t, cond)
        return x + size * d, trial

    def _solve(self, along: Any, b: Tensor) -> Tensor:
        """GMRES from zero for every sample at once: the d in the Krylov space with least |grad X d - b|."""
        shape, flat = b.shape, b.flatten(1)
        dims = min(self.krylov, flat.shape[1])
        length = flat.norm(dim=1, keepdim=True)
        basis = [flat / length.clamp_min(1e-30)]
        h = flat.new_zeros(len(flat), dims + 1, dims)
        for j in range(dims):
            w = along(basis[j].reshape(shape)).flatten(1)
            for i, q in enumerate(basis):  # modified Gram-Schmidt
                h[:, i, j] = (q * w).sum(1)
                w = w - h[:, i, j, None] * q
            h[:, j + 1, j] = w.norm(dim=1)
            basis.append(w / h[:, j + 1, j, None].clamp_min(1e-30))
        goal = flat.new_zeros(len(flat), dims + 1, 1)
        goal[:, 0] = length
        finite = h.isfinite().flatten(1).all(1)[:, None, None]  # else the step is no number, of that sample alone
        weights = torch.linalg.pinv(torch.where(finite, h, 0), rtol=1e-12) @ goal  # breakdown leaves zero columns
        return (torch.stack(basis[:dims], 2) @ weights).squeeze(2).reshape(shape)
