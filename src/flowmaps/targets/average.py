"""A running average of the weights."""

from ..core.target import Average

__all__ = ["Average"]
