"""How well a map keeps the three identities, by the length of the jump."""

import torch
from torch import Tensor

from ..core import identities
from ..core.calculus import JVP, Exact
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.random import Random, uniform
from ..core.types import Pair

__all__ = ["identity_residuals"]

SPANS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


@torch.no_grad()
def identity_residuals(
    model: FlowMap, interpolant: Interpolant, pair: Pair, generator: Random = None, jvp: JVP = Exact()
) -> list[dict[str, float]]:
    """Root mean square of the Lagrangian, Eulerian and semigroup residuals, against the map's own velocity.

    Zero for the map of its own diagonal; whether the diagonal is right is another question. No reference is needed.

    Args:
        model: the flow map.
        interpolant: the path that gives the departure points.
        pair: source and data [B, *]; all of them are used for each range of spans.
        generator: draws the times.
        jvp: how derivatives are taken.
    Returns:
        One row per range of spans t - s: its ends, and the residuals per dimension. The Lagrangian and the Eulerian
        residual are velocities, the semigroup's a distance.
    Cost: per row 2 derivatives and 5 evaluations.
    """
    rows = []
    for low, high in SPANS:
        u = uniform((len(pair), 3), pair.x0, generator)
        span = low + (high - low) * u[:, 0]
        s = (1 - span) * u[:, 1]
        t = s + span
        x, _ = interpolant.draw(pair, s, generator)
        c = pair.cond
        residuals = {
            "lagrangian": identities.lagrangian(model, model.velocity, x, s, t, c, jvp),
            "eulerian": identities.eulerian(model, model.velocity, x, s, t, c, jvp),
            "semigroup": identities.semigroup(model, x, s, s + u[:, 2] * span, t, c),
        }
        rows.append({"from": low, "to": high} | {k: _root_mean_square(v) for k, v in residuals.items()})
    return rows


def _root_mean_square(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
