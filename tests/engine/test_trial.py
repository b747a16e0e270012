"""How a run's samples are drawn: refused before the first step if they cannot be, and the same everywhere."""

import numpy as np
import pytest
import torch
from PIL import Image
from runs import small

from flowmaps.describe import citations
from flowmaps.engine.config import ConfigError, resolve_config
from flowmaps.engine.dry_run import dry_run
from flowmaps.engine.evaluate import quality
from flowmaps.engine.objects import held_out, open_data
from flowmaps.engine.pictures import save_samples
from flowmaps.engine.run_folder import RunFolder
from flowmaps.engine.train import train
from flowmaps.engine.trial import check_sampling
from flowmaps.flow import Flow, load

WRONG = [
    ({"sampler": "huen"}, "no samplers named 'huen'. Did you mean 'heun'?"),
    ({"sampler": 3}, "sampler must be a name, a table or an object; got 3"),
    ({"sampler": "bottleneck", "steps": [1]}, "bottleneck needs a network that takes images of several sizes"),
    ({"guidance": "rag"}, "no guidance named 'rag'. Did you mean 'raag'?"),
    ({"guidance": "classifier"}, "Classifier needs the option 'log_prob'"),
    ({"guidance": "cfg_plus_plus", "sampler": "heun"}, "it has no velocity; got s = t"),
]


@pytest.mark.parametrize(("sample", "message"), WRONG)
def test_what_cannot_be_drawn_is_refused_before_the_first_step(sample, message, tmp_path):
    """Also before the training of a teacher that the run has."""
    with pytest.raises(ConfigError, match="must draw samples of this run; ") as stop:
        dry_run(small(sample=sample))
    assert message in str(stop.value)
    with pytest.raises(ConfigError) as stop:
        train(small(sample=sample, loss="lmd", teacher={"loss": "flow_matching"}), tmp_path / "run", quiet=True)
    assert message in str(stop.value)
    assert not list((tmp_path / "run").glob("**/run.toml"))


def test_a_sampler_that_takes_one_step_is_evaluated_in_one(tmp_path):
    np.save(tmp_path / "x.npy", torch.randn(40, 1, 8, 8).clamp(-1, 1).numpy())
    sample = {"sampler": {"name": "bottleneck", "steps": [1, 1, 1]}, "steps": [1]}
    net = {"name": "unet", "width": 16, "blocks": 1, "multipliers": [1]}
    options = small(
        sample=sample, net=net, images=64, loss="flow_matching", data={"name": "arrays", "path": f"{tmp_path}/x.npy"}
    )
    run = train(options, tmp_path / "run", quiet=True)
    assert [*RunFolder(run).samples.glob("*.png")]
    assert '"steps": 1,' in (run / "evaluation.json").read_text()
    assert "arXiv:2503.18940" in (run / "report.html").read_text(), "the sampler's source"


def test_pictures_and_figures_are_drawn_with_the_runs_guidance(tmp_path):
    options = small(sample={"steps": [1, 2], "guidance": 3.0}, evaluate=False)
    run = train(options, tmp_path / "run", quiet=True)
    flow, rows = load(run), RunFolder(run).rows()
    data = open_data(flow.config)
    wanted, plain = (quality(flow, data, held_out(flow.config, data), [1, 2], "jump", g) for g in (3.0, 1.0))
    assert {k: v for k, v in rows[-1].items() if k in wanted} == wanted != plain
    columns = [flow.sample(8, k, guidance=3.0) for k in (1, 2)] + [flow.sample(8, 32, sampler="heun", guidance=3.0)]
    save_samples(columns, ["1", "2", "ODE"], tmp_path / "again.png", across=1)
    again, shown = (np.asarray(Image.open(f)) for f in (tmp_path / "again.png", *RunFolder(run).samples.glob("*.png")))
    assert np.array_equal(again, shown)


def test_guidance_without_a_velocity_has_no_column_of_the_ode(tmp_path):
    options = small(sample={"steps": [1, 2], "guidance": "cfg_plus_plus"}, evaluate=False, images=64)
    run = train(options, tmp_path / "run", quiet=True)
    columns = [load(run).sample(8, k, guidance="cfg_plus_plus") for k in (1, 2)]
    save_samples(columns, ["1", "2"], tmp_path / "again.png", across=1)
    assert (tmp_path / "again.png").read_bytes() == next(RunFolder(run).samples.glob("*.png")).read_bytes()


def test_trying_leaves_the_training_as_it_was(tmp_path):
    """A network with dropout is tried without it, and trains with it."""
    config = resolve_config(small())
    flow = Flow.built(config, (1, 8, 8), 10)
    before = torch.get_rng_state()
    check_sampling(config, flow)
    assert torch.equal(before, torch.get_rng_state())
    assert flow.model.training


def test_samplers_and_guidance_of_a_run_are_cited():
    for sample in ({"sampler": "heun", "guidance": 2.0}, {"sampler": {"name": "heun"}, "guidance": {"name": "raag"}}):
        found = citations(resolve_config(small(sample=sample)))
        assert "arXiv:2206.00364" in found["samplers/heun"]
        assert ("guidance/raag" in found) == (sample["guidance"] != 2.0)
