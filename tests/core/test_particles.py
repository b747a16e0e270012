"""Weighted particles."""

import torch
from truth import stream

from flowmaps.core.particles import Particles


def test_resampling_keeps_expectations_and_the_normaliser():
    log_weight = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25]).log() + 3
    particles = Particles(torch.arange(5.0), log_weight)
    drawn = [particles.resampled(stream(i)) for i in range(4000)]
    counts = torch.stack([torch.bincount(p.x.long(), minlength=5) for p in drawn]).double()
    wanted = 5 * log_weight.softmax(0)
    assert ((counts >= wanted.floor()) & (counts <= wanted.ceil())).all(), "each is kept N w times, rounded"
    # Counts vary by at most 1/2; five standard errors of 4,000 means: false alarm 3e-6.
    assert (counts.mean(0) - wanted).abs().max() < 5 * 0.5 / 4000**0.5
    assert torch.allclose(drawn[0].log_mean_weight(), particles.log_mean_weight())
    assert torch.allclose(drawn[0].effective_size(), torch.tensor(5.0))


def test_effective_size():
    assert Particles(torch.zeros(4), torch.zeros(4)).effective_size() == 4
    assert torch.isclose(Particles(torch.zeros(3), torch.tensor([0.0, -1e9, -1e9])).effective_size(), torch.tensor(1.0))
    # Weights 1/2, 1/4, 1/4: 1 / (1/4 + 1/16 + 1/16) = 8/3.
    size = Particles(torch.zeros(3), torch.tensor([0.5, 0.25, 0.25]).log()).effective_size()
    assert torch.isclose(size, torch.tensor(8 / 3))
