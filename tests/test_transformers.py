"""What each of the larger networks promises beyond the battery of tests/test_nets.py."""

import pytest
import torch
from test_nets import SHAPE, net
from truth import draws, stream

from flowmaps.build import build


def weights(name, **options):
    """Number of weights of a network of published size; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in build("nets", {"name": name, **options}).parameters())


# MM-DiT


def told(seed=0, words=5, context=6):
    return torch.randn(4, words, context, generator=stream(seed))


def test_embedded_texts_are_sets_of_words_that_all_count():
    made, text = net("mmdit", classes=0, context=6), told()
    x, s, _, t = draws(4, SHAPE)
    y = made(x, s, t, text)
    assert (made(x, s, t, text[:, torch.randperm(5, generator=stream())]) - y).abs().max() < 1e-12, "no places"
    assert (made(x, s, t, torch.nn.functional.pad(text, (0, 0, 0, 3))) - y).abs().max() < 1e-12, "zeros are no words"
    for i in range(5):
        other = text.clone()
        other[:, i] += 0.1
        assert (made(x, s, t, other) - y).abs().flatten(1).amax(1).min() > 1e-5, "each word counts"
    assert torch.equal(made.null_condition(4), torch.zeros(4, 1, 6))
    assert torch.equal(made(x, s, t), made(x, s, t, made.null_condition(4)))


def test_words_are_read_one_by_one_and_not_by_their_mean_alone():
    """Texts of equal mean, which modulate alike, say different things through the joint attention."""
    made, text = net("mmdit", classes=0, context=6), told()
    x, s, _, t = draws(4, SHAPE)
    other = text.clone()
    other[:, 0], other[:, 1] = text[:, 0] + 0.5, text[:, 1] - 0.5
    assert (made.labels(other, 4) - made.labels(text, 4)).abs().max() < 1e-12
    assert (made(x, s, t, other) - made(x, s, t, text)).abs().flatten(1).amax(1).min() > 1e-5


def test_both_streams_listen_to_each_other():
    made = net("mmdit", classes=0, context=6)
    x, s, _, t = draws(4, SHAPE)
    tokens = [torch.randn(4, n, 32, generator=stream(n)) for n in (16, 5)]
    cond, block = torch.ones(4, 1, 32), made.blocks[0]
    for i in range(2):
        other = [z + 0.1 * torch.randn(z.shape, generator=stream()) * (i == j) for j, z in enumerate(tokens)]
        heard = [(a - b).abs().max() for a, b in zip(block(*tokens, cond, None), block(*other, cond, None), strict=True)]
        assert min(heard) > 1e-5
    _, y = made.blocks[-1](*tokens, cond, None)
    assert y is tokens[1], "in the last block the text stays what it was"


def test_mmdit_has_the_published_sizes():
    """2 and 8 billion weights, of depth 24 and 38, as the release names them; 5 % for rounding of the names."""
    for depth, billions in ((24, 2), (38, 8)):
        size = weights("mmdit", shape=(16, 128, 128), depth=depth, width=64 * depth, heads=depth, context=4096)
        assert abs(size / 1e9 / billions - 1) < 0.05


def test_mmdit_needs_a_block():
    with pytest.raises(ValueError, match="depth must be at least 1, the block that listens to the text; got 0"):
        net("mmdit", depth=0)
