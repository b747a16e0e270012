"""What is wrong with this machine, or with a run."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ..core.calculus import JVP, Central, Exact
from .checkpoint import CheckpointError, checkpoints, verify_checkpoint
from .run_folder import RunFolder


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    good: bool
    detail: str
    fix: str = ""


def examine_machine() -> list[Finding]:
    """torch, device, forward mode through attention, compiler, disk."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Finding("device", True, ", ".join(gpus) or "CPU only"),
        _try("forward mode through attention", _attention, "update torch, or set loss.jvp.name=central"),
        _try("gradient of a derivative through norms", _norm, "update flowmaps, or set loss.jvp.name=central"),
        _try("compile", _compile, "install a C++ compiler, or leave compile=false"),
        Finding(
            "disk", free > 1, f"{free:.1f} GiB free here", "" if free > 1 else "free some space: checkpoints need it"
        ),
    ]


def examine_run(path: Path) -> list[Finding]:
    """Checkpoints, skipped steps, the course of the loss, and the gap between few steps and many."""
    run = RunFolder(path)
    config, rows = run.config(), run.rows()
    losses = [row["loss"] for row in rows if "loss" in row]
    bad = [row for row in rows if "bad_batch" in row]
    seen = max((row["images"] for row in rows), default=0)
    findings = [_checkpoints(run)]
    done = seen >= config["images"]
    findings.append(
        Finding(
            "length",
            done,
            f"{seen:,} of {config['images']:,} images",
            "" if done else f"continue with: flowmaps train --resume {path}",
        )
    )
    findings.append(
        Finding(
            "finite steps",
            not bad,
            f"{len(bad)} steps were skipped" + (f", first at {bad[0]['images']:,} images" if bad else ""),
            f"look at the data {bad[0]['bad_batch'][:8]}; if all is well there, lower optimizer.lr or clip"
            if bad
            else "",
        )
    )
    if len(losses) >= 20:
        findings.append(_course(losses))
    quality = [row for row in rows if any(k.startswith("energy_over_floor_") for k in row)]
    if quality:
        findings.append(_gap(quality[-1]))
    return findings


def _try(what: str, test: Callable[[], float], fix: str) -> Finding:
    try:
        error = test()
    except Exception as problem:  # whatever a broken installation raises is the finding
        return Finding(what, False, f"{type(problem).__name__}: {str(problem).splitlines()[0]}", fix)
    good = error < 1e-4
    return Finding(what, good, f"relative error {error:.1e}", "" if good else fix)


def _attention() -> float:
    x, d = torch.randn(2, 2, 3, 8, 16, generator=torch.Generator().manual_seed(0)).double()
    attend = lambda z: F.scaled_dot_product_attention(z, z, z)  # noqa: E731
    exact = Exact()(attend, (x,), (d,))[1]
    rough = (attend(x + 1e-6 * d) - attend(x - 1e-6 * d)) / 2e-6
    return float((exact - rough).norm() / rough.norm())


def _norm() -> float:
    x, d = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).double()
    offset = torch.zeros_like(x, requires_grad=True)

    def gradient(jvp: JVP) -> torch.Tensor:
        slope = jvp(lambda z: F.layer_norm(z + offset, (8,)), (x,), (d,))[1]
        return torch.autograd.grad(slope.square().sum(), offset)[0]

    exact, rough = gradient(Exact()), gradient(Central(1e-4))
    return float((exact - rough).norm() / rough.norm())


def _compile() -> float:
    x, d = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(8, 8)

    def tangent(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return Exact()(lambda z: F.silu(layer(z)), (x,), (d,))[1]

    eager, compiled = tangent(x, d).detach(), torch.compile(tangent)(x, d).detach()
    return float((eager - compiled).norm() / eager.norm())


def _checkpoints(run: RunFolder) -> Finding:
    found = checkpoints(run.checkpoints)
    if not found:
        return Finding(
            "checkpoints", False, "none", "the run stopped before its first save; start it again, or set save.every"
        )
    for path in found:
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            return Finding("checkpoints", False, str(error), "continue from another checkpoint with --resume")
    return Finding("checkpoints", True, f"{len(found)} whole, newest {found[-1].name}")


def _course(losses: list[float]) -> Finding:
    tenth = max(1, len(losses) // 10)
    best = min(sum(losses[i : i + tenth]) / tenth for i in range(0, len(losses) - tenth + 1, tenth))
    last = sum(losses[-tenth:]) / tenth
    good = math.isfinite(last) and last - best <= 0.5 * abs(best) + 1e-6
    detail = f"mean of the last tenth {last:.4g}, of the best tenth {best:.4g}"
    return Finding("loss", good, detail, "" if good else "it rose: lower optimizer.lr, or raise loss.diagonal")


def _gap(row: dict[str, float]) -> Finding:
    steps = sorted(int(k.rpartition("_")[2]) for k in row if k.startswith("energy_over_floor_"))
    few, many = (row[f"energy_over_floor_{k}"] for k in (steps[0], steps[-1]))
    detail = f"energy distance over its floor: {few:.3g} at {steps[0]} steps, {many:.3g} at {steps[-1]}"
    if many > 3:
        return Finding("quality", False, detail, "the velocity itself is far off: train longer or with a larger net")
    good = few <= 2 * max(many, 1)
    return Finding(
        "quality", good, detail, "" if good else "few steps lag behind: train longer, or lower loss.diagonal"
    )
