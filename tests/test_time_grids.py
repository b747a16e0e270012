"""Every grid of times, found by its file: valid, and the one that is searched for is the best."""

import itertools

import pytest
import torch
from truth import SHAPES, eight_gaussians, gaussian, stream

from flowmaps.build import build, names
from flowmaps.core.flow_map import EulerMap, FlowMap
from flowmaps.core.sampling import sample
from flowmaps.time_grids.shortest_path import ShortestPath, shortest_path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", names("time_grids"))
def test_grids_increase_from_zero_to_one(name, steps, shape):
    x0 = torch.randn(8, *shape, generator=stream())
    times = build("time_grids", name)(steps, gaussian(shape), x0)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == 0
    assert times[-1] == 1
    assert (times.diff() > 0).all()


def test_shortest_path_is_the_shortest():
    cost = torch.rand(7, 7, generator=stream()).triu(1).masked_fill(torch.ones(7, 7).tril().bool(), torch.inf)
    for steps in range(1, 7):
        every = [(0, *inner, 6) for inner in itertools.combinations(range(1, 6), steps - 1)]
        best = min(every, key=lambda path: sum(cost[i, j] for i, j in itertools.pairwise(path)))
        assert tuple(shortest_path(cost, steps).tolist()) == best


def test_jumps_of_the_true_map_cost_nothing():
    """Whatever the grid, they end at the same point."""
    grid, flow, fine = ShortestPath(), gaussian(), torch.linspace(0, 1, 5)
    x0 = torch.randn(16, 3, generator=stream())
    states = [flow(x0, torch.zeros(16), fine[i].expand(16)) for i in range(5)]
    cost = grid.costs(fine, states, flow)
    assert cost.isinf().sum() == 15, "five nodes: no edge to itself or back"
    assert cost[~cost.isinf()].max() < 1e-12  # rounding


class Uneven(FlowMap):
    """The true map but for jumps that depart before t = 1/8, which err in proportion to the square of their span."""

    def __init__(self):
        super().__init__()
        self.true = gaussian()

    def mean_velocity(self, x, s, t, cond=None):
        wrong = torch.where(s < 0.125, t - s, 0.0)
        return self.true.mean_velocity(x, s, t) + wrong[:, None]


def test_steps_go_where_they_are_needed():
    """Three jumps up to 1/8, a true one from there; equal steps make one wrong jump of a quarter."""
    chosen, fresh = torch.randn(2, 64, 3, generator=stream())
    times = ShortestPath(nodes=24)(4, Uneven(), chosen)
    assert torch.allclose(times[:4], torch.tensor([0.0, 1 / 24, 1 / 12, 1 / 8], dtype=torch.float64))
    exact = gaussian()(fresh, torch.zeros(64), torch.ones(64))
    error = [(sample(Uneven(), fresh, grid) - exact).norm() for grid in (times, torch.linspace(0, 1, 5))]
    assert error[0] < 0.15 * error[1]  # three errors of 1/24 squared against one of 1/4 squared: 1/12


def test_never_worse_than_equal_steps_on_its_batch():
    flow, x = EulerMap(eight_gaussians()), torch.randn(128, 2, generator=stream())
    end = sample(flow, x, torch.linspace(0, 1, 33))
    for steps in (2, 4):
        grids = ShortestPath(nodes=16)(steps, flow, x), torch.linspace(0, 1, steps + 1)
        error = [(sample(flow, x, grid) - end).norm() for grid in grids]
        assert error[0] <= error[1]


def test_more_steps_than_nodes():
    with pytest.raises(ValueError, match="steps must lie between 1 and the 4 intervals; got 5"):
        ShortestPath(nodes=4)(5, gaussian(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="nodes must be at least 2"):
        ShortestPath(nodes=1)


def test_quantiles_of_a_shifted_law_are_the_shifted_grid():
    """Stable Diffusion 3: noise levels tau = 1 - k / K, shifted to 3 tau / (1 + 2 tau)."""
    grid = build("time_grids", {"name": "quantiles", "times": {"name": "shifted", "shift": 3.0}})
    tau = 1 - torch.arange(11) / 10
    assert (grid(10, gaussian(), torch.zeros(1, 3)) - (1 - 3 * tau / (1 + 2 * tau))).abs().max() < 1e-12
    massive = build("time_grids", {"name": "quantiles", "times": {"name": "boundary_mixed", "width": 0.0}})
    with pytest.raises(ValueError, match="Use a law without mass on single times, or fewer steps"):
        massive(100, gaussian(), torch.zeros(1, 3))
