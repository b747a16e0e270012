"""Streams by counter, by sample, and by tape."""

import pytest
import torch
from truth import stream

from flowmaps.core.random import PerSample, Recorder, TapeError, fold_in, normal, uniform


def test_fold_in_depends_on_every_counter_and_on_nothing_else():
    first = [
        torch.rand(4, generator=fold_in(*c)).tolist() for c in ((0, 1, 2), (0, 1, 3), (1, 1, 2), (0, 2, 1), (0, 1))
    ]
    again = torch.rand(4, generator=fold_in(0, 1, 2)).tolist()
    assert first[0] == again
    assert len({tuple(f) for f in first}) == 5


def test_streams_of_neighbouring_counters_are_uncorrelated():
    x = torch.stack([torch.randn(20_000, generator=fold_in(0, i)) for i in range(6)])
    off = torch.corrcoef(x)[~torch.eye(6, dtype=torch.bool)]
    assert off.abs().max() < 5 / 20_000**0.5  # five standard errors, 15 pairs: false alarm 1e-5


@pytest.mark.parametrize("draw", [normal, uniform])
def test_sample_i_does_not_depend_on_the_batch(draw):
    like = torch.empty(0)
    whole = draw((6, 2, 3), like, PerSample.seeded(4, 0, 6))
    parts = torch.cat([draw((n, 2, 3), like, PerSample.seeded(4, first, n)) for first, n in ((0, 1), (1, 3), (4, 2))])
    assert torch.equal(whole, parts)


def test_per_sample_needs_one_generator_each():
    with pytest.raises(ValueError, match=r"3 samples and 2 generators. Build them with PerSample.seeded"):
        normal((3, 1), torch.empty(0), PerSample.seeded(0, 0, 2))


def test_a_tape_replays_the_draws_of_a_generator():
    def draws(generator):
        return [
            normal((3, 2), torch.empty(0), generator),
            uniform((4,), torch.empty(0, dtype=torch.float32), generator),
        ]

    recorder = Recorder(stream(1))
    recorded = draws(recorder)
    assert all(torch.equal(a, b) for a, b in zip(recorded, draws(stream(1)), strict=True))
    replayed = draws(recorder.tape(stream(2)))
    assert all(torch.equal(a, b) for a, b in zip(replayed, draws(stream(2)), strict=True))
    assert [d.dtype for d in replayed] == [torch.float64, torch.float32]


def test_draws_are_at_least_float32():
    assert normal((2,), torch.empty(0, dtype=torch.bfloat16), stream()).dtype == torch.float32


def test_a_tape_hands_out_what_was_recorded_and_nothing_else():
    recorder = Recorder(fold_in(0))
    like = torch.empty(0)
    first = normal((2, 3), like, recorder), uniform((2,), like, recorder)
    tape = recorder.tape(fold_in(0))
    assert torch.equal(normal((2, 3), like, tape), first[0])
    for ask in (lambda: normal((2,), like, tape), lambda: uniform((3,), like, tape)):
        with pytest.raises(TapeError, match="the tape must hold"):
            ask()
    assert torch.equal(uniform((2,), like, tape), first[1])
    with pytest.raises(TapeError, match="at place 2; record it again"):
        uniform((2,), like, tape)
