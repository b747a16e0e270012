"""Every guidance: the neutral scale is the conditional map, for jumps and solvers alike."""

import pytest
import torch
from truth import eight_gaussians, stream

from flowmaps.build import build, names
from flowmaps.core.flow_map import FlowMap
from flowmaps.core.sampling import sample


def conditional():
    return eight_gaussians(labels=torch.arange(8) % 3, steps=24)


class Taking(FlowMap):
    """A labelled map as a network that takes a scale would be for the scales 0 and 1; not told, it is for 1."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def mean_velocity(self, x, s, t, cond=None):
        if not isinstance(cond, dict):
            return self.model.mean_velocity(x, s, t, cond)
        null = self.model.mean_velocity(x, s, t, self.null_condition(len(x)))
        return null.lerp(self.model.mean_velocity(x, s, t, cond["label"]), cond["guidance"][:, None])

    def null_condition(self, batch):
        return self.model.null_condition(batch)


@pytest.mark.parametrize("sampler", [n for n in names("samplers") if n != "recurrent"])  # which guides by itself
@pytest.mark.parametrize("name", names("guidance"))
def test_neutral_and_null(name, sampler):
    model, g = Taking(conditional()), stream()
    x, cond = torch.randn(6, 2, generator=g), torch.arange(6) % 3
    grid, step = torch.linspace(0, 1, 3), build("samplers", sampler)

    def run(model, cond):
        return sample(model, x, grid, sampler=step, cond=cond, generator=stream(1))

    plain, null = run(model, cond), run(model, model.null_condition(6))
    assert (plain - null).abs().max() > 0.1
    for scale, want in ((1.0, plain), (0.0, null)):
        guided = build("guidance", {"name": name, "scale": scale}, model=model)
        assert (run(guided, cond) - want).abs().max() < 1e-9
    assert torch.equal(guided.null_condition(2), model.null_condition(2))


def test_cfg_is_the_velocity_of_a_geometric_mean():
    """For Gaussian paths the guided velocity is that of p_null^(1 - w) p_cond^w, pointwise in the score."""
    model, w = conditional(), 2.5
    guided = build("guidance", {"name": "cfg", "scale": w}, model=model)
    x, t, cond = torch.randn(6, 2, generator=stream()), torch.rand(6, generator=stream(1)), torch.arange(6) % 3
    score = (1 - w) * model.score(x, t, None) + w * model.score(x, t, cond)
    want = model.interpolant.velocity_from_score(score, x, t)
    assert (guided.velocity(x, t, cond) - want).abs().max() < 1e-9 * want.abs().max()
