"""One time, whose ratio of noise to data is log-normal."""

from ..core.noise import LogNormalNoise

__all__ = ["LogNormalNoise"]
