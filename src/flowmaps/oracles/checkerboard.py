"""Uniform data on the dark squares of a board: velocity in closed form, the map by a float64 solve."""

import math
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import EulerMap, FlowMap
from ..core.random import Random, uniform
from ..core.sampling import sample
from ..core.shapes import expand_time
from ._reference import Extrapolated

__all__ = ["Checkerboard"]

# Nodes and weights of the 8-point Gauss-Legendre rule on [-1, 1] (Abramowitz & Stegun, Table 25.4).
_NODES = (0.1834346424956498, 0.5255324099163290, 0.7966664774136267, 0.9602898564975363)
_SHARES = (0.3626837833783620, 0.3137066458778873, 0.2223810344533745, 0.1012285362903763)


class Checkerboard(FlowMap):
    """The flow on the linear path between N(0, I) and the uniform law on half the squares of [-1, 1]^2.

    b_t(x) = (E[x1 | x] - x) / (1 - t); given x, the datum is a Gaussian of mean x / t and standard deviation
    (1 - t) / t, cut to the squares, so that its mean is a sum of error functions. The map solves dx/dt = b_t(x) in
    float64, in steps that shrink geometrically towards the data, and ends with an Euler step from 1 - t = 1e-4.

    Args:
        cells: squares along one side, even.
        steps: steps of order 8 that the map takes; `map_error` measures what is left.
    Cost: no network; the map takes 21 velocities a step.
    """

    def __init__(self, cells: int = 4, steps: int = 48) -> None:
        super().__init__()
        if cells < 2 or cells % 2:
            raise ValueError(f"cells must be even and at least 2; got {cells}.")
        self.cells, self.steps = cells, steps
        edges = torch.linspace(-1, 1, cells + 1, dtype=torch.float64)
        self.register_buffer("edges", edges)
        i, j = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
        self.register_buffer("dark", (i + j) % 2 == 0)

    def _intervals(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log mass and mean [B, 2, cells] of each coordinate of the cut Gaussian, on each interval between edges."""
        low, high = self.edges[:-1], self.edges[1:]
        x, t = x[:, :, None], t[:, None, None]
        # In units of the Gaussian, from its mean: z = (x1 t - x) / (1 - t), mirrored so that z is mostly positive.
        a, b = (low * t - x) / (1 - t), (high * t - x) / (1 - t)
        flip = a + b < 0
        a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
        near, tail = b - a < 0.5, a > 0
        # Narrow intervals by quadrature, without division by their width.
        nodes = torch.tensor([-z for z in _NODES[::-1]] + list(_NODES), dtype=x.dtype, device=x.device)
        share = torch.tensor(list(_SHARES[::-1]) + list(_SHARES), dtype=x.dtype, device=x.device)
        half, middle = (high - low) / 2, (high + low) / 2
        place = middle[:, None] + half[:, None] * nodes  # [cells, 8]
        z = (place * t[..., None] - x[..., None]) / (1 - t[..., None])
        start = torch.where(near, a, 0.0)
        kernel = share * torch.where(near[..., None], (start[..., None] ** 2 - z**2) / 2, 0.0).exp()
        near_log = -(start**2) / 2 + (kernel.sum(-1) * (b - a).clamp_min(1e-300) / 2).log()
        near_mean = (kernel * place).sum(-1) / kernel.sum(-1)
        # Tails by Mills' ratio, the rest by the distribution function.
        ta, tb = torch.where(tail, a, 1.0), torch.where(tail, b, 2.0)
        drop = (-(tb - ta) * (tb + ta) / 2).exp()
        mills = math.sqrt(math.pi / 2) * (
            torch.special.erfcx(ta / math.sqrt(2)) - drop * torch.special.erfcx(tb / math.sqrt(2))
        )
        mass = torch.special.ndtr(b) - torch.special.ndtr(a)
        mass = torch.where(tail | near, 1.0, mass)
        bell = ((-(a**2) / 2).exp() - (-(b**2) / 2).exp()) / math.sqrt(2 * math.pi)
        log = torch.where(tail, -(ta**2) / 2 + mills.clamp_min(1e-300).log(), mass.log() + math.log(2 * math.pi) / 2)
        mean = torch.where(tail, (1 - drop) / mills.clamp_min(1e-300), bell / mass)
        mean = (x + (1 - t) * torch.where(flip, -mean, mean)) / torch.where(near, 1.0, t)
        return torch.where(near, near_log, log), torch.where(near, near_mean, mean)

    def data_prediction(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x_t = x] [B, 2], float64."""
        log, mean = self._intervals(x.double(), t.double().clamp(0, 1 - 1e-9))
        joint = (log[:, 0, :, None] + log[:, 1, None, :]).masked_fill(~self.dark, -math.inf)
        joint = joint.flatten(1).softmax(1).reshape(joint.shape)
        return torch.stack([(joint.sum(2) * mean[:, 0]).sum(1), (joint.sum(1) * mean[:, 1]).sum(1)], 1)

    def _velocity(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        rest = expand_time(1 - t.double().clamp(0, 1 - 1e-9), x)
        return ((self.data_prediction(x, t) - x) / rest).to(x.dtype)

    def _solve(self, x: Tensor, s: Tensor, t: Tensor, steps: int) -> Tensor:
        x, s, t = x.double(), s.double(), t.double()
        start, end = (1 - s).clamp_min(1e-4), (1 - t).clamp_min(1e-4)
        share = torch.linspace(0, 1, steps + 1, dtype=x.dtype, device=x.device)[:, None]
        grid = torch.cat([s[None], 1 - start ** (1 - share) * end**share, t[None]])
        return sample(EulerMap(self._velocity), x, grid, sampler=Extrapolated())

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if s is t:  # the velocity
            return self._velocity(x, t)
        near = (t - s).abs() < 1e-7
        span = expand_time(torch.where(near, 1.0, t - s), x)
        jump = (self._solve(x, s, t, self.steps) - x) / span
        return torch.where(expand_time(near, x), self._velocity(x, s), jump.to(x.dtype))

    def map_error(self, x: Tensor, s: Tensor, t: Tensor) -> float:
        """Largest change of X_{s,t}(x) when the number of steps is doubled: the error of the solve."""
        return float((self._solve(x, s, t, self.steps) - self._solve(x, s, t, 2 * self.steps)).abs().max())

    def sample(self, n: int, generator: Random = None) -> Tensor:
        """N data [n, 2], float32."""
        u = uniform((n, 3), self.edges.float(), generator)
        square = self.dark.nonzero()[(u[:, 0] * int(self.dark.sum())).long()]
        return ((square + u[:, 1:]) * (2 / self.cells) - 1).float()

    def masses(self, bins: int) -> Tensor:
        """The exact probabilities of bins x bins equal cells of [-1, 1]^2, [bins, bins], float64."""
        cells = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
        top = torch.minimum(cells[1:, None], self.edges[1:])
        bottom = torch.maximum(cells[:-1, None], self.edges[:-1])
        covered = (top - bottom).clamp_min(0)  # of each interval by each side of the board [bins, cells]
        return covered @ self.dark.double() @ covered.T / 2  # half of an area of four is dark

    edges: Tensor
    dark: Tensor
