"""Every space, found by its file: there and back, what is allowed, what it refuses."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from truth import gaussian, stream

from flowmaps.build import build, names
from flowmaps.core.interpolant import Linear
from flowmaps.core.random import normal
from flowmaps.couplings.independent import Independent
from flowmaps.flow import Flow
from flowmaps.spaces.euclidean import Euclidean


class Rotated(nn.Module):
    """Latents that are the data, with channels mixed by a rotation; the law has a standard deviation, or none."""

    def __init__(self, channels=3, std=0.0):
        super().__init__()
        self.turn = nn.Parameter(
            torch.linalg.qr(torch.randn(channels, channels, generator=stream(3), dtype=torch.float64))[0]
        )
        self.std = std

    def encode(self, data):
        z = torch.einsum("ij,bj...->bi...", self.turn, data)
        return Normal(z, self.std) if self.std else z

    def decode(self, z):
        return torch.einsum("ji,bj...->bi...", self.turn, z)


class Likewise(Rotated):
    """The same, with the answers and the config of diffusers' AutoencoderKL, in its single precision."""

    def __init__(self, std=0.3, **config):
        super().__init__(std=std)
        self.config = SimpleNamespace(
            **{"scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None} | config
        )

    def encode(self, data):
        z = super().encode(data).mean.float()
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=z, std=torch.full_like(z, self.std), mode=lambda: z))

    def decode(self, z):
        return SimpleNamespace(sample=super().decode(z))


SHAPES = [(3,), (3, 2, 4)]  # the channels that Rotated mixes
SPACES = {
    "euclidean": {"shift": 0.5, "scale": 2.0},
    "reflected": {"low": -0.5, "high": 2.0},
    "latent": {"autoencoder": Rotated(), "shift": [0.5, 1.0, -1.0], "scale": [2.0, 0.5, 1.0]},
}
PLAIN = [n for n in names("spaces") if n in SPACES]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PLAIN)
def test_there_and_back(name, shape):
    space = build("spaces", {"name": name, **SPACES[name]})
    data = torch.rand(8, *shape, generator=stream()) * 2.5 - 0.5
    x = space.encode(data, generator=stream())
    assert (space.decode(x) - data).abs().max() < 1e-12
    assert torch.equal(space.constrain(x), x), "what comes from data is allowed"
    far = 10 * torch.randn(8, *shape, generator=stream())
    once = space.constrain(far)
    assert torch.equal(space.constrain(once), once), "what has been made allowed stays"


def test_a_box_folds_states_and_refuses_data_outside():
    box = build("spaces", {"name": "reflected", "low": -1.0, "high": 3.0})
    x = torch.tensor([[-1.5, 3.25, 0.0, 12.0]])
    assert torch.allclose(box.constrain(x), torch.tensor([[-0.5, 2.75, 0.0, 2.0]]))
    with pytest.raises(ValueError, match="data must lie between -1.0 and 3.0; got 0 to 3.5. Set space.low"):
        box.encode(torch.tensor([[0.0, 3.5]]))


def test_what_a_flow_starts_from_and_gives_is_allowed():
    flow = Flow(gaussian((50,)), Linear(), Independent(), build("spaces", "reflected"), (50,))
    for x in (flow.starting(8)[0], flow.sample(8, 2), flow.sample_to_tolerance(8, 0.1).x):
        assert x.abs().max() <= 1
        assert x.abs().max() > 0.9


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "euclidean", "scale": 0.0}, "scale must be > 0; got 0.0"),
        (
            {"name": "latent", "autoencoder": Rotated(), "scale": [1.0, 0.0, 1.0]},
            "scale must be > 0; got .1.0, 0.0, 1.0",
        ),
        ({"name": "reflected", "low": 1.0, "high": 2.0}, "the box must have the origin in it; got 1.0 to 2.0"),
    ],
)
def test_bad_options(table, message):
    with pytest.raises(ValueError, match=message):
        build("spaces", table)


# Latents


def test_a_state_is_a_draw_of_the_law_standardised_by_channel():
    """To the draw: the same stream gives the noise. Without `draw`, the mean."""
    data, coder = torch.randn(5, 3, 2, generator=stream()), Rotated(std=0.7)
    shift, scale = torch.tensor([0.5, 1.0, -1.0])[:, None], torch.tensor([2.0, 0.5, 1.0])[:, None]
    options = {"name": "latent", "autoencoder": coder, "shift": [0.5, 1.0, -1.0], "scale": [2.0, 0.5, 1.0]}
    mean = torch.einsum("ij,bjk->bik", coder.turn, data)
    x = build("spaces", options).encode(data, generator=stream(1))
    assert (x - (mean + 0.7 * normal(data.shape, data, stream(1)) - shift) / scale).abs().max() < 1e-12
    assert (build("spaces", options | {"draw": False}).encode(data) - (mean - shift) / scale).abs().max() < 1e-12


def test_an_autoencoder_as_diffusers_has_them_and_what_its_config_says():
    data = torch.randn(5, 3, 4, 4, generator=stream())
    for config, shift, scale in (
        ({}, (0.0,), (1 / 0.18215,)),
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, (0.0609,), (1 / 1.5305,)),
        ({"scaling_factor": 0.5, "latents_mean": [1, 2, 3], "latents_std": [2, 4, 8]}, (1, 2, 3), (4, 8, 16)),
    ):
        coder = Likewise(**config)
        space = build("spaces", {"name": "latent", "autoencoder": coder, "draw": False})
        assert space.shift == shift
        assert space.scale == scale
        x = space.encode(data)
        moved, by = (torch.tensor(n)[:, None, None] for n in (shift, scale))
        assert (x - (coder.encode(data).latent_dist.mode() - moved) / by).abs().max() < 1e-6  # its single precision
        assert x.dtype == data.dtype
        assert (space.decode(x) - data).abs().max() < 1e-6
        drawn = build("spaces", {"name": "latent", "autoencoder": coder}).encode(data, generator=stream(1))
        assert (drawn - x - 0.3 / by * normal(x.shape, x, stream(1))).abs().max() < 1e-6
        assert build("spaces", {"name": "latent", "autoencoder": coder, "scale": 2.0}).scale == (2.0,), (
            "or what is given"
        )


def test_standardised_by_the_data():
    data = torch.randn(1000, 3, 2, generator=stream()) * torch.tensor([1.0, 5.0, 0.1])[:, None] + 3
    for coder in (Rotated(), Rotated(std=0.5)):
        space = build("spaces", {"name": "latent", "autoencoder": coder}).standardised(
            data, generator=stream(1), batch=300
        )
        x = torch.cat([space.encode(part, generator=g) for g in [stream(1)] for part in data.split(300)])
        each = x.transpose(0, 1).flatten(1)
        assert each.mean(1).abs().max() < 1e-10
        assert (each.std(1) - 1).abs().max() < 1e-10


def test_the_autoencoder_stays_as_it_is_and_carries_gradients():
    space = build("spaces", {"name": "latent", "autoencoder": Rotated().train()})
    assert not space.autoencoder.training
    x = torch.randn(2, 3, generator=stream()).requires_grad_()
    space.decode(x)[0, 0].backward()
    assert (x.grad[0] - space.autoencoder.turn[:, 0]).abs().max() < 1e-12
    assert space.autoencoder.turn.grad is None
    again = build("spaces", {"name": "latent", "autoencoder": copy.deepcopy(space.autoencoder)})
    assert again == space
    assert hash(again) == hash(space)
    assert again != build("spaces", {"name": "latent", "autoencoder": again.autoencoder, "scale": 2.0})
    with torch.no_grad():
        again.autoencoder.turn[0, 0] += 1e-9
    assert again != space


def test_samples_of_a_flow_among_latents_are_decoded():
    shape, coder = (3, 2, 4), Rotated(std=0.5)
    plain, latent = (
        Flow(gaussian(shape), Linear(), Independent(), space, shape)
        for space in (Euclidean(), build("spaces", {"name": "latent", "autoencoder": coder, "scale": [2.0, 3.0, 4.0]}))
    )
    z = plain.sample(4, 2) * torch.tensor([2.0, 3.0, 4.0])[:, None, None]
    before = torch.get_rng_state()
    assert (latent.sample(4, 2) - coder.decode(z)).abs().max() < 1e-12
    assert torch.equal(torch.get_rng_state(), before)


def test_a_scale_for_each_channel():
    with pytest.raises(ValueError, match="one number, or one for each of 3 channels; got .*0.0.* and .*1.0, 2.0"):
        build("spaces", {"name": "latent", "autoencoder": Rotated(), "scale": [1.0, 2.0]}).encode(torch.ones(2, 3))
