"""Walls."""

import pytest
import torch
from truth import stream

from flowmaps.core.reflect import reflect


def one_wall_at_a_time(x, low, high):
    """The definition: thrown back by one wall after the other until inside."""
    for _ in range(1000):
        x = torch.where(x > high, 2 * high - x, x)
        x = torch.where(x < low, 2 * low - x, x)
    return x


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.3, 0.7)])
def test_reflection_is_one_wall_after_the_other(shape, low, high):
    x = 20 * torch.randn(50, *shape, generator=stream())
    y = reflect(x, low, high)
    assert ((y >= low) & (y <= high)).all()
    assert (y - one_wall_at_a_time(x, low, high)).abs().max() < 1e-11  # hundreds of roundings there, one here
    inside = low + (high - low) * torch.rand(50, *shape, generator=stream(1))
    assert torch.equal(reflect(inside, low, high), inside)


def test_walls_per_dimension_slopes_and_types():
    low, high = torch.tensor([0.0, -2.0]), torch.tensor([1.0, 3.0])
    x = torch.tensor([[1.25, 3.5], [-0.25, -2.5], [2.25, 8.5]], requires_grad=True)
    y = reflect(x, low, high)
    assert torch.allclose(y, torch.tensor([[0.75, 2.5], [0.25, -1.5], [0.25, -1.5]]))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(slope, torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]]))
    assert reflect(torch.full((2, 2), 1.5, dtype=torch.float32)).dtype == torch.float32
    with pytest.raises(ValueError, match="high must be above low; got 0.0 and 1.0"):
        reflect(x, 1.0, 0.0)
