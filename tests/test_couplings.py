"""Every coupling keeps both marginals, labels and shapes."""

import pytest
import torch
from truth import SHAPES, stream

from flowmaps.build import build, names


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [n for n in names("couplings") if n != "reflow"])  # whose data are a teacher's
def test_marginals_and_labels(name, shape):
    coupling, g = build("couplings", name), stream()
    x1 = torch.rand(20_000, *shape, generator=g) - 2
    labels = torch.arange(20_000)
    pair = coupling(x1, labels, generator=g)
    assert pair.x0.shape == pair.x1.shape == x1.shape
    assert torch.equal(pair.x1.sum(0).round(decimals=6), x1.sum(0).round(decimals=6)), "every datum is used once"
    assert torch.equal(pair.x1[pair.cond.argsort()], x1), "labels stay with their data"
    # The source is standard normal: moments within five standard errors (0.7 %, 1 %, 3.5 %), false alarm 1e-5.
    x0 = pair.x0.flatten(1)
    assert x0.mean(0).abs().max() < 0.036
    assert (x0.var(0) - 1).abs().max() < 0.05
    assert ((x0**4).mean(0) - 3).abs().max() < 0.36
    assert coupling.source((5, *shape), x1, generator=g).shape == (5, *shape)


def test_independent_scale():
    coupling = build("couplings", {"name": "independent", "scale": 3.0})
    x0 = coupling(torch.zeros(50_000, 1), generator=stream()).x0
    assert abs(x0.std() - 3) < 0.05  # five standard errors
    with pytest.raises(ValueError, match="scale must be > 0"):
        build("couplings", {"name": "independent", "scale": 0.0})
