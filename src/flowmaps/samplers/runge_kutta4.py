"""The classical Runge-Kutta method.

Source: Kutta, Beitrag zur näherungsweisen Integration totaler Differentialgleichungen, 1901.
"""

from ..core.sampling import RungeKutta4

__all__ = ["RungeKutta4"]
