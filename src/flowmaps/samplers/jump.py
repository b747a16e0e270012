"""The map itself.

Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework for
    consistency models, 2024, arXiv:2406.07507, the definition of the flow map.
"""

from ..core.sampling import Jump

__all__ = ["Jump"]
