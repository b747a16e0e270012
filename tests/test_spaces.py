"""Every space, found by its file: there and back, what is allowed, what it refuses."""

import pytest
import torch
from truth import SHAPES, stream

from flowmaps.build import build, names

SPACES = {"euclidean": {"shift": 0.5, "scale": 2.0}, "reflected": {"low": -0.5, "high": 2.0}}
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


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "euclidean", "scale": 0.0}, "scale must be > 0; got 0.0"),
        ({"name": "reflected", "low": 1.0, "high": 2.0}, "the box must have the origin in it; got 1.0 to 2.0"),
    ],
)
def test_bad_options(table, message):
    with pytest.raises(ValueError, match=message):
        build("spaces", table)
