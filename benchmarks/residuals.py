"""The three identities at the oracles in float64: what is left is rounding and the error of the solve.

python benchmarks/residuals.py
"""

import math
from pathlib import Path

import torch

from flowmaps.bench.harness import write
from flowmaps.core.interpolant import Linear
from flowmaps.core.random import fold_in
from flowmaps.couplings.independent import Independent
from flowmaps.metrics.identity_residuals import identity_residuals
from flowmaps.oracles.gaussian import Gaussian
from flowmaps.oracles.mixture import Mixture

ABOUT = (
    "# Identities at the oracles\n\nResiduals of the three identities in float64, root mean square per dimension, the "
    "worst of five ranges of spans. Gaussians are exact; the map of a mixture is solved, and its error remains."
)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    angle = torch.arange(8) * math.pi / 4
    g = fold_in(0)
    flows = {
        "Gaussian, 3-D": Gaussian(torch.randn(3, generator=g), torch.rand(3, generator=g) + 0.3),
        "Gaussian, images": Gaussian(torch.randn(2, 4, 4, generator=g), torch.rand(2, 4, 4, generator=g) + 0.3),
        "eight Gaussians, 2-D": Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.15),
        "five Gaussians, 64-D": Mixture(2 * torch.randn(5, 64, generator=g), 0.5),
    }
    rows = []
    for name, flow in flows.items():
        pair = Independent()(flow.sample(16, fold_in(1)).double(), generator=fold_in(2))
        found = identity_residuals(flow, Linear(), pair, fold_in(3))
        rows.append({"flow": name} | {k: max(row[k] for row in found) for k in ("lagrangian", "eulerian", "semigroup")})
    table = [{k: v if isinstance(v, str) else f"{v:.1e}" for k, v in row.items()} for row in rows]
    write(Path(__file__).parent / "residuals", "results", rows, table, ABOUT)


if __name__ == "__main__":
    main()
