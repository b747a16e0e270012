"""Flow: what a user holds. A map with the path, source and space it was trained on."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .build import build, find
from .by_name import Guidance, Open, built_grid, built_sampler, equal_or_given, guided, guided_refiner
from .conditions.label import Label
from .core.adaptive import Adapted, Rung, sample_to_tolerance
from .core.calibration import calibrate
from .core.checks import check_choice, check_device
from .core.concatenated import Concatenated
from .core.flow_map import EulerMap, FlowMap
from .core.grid import TimeGrid
from .core.interpolant import Interpolant
from .core.random import PerSample, fold_in
from .core.sampling import sample
from .core.shapes import fill_time
from .core.source import check_gaussian, started
from .core.target import parts
from .core.types import Conditioner, Coupling, NoSource, Sampler, Space, map_condition
from .engine.checkpoint import find_checkpoint, load_weights
from .engine.config import read_config
from .engine.lora import merged
from .metrics.function_evaluations import leaves_counted

__all__ = ["Flow", "Guidance", "load"]

PROBE = 1 << 40  # index of the first sample to try things on: nobody samples there


@dataclass(frozen=True)
class Flow:
    """A trained flow map, ready to sample.

    Args:
        model: the map.
        interpolant: the path it was trained on.
        coupling: gives the source.
        space: where the flow lives; decodes samples.
        shape: of one datum.
        classes: number of labels, 0 for none.
        config: the configuration of the run it comes from, if any.
        condition: makes what the network is told from what comes with the data.
        run: carries a batch through the steps of a sampler, as core.sampling.sample does; see `compiled`.
    """

    model: FlowMap
    interpolant: Interpolant
    coupling: Coupling
    space: Space
    shape: tuple[int, ...]
    classes: int = 0
    config: Mapping[str, Any] | None = None
    condition: Conditioner = Label()
    run: Callable[..., Tensor] = sample

    @staticmethod
    def built(config: Mapping[str, Any], shape: Sequence[int], classes: int) -> "Flow":
        """The flow that a resolved configuration describes, with fresh weights.

        The network's initial weights come from torch's global random stream.
        """
        interpolant = build("interpolants", config["interpolant"])
        space = build("spaces", config["space"], shape=tuple(shape))
        inner = _state_shape(space, torch.zeros(1, *shape))
        coupling = build("couplings", config["coupling"], shape=inner, classes=classes, interpolant=interpolant)
        condition = build("conditions", config.get("condition", "label"), shape=inner, classes=classes)
        taken = getattr(coupling, "takes_condition", False)  # and the network is told nothing
        classes, beside = (0, ()) if taken else (classes if condition.labelled else 0, condition.spatial)
        channels = inner[0] * (2 if _refines(config) else 1) + sum(beside[:1])
        net = build("nets", config["net"], shape=(channels, *inner[1:]), classes=classes)
        net = Concatenated(net, beside) if beside else net
        model = build("maps", config["map"], net=net, interpolant=interpolant)
        return Flow(model, interpolant, coupling, space, tuple(shape), classes, config, condition)

    @cached_property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state, in the space of the flow."""
        return _state_shape(self.space, torch.zeros(1, *self.shape, device=self._like().device))

    @torch.no_grad()
    def sample(
        self, n: int, steps: int | Sequence[float] = 1, *, seed: int = 0, label: int | Sequence[int] | None = None,
        sampler: str | Mapping[str, Any] | Sampler | None = None, guidance: Guidance = 1.0, first: int = 0,
        grid: str | Mapping[str, Any] | TimeGrid | None = None, batch: int = 1024,
        callback: Callable[[int], None] | None = None, cond: Any = None,
    ) -> Tensor:  # fmt: skip
        """Draw samples; sample i depends on (seed, i) alone, not on n or the batch.

        Args:
            n: number of samples.
            steps: number of equal steps, or the times themselves, increasing from 0 to 1.
            seed: of the source and of stochastic samplers.
            label: class of all samples, or of each; left out, the classes take turns. `classes` means no class.
            sampler: a name, a table or an object; left out, the map's own jump.
            guidance: scale of guidance; 1 is none. A network that was told scales in training is told it, others are
                evaluated with and without the condition. Or a name or a table of another guidance, or a function that
                makes the guided map from the map.
            first: index of the first sample.
            grid: how the times of a number of steps are chosen: a name, a table or an object; left out, equal steps.
                What is searched for is tried on samples with the labels or conditions asked for.
            batch: how many are drawn at a time.
            callback: called with the number of samples drawn so far.
            cond: condition of each sample, any nesting of tensors [n, *], in place of labels; `condition` makes such.
        Returns:
            Data [n, *].
        Cost: steps times the sampler's evaluations, times those of the guidance; two unless the network is told.
        """
        step = self.built_sampler("jump" if sampler is None else sampler, guidance)
        model = self.guided(guidance)
        if cond is None:
            self.labels(n, label, first)  # refused here, before a grid is tried on as many as it likes
        times = self.times(steps, grid, sampler=step, guidance=guidance, label=label, cond=cond)
        parts: list[Tensor] = []
        for x0, told, generator in self._starts(n, label, seed, first, batch, cond):
            x = self.run(model, x0, times, sampler=step, cond=told, generator=generator)
            parts.append(self.space.decode(self.space.constrain(x)))
            if callback is not None:
                callback(sum(map(len, parts)))
        return torch.cat(parts)

    def compiled(self, backend: str = "inductor") -> "Flow":
        """The same flow, whose `sample` runs all steps as one compiled graph when the same is asked again.

        Pays when many batches of one shape are sampled in one way: the first is sampled eagerly, and with the second
        the compiler takes its time. Keep what is returned, it holds the graphs.

        Args:
            backend: of the compiler.
        """
        from .engine.compiled import CompiledSampling  # the compiler is slow to import

        return dataclasses.replace(self, run=CompiledSampling(backend))

    @torch.no_grad()
    def sample_to_tolerance(
        self, n: int, tolerance: float | Sequence[Rung], *, seed: int = 0, label: int | Sequence[int] | None = None,
        guidance: Guidance = 1.0, first: int = 0, batch: int = 1024, cond: Any = None,
    ) -> Adapted:  # fmt: skip
        """Draw samples with as few evaluations as each of them needs; see core.adaptive for the check.

        Args:
            n: number of samples.
            tolerance: distance from the many-step solution that is aimed at, root mean square per dimension in the
                space of the flow; or what `calibrate` returned for one, which is cheaper.
            seed, label, guidance, first, batch, cond: as in `sample`.
        Returns:
            x: data [n, *]; evaluations: of the network, per sample [n]; error: estimated, per sample [n].
        """
        model = self.guided(guidance)
        results = [
            sample_to_tolerance(model, x0, tolerance, cond=told)
            for x0, told, _ in self._starts(n, label, seed, first, batch, cond)
        ]
        x = torch.cat([self.space.decode(self.space.constrain(r.x)) for r in results])
        x0, told, _ = next(self._starts(n, label, seed, first, 1, cond))
        counted, counters = leaves_counted(model)
        counted.velocity(x0, fill_time(0.5, x0), told)
        calls = sum(counter.calls for counter in counters)
        return Adapted(x, calls * torch.cat([r.evaluations for r in results]), torch.cat([r.error for r in results]))

    def calibrate(
        self, tolerance: float, share: float = 0.95, *, label: int | None = None, guidance: Guidance = 1.0,
        probe: int = 256, batch: int = 1024, cond: Any = None,
    ) -> tuple[Rung, ...]:  # fmt: skip
        """Learn on a probe how a share of samples is brought within a tolerance; pays for some thousands of samples.

        Args:
            tolerance: as in `sample_to_tolerance`.
            share: of the samples that shall be within the tolerance.
            label, guidance, batch: as in `sample`, and as the samples will have them.
            probe: number of samples to try on; nobody draws the same.
            cond: conditions [probe, *] in place of a label, like those that the samples will have.
        Returns:
            What `sample_to_tolerance` takes as its tolerance.
        Cost: 363 evaluations per sample of the probe.
        """
        starts = self._starts(probe, label, 0, PROBE, batch, cond)
        return calibrate(self.guided(guidance), ((x0, told) for x0, told, _ in starts), tolerance, share=share)

    def times(
        self, steps: int | Sequence[float], grid: str | Mapping[str, Any] | TimeGrid | None = None,
        sampler: Sampler | None = None, guidance: Guidance = 1.0, label: int | Sequence[int] | None = None,
        cond: Any = None,
    ) -> Tensor:  # fmt: skip
        """The times that `sample` steps through, [K + 1] float64; a searched grid is tried on 256 samples.

        They have the labels or conditions given, in turn.
        """
        if grid is None:
            return equal_or_given(steps)
        if not isinstance(steps, int):
            raise ValueError(f"a grid chooses the times of a number of steps; got times, {steps}, too. Leave one out.")
        chosen = built_grid(grid, self.interpolant, sampler, self._held(guidance))
        count = len(equal_or_given(steps)) - 1
        return chosen(count, self.guided(guidance), *self.starting(256, label=label, cond=cond))

    def guided(self, guidance: Guidance) -> FlowMap:
        """The map with guidance; for a scale told it if its network takes it, else mixed from two evaluations.

        In a table, `weak` may be the run whose map autoguidance leads away from, or a checkpoint of one.
        """
        return check_gaussian(guided(guidance, self.model, self.interpolant, self._held()), self)

    def built_sampler(self, sampler: str | Mapping[str, Any] | Sampler, guidance: Guidance = 1.0) -> Sampler:
        """The sampler of a name or a table, on the path of the flow; an object is what it is.

        In a table, `refiner` may be the run of the loss "velocity_refiner" whose map flow_turbo takes; it is guided as
        the flow is.
        """
        return check_gaussian(built_sampler(sampler, self.interpolant, self._held(guidance)), self)

    def _held(self, guidance: Guidance = 1.0) -> Open:
        """How the map of a run in a table is loaded."""

        def held(key: str, run: str) -> FlowMap:
            other = load(run)
            if other.interpolant != self.interpolant:
                raise ValueError(
                    f"{key} must be a run on the flow's path, {self.interpolant}; got {run} on {other.interpolant}. "
                    "Train it on this path."
                )
            model = other.model.to(self._like().device)
            return guided_refiner(guidance, model, self.interpolant, held) if key == "refiner" else model

        return held

    def starting(
        self, n: int, seed: int = 0, label: int | Sequence[int] | None = None, cond: Any = None
    ) -> tuple[Tensor, Any]:
        """States at time 0 [n, *] to try things on, and their conditions; nobody samples from these.

        Several labels, or the rows of a condition, of whatever number, take turns.
        """
        turns = partial(_in_turn, n)
        label = None if label is None else turns(torch.as_tensor(label).flatten()).tolist()
        x0, told, _ = next(self._starts(n, label, seed, PROBE, n, map_condition(turns, cond)))
        return x0, told

    def _like(self) -> Tensor:
        """A tensor on the device of the map, and of its precision."""
        return next(iter([*self.model.parameters(), *self.model.buffers()]), torch.empty(0))

    def _starts(
        self, n: int, label: int | Sequence[int] | None, seed: int, first: int, batch: int, given: Any = None
    ) -> Iterator[tuple[Tensor, Any, PerSample]]:
        """States at time 0, conditions and generators, batch by batch."""
        if n < 1 or batch < 1:
            raise ValueError(f"n and batch must be at least 1; got {n} and {batch}.")
        if self.config is not None and _refines(self.config):
            raise NoSource(
                "a map must take states alone to have samples; this one refines velocities beside them. Give its run "
                "to the sampler of another: sampler={name='flow_turbo', pseudo=4, refiner='RUN'}."
            )
        if given is None:
            given = self.labels(n, label, first)
        elif label is not None:
            raise ValueError(f"cond takes the place of label; got label {label!r} too. Put it into cond.")
        like, alone = self._like(), getattr(self.coupling, "takes_condition", False)
        for low in range(0, n, batch):
            size = min(batch, n - low)
            generator = PerSample.seeded(seed, first + low, size)
            cond = map_condition(partial(_rows, n, low, size, like.device), given)
            if self.condition.spatial and not isinstance(cond, dict) and not alone:
                cond = self.model.null_condition(size) | ({} if cond is None else {"label": cond})
            x0 = self.coupling.source((size, *self.state_shape), like, cond, generator=generator)
            yield started(x0, self.interpolant, self.space), None if alone else cond, generator

    def labels(self, n: int, label: int | Sequence[int] | None = None, first: int = 0) -> Tensor | None:
        """The labels that `sample` uses [n], or None for a flow without labels."""
        if self.classes == 0:
            if label is not None:
                raise ValueError(f"label must be left out: this flow has no classes; got {label!r}.")
            return None
        if label is None:
            return torch.arange(first, first + n) % self.classes
        given = torch.as_tensor(label).flatten()
        if (
            given.is_floating_point()
            or len(given) not in (1, n)
            or int(given.min()) < 0
            or int(given.max()) > self.classes
        ):
            got = f"{given[0]:g}" if len(given) == 1 else f"{len(given)}, from {given.min():g} to {given.max():g}"
            raise ValueError(
                f"label must be one class, or {n}, from 0 to {self.classes - 1} ({self.classes} for none); got {got}."
            )
        return given.expand(n)

    @torch.no_grad()
    def map(self, x: Tensor, s: float | Tensor, t: float | Tensor, label: Any = None) -> Tensor:
        """X_{s,t}(x) [B, *], in the space of the flow; t < s inverts.

        Args:
            x: states [B, *].
            s: departure, a number or [B], in [0, 1].
            t: arrival.
            label: class of all states or of each, or any condition of the network; left out, none.
        """
        departure, arrival = self._at(x, s, t)
        return self.model(x, departure, arrival, self._told(x, label))

    @torch.no_grad()
    def velocity(self, x: Tensor, t: float | Tensor, label: Any = None) -> Tensor:
        """b_t(x) [B, *], in the space of the flow; arguments as of `map`."""
        return self.model.velocity(x, self._at(x, t)[0], self._told(x, label))

    def _at(self, x: Tensor, *times: float | Tensor) -> list[Tensor]:
        if tuple(x.shape[1:]) != self.state_shape:
            raise ValueError(f"x must be states [B, {', '.join(map(str, self.state_shape))}]; got {tuple(x.shape)}.")
        filled = [fill_time(t, x) for t in times]
        for t in filled:
            if not bool(((t >= 0) & (t <= 1)).all()):
                raise ValueError(f"times must lie in [0, 1]; got {float(t.min()):g} to {float(t.max()):g}.")
        return filled

    def _told(self, x: Tensor, label: Any) -> Any:
        given = self.labels(len(x), label) if isinstance(label, (int, list, tuple)) else label
        return given.to(x.device) if isinstance(given, Tensor) else given


def _rows(n: int, low: int, size: int, device: torch.device, c: Tensor) -> Tensor:
    if len(c) != n:
        raise ValueError(f"cond must have one row for each of {n} samples; got shape {tuple(c.shape)}.")
    return c[low : low + size].to(device)


def _in_turn(n: int, c: Tensor) -> Tensor:
    return c[torch.arange(n, device=c.device) % len(c)]


def _state_shape(space: Space, data: Tensor) -> tuple[int, ...]:
    return tuple(space.encode(data, generator=fold_in(0)).shape[1:])


def load(run: str | Path, weights: str = "ema", device: str = "cpu") -> Flow:
    """The flow of a run folder, or of one of its checkpoints, in evaluation mode.

    A run that only trained the diagonal (flow matching) gives the map that takes Euler steps of its velocity. Low-rank
    updates are merged into the weights.

    Args:
        run: the folder that `flowmaps train` wrote, or a checkpoint in it.
        weights: "ema" for the running average, "weights" for the last iterate.
        device: where it goes.
    Raises:
        CheckpointError: if there is no whole checkpoint.
        ValueError: if weights is neither, or there is no such device.
    """
    check_choice("weights", weights, ("ema", "weights"))
    check_device(device)
    checkpoint = find_checkpoint(Path(run))
    state = load_weights(checkpoint, weights)
    config = read_config(checkpoint / "run.toml")
    with torch.random.fork_rng([]):  # first weights are drawn from the global stream, for nothing here
        flow = Flow.built(config, config["shape"], config["classes"])
    prefix = "model." if weights == "weights" else ""
    state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    lora = config.get("lora")
    flow.model.load_state_dict(merged(state, lora["scale"]) if lora else state)
    model = flow.model.requires_grad_(False).eval().to(device)
    if isinstance(flow.coupling, nn.Module):  # it learns beside the map, and is not averaged
        learned = load_weights(checkpoint, "weights")
        flow.coupling.load_state_dict({k[9:]: v for k, v in learned.items() if k.startswith("coupling.")})
        flow.coupling.requires_grad_(False).eval().to(device)
    held = [] if isinstance(flow.coupling, nn.Module) else parts(flow.coupling, "")
    for _, part in (*parts(flow.space, ""), *held):
        part.to(device)
    return dataclasses.replace(flow, model=as_map(model, _innermost(config["loss"])))


def _innermost(loss: Mapping[str, Any]) -> object:
    """The class of the loss that a table describes, or of the one that it is put around."""
    inner = loss.get("loss")
    return _innermost(inner) if isinstance(inner, Mapping) else find("losses", loss["name"])


def _refines(config: Mapping[str, Any]) -> bool:
    """Whether a run trains a refiner, which takes velocities beside the states."""
    return getattr(_innermost(config["loss"]), "refines", False)


def as_map(model: FlowMap, loss: object) -> FlowMap:
    """The map to sample with: a loss (object or class) that learns only the diagonal leaves Euler steps."""
    return model if getattr(loss, "learns_map", True) else EulerMap(model)
