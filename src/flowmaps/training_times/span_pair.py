"""Pairs drawn as a span and a place for it."""

from ..core.times import SpanPair

__all__ = ["SpanPair"]
