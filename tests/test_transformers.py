"""What each of the larger networks promises beyond the battery of tests/test_nets.py."""

import pytest
import torch
from test_nets import SHAPE, net
from truth import draws, stream

from flowmaps.build import build
from flowmaps.nets._transformer import rotations, to_image, turned


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
    """2 and 8 billion weights, of depth 24 and 38, as the networks are known; 5 % for the rounding of these names."""
    for depth, billions in ((24, 2), (38, 8)):
        size = weights("mmdit", shape=(16, 128, 128), depth=depth, width=64 * depth, heads=depth, context=4096)
        assert abs(size / 1e9 / billions - 1) < 0.05


def test_mmdit_needs_a_block():
    with pytest.raises(ValueError, match="depth must be at least 1, the block that listens to the text; got 0"):
        net("mmdit", depth=0)


# JiT


def test_jit_sees_places_by_their_difference():
    """Rotated queries and keys agree as the angle between their places says, wherever these are."""
    q, k = torch.randn(2, 8, generator=stream())
    turn = rotations(5, 6, 8)
    grid = [turned(z.expand(1, 1, 30, 8), turn)[0, 0].reshape(5, 6, 8) for z in (q, k)]
    assert abs(grid[0][1, 2] @ grid[1][3, 1] - grid[0][2, 4] @ grid[1][4, 3]) < 1e-12
    assert abs(grid[0][1, 2] @ grid[1][3, 1] - grid[0][1, 2] @ grid[1][3, 2]) > 1e-3, "columns count"
    assert abs(grid[0][1, 2] @ grid[1][3, 1] - grid[0][1, 2] @ grid[1][2, 1]) > 1e-3, "and rows"
    assert (grid[0].norm(dim=-1) - q.norm()).abs().max() < 1e-12
    assert torch.equal(grid[0][0, 0], q)


def test_jit_sees_few_dimensions_of_each_patch():
    """What the bottleneck does not let in does not matter."""
    made = net("jit", patch=4)
    x, s, _, t = draws(4, SHAPE)
    enter = made.enter[0].weight
    hidden = torch.linalg.svd(enter).Vh[6:]
    noise = to_image(torch.randn(4, 4, len(hidden), generator=stream()) @ hidden, 4, (2, 2))
    assert (made(x + noise, s, t) - made(x, s, t)).abs().max() < 1e-10
    assert (made(x + to_image(torch.ones(4, 4, 1) * enter[0], 4, (2, 2)), s, t) - made(x, s, t)).abs().max() > 1e-5


def test_jit_has_the_published_sizes():
    """JiT-B/16 by counting its parts: 12 blocks of 768, a bottleneck of 128, 32 tokens of the class of 1000 + null."""
    w, blocks, hidden = 768, 12, 2048
    block = 4 * w * w + 4 * w + 2 * 64 + 2 * w + 3 * w * hidden + 2 * hidden + w + 6 * (w * w + w)
    leave = w + 2 * (w * w + w) + 768 * (w + 1)
    times = 2 * (32 * w + w + w * w + w)
    want = blocks * block + leave + times + 1001 * w + 32 * w + 256 * w + 768 * 128 + 128 * w + w
    size = weights(
        "jit", shape=(3, 256, 256), classes=1000, patch=16, width=w, depth=blocks, heads=12, context=32, start=4
    )
    assert size == want


def test_jit_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="start must be one of the 2 blocks, from 0 on; got 2. Or set context to 0"):
        net("jit", start=2)
    with pytest.raises(ValueError, match="width over heads must be a multiple of 4, to be turned by two places; got 6"):
        net("jit", width=12, heads=2)
    x, s, _, t = draws(2, SHAPE)
    assert net("jit", context=0, start=9)(x, s, t).shape == x.shape
