"""What a run needs and whether its derivatives are right, before the first step."""

import copy
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.calculus import Central, Exact, d_dt
from ..core.flow_map import FlowMap
from ..core.random import fold_in, normal, uniform
from ..core.types import NoSource
from ..flow import Flow, load
from .config import Config, ConfigError, resolve_config, write_config
from .objects import build_optimizer, build_step, open_data, with_data
from .trial import check_sampling

TOLERANCE = 1e-3  # of the self-test, relative: a central difference in float64 is good to about 1e-6


def dry_run(config: Config) -> str:
    """Build everything, take one step on a few samples, and say what a run would need.

    Args:
        config: options of the run.
    Returns:
        Text: resolved configuration, parameters, memory, disk, and the result of the tangent self-test.
    Raises:
        ConfigError: if an option is wrong, or the exact derivative of the network is not its derivative.
    """
    config = resolve_config(config)
    data = open_data(config)
    config = with_data(config, data)
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])
        flow = Flow.built(config, data.shape, data.classes)
        check_sampling(config, flow)
        teacher = (
            flow if isinstance(config["teacher"], dict) else load(config["teacher"]) if config["teacher"] else None
        )
        step = build_step(config | {"from_teacher": False}, flow, teacher)
        sequences = getattr(step.coupling, "makes_sequences", False)
        count = min(max(8, getattr(step.coupling, "length", 0)), len(data), config["batch"])
        x, labels = data.__getitems__(range(count))
        if sequences and labels is not None:
            labels = labels[:1].expand_as(labels)  # as if of one class, of which few make a sequence
        optimizer = build_optimizer(config, step)
        kept = _kept_bytes(step, x, labels)
        optimizer.step()
    parameters = sum(p.numel() for p in step.parameters() if p.requires_grad)
    states = sum(
        v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)
    )
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    memory = 3 * weights + states + kept / count * config["batch"]  # weights, gradient, average; optimizer; activations
    disk = (config["save"]["keep"] + 1) * (2 * weights + states)
    free = shutil.disk_usage(Path.cwd()).free
    try:
        begun = flow.starting(count)
    except NoSource:
        begun = flow.space.encode(x, generator=fold_in(0)), labels
    error = tangent_error(flow.model, *begun)
    if not error < TOLERANCE:
        raise ConfigError(
            f"the exact derivative of the network must agree with a central difference; it is off by {error:.2g}, "
            "relative. The network uses an operation whose forward derivative is wrong; set loss.jvp.name=central."
        )
    return (
        f"{write_config(config)}\n"
        f"data        {len(data):,} of shape {tuple(data.shape)}, {data.classes} classes, {len(data.skipped)} skipped\n"
        f"parameters  {parameters:,} trained\n"
        f"memory      about {memory / 2**20:,.0f} MiB for weights, optimizer and a batch of {config['batch']}\n"
        f"disk        about {disk / 2**20:,.0f} MiB for checkpoints; {free / 2**20:,.0f} MiB free here\n"
        f"tangents    exact derivative against a central difference: relative error {error:.1e}, good"
    )


def tangent_error(model: FlowMap, x: Tensor, labels: Tensor | None) -> float:
    """Relative error of d_t X, or of the gradient of its square, between forward mode and a central difference.

    In float64. The gradient is compared as well because it is what exact distillation descends, and torch has layers
    with a right derivative of which the gradient is wrong.
    """
    x = normal(x.shape, x, fold_in(0, 1)).double()
    s, t = uniform((2, len(x)), x, fold_in(0, 2)).sort(0).values
    awake = _awake(model).double()
    weights = list(awake.parameters())
    found: list[list[Tensor]] = []
    for jvp in (Exact(), Central(1e-4)):
        slope = d_dt(awake, x, s, t, labels, jvp)[1]
        gradient = torch.autograd.grad(slope.square().mean(), weights, materialize_grads=True)
        found.append([slope.detach(), torch.cat([g.flatten() for g in gradient])])
    return max(float((exact - rough).norm() / rough.norm()) for exact, rough in zip(*found, strict=True))


def _awake(model: FlowMap) -> FlowMap:
    """A copy in evaluation mode whose zero-initialised layers are not zero, or there would be nothing to compare."""
    awake = copy.deepcopy(model).eval().requires_grad_(True)  # frozen weights too, or they have no gradient to compare
    generator = fold_in(0, 3)
    with torch.no_grad():
        for p in awake.parameters():
            if not bool(p.any()):
                p.copy_(0.05 * normal(p.shape, p, generator))
    return awake


def _kept_bytes(step: nn.Module, x: Tensor, labels: Tensor | None) -> int:
    """Bytes that one step keeps for its backward pass, the largest part of its memory."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        try:
            pointer = tensor.untyped_storage().data_ptr()
        except RuntimeError:  # inside a derivative tensors are wrapped and have no storage; count each of them
            pointer = -len(kept) - 1
        kept[pointer] = tensor.numel() * tensor.element_size()
        return tensor

    owned = {p.untyped_storage().data_ptr() for p in step.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = step(x, labels, generator=fold_in(0, 0))
    loss.backward()
    return sum(size for pointer, size in kept.items() if pointer not in owned)
