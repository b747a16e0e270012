"""Between the square and the length."""

from ..core.regression import PseudoHuber

__all__ = ["PseudoHuber"]
