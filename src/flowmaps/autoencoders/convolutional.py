"""A small variational autoencoder for images."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ..core.random import Random, normal
from ..core.shapes import square_error

__all__ = ["ConvolutionalVAE"]


class ConvolutionalVAE(nn.Module):
    """Images to Gaussians of latents of fewer pixels, and back, by convolutions.

    Its loss is |data - D(z)|^2 + kl KL(N(m, s^2) || N(0, 1)), z ~ N(m, s^2), with m and s from the encoder and D the
    decoder; both terms are means per dimension. `encode` and `decode` speak of (z - shift) / scale, by channel.
    `flowmaps autoencoder RECIPE` trains one and measures its shift and scale.

    Args:
        shape: of one image, (C, H, W).
        channels: of the latents.
        width: channels at full resolution, doubled at each halving.
        halvings: how often the sides are halved.
        kl: weight of the divergence; small, so that the latents are rather kept together than coarse.
        path: file that holds the weights, as `save` writes it; fresh weights if left out.
    Source: Kingma & Welling, Auto-encoding variational Bayes, 2013, arXiv:1312.6114; Rombach, Blattmann, Lorenz, Esser
        & Ommer, High-resolution image synthesis with latent diffusion models, 2021, arXiv:2112.10752, Section 3.1, for
        latents that are images, under a slight divergence.
    Differs: from the latter, square errors without the perceptual and adversarial losses, and no attention.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, shape: Sequence[int], channels: int = 4, width: int = 32, halvings: int = 1, kl: float = 1e-3,
        path: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        if len(shape) != 3 or any(side % 2**halvings for side in shape[1:]):
            raise ValueError(
                f"the images must halve {halvings} times; got shape {tuple(shape)}. Set space.autoencoder.halvings."
            )
        widths = [width * 2**level for level in range(halvings + 1)]
        down: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1), _Residual(width)]
        up: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 3, padding=1), _Residual(widths[-1])]
        for fine, coarse in pairwise(widths):
            down += [nn.Conv2d(fine, coarse, 3, stride=2, padding=1), _Residual(coarse)]
        for coarse, fine in pairwise(widths[::-1]):
            up += [nn.Upsample(scale_factor=2.0), nn.Conv2d(coarse, fine, 3, padding=1), _Residual(fine)]
        self.encoder = nn.Sequential(*down, *_leave(widths[-1], 2 * channels))
        self.decoder = nn.Sequential(*up, *_leave(width, shape[0]))
        self.kl = kl
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        if path:
            self._load(path)

    def encode(self, data: Tensor) -> Normal:
        """Images [B, C, H, W] -> the law of their latents, a Gaussian over [B, channels, h, w]."""
        law = self._law(data)
        return Normal((law.mean - self.shift) / self.scale, law.stddev / self.scale)

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, channels, h, w] -> images [B, C, H, W]."""
        return self.decoder(z * self.scale + self.shift)

    def loss(self, data: Tensor, *, generator: Random = None) -> Tensor:
        """Error and weighted divergence per image [B]."""
        law = self._law(data)
        z = law.mean + law.stddev * normal(law.mean.shape, data, generator).to(data.dtype)
        divergence = kl_divergence(law, Normal(torch.zeros_like(z), 1.0)).flatten(1).mean(1)
        return square_error(self.decoder(z), data) + self.kl * divergence

    def save(self, path: str | Path) -> None:
        """Write the weights, whole or not at all."""
        draft = Path(f"{path}.saving")
        torch.save(self.state_dict(), draft)
        draft.replace(path)

    def _law(self, data: Tensor) -> Normal:
        mean, log_variance = self.encoder(data).chunk(2, 1)
        return Normal(mean, (log_variance.clamp(-30, 20) / 2).exp())

    def _load(self, path: str) -> None:
        try:
            self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError as error:
            raise ValueError(
                f"space.autoencoder.path must be a file; {path!r} is missing. Train it: `flowmaps autoencoder RECIPE`."
            ) from error
        except Exception as error:  # pickle, zipfile and torch each raise their own
            raise ValueError(
                f"{path} must hold weights of this autoencoder; {error}. Give the options that it was trained with."
            ) from error


class _Residual(nn.Module):
    """Twice norm, silu and convolution, added to the input; nothing at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(max(1, channels // 16), channels) for _ in range(2))
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.layers[1].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = layer(F.silu(norm(h)))
        return x + h


def _leave(width: int, channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(max(1, width // 16), width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)]
