"""Cells whose number doubles."""

from ..core.spacing import Doubling

__all__ = ["Doubling"]
