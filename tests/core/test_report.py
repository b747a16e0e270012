"""Terms that losses report."""

import torch

from flowmaps.core.report import listen, report


def test_nobody_listening_keeps_nothing():
    report("a", torch.ones(2))
    with listen() as heard:
        report("a", torch.ones(2, requires_grad=True))
        report("a", torch.zeros(1))
        with listen() as inner:
            report("b", torch.ones(1))
    report("a", torch.ones(9))
    assert [len(v) for v in heard["a"]] == [2, 1]
    assert list(heard) == ["a"]
    assert list(inner) == ["b"]
    assert not heard["a"][0].requires_grad
