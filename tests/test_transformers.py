"""What each of the larger networks promises beyond the battery of tests/test_nets.py."""

import pytest
import torch
from test_nets import SHAPE, fresh, net
from truth import draws, stream

from flowmaps.build import build
from flowmaps.core.constraint import put_back
from flowmaps.core.flow_map import MeanVelocity
from flowmaps.couplings.independent import Independent
from flowmaps.engine.step import Step
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.nets._magnitude import Waves, Weighted, beside, mixed, normalised, silu
from flowmaps.nets._transformer import rotations, to_image, turned
from flowmaps.spaces.euclidean import Euclidean


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
    x, y = (torch.randn(4, n, 32, generator=stream(n)) for n in (16, 5))
    cond, block, last = torch.ones(4, 1, 32), *made.blocks
    image, text = block(x, y, cond, None)
    for other in (block(x + 0.1 * x.roll(1, 2), y, cond, None), block(x, y + 0.1 * y.roll(1, 2), cond, None)):
        assert (other[0] - image).abs().amax((1, 2)).min() > 1e-5
        assert (other[1] - text).abs().amax((1, 2)).min() > 1e-5
    swapped = block(x.flip(1), y.roll(1, 1), cond, None)
    assert (swapped[0] - image.flip(1)).abs().max() < 1e-12, "every token has what it heard itself"
    assert (swapped[1] - text.roll(1, 1)).abs().max() < 1e-12
    image, text = last(x, y, cond, None)
    assert text is y, "in the last block the text stays what it was"
    assert (last(x, y + 0.1 * y.roll(1, 2), cond, None)[0] - image).abs().amax((1, 2)).min() > 1e-5


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


def test_jit_drops_the_tokens_of_the_condition():
    """Without attention every patch is its own output, wherever the condition's tokens stood; these are not turned."""
    made = net("jit")
    x, s, _, t = draws(2, SHAPE)
    for block in made.blocks:
        torch.nn.init.zeros_(block.project.weight)
        torch.nn.init.zeros_(block.project.bias)
    other = x.clone()
    other[:, :, 2:4, 6:8] += 1
    changed = (made(x, s, t) != made(other, s, t)).any(1)[0]
    assert changed[2:4, 6:8].all()
    assert changed.sum() == 4
    cos, sin = made.rotation
    assert (cos[:3] == 1).all()
    assert (sin[:3] == 0).all()
    assert torch.equal(made.rotation[:, 3:], rotations(4, 4, 16).to(cos))
    seen = []
    for block in made.blocks:
        block.register_forward_hook(lambda _, given, __: seen.append(given[2]))
    made(x, s, t)
    assert torch.equal(seen[0], made.rotation[:, 3:])
    assert torch.equal(seen[1], made.rotation)


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


# EDM2's U-Net


def second_moment(z, dims):
    return z.square().mean(dims)


def test_operations_keep_unit_variance():
    """Second moments of 4e4 standard normal inputs; 5 % is five standard errors of those whose fourth moment is 4 times
    the normal's, and more of the others. Waves of low frequency are far from full periods, so that many are drawn. False
    alarm 1e-5."""
    g = stream()
    a, b = torch.randn(400, 16, 100, generator=g), torch.randn(400, 48, 100, generator=g)
    for z in (
        silu(a),
        mixed(a, b[:, :16], 0.3),
        beside(a, b),
        normalised(3 * a, 1),
        Waves(4096)(torch.rand(600, generator=g)),
        Weighted(64, 16)(torch.randn(4000, 64, generator=g)),
        Weighted(16, 24, 1)(torch.randn(10, 16, 20, 20, generator=g)),
    ):
        assert abs(second_moment(z, None) - 1) < 0.05
    # A kernel of 3 sees zeros beyond the border.
    inside = Weighted(16, 24, 3)(torch.randn(10, 16, 20, 20, generator=g))[..., 1:-1, 1:-1]
    assert abs(second_moment(inside, None) - 1) < 0.05
    for share in (0.0, 0.5, 1.0):
        both = beside(a, b, share)
        left, right = (second_moment(z, None) * z.shape[1] for z in (both[:, :16], both[:, 16:]))
        assert abs(left * share**2 - right * (1 - share) ** 2) < 0.05 * (left + right), "shares, not sizes, decide"


def test_attention_is_of_cosines():
    made = net("edm2_unet")
    block = next(m for m in made.modules() if getattr(m, "attends", 0))
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *z: seen.append(z) or attend(*z))
        block._attend(5 * torch.randn(3, block.project.weight.shape[0], 4, 4, generator=stream()))
    for z in seen[0]:
        assert z.shape == (3, block.attends, 16, 16)
        assert (second_moment(z, -1) - 1).abs().max() < 1e-3, "but for the 1e-4 that no signal is divided by"


def test_the_network_keeps_magnitude_and_starts_at_zero():
    """Every block's output, and the network's with its gain at one. Borders of zeros and averages by attention take a
    little away, .75 to 1 measured; an operation that loses its 0.76 in every block would leave 1e-3. The three channels
    of the output share 64 inputs, and vary more."""
    made, seen = fresh("edm2_unet", width=64, head=32, blocks=2, shape=(3, 16, 16)), []
    for block in (*made.down, *made.up):
        block.register_forward_hook(lambda _, __, y: seen.append(float(second_moment(y.detach(), None))))
    x, s, _, t = draws(8, (3, 16, 16))
    assert not made(x, s, t).any()
    torch.nn.init.ones_(made.gain)
    out = made(x, s, t)
    assert all(0.6 < m < 1.2 for m in seen[len(seen) // 2 :])
    assert 0.4 < second_moment(out, None) < 1.6
    assert abs(second_moment(made.embed(s, t), None) - 1) < 0.2
    assert not any("bias" in name for name, _ in made.named_parameters())


def test_weights_keep_their_norm_through_training():
    made = net("edm2_unet")
    step = Step(MeanVelocity(made), FlowMatching(), Independent(), Euclidean())
    layers = [m for m in made.modules() if isinstance(m, Weighted)]

    @torch.no_grad()
    def norms():
        return torch.stack([second_moment(m.weight.flatten(1), 1).sub(1).abs().max() for m in layers])

    optimizer = torch.optim.SGD(made.parameters(), 100.0)
    x = torch.randn(4, *SHAPE, generator=stream())
    loss, _ = step(x, generator=stream())
    loss.backward()
    for m in layers:
        w, g = m.weight.flatten(1), m.weight.grad.flatten(1)
        assert ((w * g).sum(1) / (w.norm(dim=1) * g.norm(dim=1) + 1e-9)).abs().max() < 1e-2, "steps turn weights"
    optimizer.step()
    assert norms().max() > 1e-2
    before = made(x, *torch.rand(2, 4, generator=stream()))
    step.follow()
    assert norms().max() < 1e-3
    after = made(x, *torch.rand(2, 4, generator=stream()))
    assert (after - before).norm() / before.norm() < 1e-3, "nothing that is computed moves, but for the eps of norms"
    frozen = made.requires_grad_(False)
    kept = [m.weight.mul_(2).clone() for m in layers]
    put_back(frozen)
    assert all(torch.equal(m.weight, w) for m, w in zip(layers, kept, strict=True)), "frozen weights are left alone"


def test_edm2_has_the_published_layers():
    """Network S, 192 channels at full resolution of 64 pixels: known for 280 million weights; we have a second time."""
    size = weights("edm2_unet", shape=(3, 64, 64), classes=1000, width=192, multipliers=(1, 2, 3, 4), blocks=3, head=64)
    assert abs(size / 280e6 - 1) < 0.01


def test_edm2_sizes_that_do_not_fit():
    with pytest.raises(
        ValueError, match="the image must halve 4 times and head divide the channels .*; got 8 x 8, and"
    ):
        net("edm2_unet", multipliers=(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"heads of 24 for \[16, 32\] channels"):
        net("edm2_unet", head=24)
