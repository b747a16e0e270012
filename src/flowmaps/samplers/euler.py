"""Euler's method.

Source: Song, Meng & Ermon, Denoising diffusion implicit models, 2020, arXiv:2010.02502, Eq. (13).
"""

from ..core.sampling import Euler

__all__ = ["Euler"]
