"""The network is the mean velocity, and remembers."""

from ..core.recurrent import Recurrent

__all__ = ["Recurrent"]
