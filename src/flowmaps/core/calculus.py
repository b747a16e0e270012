"""Derivatives of a flow map. The only file that knows how they are taken."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from .flow_map import FlowMap
from .shapes import expand_time

Function = Callable[..., Tensor]


class JVP(Protocol):
    """f(primals), and the derivative of f along the tangents.

    Args:
        f: the function.
        primals: where.
        tangents: in which direction.
        times: how many of the last primals are times [B], which must stay in [0, 1].
    """

    def __call__(
        self, f: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor], *, times: int = 0
    ) -> tuple[Tensor, Tensor]: ...


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Softmax attention written out, because the fused kernels have no forward-mode derivative."""
    if enable_gqa:
        k, v = (z.repeat_interleave(q.shape[-3] // z.shape[-3], -3) for z in (k, v))
    score = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(score.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        score = score.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else score + attn_mask
    return F.dropout(score.softmax(-1), dropout_p) @ v


def _normalised(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    """(x - mean) / deviation over some dimensions, from primitives, in float32 or better.

    Torch's own layer_norm and batch_norm have wrong gradients of forward derivatives (pytorch issues 196700, 196699).
    """
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = full - full.mean(tuple(dims), keepdim=True)
    return centred * (centred.square().mean(tuple(dims), keepdim=True) + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    y = _normalised(input, tuple(range(-len(normalized_shape), 0)), eps)
    return _scaled(y, weight, bias, tuple(normalized_shape)).to(input.dtype)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    # Channels and places stay apart: as one dimension they cost the compiler its vectors where channels come last.
    x = input.reshape(len(input), num_groups, -1, *input.shape[2:])
    y = _normalised(x, tuple(range(2, x.ndim)), eps).reshape(input.shape)
    return _scaled(y, weight, bias, (1, -1, *[1] * (input.ndim - 2))).to(input.dtype)


def _instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _group_norm(input, input.shape[1], weight, bias, eps)


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Running statistics are used but, inside a derivative, not updated."""
    shape = (1, -1, *[1] * (input.ndim - 2))
    if training or running_mean is None or running_var is None:
        y = _normalised(input, [d for d in range(input.ndim) if d != 1], eps)
    else:
        y = (input - running_mean.reshape(shape)) * (running_var.reshape(shape) + eps).rsqrt()
    return _scaled(y, weight, bias, shape).to(input.dtype)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _multi_head_attention(*args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """The layer's own form that computes the weights, which is not fused."""
    wanted = options.pop("need_weights", True)
    output, weights = F.multi_head_attention_forward(*args, need_weights=True, **options)
    return output, weights if wanted else None


_dual: Any = forward_ad  # half typed


def _affine(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The layer on value and tangent of its input apart: torch's own rule adds a product with the weight's, zero."""

    def apply(input: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any, **named: Any) -> Tensor:
        x, dx = _dual.unpack_dual(input)
        still = all(z is None or _dual.unpack_dual(z).tangent is None for z in (weight, bias))
        if dx is None or not still:
            return layer(input, weight, bias, *options, **named)
        y, dy = (layer(z, weight, b, *options, **named) for z, b in ((x, bias), (dx, None)))
        return _dual.make_dual(y, dy)

    return apply


_DIFFERENTIABLE: dict[Any, Any] = {
    F.linear: _affine(F.linear),
    F.conv1d: _affine(F.conv1d),
    F.conv2d: _affine(F.conv2d),
    F.conv3d: _affine(F.conv3d),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.glu: _glu,
}


class _Differentiable(TorchFunctionMode):
    """Inside it, attention and norms use forms that have a right forward derivative, of which the gradient is right."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        form: Any = _DIFFERENTIABLE.get(func, func)
        return form(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Exact:
    """The exact derivative, by forward-mode automatic differentiation.

    Holds for networks with fused attention and norms too, also ones we do not own: while the derivative is taken these
    are replaced by equal forms, because torch's have no forward derivative, or one with a wrong gradient.

    Args:
        autocast: whether the derivative may follow the surrounding mixed precision; by default it is taken in full
            precision, because tangents amplify rounding.
    Cost: about 2 network evaluations without a graph; 2 forward and about 4 backward with one.
    Source: Baydin, Pearlmutter, Radul & Siskind, Automatic differentiation in machine learning: a survey, 2018,
        arXiv:1502.05767, Section 3.1 (forward mode).
    """

    autocast: bool = False

    def __call__(
        self, f: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor], *, times: int = 0
    ) -> tuple[Tensor, Tensor]:
        """f(primals) and its derivative along the tangents."""
        device = primals[0].device.type
        enabled = self.autocast and torch.is_autocast_enabled(device)
        with _Differentiable(), torch.autocast(device, enabled=enabled):
            value, derivative, *_ = torch.func.jvp(f, tuple(primals), tuple(tangents))
        return value, derivative


@dataclass(frozen=True)
class Central:
    """A central difference: [f(p + step d) - f(p - step d)] / (2 step), for any kernel.

    Where a time would leave [0, 1], it looks to one side: the slope at p of the parabola through f at p, p + a d and
    p + b d, of second order too, with a = step, b = 2 step or their negatives in place of a = step, b = -step.

    The right step depends on network and precision: `calibrated` chooses it against one exact derivative. All three
    evaluations share their dropout masks, except in a compiled graph.

    Args:
        step: half the width of the difference, in units of the tangents.
    Cost: 2 network evaluations, and 1 more for the value; all with gradient if the derivative has one.
    """

    step: float = 1e-3

    def __call__(
        self, f: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor], *, times: int = 0
    ) -> tuple[Tensor, Tensor]:
        """f(primals) and its derivative along the tangents."""
        a, b = self._offsets(primals[len(primals) - times :], tangents[len(primals) - times :])

        def shifted(by: Tensor | float) -> Tensor:
            with _stream_put_back():  # with other dropout masks it would be the difference of two networks
                return f(*(p + _times(by, d) for p, d in zip(primals, tangents, strict=True)))

        one, other = shifted(a), shifted(b)
        value = f(*primals)
        # Differences first: they are small beside the values, so that nothing is lost when they are divided by steps.
        return value, _times(b / (a * (b - a)), one - value) + _times(a / (b * (a - b)), other - value)

    def _offsets(
        self, times: Sequence[Tensor], tangents: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor] | tuple[float, float]:
        """How far along the tangents the function is evaluated beside the point itself, [B] each."""
        if not times:
            return self.step, -self.step
        ahead, behind = (
            torch.stack([((p + h * d) < 0) | ((p + h * d) > 1) for p, d in zip(times, tangents, strict=True)]).any(0)
            for h in (self.step, -self.step)
        )
        h = torch.full_like(times[0], self.step)
        return torch.where(ahead, -h, h), torch.where(ahead, -2 * h, torch.where(behind, 2 * h, -h))

    @staticmethod
    def calibrated(
        f: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor], *, times: int = 0, tolerance: float = 0.05,
        steps: Sequence[float] = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5),
    ) -> "Central":  # fmt: skip
        """The step that comes closest to the exact derivative at one point.

        Raises:
            ValueError: if even the best step is off by more than `tolerance`, relative.
        """
        with torch.no_grad():
            exact = Exact()(f, primals, tangents, times=times)[1]
            error = {h: _relative(Central(h)(f, primals, tangents, times=times)[1], exact) for h in steps}
        best = min(error, key=error.__getitem__)
        if not error[best] <= tolerance:
            raise ValueError(
                f"a central difference must come within {tolerance:g} of the exact derivative; the best step {best:g} "
                f"is off by {error[best]:.2g}. Use the exact derivative, float32, or a lower time frequency."
            )
        return Central(best)


def _times(factor: Tensor | float, x: Tensor) -> Tensor:
    """The product of x [B, *] with a number, or with one for each sample [B]."""
    return x * (expand_time(factor, x).to(x.dtype) if isinstance(factor, Tensor) else factor)


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum().sqrt() / b.square().sum().sqrt())


@contextmanager
def _stream_put_back() -> Generator[None, None, None]:
    """At the end of the block the global random stream, from which dropout draws, is where it was."""
    if torch.compiler.is_compiling():  # a compiled graph draws its masks from its own stream
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):  # pyright: ignore[reportUnknownMemberType]
        yield


@contextmanager
def stop_gradient() -> Generator[None, None, None]:
    """What a target is computed under: no graph, and the dropout masks of the prediction that follows.

    Taking a derivative here and predicting again outside needs a quarter to a half of the memory of a derivative with a
    graph. The global random stream, from which dropout draws, is put back at the end of the block.
    """
    with torch.no_grad(), _stream_put_back():
        yield


def derivative_along(
    f: Function, x: Tensor, s: Tensor, t: Tensor, *, dx: Tensor | float = 0.0, ds: float = 0.0, dt: float = 0.0,
    jvp: JVP = Exact(),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """f(x, s, t) and its derivative along (dx, ds, dt): [B, *] each.

    Args:
        f: a function of state [B, *] and two times [B], for example a flow map with its condition bound.
        x, s, t: where.
        dx: direction of the state [B, *], or 0.
        ds, dt: directions of the times.
        jvp: how the derivative is taken.
    """
    # All three take part, with zero tangents written out: symbolic zeros are what the compiler cannot store.
    still = dx if isinstance(dx, Tensor) else torch.zeros_like(x)
    return jvp(f, (x, s, t), (still, torch.full_like(s, ds), torch.full_like(t, dt)), times=2)


def stopped_derivative(
    f: Function, x: Tensor, s: Tensor, t: Tensor, *, dx: Tensor | float = 0.0, ds: float = 0.0, dt: float = 0.0,
    jvp: JVP = Exact(),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """f(x, s, t), with gradient, and its derivative along (dx, ds, dt), without: [B, *] each.

    Arguments as in `derivative_along`.

    Cost: 1 evaluation with gradient and 1 derivative without; under the compiler these share the evaluation.
    """
    # Run eagerly, a derivative beside the prediction would keep a graph of its own; the compiler leaves out what the
    # gradient does not need. Under mixed precision the two differ, because the derivative is taken in full.
    if torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type):
        value, derivative = derivative_along(f, x, s, t, dx=dx, ds=ds, dt=dt, jvp=jvp)
        return value, derivative.detach()
    with stop_gradient():
        _, derivative = derivative_along(f, x, s, t, dx=dx, ds=ds, dt=dt, jvp=jvp)
    return f(x, s, t), derivative


def _bound(model: FlowMap, cond: Any) -> Function:
    def carry(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return model(x, s, t, cond)

    return carry


def d_dt(
    model: FlowMap, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, jvp: JVP = Exact()
) -> tuple[Tensor, Tensor]:
    """X_{s,t}(x) and its derivative in the arrival time, d_t X_{s,t}(x): [B, *] each."""
    return derivative_along(_bound(model, cond), x, s, t, dt=1.0, jvp=jvp)


def d_ds(
    model: FlowMap, x: Tensor, s: Tensor, t: Tensor, v: Tensor | float, cond: Any = None, jvp: JVP = Exact()
) -> tuple[Tensor, Tensor]:
    """X_{s,t}(x) and d_s X_{s,t}(x) + grad X_{s,t}(x) v, its derivative along a path that leaves x with velocity v."""
    return derivative_along(_bound(model, cond), x, s, t, dx=v, ds=1.0, jvp=jvp)


def divergence(f: Function, x: Tensor, jvp: JVP = Exact()) -> tuple[Tensor, Tensor]:
    """f(x) [B, *] and its exact divergence sum_i d f_i / d x_i [B].

    Args:
        f: x [B, *] -> [B, *], sample by sample.
        x: where [B, *].
        jvp: how the derivative is taken.
    Cost: one derivative per dimension of x.
    """
    flat, total = x.flatten(1), x.new_zeros(len(x))
    value = x
    for i in range(flat.shape[1]):
        e = torch.zeros_like(flat)
        e[:, i] = 1
        value, row = jvp(f, (x,), (e.reshape(x.shape),))
        total = total + row.flatten(1)[:, i]
    return value, total


def hutchinson(f: Function, x: Tensor, probe: Tensor, jvp: JVP = Exact()) -> tuple[Tensor, Tensor]:
    """f(x) [B, *] and probe . J probe [B], an unbiased estimate of the divergence when E[probe probe^T] = I.

    Cost: one derivative.
    Source: Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines,
        1989; Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud, FFJORD: free-form continuous dynamics for scalable
        reversible generative models, 2018, arXiv:1810.01367, Eq. (7).
    """
    value, row = jvp(f, (x,), (probe,))
    return value, (probe * row).flatten(1).sum(1)


def divided_difference(f: Callable[[Tensor], Tensor], s: Tensor, t: Tensor, least: float = 1e-5) -> Tensor:
    """(f(t) - f(s)) / (t - s), which tends to f' on the diagonal.

    Spans shorter than `least` are widened about their midpoint, which keeps the value, and its derivative in s and t,
    to second order in `least`; where that would leave [0, 1], in which paths are defined, about the nearest point that
    does not, with the slope of a parabola carried back to the midpoint.

    Args:
        f: a smooth function of time, elementwise.
        s, t: times, the same shape.
        least: the shortest span that is divided by.
    """
    s, t = s.double(), t.double()
    middle, half = (s + t) / 2, (t - s) / 2
    short = half.abs() < least / 2
    half = torch.where(short, torch.full_like(half, least / 2), half)
    about = torch.where(short, middle.clamp(least / 2, 1 - least / 2), middle)
    above, at, below = f(about + half), f(about), f(about - half)
    return (above - below) / (2 * half) + (middle - about) * (above - 2 * at + below) / half**2
