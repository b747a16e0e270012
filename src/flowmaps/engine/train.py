"""The training loop: straight through, counted in images, resumable at any step bit for bit."""

import copy
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader

from ..build import construct
from ..core.random import fold_in
from ..data._dataset import Dataset
from ..flow import Flow, as_map, load
from .checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint, verify_checkpoint
from .config import Config, ConfigError, resolve_config, write_config
from .ema import EMA, update_average
from .evaluate import evaluate_flow, quality, to_json
from .objects import build_optimizer, build_step, held_out, open_data, with_data
from .order import Order
from .pictures import save_samples
from .progress import ProgressLine
from .report_page import write_report
from .run_folder import EVALUATION, RunFolder
from .schedule import Schedule
from .trial import check_sampling, starts_alone

BAD_STEPS = 10  # non-finite steps in a row that end a run
LOG_POINTS, LOG_STEPS = 400, 10  # at most so many rows of metrics.jsonl in a run, at least so many steps apart
_WEIGHTS, _ORDER, _NOISE, _DROPOUT = range(4)  # first counter of each use of the seed


class TrainingStopped(Exception):
    """The run ended before its last step; the message says why and how to continue."""


@dataclasses.dataclass
class _State:
    """Where a run is; all of it goes into a checkpoint."""

    images: int = 0
    steps: int = 0
    skipped: int = 0
    streak: int = 0
    seconds: float = 0.0
    window: dict[str, float] = dataclasses.field(default_factory=dict)  # sums since the last row of metrics.jsonl


def train(config: Config, out: Path, *, resume: Path | None = None, quiet: bool = False) -> Path:
    """Train a flow map, or continue to.

    Args:
        config: options of the run; what is left out takes its default.
        out: run folder; must not hold a run, unless it is resumed.
        resume: checkpoint to continue from.
        quiet: show no progress.
    Returns:
        The run folder.
    Raises:
        ConfigError: if an option is wrong.
        CheckpointError: if a checkpoint cannot be read or written.
        TrainingStopped: if the user interrupts, or ten steps in a row are not finite; the state is saved.
    """
    config = resolve_config(config)
    data = open_data(config)
    config = with_data(config, data)
    accelerator = _accelerator(config)
    if config["batch"] % accelerator.num_processes:
        raise ConfigError(
            f"batch must be a multiple of the {accelerator.num_processes} processes; got {config['batch']}."
        )
    fresh = resume is None and accelerator.is_main_process
    run = RunFolder.reserved(out) if fresh else RunFolder(out)
    accelerator.wait_for_everyone()
    check_sampling(config, Flow.built(config, data.shape, data.classes))  # before a teacher is trained
    teacher = _teacher(config, out, quiet)
    torch.manual_seed(fold_in(config["seed"], _WEIGHTS).initial_seed())
    flow = Flow.built(config, data.shape, data.classes)
    step = build_step(config, flow, teacher)
    optimizer = build_optimizer(config, step)
    average = copy.deepcopy(flow.model).requires_grad_(False).eval()
    rate = optimizer.param_groups[0]["lr"]  # before a checkpoint brings the rate of its last step
    state = _State()
    if resume is not None:
        state = _restore(load_checkpoint(resume), step, average, optimizer)
        if accelerator.is_main_process:
            run.write("run.toml", write_config(config))
            run.forget_after(state.images)
    average.to(accelerator.device)
    wrapped, wrapped_optimizer = accelerator.prepare(step, optimizer)
    shown = dataclasses.replace(flow, model=as_map(average, step.loss))
    loop = _Loop(config, run, data, shown, accelerator, step, wrapped, wrapped_optimizer, average, state, rate)
    loop.go(quiet or not accelerator.is_main_process)
    if config["evaluate"] and accelerator.is_main_process and starts_alone(shown):
        _finish(config, run, shown, data, quiet)
    accelerator.wait_for_everyone()
    return out


@dataclasses.dataclass
class _Loop:
    """One pass through the steps that are left."""

    config: Config
    run: RunFolder
    data: Dataset
    shown: Flow  # samples with the running average
    accelerator: Accelerator
    step: Any
    wrapped: nn.Module
    optimizer: Any
    average: nn.Module
    state: _State
    rate: float  # the optimizer's own learning rate
    shown_loss: float = math.nan

    def go(self, quiet: bool) -> None:
        config, state, acc = self.config, self.state, self.accelerator
        seed, batch, total = config["seed"], config["batch"], config["images"]
        order = Order(
            len(self.data), batch, total, state.images, fold_in(seed, _ORDER).initial_seed(), acc.process_index,
            acc.num_processes,
        )  # fmt: skip
        reader = DataLoader(
            cast(Any, self.data), batch_sampler=order, num_workers=config["workers"], collate_fn=_as_it_is,
            persistent_workers=config["workers"] > 0,
        )  # fmt: skip
        held = held_out(config, self.data)
        schedule, ema = construct(Schedule, config["schedule"]), construct(EMA, config["ema"])
        began = time.monotonic() - state.seconds
        with _interrupts() as interrupted, ProgressLine("train", total, done=state.images, quiet=quiet) as progress:
            if self.data.skipped:
                progress.message(f"{len(self.data.skipped)} files could not be read, first {self.data.skipped[0]}")
            for indices, (x, labels) in zip(order, reader, strict=True):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate * schedule.factor(state.images, total)
                finite = self._step(x, labels)
                self._begin()
                state.images += batch
                state.steps += 1
                state.seconds = time.monotonic() - began
                if finite:
                    update_average(self.average, self.step.model, ema.decay(state.images, batch))
                else:
                    self._report_bad(indices, progress)
                if self._logged(state.images):
                    self._log()
                if state.steps % 10 == 0 or state.images >= total:
                    progress.update(min(state.images, total), self._note())
                stop = self._any(bool(interrupted)) or state.streak >= BAD_STEPS
                every = config["save"]["every"]
                if stop or state.images // every > (state.images - batch) // every or state.images >= total:
                    self._save(held, pictures=not stop)
                if stop:
                    raise TrainingStopped(self._why())
        if state.streak:
            print(f"warning: the last {state.streak} of {state.steps} steps were not finite", file=sys.stderr)

    def _step(self, x: torch.Tensor, labels: torch.Tensor | None) -> bool:
        """One step of the optimizer; False if the gradient was not finite, and nothing was changed."""
        state, device, seed = self.state, self.accelerator.device, self.config["seed"]
        rank = self.accelerator.process_index
        torch.manual_seed(fold_in(seed, _DROPOUT, rank, state.images).initial_seed())  # dropout draws globally
        generator = fold_in(seed, _NOISE, rank, state.images, device=device)
        cond = None if labels is None else labels.to(device)
        self.wrapped.train()
        # A compiled step reports no terms: the steps that are logged run eagerly for them.
        ask = not self.config["compile"] or self._logged(state.images + self.config["batch"])
        loss, terms = self.wrapped(x.to(device), cond, images=state.images, generator=generator, terms=ask)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = float(cast(Any, self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config["clip"])))
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            state.skipped, state.streak = state.skipped + 1, state.streak + 1
            return False
        self.optimizer.step()
        self.step.follow()
        state.streak = 0
        sums = {"loss": float(loss.detach()), "gradient_norm": norm, "count": 1.0}
        sums |= {name: float(value) for name, value in terms.items()} | ({"terms": 1.0} if terms else {})
        for name, value in sums.items():
            state.window[name] = state.window.get(name, 0.0) + value
        return True

    def _begin(self) -> None:
        """Make the folder a run, once a step could be taken: what is refused before leaves it free."""
        if self.state.steps == 0 and self.accelerator.is_main_process:
            self.run.begin(self.config)

    def _logged(self, images: int) -> bool:
        every = max(LOG_STEPS * self.config["batch"], self.config["images"] // LOG_POINTS)
        return images // every > (images - self.config["batch"]) // every

    def _log(self) -> None:
        window = self.state.window
        count, terms = window.pop("count", 0.0), window.pop("terms", 0.0)
        row: dict[str, Any] = {"images": self.state.images, "seconds": round(self.state.seconds, 2)}
        row |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "skipped": self.state.skipped}
        for name, total in window.items():
            row[name] = total / (count if name in ("loss", "gradient_norm") else terms)
        window.clear()
        self.shown_loss = row.get("loss", math.nan)
        if self.accelerator.is_main_process:
            self.run.append(row)

    def _note(self) -> str:
        count = self.state.window.get("count", 0)
        loss = f"loss {self.state.window['loss'] / count if count else self.shown_loss:.4f}"
        return f"{loss}  {self.state.skipped} skipped" if self.state.skipped else loss

    def _report_bad(self, indices: list[int], progress: ProgressLine) -> None:
        images = self.state.images
        progress.message(
            f"step {self.state.steps} was not finite and was skipped; its data: {indices[:8]}"
            f"{'...' if len(indices) > 8 else ''} (all in metrics.jsonl)"
        )
        if self.accelerator.is_main_process:
            self.run.append({"images": images, "skipped": self.state.skipped, "bad_batch": indices})

    def _any(self, flag: bool) -> bool:
        """Whether any process raised the flag, so that all stop at one step."""
        if self.accelerator.num_processes == 1:
            return flag
        raised: Any = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device))
        return bool(raised > 0)

    def _why(self) -> str:
        reason = "interrupted"
        if self.state.streak >= BAD_STEPS:
            reason = (
                f"{BAD_STEPS} steps in a row were not finite, so the run was stopped; its weights are those before "
                "them. Lower optimizer.lr or clip, and see `flowmaps doctor` on the run"
            )
        return (
            f"{reason}. Saved at {self.state.images:,} of {self.config['images']:,} images. Continue with:\n"
            f"  flowmaps train --resume {self.run.path}"
        )

    def _save(self, held: Dataset, pictures: bool) -> None:
        if self.accelerator.is_main_process:
            counters = {k: v for k, v in vars(self.state).items() if k not in ("images", "window")}
            counters |= {f"window.{k}": v for k, v in self.state.window.items()}
            save_checkpoint(
                self.run.checkpoints,
                Checkpoint(
                    self.state.images, self.step.trained_state(), self.average.state_dict(),
                    self.optimizer.state_dict(), counters, write_config(self.config),
                ),
                self.config["save"]["keep"],
            )  # fmt: skip
            if pictures and starts_alone(self.shown):
                _show(self.config, self.run, self.shown, self.state.images)
                asked = self.config["sample"]
                figures = quality(self.shown, self.data, held, asked["steps"], asked["sampler"], asked["guidance"])
                self.run.append({"images": self.state.images} | figures)
            if pictures:
                write_report(self.run)
        self.accelerator.wait_for_everyone()


def _accelerator(config: Config) -> Accelerator:
    AcceleratorState._reset_state()  # a process may train more than one run, each in its own precision
    return Accelerator(
        mixed_precision="bf16" if config["precision"] == "bfloat16" else "no",
        cpu=config["device"] == "cpu",
        # A block of times that no sample fell into has no gradient, nor has what a loss leaves alone.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)],
    )


def _teacher(config: Config, out: Path, quiet: bool) -> Flow | None:
    """The teacher of a run; one that is given as a table of options is trained first, or finished."""
    given = config["teacher"]
    if not given:
        return None
    path = Path(given) if isinstance(given, str) else out / "teacher"
    if isinstance(given, dict):
        own = ("teacher", "from_teacher", "lora", "shape", "classes")
        first = {k: v for k, v in config.items() if k not in own} | given
        if not (path / "run.toml").is_file():
            train(first, path, quiet=quiet)
        elif not _complete(path, int(first["images"])):
            train(first, path, resume=find_checkpoint(path), quiet=quiet)
    return load(path)


def _complete(path: Path, images: int) -> bool:
    return int(verify_checkpoint(find_checkpoint(path))["images"]) >= images


def _restore(saved: Checkpoint, step: Any, average: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
    try:
        missing, unexpected = step.load_state_dict(dict(saved.weights), strict=False)
        if unexpected or set(missing) & set(step.trained_state()):
            raise RuntimeError(f"missing {sorted(missing)[:3]}, unexpected {unexpected[:3]}")
        average.load_state_dict(dict(saved.ema))
        optimizer.load_state_dict(dict(saved.optimizer))
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"a resumed run must keep its network, loss and optimizer; the checkpoint does not fit: {error}. "
            "Start a new run instead."
        ) from error
    counters = dict(saved.counters)
    window = {k.removeprefix("window."): float(v) for k, v in counters.items() if k.startswith("window.")}
    return _State(
        saved.images,
        int(counters["steps"]),
        int(counters["skipped"]),
        int(counters["streak"]),
        counters["seconds"],
        window,
    )


def _show(config: Config, run: RunFolder, flow: Flow, images: int) -> None:
    """A picture of samples from fixed noise: one column per number of steps, and the many-step solution."""
    n = 8 if len(flow.shape) == 3 else 2000
    steps, sampler, guidance = (config["sample"][key] for key in ("steps", "sampler", "guidance"))
    columns, titles = (
        [flow.sample(n, k, sampler=sampler, guidance=guidance).cpu() for k in steps],
        list(map(str, steps)),
    )
    with suppress(ValueError):  # guidance without a velocity has no such solution
        columns.append(flow.sample(n, 32, sampler="heun", guidance=guidance).cpu())
        titles.append("ODE")
    save_samples(columns, titles, run.samples / f"{images:012d}.png", across=1)


def _finish(config: Config, run: RunFolder, flow: Flow, data: Dataset, quiet: bool) -> None:
    # Every map jumps in any number of steps; a sampler that was chosen may not take any.
    steps = sorted({*config["sample"]["steps"], *((1, 2, 4, 8, 16) if config["sample"]["sampler"] == "jump" else ())})
    with ProgressLine("evaluate", len(steps) + 2, "parts", quiet=quiet) as progress:
        done = iter(range(len(steps) + 3))
        result = evaluate_flow(
            flow, data, held_out(config, data), steps, sampler=config["sample"]["sampler"],
            guidance=config["sample"]["guidance"], tell=lambda what: progress.update(next(done), what),
        )  # fmt: skip
    run.write(EVALUATION, to_json(result))
    write_report(run)


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C and termination instead of dying in the middle of a step; a second Ctrl-C interrupts at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
