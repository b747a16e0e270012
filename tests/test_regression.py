"""Distances and stabilisers, found by their files: exact values, no mixing of samples, gradients at a perfect fit."""

import pytest
import torch
from truth import SHAPES, stream

from flowmaps.build import build, names


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*names("distances"), {"name": "pseudo_huber", "each": True}], ids=str)
def test_distances(name, shape):
    """Zero, with a zero gradient, exactly at the target; positive elsewhere; sample by sample."""
    distance, (a, b) = build("distances", name), torch.randn(2, 5, *shape, generator=stream())
    error = distance(a, b)
    assert error.shape == (5,)
    assert (error > 0).all()
    assert torch.equal(distance(a[2:4], b[2:4]), error[2:4])
    fit = b.clone().requires_grad_()
    value = distance(fit, b)
    assert value.abs().max() < 1e-9
    (slope,) = torch.autograd.grad(value.sum(), fit)
    assert slope.abs().max() < 1e-6


def test_values_of_distances():
    a, b = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    assert build("distances", "square")(a, b) == 12.5
    c = 0.5 * 2**0.5
    huber = build("distances", {"name": "pseudo_huber", "scale": 0.5})
    assert torch.allclose(huber(a, b), torch.tensor((25 + c**2) ** 0.5 - c))
    each = build("distances", {"name": "pseudo_huber", "scale": 0.5, "each": True})
    assert torch.allclose(each(a, b), torch.tensor([((9.25**0.5 - 0.5) + (16.25**0.5 - 0.5)) / 2]))
    both = build("distances", {"name": "square_and_cosine", "weight": 2.0})
    assert torch.allclose(both(a, torch.tensor([[-4.0, 3.0]])), torch.tensor([25.0 + 2])), "a right angle"
    assert torch.allclose(both(a, -a), torch.tensor([50.0 + 4])), "opposite"
    with pytest.raises(ValueError, match="scale must be > 0"):
        build("distances", {"name": "pseudo_huber", "scale": 0.0})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", names("stabilisers"))
def test_stabilisers_keep_zero_and_direction(name, shape):
    stabilise, g = build("stabilisers", name), torch.randn(5, *shape, generator=stream())
    assert torch.equal(stabilise(torch.zeros_like(g)), torch.zeros_like(g))
    assert ((stabilise(g) * g) >= 0).all()
    assert torch.equal(stabilise(g[2:4]), stabilise(g)[2:4])


def test_values_of_stabilisers():
    g = torch.tensor([[3.0, -4.0], [0.3, 0.4]])
    assert torch.equal(build("stabilisers", "unchanged")(g), g)
    assert torch.allclose(
        build("stabilisers", {"name": "normalised", "offset": 0.5})(g), g / torch.tensor([[5.5], [1.0]])
    )
    mean = build("stabilisers", {"name": "normalised", "offset": 0.5, "mean": True})(g)
    assert torch.allclose(mean, g / torch.tensor([[5 / 2**0.5 + 0.5], [0.5 / 2**0.5 + 0.5]]))
    assert torch.equal(
        build("stabilisers", {"name": "clamped", "limit": 2.0})(g), torch.tensor([[2.0, -2.0], [0.3, 0.4]])
    )
    with pytest.raises(ValueError, match="limit must be > 0"):
        build("stabilisers", {"name": "clamped", "limit": 0.0})
