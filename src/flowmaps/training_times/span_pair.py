"""Pairs drawn as a span and a place for it."""

from dataclasses import dataclass

from torch import Tensor

from ..core.random import Random, uniform
from ..core.times import PairLaw, TimeLaw, Uniform

__all__ = ["SpanPair"]


@dataclass(frozen=True)
class SpanPair(PairLaw):
    """t - s = d from a law of one time, and s uniform on [0, 1 - d].

    Args:
        span: law of the span d.
    Source: Sabour, Fidler & Kreis, Align your flow: scaling continuous-time flow map distillation, 2025,
        arXiv:2506.14603, Algorithm 1, with a logit-normal span.
    """

    span: TimeLaw = Uniform()

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        d = self.span(n, like, generator)
        s = (1 - d) * uniform((n,), like, generator)
        return s, s + d
