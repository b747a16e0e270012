"""The classical Runge-Kutta method."""

from ..core.sampling import RungeKutta4

__all__ = ["RungeKutta4"]
