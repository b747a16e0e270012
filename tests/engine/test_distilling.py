"""Runs with a critic, with pairs of a teacher, and from a network of one time."""

import math

import pytest
import torch
from runs import small
from torch import nn

from flowmaps.core.random import fold_in
from flowmaps.engine.config import ConfigError, read_config, resolve_config, write_config
from flowmaps.engine.objects import build_optimizer, build_step, open_data
from flowmaps.flow import Flow


def flow_of(config, seed=0):
    torch.manual_seed(seed)
    return Flow.built(config, (1, 8, 8), config["classes"])


def configured(**options):
    return resolve_config(small(**options)) | {"classes": 0}


def one_step(step, config):
    optimizer = build_optimizer(config, step)
    loss, terms = step(torch.randn(8, 1, 8, 8, generator=fold_in(3)), generator=fold_in(4))
    loss.backward()
    optimizer.step()
    return terms


CRITICS = {
    "free_flow": {"name": "velocity", "net": {"name": "mlp", "width": 8, "depth": 2}},
    "distribution_matching": {
        "name": "distribution_matching",
        "critic": {"name": "velocity", "net": {"name": "mlp", "width": 8, "depth": 2}},
    },
    "self_corrected": {"name": "discriminator", "width": 8},
    "with_critic": {"name": "discriminator", "width": 8},
}


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_is_built_trained_and_saved_and_the_teacher_is_not(name):
    config = configured(loss={"name": name, "critic": CRITICS[name]})
    teacher = flow_of(config, 1)
    teacher.model.requires_grad_(False)
    step = build_step(config, flow_of(config), teacher)
    before = {k: v.clone() for k, v in step.trained_state().items()}
    terms = one_step(step, config)
    assert terms
    after = step.trained_state()
    changed = {k.split(".")[0] + "." + k.split(".")[1] for k in after if not torch.equal(after[k], before[k])}
    assert any("critic" in k for k in changed), "the critic takes a step with the map"
    assert any(k.startswith("model") for k in changed)
    assert not any("teacher" in k for k in after)
    assert any("critic" in k for k in after), "and is kept in checkpoints"


def test_a_coupling_draws_its_pairs_from_the_runs_teacher():
    config = configured(loss={"name": "one_step_distillation"}, coupling={"name": "reflow", "steps": 3})
    teacher = flow_of(config, 1)
    nn.init.normal_(teacher.model.net.leave.weight, std=0.1)
    step = build_step(config, flow_of(config), teacher)
    assert step.coupling.teacher is teacher.model
    pair = step.coupling(torch.zeros(4, 1, 8, 8), generator=fold_in(1))
    assert (pair.x1 - pair.x0).abs().max() > 1e-3
    one_step(step, config)
    assert build_step(config, flow_of(config), None).coupling.teacher is None, "and sampling needs none"
    other = configured(loss={"name": "one_step_distillation"})
    assert type(build_step(other, flow_of(other), teacher).coupling).__name__ == "Independent"


def test_a_loss_whose_teacher_may_be_left_out_needs_none():
    config = configured(
        loss={"name": "divergence_distillation"}, map={"name": "divergence_head"},
        net={"name": "mlp", "width": 8, "depth": 2, "outputs": 2},
    )  # fmt: skip
    assert set(one_step(build_step(config, flow_of(config), None), config)) == {"velocity", "divergence"}
    needy = configured(loss={"name": "boss"})
    with pytest.raises(ConfigError, match="the loss 'boss' learns from a teacher; none is given"):
        build_step(needy, flow_of(needy), None)


def test_a_run_tunes_a_teacher_without_following_it(tmp_path):
    """Easy consistency tuning: the teacher's weights, and data alone; by a table as it is written and read."""
    loss = {"name": "consistency", "spacing": "ratio", "teacher": "none"}
    plain = small(loss={"name": "flow_matching"}, data={"name": "digits"})
    teacher = flow_of(resolve_config(plain) | {"classes": 0}, 1)
    for p in teacher.model.parameters():
        nn.init.normal_(p, std=0.1)
    (tmp_path / "mine.toml").write_text(write_config(resolve_config(small(loss=loss, from_teacher=True))))
    config = resolve_config(read_config(tmp_path / "mine.toml")) | {"classes": 0}
    flow = flow_of(config)
    step = build_step(config, flow, teacher)
    assert step.loss.teacher is None
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    assert torch.equal(flow.model.eval().velocity(x, t), teacher.model.eval().velocity(x, t))
    one_step(step, config)
    needy = configured(loss={"name": "boss", "teacher": "none"})
    with pytest.raises(ValueError, match="BOSS's option 'teacher' must be left to the run"):
        build_step(needy, flow_of(needy), teacher)


@pytest.mark.parametrize("name", ["gated_span", "block_split"])
def test_a_run_starts_from_a_teacher_of_one_time(name):
    inner = {"name": "dit", "width": 16, "depth": 2, "heads": 2}
    config = configured(loss={"name": "flow_matching"}, net=inner)
    teacher = flow_of(config, 1)
    for p in teacher.model.parameters():
        nn.init.normal_(p, std=0.1)
    other = configured(net={"name": name, "net": inner}) | {"from_teacher": True}
    flow = flow_of(other)
    build_step(other, flow, teacher)
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    assert (flow.model.velocity(x, t) - teacher.model.velocity(x, t)).abs().max() < 1e-5
    wrong = configured(net={"name": name, "net": inner | {"width": 32}}) | {"from_teacher": True}
    with pytest.raises(ConfigError, match="from_teacher needs a student with the teacher's network"):
        build_step(wrong, flow_of(wrong), teacher)


def test_a_teacher_that_was_bent_by_contrast_is_straightened_by_the_mean_of_its_data():
    bent = configured(loss={"name": "contrastive_flow_matching", "contrast": 0.25})
    teacher, config = flow_of(bent, 1), configured(loss={"name": "velocity_distillation"})
    teacher.model.eval()
    straight = build_step(config, flow_of(config), teacher).loss.teacher
    x, t = torch.randn(4, 1, 8, 8, generator=fold_in(1)), torch.rand(4, generator=fold_in(2))
    mean = open_data(bent).x.mean(0)
    want = 0.75 * teacher.model.velocity(x, t) + 0.25 * mean
    assert (straight.velocity(x, t) - want).abs().max() < 1e-5  # float32
    plain = flow_of(config, 1)
    assert build_step(config, flow_of(config), plain).loss.teacher is plain.model


def test_the_mean_of_a_source_that_has_one_is_part_of_what_bends():
    """Links of a chain start from their own data, shrunk: by the factor e^-time."""
    coupling = {"name": "ornstein_uhlenbeck", "time": 0.5}
    bent = configured(loss={"name": "contrastive_flow_matching", "contrast": 0.25}, coupling=coupling)
    teacher, config = flow_of(bent, 1), configured(loss={"name": "velocity_distillation"}, coupling=coupling)
    config["loss"]["distillation"] = 0.0
    straight = build_step(config, flow_of(config), teacher).loss.teacher
    x, t = torch.randn(4, 1, 8, 8, generator=fold_in(1)), torch.rand(4, generator=fold_in(2))
    mean = open_data(bent).x.mean(0)
    want = 0.75 * teacher.model.eval().velocity(x, t) + 0.25 * (1 - math.exp(-0.5)) * mean
    # The source's mean is that of 1438 draws with a deviation of at most 1: five standard errors of the quarter.
    assert (straight.velocity(x, t) - want).abs().max() < 5 * 0.25 / 1438**0.5


def critic(name):
    return {"name": name, "critic": CRITICS[name]}


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "stochastic_interpolant"},
        {"name": "lsd", "velocity": "plug_in"},
        {"name": "velocity_distillation"},
        critic("free_flow"),
        critic("distribution_matching"),
    ],
    ids=lambda table: table["name"],
)
def test_losses_with_fresh_noise_or_scores_refuse_other_sources(loss):
    coupling = {"name": "minibatch_ot"}
    config, plain = configured(loss=loss, coupling=coupling), configured(loss=loss)
    teacher = flow_of(plain, 1)
    build_step(plain, flow_of(plain), teacher)
    with pytest.raises(ValueError, match=r"needs a source N\(0, I\), .*; got that of the coupling MinibatchOT"):
        build_step(config, flow_of(config), teacher)
    if loss["name"] not in ("stochastic_interpolant", "lsd"):
        with pytest.raises(ValueError, match=r"needs a source N\(0, I\), .*; got that of the coupling MinibatchOT"):
            build_step(plain, flow_of(plain), flow_of(config, 1))


def test_latent_noise_gives_the_score_whatever_the_source():
    config = configured(
        loss={"name": "stochastic_interpolant"}, coupling={"name": "minibatch_ot"}, interpolant="stochastic",
        map="denoiser_head", net={"name": "mlp", "width": 8, "depth": 2, "outputs": 2},
    )  # fmt: skip
    assert set(one_step(build_step(config, flow_of(config), None), config)) == {"velocity", "denoiser"}


def test_teachers_of_other_sources():
    """On another path their flow cannot be seen, and a map of it starts where it does."""
    scaled = {"name": "independent", "scale": 2.0}
    teacher = flow_of(configured(coupling=scaled), 1)
    for options in ({"coupling": scaled}, {"coupling": "reflow"}, {"loss": {"name": "flow_matching"}}):
        config = configured(**{"loss": {"name": "lmd"}} | options)
        build_step(config, flow_of(config), teacher)
    config = configured(loss={"name": "lmd"})
    with pytest.raises(
        ConfigError, match="whose source is that of Independent; got Independent. Set coupling as in the"
    ):
        build_step(config, flow_of(config), teacher)
    config = configured(loss={"name": "lmd"}, coupling=scaled, interpolant="trigonometric")
    with pytest.raises(ValueError, match=r"a teacher on another path needs a source N\(0, I\)"):
        build_step(config, flow_of(config), teacher)


def test_noise_on_top_of_data_in_a_box_is_for_the_loss_that_reflects():
    box = {"name": "reflected", "low": -1.0, "high": 1.0}
    path = {"name": "variance_exploding", "sigma_min": 0.01, "sigma_max": 10.0}
    for loss, interpolant in (("reflected_score_matching", path), ("flow_matching", "linear")):
        config = configured(loss={"name": loss}, space=box, interpolant=interpolant)
        one = build_step(config, flow_of(config), None)
        assert one.interpolant == flow_of(config).interpolant
        one(2 * torch.rand(8, 1, 8, 8, generator=fold_in(3)) - 1, generator=fold_in(4))
    config = configured(loss={"name": "flow_matching"}, space=box, interpolant=path)
    with pytest.raises(
        ConfigError, match="noise on top of the data is thrown back by its walls, which FlowMatching does"
    ):
        build_step(config, flow_of(config), None)
    config = configured(
        loss={"name": "reflected_score_matching"}, space=box, interpolant=path, coupling={"name": "minibatch_ot"}
    )
    with pytest.raises(ValueError, match=r"ReflectedScoreMatching needs a source N\(0, I\)"):
        build_step(config, flow_of(config), None)


def test_pairs_of_a_teacher_in_a_box_start_in_it():
    options = {"space": {"name": "reflected"}, "loss": {"name": "one_step_distillation"}}
    config = configured(coupling={"name": "reflow", "steps": 1}, **options)
    step = build_step(config, flow_of(config), flow_of(config, 1))
    assert step.coupling(torch.zeros(64, 1, 8, 8), generator=fold_in(0)).x0.abs().max() <= 1


@pytest.mark.parametrize("coupling", ["semidiscrete_ot", "reflow"])
def test_images_of_a_coupling_of_its_own_are_not_mirrored(coupling):
    config = configured(loss={"name": "flow_matching"}, coupling=coupling, mirror=True)
    with pytest.raises(
        ConfigError, match="mirror flips the images of the batch, and .* has its own; set mirror to false"
    ):
        build_step(config, flow_of(config), None)
    plain = configured(loss={"name": "flow_matching"}, coupling=coupling)
    build_step(plain, flow_of(plain), None)
