"""Every grid of times, found by its file: valid, equal steps of what it says, and the best of those searched through."""

import itertools

import pytest
import torch
from truth import SHAPES, Remembering, eight_gaussians, gaussian, stream

from flowmaps.build import build, find, names
from flowmaps.core.flow_map import EulerMap, FlowMap
from flowmaps.core.grid import shortest_path
from flowmaps.core.interpolant import Linear
from flowmaps.core.recurrent import Recurrent
from flowmaps.core.sampling import Euler, Heun, Jump, RungeKutta4, sample, trajectory
from flowmaps.core.times import TimeLaw, UniformPair
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.interpolants.variance_exploding import VarianceExploding
from flowmaps.interpolants.variance_preserving import VariancePreserving
from flowmaps.oracles.gaussian import Gaussian
from flowmaps.oracles.mixture import Mixture
from flowmaps.time_grids.boss import BOSS
from flowmaps.time_grids.gits import GITS, _deviation
from flowmaps.time_grids.quantiles import Quantiles
from flowmaps.time_grids.shortest_path import ShortestPath


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


PATHS = [Linear(), Trigonometric(), VarianceExploding(0.01, 50.0), VariancePreserving()]


def levels(path, times):
    """The log of the noise level alpha / beta at the inner nodes of a grid."""
    return -path.log_snr(times[1:-1])


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_power_and_log_snr_make_equal_steps_of_the_noise_level(path, steps):
    x0, flow = torch.randn(2, 3, generator=stream()), gaussian()
    # What the path reaches: VE from 50 to 0.01, VP down to 0.0032 and up to 151, both cut to [0.002, 80].
    ends = -path.log_snr(torch.tensor([0.0, 1.0]))
    low, high = max(0.002, float(ends[1].exp())), min(80.0, float(ends[0].exp()))
    for rho in (1.0, 7.0):
        times = build("time_grids", {"name": "power", "rho": rho}, interpolant=path)(steps, flow, x0)
        want = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps + 1)[1:-1] ** rho
        assert torch.allclose(levels(path, times).exp(), want, rtol=1e-9)
    logs = build("time_grids", "log_snr", interpolant=path)(steps, flow, x0)
    want = torch.linspace(high, low, 2).log()
    assert torch.allclose(levels(path, logs), torch.linspace(want[0], want[1], steps + 1)[1:-1], atol=1e-9)
    limit = build("time_grids", {"name": "power", "rho": 1e6}, interpolant=path)(steps, flow, x0)
    assert torch.allclose(limit, logs, atol=1e-4)  # of the order of log(80 / 0.002)^2 / rho


def test_shift_multiplies_the_noise_level():
    x0 = torch.zeros(1, 3, 16, 8)
    equal = torch.linspace(0, 1, 11)
    shifted = build("time_grids", {"name": "shift", "alpha": 2.5})(10, gaussian(), x0)
    odds = (1 - shifted) / shifted
    assert torch.allclose(odds[1:-1], 2.5 * ((1 - equal) / equal)[1:-1], rtol=1e-12)
    assert shifted[5] < 0.5, "more steps for the noise"
    assert torch.allclose(build("time_grids", {"name": "shift", "alpha": 1.0})(10, gaussian(), x0), equal)
    pixels = build("time_grids", {"name": "shift", "base": 32})(10, gaussian(), x0)
    assert torch.equal(pixels, build("time_grids", {"name": "shift", "alpha": 2.0})(10, gaussian(), x0)), "128 over 32"
    with pytest.raises(ValueError, match=r"states must have pixels \[B, C, \*\]; got \(2, 3\). Give alpha"):
        build("time_grids", {"name": "shift", "base": 32})(10, gaussian(), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "law", [n for n in names("training_times") if issubclass(find("training_times", n), TimeLaw)], ids=str
)
def test_a_law_has_the_same_share_of_its_mass_in_every_step(law):
    grid = build("time_grids", {"name": "quantiles", "times": law})
    times = grid(8, gaussian(), torch.zeros(1, 3))
    assert (times.diff() > 0).all()
    assert torch.allclose(grid.times.cumulative(times[1:-1]), torch.arange(1.0, 8) / 8, atol=1e-9)


def test_laws_that_are_grids():
    model, x0 = gaussian(), torch.zeros(1, 3)
    for law, grid in (("power_noise", "power"), ("uniform", "uniform")):
        times = [build("time_grids", spec)(6, model, x0) for spec in ({"name": "quantiles", "times": law}, grid)]
        assert torch.allclose(*times, atol=1e-12)
    with pytest.raises(ValueError, match="option 'times' must be one of boundary_mixed, .*; got 'uniform_pair'"):
        build("time_grids", {"name": "quantiles", "times": "uniform_pair"})
    with pytest.raises(ValueError, match="times must be a law of one time; got UniformPair"):
        Quantiles(UniformPair())


def paths_of(steps, last):
    return [(0, *inner, last) for inner in itertools.combinations(range(1, last), steps - 1)]


@pytest.mark.parametrize("discount", [1.0, 1.5, 0.3])
def test_shortest_path_is_the_shortest(discount):
    cost = torch.rand(7, 7, generator=stream()).sub(0.2)  # GITS' costs may be negative
    cost = cost.triu(1).masked_fill(torch.ones(7, 7).tril().bool(), torch.inf)

    def total(path):
        return sum(discount**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(path)))

    for steps in range(1, 7):
        assert tuple(shortest_path(cost, steps, discount).tolist()) == min(paths_of(steps, 6), key=total)


@pytest.mark.parametrize("shape", SHAPES)
def test_boss_has_the_least_square_error_of_euler_steps(shape):
    flow, x0, grid = gaussian(shape), torch.randn(16, *shape, generator=stream()), BOSS(12)
    fine = torch.linspace(0, 1, 13)
    states = trajectory(flow, x0, fine, sampler=Euler())
    cost = grid.costs(fine, states, flow)
    for i, j in itertools.combinations(range(13), 2):
        landed, _ = Euler()(flow, states[i], fine[i].expand(16), fine[j].expand(16))
        assert torch.isclose(cost[i, j], (landed - states[j]).square().flatten(1).sum(1).mean(), atol=1e-12)

    def total(path):
        return float(sum(cost[i, j] for i, j in itertools.pairwise(path)))

    least = []
    for steps in (1, 2, 3, 4):
        best = min(paths_of(steps, 12), key=total)
        assert torch.equal(grid(steps, flow, x0), fine[list(best)])
        least.append(total(best))
    assert (torch.tensor(least).diff() < 0).all()


def test_boss_sees_where_the_velocity_turns():
    """All the turning happens before t = 1/2: one step is enough after it."""
    flow = EulerMap(lambda x, t, cond: (8 * (0.5 - t).clamp_min(0))[:, None].expand_as(x))
    times = BOSS(20)(4, flow, torch.zeros(2, 3))
    assert times[-2] == 0.5
    straight = EulerMap(lambda x, t, cond: torch.ones_like(x))
    assert BOSS(20).costs(torch.linspace(0, 1, 3), torch.arange(3.0)[:, None, None] / 2, straight)[0, 2] == 0


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_gits_costs_in_closed_form(path):
    """Data N(0, s^2): y = sqrt(sigma^2 + s^2) e, noise sigma y / (sigma^2 + s^2). On any path the same."""
    s, grid = 0.7, GITS(metric="l2", interpolant=path)
    flow = Gaussian(torch.zeros(3), torch.full((3,), s), path)
    sigma = torch.tensor([20.0, 5.0, 1.0, 0.1])
    fine = path.time_at(-sigma.log())
    e = torch.randn(64, 3, generator=stream())
    size = (sigma**2 + s**2).sqrt()
    cost = grid.costs(fine, (path.beta(fine) * size)[:, None, None] * e, flow)
    jump = size[:, None] + (sigma - sigma[:, None]) * (sigma / size)[:, None]
    want = (jump - size).abs() * e.norm(dim=1).mean()
    inside = torch.ones(4, 4).triu(1).bool()
    assert torch.allclose(cost[inside], want[inside], rtol=1e-9)
    assert cost[~inside].isinf().all()
    # These trajectories are straight: all lie on the chord, and so do Euler's steps.
    straight = GITS(interpolant=path).costs(fine, (path.beta(fine) * size)[:, None, None] * e, flow)
    assert straight[inside].abs().max() < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_gits_does_not_depend_on_the_path(shape):
    x0, chosen = torch.randn(32, *shape, generator=stream()), {}
    for path in PATHS[:2]:
        flow = gaussian(shape, path)
        # From the same state at sigma = 80, where the trigonometric path has another scale, by the exact map.
        grid = GITS(nodes=12, solver=Jump(), interpolant=path)
        chosen[path] = -levels(path, grid(4, flow, x0))
    assert torch.allclose(*chosen.values(), atol=1e-6)


def test_gits_measures_from_the_chord():
    path = torch.tensor([[[0.0, 0.0]], [[1.0, 5.0]], [[2.0, 0.0]]])
    points = torch.tensor([[[3.0, -2.0]], [[7.0, 0.0]]])
    assert _deviation(points, path).tolist() == [2.0, 0.0]
    metrics = {
        m: build("time_grids", {"name": "gits", "metric": m, "nodes": 12})(
            3, eight_gaussians(), torch.randn(32, 2, generator=stream())
        )
        for m in ("deviation", "l1", "l2")
    }
    assert not torch.equal(metrics["deviation"], metrics["l2"])
    with pytest.raises(ValueError, match="metric must be one of 'deviation', 'l1', 'l2'; got 'dev'"):
        GITS(metric="dev")


def test_what_is_searched_for_brings_fresh_samples_nearer():
    """Four Gaussians: GITS against its own fine grid thinned out, BOSS against equal steps. Measured error ratios for 6
    and 10 steps: 0.77 and 0.83 (median), 0.95 and 0.94 (root mean square)."""
    means = torch.tensor([[-2.0, -1.5], [-2.2, 1.5], [2.0, -1.2], [1.6, 1.8]])
    flow = EulerMap(Mixture(means, 0.35, torch.tensor([0.1, 0.3, 0.4, 0.2])))
    tried, fresh = torch.randn(2, 512, 2, generator=stream())
    end = sample(flow, fresh, build("time_grids", "power")(200, flow, fresh))
    for steps in (6, 10):
        errors = {
            name: (sample(flow, fresh, build("time_grids", name)(steps, flow, tried)) - end).norm(dim=1)
            for name in ("gits", "power", "boss", "uniform")
        }
        assert errors["gits"].median() < 0.9 * errors["power"].median()
        assert errors["boss"].norm() < 0.98 * errors["uniform"].norm()


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


def test_a_sampler_with_a_memory_has_its_times_moved_until_it_is_best():
    """No single node can be moved for the better; and on other states the square error falls to 0.4 and 0.7."""
    flow, (x, fresh) = EulerMap(eight_gaussians()), torch.randn(2, 128, 2, generator=stream())
    sampler, fine = build("samplers", "unipc"), torch.linspace(0, 1, 17)
    ends = [sample(flow, y, fine, sampler=RungeKutta4()) for y in (x, fresh)]

    def error(grid, i=0):
        return float((sample(flow, (x, fresh)[i], grid, sampler=sampler) - ends[i]).square().sum())

    for steps in (4, 5):
        times, still = (ShortestPath(16, sampler, 1, n)(steps, flow, x) for n in (20, 0))
        path = (times * 16).round().long()
        assert torch.equal(fine[path], times)
        for k, way in itertools.product(range(1, steps), (-1, 1)):
            moved = path.clone()
            moved[k] += way
            if (moved.diff() > 0).all():
                assert error(fine[moved]) >= error(times)
        for other in (still, torch.linspace(0, 1, steps + 1)):
            assert error(times, 1) < 0.8 * error(other, 1)


def test_samplers_without_a_memory_and_maps_with_one_are_taken_step_by_step():
    flow, x = eight_gaussians(steps=1), torch.randn(64, 2, generator=stream())
    grids = [ShortestPath(12, Heun(), sweeps=n)(3, EulerMap(flow), x) for n in (0, 3)]
    assert torch.equal(*grids)
    steps, model = build("samplers", "recurrent"), Recurrent(Remembering(EulerMap(flow)))
    for count in (3, 4):
        assert torch.equal(ShortestPath(12, Euler())(count, model, x), ShortestPath(12, steps)(count, model, x))


def test_more_steps_than_nodes():
    with pytest.raises(ValueError, match="steps must lie between 1 and the 4 intervals; got 5"):
        ShortestPath(nodes=4)(5, gaussian(), torch.zeros(2, 3))
    for name in ("boss", "gits"):
        with pytest.raises(ValueError, match="steps must lie between 1 and the 4 intervals; got 5. Raise nodes"):
            build("time_grids", {"name": name, "nodes": 4})(5, gaussian(), torch.zeros(2, 3))
    for name in ("shortest_path", "boss", "gits"):
        with pytest.raises(ValueError, match="nodes must be at least 2"):
            build("time_grids", {"name": name, "nodes": 1})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "power", "least": 3.0, "most": 2.0}, "noise levels must be 0 < least < most; got 3.0 and 2.0"),
        ({"name": "log_snr", "least": 0.0}, "noise levels must be 0 < least < most; got 0.0 and 80.0"),
        ({"name": "power", "rho": 0.0}, "rho must be > 0 and finite; got 0.0"),
        ({"name": "shift", "alpha": 0.0}, "alpha must be > 0 and base at least 0; got 0.0 and 0"),
    ],
)
def test_bad_options(spec, message):
    with pytest.raises(ValueError, match=message):
        build("time_grids", spec)


def test_quantiles_of_a_shifted_law_are_the_shifted_grid():
    """Stable Diffusion 3: noise levels tau = 1 - k / K, shifted to 3 tau / (1 + 2 tau)."""
    grid = build("time_grids", {"name": "quantiles", "times": {"name": "shifted", "shift": 3.0}})
    tau = 1 - torch.arange(11) / 10
    assert (grid(10, gaussian(), torch.zeros(1, 3)) - (1 - 3 * tau / (1 + 2 * tau))).abs().max() < 1e-12
    massive = build("time_grids", {"name": "quantiles", "times": {"name": "boundary_mixed", "width": 0.0}})
    with pytest.raises(ValueError, match="Use a law without mass on single times, or fewer steps"):
        massive(100, gaussian(), torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["gits", "shortest_path", "boss"])
def test_a_search_with_a_sampler_that_draws_can_be_repeated(name):
    """And GITS has a solver of its own as teacher, whatever samples later."""
    flow, x = gaussian(), torch.randn(16, 3, generator=stream())
    grid = build(
        "time_grids", {"name": name, "nodes": 8}, sampler=build("samplers", "euler_maruyama"), interpolant=Linear()
    )
    before = torch.get_rng_state()
    assert torch.equal(grid(3, flow, x), grid(3, flow, x))
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn from the global stream"
    if name == "gits":
        assert torch.equal(grid(3, flow, x), GITS(nodes=8)(3, flow, x))
