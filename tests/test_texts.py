"""Texts as conditions: how networks read them, and that pairs, stored or not, keep theirs."""

import time
from inspect import signature

import pytest
import torch
from torch import nn
from truth import stream

from flowmaps.build import build, find, names
from flowmaps.core.flow_map import EulerMap, FlowMap, MeanVelocity
from flowmaps.core.random import PerSample
from flowmaps.core.sampling import sample
from flowmaps.core.text import Text
from flowmaps.core.types import Pair
from flowmaps.couplings.independent import Independent
from flowmaps.couplings.reflow import Reflow, stored_pairs
from flowmaps.critics.discriminator import Discriminator
from flowmaps.engine.step import Step
from flowmaps.guidance.cfg import CFG
from flowmaps.nets._embedding import Condition
from flowmaps.oracles.mixture import Mixture
from flowmaps.samplers.heun import Heun
from flowmaps.spaces.euclidean import Euclidean

SHAPE = (2, 8, 8)
SMALL = {
    "blockwise_dit": {"width": 32, "segments": 3, "trunk": 1, "depth": 1, "residual": 1, "heads": 2, "rank": 8},
    "arflow": {"width": 32, "depth": 2, "heads": 2},
    "edm2_unet": {"width": 16, "multipliers": [1, 2], "blocks": 1, "head": 16, "attention": [4]},
    "jit": {"width": 32, "depth": 2, "heads": 2, "patch": 2, "bottleneck": 6, "context": 3, "start": 1},
    "mmdit": {"width": 32, "depth": 2, "heads": 2},
    "mlp": {"width": 32, "depth": 3},
    "dit": {"width": 32, "depth": 2, "heads": 2},
    "unet": {"width": 16, "multipliers": [1, 2], "blocks": 1, "heads": 2},
    "temporal": {"width": 16, "depth": 2, "outputs": 1},
}


def reader(name, **options):
    torch.manual_seed(0)
    made = build("nets", {"name": name, **SMALL[name], "vocabulary": 7} | options, shape=SHAPE)
    for p in made.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return made


def texts(n, seed=0, words=3):
    """Token ids of size (1, 2), colour (3, 4) and place (5, 6) [n, words]; the first text is empty."""
    pick = torch.rand(n, words, generator=stream(seed)) < 0.5
    tokens = torch.arange(1, 2 * words, 2) + pick.long()
    tokens[0] = 0
    return tokens


def test_a_discriminator_reads_texts():
    """Each word counts, and its place; padding does not; a new one has no opinion about words."""
    torch.manual_seed(0)
    judge, x = Discriminator(SHAPE, vocabulary=7, width=16), torch.randn(4, *SHAPE, generator=stream())
    said = torch.tensor([[1, 3, 5], [2, 3, 5], [3, 1, 5], [0, 0, 0]])
    first = judge.net(x, said)
    assert torch.equal(first, judge.net(x, None))
    nn.init.normal_(judge.net.label.mix[-1].weight)
    same = x[:1].expand(4, *SHAPE)
    found = judge.net(same, said)
    assert len(found.unique()) == 4
    assert (judge.net(same, nn.functional.pad(said, (0, 2))) - found).abs().max() < 1e-12
    whole = {"label": {"label": said, "spatial": x}, "guidance": torch.ones(4)}
    assert torch.equal(judge.net(same, whole), found)
    with pytest.raises(ValueError, match=r"was built for labels \[B\]; got a condition of shape \(4, 3\)"):
        Discriminator(SHAPE, 3)(x, Pair(x, x, said))
    with pytest.raises(ValueError, match=r"was built for token ids \[B, L\]; got a condition of shape \(4,\)"):
        judge(x, Pair(x, x, torch.zeros(4, dtype=torch.long)))
    with pytest.raises(ValueError, match="labels or texts; got 3 classes and a vocabulary of 7"):
        Discriminator(SHAPE, 3, vocabulary=7)


# How networks read texts


@pytest.mark.parametrize("name", [n for n in names("nets") if "vocabulary" in signature(find("nets", n)).parameters])
def test_networks_read_texts(name):
    made, x, s, t = reader(name), *(torch.rand(4, *shape, generator=stream()) for shape in (SHAPE, (), ()))
    tokens = torch.tensor([[1, 4, 5], [1, 4, 6], [4, 1, 0], [0, 0, 0]])
    y = made(x, s, t, tokens)
    assert (made(x[:2], s[:2], t[:2], tokens[:2]) - y[:2]).abs().max() < 1e-12, "samples do not mix"
    padded = nn.functional.pad(tokens, (0, 5))
    assert (made(x, s, t, padded) - y).abs().max() < 1e-12, "no words say nothing"
    for other in (tokens.flip(1), tokens + (tokens > 0)):
        said = (made(x, s, t, other.clamp_max(6)) - y).abs().flatten(1).amax(1)
        assert (said[:3] > 1e-5).all(), "which words, and in which order"
        assert said[3] == 0
    assert torch.equal(made(x, s, t)[3], y[3]), "no condition is the text of no words"
    assert torch.equal(made(x, s, t, made.null_condition(4)), made(x, s, t))
    assert torch.equal(made(x, s, t, {"label": tokens}), y)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.labels.parameters())


def test_a_text_is_a_perceptron_of_a_mean_over_words_and_places():
    torch.manual_seed(0)
    embed = Text(5, 6)
    tokens = torch.tensor([[2, 0, 4]])
    rates = 64 ** (torch.arange(8) / 7) / 64  # radians per place, from slow to one

    def place(i):
        return embed.place(torch.cat([(i * rates).sin(), (i * rates).cos()]))

    words = [nn.functional.silu(embed.words.weight[w] + place(i)) for i, w in ((0, 2), (2, 4))]
    assert torch.allclose(embed(tokens)[0], embed.mix((words[0] + words[1]) / 2), atol=1e-6)


def test_labels_and_texts_are_not_confused():
    with pytest.raises(ValueError, match="a network must take labels or texts; got 3 classes and a vocabulary of 7"):
        Condition(3, 8, vocabulary=7)
    with pytest.raises(ValueError, match=r"a condition must be token ids \[B, L\]; got shape \(4,\)"):
        Condition(0, 8, vocabulary=7)(torch.zeros(4, dtype=torch.long), 4)
    with pytest.raises(ValueError, match=r"a condition must be labels \[B\]; got shape \(4, 4\)"):
        Condition(3, 8)(torch.zeros(4, 4, dtype=torch.long), 4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_dropped_texts_are_empty(share):
    seen = []

    class Watched:
        def __call__(self, model, pair, *, step=0, generator=None):
            seen.append(pair.cond)
            return model(pair.x0, torch.zeros(400), torch.ones(400), pair.cond).flatten(1).sum(1)

    step = Step(MeanVelocity(reader("mlp")), Watched(), Independent(), Euclidean(), share)
    tokens = texts(400)
    step(torch.zeros(400, *SHAPE), tokens, generator=stream())
    kept = (seen[0] == tokens).all(1)
    assert seen[0].shape == (400, 3)
    assert (seen[0][~kept] == 0).all()
    assert abs((~kept).double().mean() - share * 399 / 400) < 5 * 0.025 * (0 < share < 1) + 1e-9  # five errors: 6e-7


# Pairs keep their texts


class Told(FlowMap):
    """The exact flow to the modes that a text allows; an empty text allows all of them."""

    def __init__(self, shape):
        super().__init__()
        # Eight modes far apart, one for each text of three words.
        means = 6 * torch.randn(8, *shape, generator=stream(1))
        self.flow = Mixture(means, 0.1, labels=torch.arange(8), steps=24)

    def mode(self, cond):
        tokens = cond["text"] if isinstance(cond, dict) else cond
        if tokens.shape[1] == 1:
            return self.flow.null_condition(len(tokens))
        number = ((tokens - torch.tensor([1, 3, 5])) * torch.tensor([4, 2, 1])).sum(1)
        return torch.where(tokens[:, 0] == 0, 8, number)

    def mean_velocity(self, x, s, t, cond=None):
        return self.flow.mean_velocity(x, s, t, self.mode(cond))

    def null_condition(self, batch):
        return {"text": torch.zeros(batch, 1, dtype=torch.long)}


def off(told, pair):
    """Distance of x1 from where the exact flow takes x0 under the pair's own text [B]."""
    zero = torch.zeros(len(pair))
    return (told(pair.x0, zero, zero + 1, pair.cond) - pair.x1).flatten(1).norm(dim=1)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_stored_pairs_keep_conditions_of_any_build(shape, tmp_path):
    told, file, n = Told(shape), str(tmp_path / "pairs.pt"), 60
    extra = torch.randn(n, 2, 3, generator=stream(2))
    cond = {"text": texts(n), "more": (torch.arange(n), [extra, None])}
    made = stored_pairs(file, Reflow(teacher=told, steps=1), torch.empty(n, *shape), cond, batch=7, generator=stream(3))
    assert len(made) == n
    assert off(told, made).max() < 1e-6  # the two solves differ by the rounding of their steps
    asked = {"text": texts(300, seed=9), "more": (torch.zeros(300), [torch.zeros(300), None])}
    pair = Reflow(file)(torch.empty(300, *shape), asked, generator=stream(4))
    assert off(told, pair).max() < 1e-6, "x0, x1 and text belong together"
    index, (more, nothing) = pair.cond["more"]
    assert len(index.unique()) > 50
    assert torch.equal(pair.cond["text"], cond["text"][index])
    assert torch.equal(more, extra[index])
    assert nothing is None
    # Every full text names one mode, and x1 is there.
    full = pair.cond["text"][:, 0] > 0
    apart = (pair.x1[:, None] - told.flow.means).flatten(2).norm(dim=2)
    assert torch.equal(apart.argmin(1)[full], told.mode(pair.cond)[full])
    # What the check would see if texts had moved by one pair: only where two neighbours say the same nothing changes.
    moved = Pair(pair.x0, pair.x1, {"text": pair.cond["text"].roll(1, 0)})
    assert off(told, moved).median() > 1


def test_guidance_goes_into_the_pairs_under_their_texts():
    told, n = Told((2,)), 40
    cond = {"text": texts(n)}
    guided = Reflow(teacher=CFG(EulerMap(told), 1.5), steps=12, sampler=Heun())
    pair = guided(torch.empty(n, 2), cond, generator=stream(3))

    def velocity(x, t, cond):
        free, bound = (told.flow.velocity(x, t, y) for y in (torch.full((n,), 8), told.mode(cond)))
        return 1.5 * bound - 0.5 * free

    wanted = sample(EulerMap(velocity), pair.x0, torch.linspace(0, 1, 13), sampler=Heun(), cond=cond)
    assert (pair.x1 - wanted).abs().max() < 1e-10
    plain = sample(EulerMap(told), pair.x0, torch.linspace(0, 1, 13), sampler=Heun(), cond=cond)
    assert (pair.x1 - plain)[0].abs().max() < 1e-10, "an empty text is not guided"
    assert (pair.x1 - plain)[1:].norm(dim=1).min() > 1e-3


def test_pairs_drawn_per_sample_do_not_depend_on_the_batch(tmp_path):
    told, cond = Told((2,)), {"text": texts(10)}
    coupling, like = Reflow(teacher=told, steps=1), torch.empty(10, 2)
    one, two = (
        stored_pairs(tmp_path / "p.pt", coupling, like, cond, batch=b, generator=PerSample.seeded(0, 0, 10))
        for b in (3, 10)
    )
    assert torch.equal(one.x0, two.x0)
    assert (one.x1 - two.x1).abs().max() < 1e-9


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    file, told = str(tmp_path / "pairs.pt"), Told((2,))
    for seed in (1, 2):
        made = stored_pairs(
            file, Reflow(teacher=told, steps=1), torch.empty(4, 2), {"text": texts(4)}, generator=stream(seed)
        )
        pair = Reflow(file)(torch.empty(64, 2), generator=stream())
        assert torch.isin(pair.x0, made.x0).all()
        time.sleep(0.05)  # the clock of the file system ticks


def test_conditions_of_another_number_are_an_error(tmp_path):
    told = Told((2,))
    with pytest.raises(ValueError, match=r"one entry for each of the 4 pairs; got shape \(1, 3\)"):
        stored_pairs(tmp_path / "p.pt", Reflow(teacher=told), torch.empty(4, 2), {"text": texts(1)})
