"""Operations that keep the magnitude of what passes: outputs have unit variance if inputs have.

Source of all: Karras, Aittala, Lehtinen, Hellsten, Aila & Laine, Analyzing and improving the training dynamics of
diffusion models, 2023, arXiv:2312.02696, Appendix B, by the equations named below.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.constraint import Constrained


def normalised(x: Tensor, dims: int | Sequence[int], eps: float = 1e-4) -> Tensor:
    """X over its root mean square along some dimensions; along the channels that is the pixel norm, Eq. (30)."""
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(full, dim=dims, keepdim=True)
    return x / (eps + length * math.sqrt(length.numel() / x.numel())).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU over the root mean square that it has for standard normal inputs, Eq. (81)."""
    return F.silu(x) / 0.596


def mixed(a: Tensor, b: Tensor, share: float = 0.5) -> Tensor:
    """The weighted sum of two independent signals, with a share of b, Eq. (88)."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def beside(a: Tensor, b: Tensor, share: float = 0.5) -> Tensor:
    """Two signals as channels of one, with weights that let b contribute its share however many it has, Eq. (103)."""
    n, m = a.shape[1], b.shape[1]
    scale = math.sqrt((n + m) / ((1 - share) ** 2 + share**2))
    return torch.cat([scale * (1 - share) / math.sqrt(n) * a, scale * share / math.sqrt(m) * b], 1)


class Waves(nn.Module):
    """Random waves of a time, of unit variance: [B] -> [B, count], Eq. (75).

    Args:
        count: of the waves.
        bandwidth: standard deviation of their frequencies, cycles per unit of time.
    """

    def __init__(self, count: int, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("rate", 2 * math.pi * bandwidth * torch.randn(count))
        self.register_buffer("phase", 2 * math.pi * torch.rand(count))

    def forward(self, t: Tensor) -> Tensor:
        """[B] -> [B, count]."""
        return (t[:, None] * self.rate.to(t.dtype) + self.phase.to(t.dtype)).cos() * math.sqrt(2)

    rate: Tensor
    phase: Tensor


class Weighted(Constrained):
    """A linear layer or convolution without bias, whose weights have unit norm for every output, Eq. (47).

    They are normalised where they are used, so that gradients are perpendicular to them, and after each step of the
    optimizer, Eq. (66), so that these do not lengthen them, which would slow training down unseen.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the convolution's kernel; 0 for a linear layer.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * 2 * bool(kernel)))
        self.put_back()

    @torch.no_grad()
    def put_back(self) -> None:
        self.weight.copy_(normalised(self.weight, [*range(1, self.weight.ndim)]))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """[B, inputs] -> [B, outputs], or images."""
        w = normalised(self.weight, [*range(1, self.weight.ndim)]) * (gain / math.sqrt(self.weight[0].numel()))
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class Times(nn.Module):
    """Departure time and span, embedded alike and mixed: [B], [B] -> [B, width]."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.departure_waves, self.span_waves = Waves(count), Waves(count)
        self.departure, self.span = Weighted(count, width), Weighted(count, width)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """[B], [B] -> [B, width]."""
        return mixed(self.departure(self.departure_waves(s)), self.span(self.span_waves(t - s)))


class Block(nn.Module):
    """Halve or double if asked to, a residual branch that the condition scales, then attention if asked to."""

    def __init__(
        self, channels: int, out: int, told: int, dropout: float, *, decodes: bool, attends: int = 0,
        resample: str = "", joins: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.decodes, self.attends, self.resample, self.joins = decodes, attends, resample, joins
        self.skip = Weighted(channels, out, 1) if channels != out else nn.Identity()
        self.first, self.second = Weighted(channels if decodes else out, out, 3), Weighted(out, out, 3)
        self.told, self.gain = Weighted(told, out), nn.Parameter(torch.zeros([]))
        self.dropout = nn.Dropout(dropout)
        if attends:
            self.qkv, self.project = Weighted(out, 3 * out, 1), Weighted(out, out, 1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if not self.decodes:
            x = normalised(self.skip(x), 1)
        y = self.first(silu(x)) * (self.told(cond, self.gain) + 1)[:, :, None, None]
        y = self.second(self.dropout(silu(y)))
        x = mixed(self.skip(x) if self.decodes else x, y, 0.3)
        if self.attends:
            x = mixed(x, self._attend(x), 0.3)
        return x.clamp(-256, 256)

    def _attend(self, x: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values have unit magnitude at every place."""
        qkv = self.qkv(x).reshape(len(x), self.attends, -1, 3, x.shape[2] * x.shape[3])
        q, k, v = normalised(qkv, 2).transpose(2, 4).unbind(3)
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))
