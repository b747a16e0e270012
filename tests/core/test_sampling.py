"""Composition of jumps and steps."""

import pytest
import torch
from truth import SHAPES, draws, gaussian

from flowmaps.core.sampling import Jump, sample
from flowmaps.core.shapes import expand_time, fill_time, square_error


@pytest.mark.parametrize("shape", SHAPES)
def test_jumps_of_the_true_map_agree_at_any_number_of_steps(shape):
    f, x = gaussian(shape), draws(16, shape)[0]
    ends = [sample(f, x, torch.linspace(0, 1, n + 1)) for n in (1, 2, 7)]
    assert all((e - ends[0]).abs().max() < 1e-12 for e in ends)


def test_grids_per_sample_and_the_callback():
    f, (x, s, u, t) = gaussian(), draws(16, (3,))
    seen = []
    y = sample(f, x, torch.stack([s, u, t]), sampler=Jump(), callback=lambda time, state: seen.append(state))
    assert (y - f(x, s, t)).abs().max() < 1e-12
    assert len(seen) == 2
    assert torch.equal(seen[-1], y)
    assert (sample(f, x, [0.0, 0.5, 1.0]) - f(x, torch.zeros(16), torch.ones(16))).abs().max() < 1e-12


def test_times_meet_states_only_if_they_fit():
    x = torch.zeros(4, 4)
    with pytest.raises(
        ValueError, match=r"times must have shape \(4,\) to match x \(4, 4\); got \(4, 4\). Use fill_time"
    ):
        expand_time(torch.zeros(4, 4), x)
    with pytest.raises(ValueError, match=r"got \(1,\)"):
        expand_time(torch.zeros(1), x)
    assert fill_time(0.5, x).shape == (4,)
    assert fill_time(0.5, x.bfloat16()).dtype == torch.float32


def test_square_error_is_a_mean_in_full_precision():
    a, b = torch.ones(2, 3, 4).bfloat16(), torch.zeros(2, 3, 4).bfloat16()
    assert torch.equal(square_error(a, b), torch.ones(2, dtype=torch.float32))
