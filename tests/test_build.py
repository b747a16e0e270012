"""Names to objects, tables to objects, and what is said when they are wrong."""

import dataclasses

import pytest
import torch
from torch import nn
from truth import gaussian, stream

from flowmaps.build import build, find, kinds, names, resolve
from flowmaps.core.interpolant import Linear
from flowmaps.core.times import UniformPair
from flowmaps.core.types import Pair
from flowmaps.interpolants.trigonometric import Trigonometric
from flowmaps.training_times.logit_normal_pair import LogitNormalPair


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in kinds() for n in names(k)], ids=lambda v: v)
def test_every_file_is_a_method_with_one_public_name(kind, name):
    assert callable(find(kind, name))


def test_nested_tables_context_and_defaults():
    loss = build(
        "losses",
        {"name": "lsd", "diagonal": 1, "times": {"name": "logit_normal_pair", "mean": 0}},
        interpolant=Trigonometric(),
    )
    assert loss.diagonal == 1
    assert loss.times == LogitNormalPair(0)
    assert loss.interpolant == Trigonometric()
    assert build("losses", "lsd").interpolant == Linear()
    own = {"name": "lsd", "interpolant": "linear"}
    assert build("losses", own, interpolant=Trigonometric()).interpolant == Linear(), "the table wins over the context"


def test_none_drops_what_the_context_gives():
    """A table has no null; consistency tuned from a teacher's weights learns without it."""
    flow, table = gaussian(), {"name": "consistency", "teacher": "none", "spacing": "ratio"}
    assert build("losses", "consistency", teacher=flow).teacher is flow
    assert build("losses", table, teacher=flow).teacher is None
    assert (
        build("losses", {"name": "balanced", "loss": {"name": "ctm", "teacher": "none"}}, teacher=flow).loss.teacher
        is None
    )
    assert resolve("losses", table)["teacher"] == "none"


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("losses", "meanflow", r"no losses named 'meanflow'. Did you mean 'mean_flow'\? Known: .*lsd"),
        (
            "losses",
            {"name": "lsd", "diagonl": 0.5},
            r"LSD has no option 'diagonl'. Did you mean 'diagonal'\? Options: diagonal",
        ),
        ("losses", {"name": "lsd", "diagonal": "half"}, "LSD's option 'diagonal' must be float; got 'half'"),
        ("losses", {"name": "lsd", "diagonal": True}, "must be float; got True"),
        ("losses", {"name": "lmd"}, "LMD needs the option 'teacher'"),
        (
            "losses",
            {"name": "lmd", "teacher": "none"},
            "LMD's option 'teacher' must be left to the run, whose teacher it is; got 'none'. Set the run's teacher",
        ),
        ("losses", {"name": "ctm", "teacher": "runs/one"}, "whose teacher it is, or be none; got 'runs/one'"),
        ("losses", {"name": "lsd", "interpolant": "none"}, "no interpolants named 'none'"),
        ("losses", {"diagonal": 0.5}, "a table for losses must have a name"),
        ("losses", {"name": "lsd", "times": {"name": "uniform_pear"}}, "Did you mean 'uniform_pair'"),
        ("losses", "nowhere.at_all:Loss", "must name an importable 'package.module:Class'"),
        ("losses", "flowmaps.losses.lsd:Nothing", "must name an importable 'package.module:Class'"),
        ("loses", "lsd", "there is no kind 'loses'. Did you mean 'losses'"),
        ("data", {"name": "toy", "size": 1.5}, "toy's option 'size' must be int; got 1.5"),
    ],
)
def test_errors_name_what_is_known_and_what_is_nearest(kind, spec, message):
    with pytest.raises(ValueError, match=message):
        build(kind, spec)


def test_resolved_tables_are_complete_and_build_the_same():
    table = resolve("losses", {"name": "lsd", "times": "logit_normal_pair"})
    assert table["times"] == {"name": "logit_normal_pair", "mean": 0.4, "std": 1.0}
    assert table["jvp"] == {"name": "exact", "autocast": False}
    assert "interpolant" not in table, "what comes from the run is left to the run"
    assert build("losses", table) == build("losses", {"name": "lsd", "times": "logit_normal_pair"})


MINE = '''
"""Progressive self-distillation with a midpoint: two half jumps teach one whole jump."""

from dataclasses import dataclass

from flowmaps.core.identities import semigroup
from flowmaps.core.interpolant import Interpolant, Linear
from flowmaps.core.times import UniformPair


@dataclass(frozen=True)
class Midpoint:
    interpolant: Interpolant = Linear()
    times: UniformPair = UniformPair()

    def __call__(self, model, pair, *, step=0, generator=None):
        s, t = self.times(len(pair), pair.x0, generator)
        x, _ = self.interpolant.draw(pair, s, generator)
        return semigroup(model, x, s, (s + t) / 2, t, pair.cond).square().flatten(1).mean(1)
'''


@pytest.mark.parametrize("name", names("losses"))
def test_the_resolved_table_of_a_loss_builds_the_loss(name):
    """Defaults too are spelled out whole, those inside them included: what a run saves is what it ran."""
    context = {"teacher": gaussian(), "interpolant": gaussian().interpolant}
    try:
        plain = build("losses", name, **context)
    except ValueError:
        pytest.skip("needs more than a teacher")
    table = resolve("losses", name)
    again = build("losses", table, **context)
    for field in dataclasses.fields(plain):
        mine, other = (getattr(loss, field.name) for loss in (plain, again))
        assert mine == other or (isinstance(mine, nn.Module) and type(mine) is type(other)), field.name


@pytest.mark.parametrize("name", ["balanced", "representation_alignment"])
def test_a_loss_around_another_is_on_the_path_of_the_run(name):
    path = Trigonometric()
    needed = {"encoder": lambda x: x, "channels": 1, "dimension": 1} if name == "representation_alignment" else {}
    assert build("losses", resolve("losses", name) | needed, interpolant=path).loss.interpolant == path


def test_your_own_loss_in_twenty_lines(tmp_path, monkeypatch):
    assert len([line for line in MINE.strip().splitlines() if line.strip()]) <= 20
    (tmp_path / "mine_in_test.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    loss = build("losses", {"name": "mine_in_test:Midpoint"}, interpolant=Linear())
    assert loss.times == UniformPair()
    x0, x1 = torch.randn(2, 4, 3, generator=stream())
    assert loss(gaussian(), Pair(x0, x1), generator=stream()).max() < 1e-20
