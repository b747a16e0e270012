"""Short steps count more."""

from ..core.weighting import NoiseGap

__all__ = ["NoiseGap"]
