"""Heun's method.

Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
    arXiv:2206.00364, Algorithm 1.
"""

from ..core.sampling import Heun

__all__ = ["Heun"]
