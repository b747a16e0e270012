"""The latents of an autoencoder."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.random import Random, normal

__all__ = ["Latent"]


@dataclass(frozen=True, eq=False)
class Latent:
    """The flow lives among the latents z of an autoencoder, shifted and scaled: x = (z - shift) / scale.

    The autoencoder is a module with encode(data [B, *]) -> z [B, C, *] and decode(z) -> data. In place of z it may give
    a Gaussian, with `mean` and `std` or `stddev`, or what holds one as `latent_dist`; in place of data, what holds them
    as `sample`. diffusers' AutoencoderKL does; a run names a function that loads one, "my_module:autoencoder".

    Args:
        autoencoder: the module; it is frozen.
        shift: subtracted from latents, one number or one for each channel; left out, latents_mean or shift_factor of
            the module's `config`, or else 0.
        scale: divides them; with `shift`, brings them to about unit variance. Left out, latents_std / scaling_factor of
            that config, or else 1.
        draw: draw latents that have a law; take their means otherwise.
    Source: Dao, Phung, Nguyen & Tran, Flow matching in latent space, 2023, arXiv:2307.08698, with the released code:
        latents drawn anew each time, of diffusers' AutoencoderKL, over 1 / 0.18215.
    Differs: a shift and a scale for each channel.
    """

    autoencoder: Any
    shift: float | tuple[float, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    draw: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, nn.Module):
            self.autoencoder.requires_grad_(False).eval()
        config = getattr(self.autoencoder, "config", None)
        shift, factor, mean, std = (
            getattr(config, name, None) for name in ("shift_factor", "scaling_factor", "latents_mean", "latents_std")
        )
        told = tuple(s / (factor or 1.0) for s in _listed(std, 1.0))
        object.__setattr__(self, "shift", _listed(self.shift, _listed(mean, shift or 0.0)))
        object.__setattr__(self, "scale", _listed(self.scale, told))
        if min(_listed(self.scale, ())) <= 0:
            raise ValueError(f"scale must be > 0; got {self.scale}.")

    def encode(self, data: Tensor, *, generator: Random = None) -> Tensor:
        """Data [B, *] -> state [B, C, *], a draw where the encoder gives a law."""
        z = self._latents(data, generator)
        shift, scale = self._by_channel(z)
        return (z - shift) / scale

    def decode(self, x: Tensor) -> Tensor:
        """State [B, C, *] -> data [B, *]."""
        shift, scale = self._by_channel(x)
        data = self.autoencoder.decode(x * scale + shift)
        return data if isinstance(data, Tensor) else data.sample

    def constrain(self, x: Tensor) -> Tensor:
        """Every state is allowed."""
        return x

    @torch.no_grad()
    def standardised(self, data: Tensor, *, generator: Random = None, batch: int = 256) -> "Latent":
        """The same, with the shift and scale that bring latents of these data to mean 0 and variance 1 by channel.

        Args:
            data: representative data [N, *].
            generator: of latents that are drawn.
            batch: how many are encoded at a time.
        """
        z = torch.cat([self._latents(part, generator) for part in data.split(batch)]).transpose(0, 1).flatten(1)
        return dataclasses.replace(self, shift=tuple(z.mean(1).tolist()), scale=tuple(z.std(1).tolist()))

    def _latents(self, data: Tensor, generator: Random) -> Tensor:
        given = self.autoencoder.encode(data)
        law = getattr(given, "latent_dist", given)
        if isinstance(law, Tensor):
            return law.to(data.dtype)
        z = law.mean
        if self.draw:
            std = getattr(law, "stddev", None)
            z = z + (law.std if std is None else std) * normal(z.shape, data, generator)
        return z.to(data.dtype)

    def _by_channel(self, z: Tensor) -> list[Tensor]:
        both = [torch.tensor(n, dtype=z.dtype, device=z.device) for n in (self.shift, self.scale)]
        if any(len(n) not in (1, z.shape[1]) for n in both):
            raise ValueError(
                f"shift and scale must be one number, or one for each of {z.shape[1]} channels; got {self.shift} and "
                f"{self.scale}."
            )
        return [n.reshape(-1, *[1] * (z.ndim - 2)) for n in both]

    def __eq__(self, other: object) -> bool:
        """Whether the other has the same weights and options: two runs may each have read the autoencoder."""
        if not isinstance(other, Latent):
            return NotImplemented
        mine, others = self.autoencoder.state_dict(), other.autoencoder.state_dict()
        return (
            (self.shift, self.scale, self.draw) == (other.shift, other.scale, other.draw)
            and mine.keys() == others.keys()
            and all(torch.equal(weight, others[name]) for name, weight in mine.items())
        )

    def __hash__(self) -> int:
        return hash((self.shift, self.scale, self.draw))


def _listed(value: float | Sequence[float] | None, otherwise: float | Sequence[float]) -> tuple[float, ...]:
    """One number or several as a tuple; `otherwise` for None."""
    value = otherwise if value is None else value
    return (float(value),) if isinstance(value, (int, float)) else tuple(value)
