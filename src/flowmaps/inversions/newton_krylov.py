"""Inversion by Newton's method, with derivatives along directions only."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact
from ..core.flow_map import FlowMap

__all__ = ["NewtonKrylov"]


@dataclass(frozen=True)
class NewtonKrylov:
    """Newton's method for X_{s,t}(x) = y, with GMRES for each linear system, sample by sample.

    Solves grad X d = y - X_{s,t}(x) for the step d in a Krylov space, and halves a step that does not reduce the error.

    Args:
        iterations: most Newton steps.
        krylov: dimensions of the Krylov space; the dimension of a state makes a step exact.
        tolerance: largest error of a coordinate of X_{s,t}(x) at which it stops.
        jvp: how the derivative is taken.
    Cost: per Newton step `krylov` derivatives and at least 1 evaluation.
    Source: Knoll & Keyes, Jacobian-free Newton-Krylov methods: a survey of approaches and applications, 2004, Section
        2; Saad & Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems,
        1986.
    """

    iterations: int = 20
    krylov: int = 16
    tolerance: float = 1e-6
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.krylov < 1 or self.tolerance <= 0:
            raise ValueError(
                "iterations and krylov must be at least 1 and tolerance > 0; got "
                f"{self.iterations}, {self.krylov} and {self.tolerance}."
            )

    @torch.no_grad()
    def __call__(self, model: FlowMap, y: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The state at time s [B, *].

        Raises:
            ValueError: if the error is above the tolerance after the last step.
        """
        x = model(y, t, s, cond)  # exact if the map was trained backwards too
        error = y - model(x, s, t, cond)
        for _ in range(self.iterations):
            if float(error.abs().max()) <= self.tolerance:
                return x
            d = self._solve(lambda d, x=x: self.jvp(lambda x: model(x, s, t, cond), (x,), (d,))[1], error)
            size = torch.ones(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
            for _ in range(8):
                trial = y - model(x + size * d, s, t, cond)
                worse = trial.flatten(1).norm(dim=1) > error.flatten(1).norm(dim=1)
                if not worse.any():
                    break
                size = torch.where(worse.reshape(size.shape), size / 2, size)
            x = x + size * d
            error = y - model(x, s, t, cond)
        if float(error.abs().max()) <= self.tolerance:
            return x
        raise ValueError(
            f"the inverse must reach an error of {self.tolerance:g}; after {self.iterations} steps it is "
            f"{float(error.abs().max()):.2g}. Use shorter jumps, more of `krylov`, or float64."
        )

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
        weights = torch.linalg.pinv(h, rtol=1e-12) @ goal  # breakdown leaves zero columns
        return (torch.stack(basis[:dims], 2) @ weights).squeeze(2).reshape(shape)
