"""Mixing of the times of a trajectory."""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu


class TemporalConvolution(nn.Module):
    """A convolution over the times of a trajectory, by the lowest Fourier modes, added to the input.

    x + leaky_relu(irfft(R rfft(x))) over the second dimension, R a complex matrix for each mode kept and 0 for others.

    Args:
        width: channels.
        modes: how many modes are kept, from the constant on.
    Source: Zheng, Nie, Vahdat, Azizzadenesheli & Anandkumar, Fast sampling of diffusion models via operator learning,
        2022, arXiv:2211.13449, the temporal convolution layer.
    """

    def __init__(self, width: int, modes: int = 2) -> None:
        super().__init__()
        # Real and imaginary parts apart: checkpoints hold no complex numbers. Positive and small, as published.
        self.kernel = nn.Parameter(torch.rand(modes, width, width, 2) / width**2)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone: [B, M, width] -> [B, M, width]."""
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = torch.fft.rfft(full, dim=1)
        kept = min(len(self.kernel), spectrum.shape[1])
        kernel = torch.view_as_complex(self.kernel.to(full.dtype)[:kept])
        mixed = torch.einsum("bkc,kcd->bkd", spectrum[:, :kept], kernel)
        rest = torch.zeros_like(spectrum[:, kept:])
        return torch.fft.irfft(torch.cat([mixed, rest], 1), x.shape[1], 1).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, width] -> [B, M, width]."""
        return x + leaky_relu(self.convolve(x))
