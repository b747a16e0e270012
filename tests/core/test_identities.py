"""The three identities, and invertibility, vanish at closed-form maps."""

import pytest
import torch
from truth import SHAPES, draws, eight_gaussians, gaussian

from flowmaps.build import build, names
from flowmaps.core import identities
from flowmaps.core.calculus import Central, Exact
from flowmaps.core.flow_map import EulerMap, Integrated
from flowmaps.core.reparametrize import Reparametrized
from flowmaps.interpolants.stochastic import Stochastic
from flowmaps.interpolants.variance_preserving import VariancePreserving
from flowmaps.oracles._reference import Extrapolated
from flowmaps.oracles.checkerboard import Checkerboard
from flowmaps.oracles.discrete_chain import DiscreteChain


def residuals(f, x, s, u, t, jvp=Exact()):
    """Largest residual of each identity, relative to the size of the velocity."""
    size = 1 + f.velocity(x, s).abs().max()
    return {
        "lagrangian": identities.lagrangian(f, f.velocity, x, s, t, jvp=jvp).abs().max() / size,
        "eulerian": identities.eulerian(f, f.velocity, x, s, t, jvp=jvp).abs().max() / size,
        "semigroup": identities.semigroup(f, x, s, u, t).abs().max() / size,
        "inverse": (f(f(x, s, t), t, s) - x).abs().max() / size,
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", names("interpolants"))
def test_gaussian_map_keeps_every_identity_on_every_path(path, shape):
    # 1e-9 is rounding (1e-16) over the shortest span that is divided by (1e-5), with room for the derivative.
    f = gaussian(shape, build("interpolants", path))
    assert all(r < 1e-9 for r in residuals(f, *draws(64, shape)).values())


def test_central_differences_see_the_same_to_their_own_accuracy():
    # Second order: the square of the step, 1e-6, times third derivatives of a few hundred at the narrowest dimension.
    assert all(r < 1e-3 for r in residuals(gaussian(), *draws(64, (3,)), jvp=Central(1e-3)).values())


@pytest.mark.slow
def test_mixture_map_keeps_every_identity():
    # The map is solved to 1e-12 (next test), derivatives of the solve are an order or two less accurate.
    assert all(r < 1e-9 for r in residuals(eight_gaussians(), *draws(24, (2,))).values())


def test_mixture_map_states_its_error():
    f = eight_gaussians()
    x = draws(64, (2,))[0]
    zero, one = torch.zeros(64), torch.ones(64)
    assert f.map_error(x, zero, one) < 1e-11
    f.steps = 24
    stated, rough = f.map_error(x, zero, one), f(x, zero, one)
    f.steps = 96
    true = float((rough - f(x, zero, one)).abs().max())
    assert true / 3 < stated < 3 * true  # the stated error is the size of the true one


@pytest.mark.slow
def test_checkerboard_map_keeps_every_identity():
    f = Checkerboard(steps=40)
    x, s, u, t = draws(24, (2,))
    assert all(r < 1e-9 for r in residuals(f, x, 0.95 * s, 0.95 * u, 0.95 * t).values())


def test_discrete_chain_map_keeps_every_identity():
    f = DiscreteChain(torch.tensor([0.6, 0.4]), torch.tensor([[0.9, 0.1], [0.3, 0.7]]), 3, blur=0.2)
    f.flow.steps = 20
    assert all(r < 1e-8 for r in residuals(f, *draws(12, (3, 2))).values())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_map_seen_on_another_path_is_the_map_of_that_path(shape):
    """Carried from linear to every other path, the Gaussian map is the Gaussian map made there."""
    x, s, _, t = draws(64, shape)
    s, t = 0.02 + 0.96 * s, 0.02 + 0.96 * t  # inside the range of ratios that approximate paths reach
    for name in ("linear", "trigonometric", "variance_preserving", "variance_exploding"):
        path = build("interpolants", name)
        there = Reparametrized(gaussian(shape), gaussian().interpolant, path)
        want = gaussian(shape, path)
        size = 1 + want(x, s, t).abs().max()
        assert (there(x, s, t) - want(x, s, t)).abs().max() / size < 1e-9
        assert (there.velocity(x, s) - want.velocity(x, s)).abs().max() / want.velocity(x, s).abs().max() < 1e-8
        assert identities.lagrangian(there, there.velocity, x, s, t).abs().max() / size < 1e-6 * size


@pytest.mark.parametrize("shape", SHAPES)
def test_a_velocity_on_another_path_is_right_at_noise_and_data(shape):
    path = build("interpolants", "trigonometric")
    there, want = Reparametrized(gaussian(shape), gaussian().interpolant, path), gaussian(shape, path)
    x, _, _, _ = draws(6, shape)
    t = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    assert (there.velocity(x, t) - want.velocity(x, t)).abs().max() < 1e-8  # 1e-5 with a slope from beside the end


def test_a_map_carried_there_and_back_is_unchanged():
    vp, f = VariancePreserving(), gaussian()
    x, s, _, t = draws(64, (3,))
    for paths in ((Stochastic(), vp), (vp, Stochastic())):
        with pytest.raises(ValueError, match="Stochastic has latent noise"):
            Reparametrized(f, *paths)
    back = Reparametrized(Reparametrized(f, f.interpolant, vp), vp, f.interpolant)
    s, t = 0.05 + 0.9 * s, 0.05 + 0.9 * t
    assert (back(x, s, t) - f(x, s, t)).abs().max() < 1e-9


def test_integrated_velocity_is_the_map_and_its_diagonal_the_velocity():
    f = gaussian()
    solved = Integrated(EulerMap(f), Extrapolated(), 12)
    x, s, _, t = draws(64, (3,))
    assert (solved(x, s, t) - f(x, s, t)).abs().max() < 1e-10
    assert (solved.velocity(x, s) - f.velocity(x, s)).abs().max() < 1e-13
    assert all(r < 1e-9 for r in residuals(solved, *draws(16, (3,))).values())
