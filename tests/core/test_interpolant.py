"""Every path: ends, derivatives, conversions that agree with each other and with the truth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import SHAPES, draws, gaussian, stream

from flowmaps.build import build, names
from flowmaps.core.interpolant import Linear
from flowmaps.core.types import Pair
from flowmaps.interpolants.stochastic import Stochastic

ENDS = {"variance_preserving": 0.01, "variance_exploding": 0.0021}  # what each leaves at its approximate ends
PATHS = names("interpolants")
PLAIN = [n for n in PATHS if n != "stochastic"]


@pytest.mark.parametrize("name", PATHS)
def test_ends(name):
    path, zero, one = build("interpolants", name), torch.zeros(1), torch.ones(1)
    left = ENDS.get(name, 1e-15)  # cos(pi / 2) is 6e-17
    start = path.alpha(zero) if name == "variance_exploding" else torch.ones(1)
    assert (path.alpha(zero) - start).abs() <= 1e-4
    assert path.alpha(one) <= left
    assert (path.beta(one) - 1).abs() < 1e-4
    assert path.beta(zero) / path.alpha(zero) <= max(left, 1 / 80)
    assert path.gamma(zero) == path.gamma(one) == 0


@pytest.mark.parametrize("name", PATHS)
def test_derivatives(name):
    path, t = build("interpolants", name), torch.rand(100, generator=stream()) * 0.98 + 0.01
    for f in ("alpha", "beta", "gamma"):
        exact = torch.func.jvp(getattr(path, f), (t,), (torch.ones_like(t),))[1]
        given_ = getattr(path, f"{f}_dot")(t)
        assert (exact - given_).abs().max() <= 1e-12 * (1 + given_.abs().max())


@pytest.mark.parametrize("name", PATHS)
def test_states_have_the_type_of_the_source(name):
    """Times are float32 at least."""
    path, x, t = build("interpolants", name), torch.ones(4, 3).bfloat16(), torch.rand(4, generator=stream())
    for value in (path.state(x, -x, t, x), path.velocity(x, -x, t, x), *path.draw(Pair(x, -x), t, stream())):
        assert value.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PLAIN)
def test_conversions_solve_the_system_and_agree_with_the_score(name, shape):
    """Source and data found from the velocity give state and velocity back; the score is the density's gradient."""
    flow = gaussian(shape, build("interpolants", name))
    path, (x, t, *_) = flow.interpolant, draws(32, shape)
    v = flow.velocity(x, t)
    x0, x1 = path.source_from_velocity(v, x, t), path.data_from_velocity(v, x, t)
    scale = 1 + v.abs().max()
    assert (path.state(x0, x1, t) - x).abs().max() < 1e-11 * scale
    assert (path.velocity(x0, x1, t) - v).abs().max() < 1e-11 * scale
    score = path.score_from_velocity(v, x, t)
    assert (score - flow.score(x, t)).abs().max() < 1e-9 * (1 + flow.score(x, t).abs().max())
    moving = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(flow.log_density(moving, t).sum(), moving)
    assert (score - slope).abs().max() < 1e-9 * (1 + slope.abs().max())
    # Each back conversion divides by a coefficient that is small near one end, hence the looser bound.
    assert (path.velocity_from_data(x1, x, t) - v).abs().max() < 1e-8 * scale
    assert (path.velocity_from_source(x0, x, t) - v).abs().max() < 1e-8 * scale
    assert (path.velocity_from_score(score, x, t) - v).abs().max() < 1e-8 * scale


@pytest.mark.parametrize("name", PATHS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(time=st.floats(0.001, 0.999))
def test_time_at_inverts_the_ratio(name, time):
    path, t = build("interpolants", name), torch.tensor([time])
    ratio, back = torch.func.jvp(path.log_snr, (t,), (torch.ones(1),))
    found, slope = torch.func.jvp(path.time_at, (ratio,), (back,))
    assert (found - t).abs() < 1e-9
    assert (slope - 1).abs() < 1e-6, "its derivative is that of the inverse"


def test_latent_noise_has_the_right_size_and_blocks_conversions():
    path = Stochastic(scale=0.5, power=0.5)
    pair = Pair(torch.zeros(100_000, 1), torch.zeros(100_000, 1))
    x, v = path.draw(pair, torch.full((100_000,), 0.3), stream())
    # Standard errors 0.2 %, bounds at 5 of them: false alarm 1e-6.
    assert abs(x.std() / (0.5 * 0.21**0.5) - 1) < 0.012
    assert abs((x * v).mean() / (0.25 * (1 - 0.6) / 2) - 1) < 0.03
    with pytest.raises(ValueError, match="has latent noise"):
        path.score_from_velocity(v, x, torch.full((100_000,), 0.3))


def test_a_path_needs_data():
    with pytest.raises(ValueError, match="the path needs data"):
        Linear().draw(Pair(torch.zeros(2, 1)), torch.zeros(2))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("variance_preserving", {"rate_min": 3.0, "rate_max": 1.0}, "0 < rate_min < rate_max"),
        ("variance_preserving", {"cut": 0.0}, r"cut must lie in \(0, 1\)"),
        ("variance_exploding", {"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        ("stochastic", {"power": 0.3}, "power >= 0.5"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        build("interpolants", {"name": name, **options})
