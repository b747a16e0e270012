"""One time, whose ratio of noise to data has a heavy tail."""

from ..core.noise import StudentNoise

__all__ = ["StudentNoise"]
