"""Every autoencoder, found by its file: laws of latents, loss, and the file it is kept in."""

import pytest
import torch
from truth import stream

from flowmaps.build import build, names
from flowmaps.core.random import normal

SMALL = {"convolutional": {"width": 8, "channels": 3}}
SHAPE = (2, 4, 8)


def coder(name, **options):
    torch.manual_seed(0)
    made = build("autoencoders", {"name": name, **SMALL[name]} | options, shape=SHAPE)
    for p in made.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return made


@pytest.mark.parametrize("name", names("autoencoders"))
def test_laws_and_data(name):
    made, data = coder(name), torch.randn(5, *SHAPE, generator=stream())
    law = made.encode(data)
    assert law.mean.shape == (5, 3, 2, 4)
    assert made.decode(law.mean).shape == data.shape
    assert (made.encode(data[:2]).mean - law.mean[:2]).abs().max() < 1e-12, "samples do not mix"
    assert (law.mean[0] - law.mean[1]).abs().max() > 1e-3
    made.loss(data, generator=stream()).mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("name", names("autoencoders"))
def test_the_loss_is_error_and_divergence_of_one_draw(name):
    """With the divergence written out; standardising the latents does not change it."""
    made, data = coder(name, kl=0.7), torch.randn(5, *SHAPE, generator=stream())
    law = made.encode(data)
    z = law.mean + law.stddev * normal(law.mean.shape, data, stream(1))
    divergence = (law.mean**2 + law.variance - 1 - law.variance.log()) / 2
    want = (made.decode(z) - data).square().flatten(1).mean(1) + 0.7 * divergence.flatten(1).mean(1)
    assert (made.loss(data, generator=stream(1)) - want).abs().max() < 1e-12
    made.shift.fill_(2.0)
    made.scale.fill_(3.0)
    assert (made.loss(data, generator=stream(1)) - want).abs().max() < 1e-12
    other = made.encode(data)
    assert (other.mean - (law.mean - 2) / 3).abs().max() < 1e-12
    assert (other.stddev - law.stddev / 3).abs().max() < 1e-12
    assert (made.decode(other.mean) - coder(name).decode(law.mean)).abs().max() < 1e-12


@pytest.mark.parametrize("name", names("autoencoders"))
def test_its_file(name, tmp_path):
    made, path = coder(name), tmp_path / "weights.pt"
    made.scale.fill_(3.0)
    made.save(path)
    again = coder(name, path=str(path))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in made.state_dict().items())
    assert [f.name for f in tmp_path.iterdir()] == ["weights.pt"]
    with pytest.raises(ValueError, match=r"must hold weights of this autoencoder; [\s\S]*Give the options"):
        coder(name, path=str(path), channels=4)
    with pytest.raises(
        ValueError, match="path must be a file; '.*nothing.pt' is missing. Train it: `flowmaps autoencoder"
    ):
        coder(name, path=str(tmp_path / "nothing.pt"))
    with pytest.raises(ValueError, match=r"the images must halve 3 times; got shape \(2, 4, 8\)"):
        coder(name, halvings=3)
