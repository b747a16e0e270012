"""The three identities that define a flow map. Losses square them, tests assert them, evaluation reports them."""

from typing import Any

from torch import Tensor

from .calculus import JVP, Exact, d_ds, d_dt
from .flow_map import FlowMap
from .types import Velocity


def lagrangian(
    model: FlowMap, velocity: Velocity, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, jvp: JVP = Exact()
) -> Tensor:
    """d_t X_{s,t}(x) - b_t(X_{s,t}(x)) [B, *], zero for the true map. Cost: 1 derivative, 1 velocity."""
    y, dy = d_dt(model, x, s, t, cond, jvp)
    return dy - velocity(y, t, cond)


def eulerian(
    model: FlowMap, velocity: Velocity, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, jvp: JVP = Exact()
) -> Tensor:
    """d_s X_{s,t}(x) + grad X_{s,t}(x) b_s(x) [B, *], zero for the true map. Cost: 1 derivative, 1 velocity."""
    return d_ds(model, x, s, t, velocity(x, s, cond), cond, jvp)[1]


def semigroup(model: FlowMap, x: Tensor, s: Tensor, u: Tensor, t: Tensor, cond: Any = None) -> Tensor:
    """X_{u,t}(X_{s,u}(x)) - X_{s,t}(x) [B, *], zero for the true map. Cost: 3 evaluations."""
    return model(model(x, s, u, cond), u, t, cond) - model(x, s, t, cond)
