"""Pairs on a grid of halves, quarters, eighths, ..."""

from ..core.times import DyadicPair

__all__ = ["DyadicPair"]
