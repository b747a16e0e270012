"""A network with a forward derivative that is not its derivative."""

import torch
from torch import nn


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, d):
        return 2 * d * ctx.saved_tensors[0].cos()


class Lying(nn.Module):
    def __init__(self, shape, classes=0):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, s, t, cond=None):
        return Doubled.apply(self.scale * x * t.reshape(-1, 1, 1, 1))

    def null_condition(self, batch):
        return None
