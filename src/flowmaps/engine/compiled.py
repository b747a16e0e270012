"""A loss as one compiled graph, checked against the eager one before it is trusted; all steps of sampling as one."""

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from ..core.flow_map import FlowMap
from ..core.random import Random, Recorder, Tape, TapeError
from ..core.sampling import Jump, sample
from ..core.target import parts
from ..core.types import Loss, Pair, Sampler

TOLERANCE = 1e-3  # relative, of value and gradient; float32 agrees to about 1e-6, bfloat16 to a few 1e-4


class CompileError(RuntimeError):
    """The compiled loss is not the eager one, and the message says by how much; or there is no graph of a sampling."""


class Compiled:
    """Evaluates a loss through the compiler: draws are made outside the graph and handed in, in the same order.

    The first call runs both ways and compares value and gradient, because the compiler has been seen to drop tangents
    without a word (pytorch issue 192985).

    Args:
        loss: the objective.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.recorder: Recorder | None = None
        self.graph: Callable[..., Tensor] = torch.compile(self._graph, fullgraph=True, dynamic=None, backend=_backend)

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B].

        Raises:
            CompileError: at the first call, if the compiled loss or its gradient differs from the eager one.
        """
        if isinstance(generator, (Tape, Recorder)):
            raise TypeError("a compiled loss makes its own tape; give it the generator.")
        if self.recorder is None:
            recorder = Recorder(generator)
            learned = [b for _, part in parts(self.loss, "loss") for b in part.buffers()]
            before = [b.clone() for b in learned]
            eager = self.loss(model, pair, step=step, generator=recorder)
            _copy(before, learned)  # what the loss learns by itself, such as a law of times
            compiled = self.graph(model, pair.x0, pair.x1, pair.cond, recorder.made, recorder.kinds, step)
            self._check(model, eager, compiled)
            self.recorder = recorder
            _copy(before, learned)
            return self.graph(model, pair.x0, pair.x1, pair.cond, recorder.made, recorder.kinds, step)
        before = generator.get_state() if isinstance(generator, torch.Generator) else None
        tape = self.recorder.tape(generator)
        try:
            return self.graph(model, pair.x0, pair.x1, pair.cond, tape.draws, tape.asked, step)
        except (TapeError, TorchDynamoException):
            # A schedule has led the loss another way, with other draws: record, compile and check that one.
            self.recorder = None
            if isinstance(generator, torch.Generator) and before is not None:
                generator.set_state(before)
            return self(model, pair, step=step, generator=generator)

    def _graph(
        self, model: FlowMap, x0: Tensor, x1: Tensor | None, cond: Any, draws: Sequence[Tensor],
        asked: Sequence[tuple[str, tuple[int, ...]]], step: int,
    ) -> Tensor:  # fmt: skip
        return self.loss(model, Pair(x0, x1, cond), step=step, generator=Tape(draws, asked))

    def _check(self, model: FlowMap, eager: Tensor, compiled: Tensor) -> None:
        weights = [p for p in model.parameters() if p.requires_grad]

        def gradient(loss: Tensor) -> Tensor:
            parts = torch.autograd.grad(loss.mean(), weights, materialize_grads=True)
            return torch.cat([g.flatten().double() for g in parts])

        exact = gradient(eager)
        gaps = {
            "value": float((eager - compiled).detach().norm() / eager.detach().norm().clamp_min(1e-12)),
            "gradient": float((exact - gradient(compiled)).norm() / exact.norm().clamp_min(1e-12)),
        }
        for what, gap in gaps.items():
            if not gap < TOLERANCE:
                raise CompileError(
                    f"the {what} of the compiled loss must be that of the eager loss; it is off by {gap:.2g}, "
                    "relative. Set compile=false, and see `flowmaps doctor`."
                )


class CompiledSampling:
    """The function core.sampling.sample, as one graph of all steps for each shape of the batch and number of steps.

    The first call of its kind runs eagerly, to know what is drawn, and so does whatever is asked before: a graph pays
    when the same is asked again and again.

    Args:
        backend: of the compiler.
    Source: Zhao, Shi, Yu, Zhou & Lu, FlowTurbo: towards real-time flow-based image generation with velocity refiner,
        2024, arXiv:2409.18128, sample-aware compilation.
    Differs: one graph for all steps, where the released code has one for each kind of step.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend
        self.kinds: dict[tuple[Any, ...], tuple[Recorder, Callable[..., Tensor]]] = {}

    def __call__(
        self, model: FlowMap, x: Tensor, times: Tensor, *, sampler: Sampler = Jump(), cond: Any = None,
        generator: Random = None,
    ) -> Tensor:  # fmt: skip
        """State at times[-1] [B, *], from that at times[0]; see core.sampling.sample.

        Raises:
            CompileError: if the sampler decides its course by what it sees, as those with a tolerance do and
                "edm_stochastic", or the guidance, as "interval" does, which evaluates what the times ask for.
        """
        if isinstance(generator, (Tape, Recorder)):
            raise TypeError("a compiled sampling makes its own tape; give it the generator.")
        kind = (tuple(x.shape), tuple(times.shape), repr(sampler))
        if kind not in self.kinds:
            recorder = Recorder(generator)
            y = sample(model, x, times, sampler=sampler, cond=cond, generator=recorder)
            recorder.made.clear()  # what was drawn is of no use any more, and large
            # A function of its own for each kind: torch compiles one function a few times only.
            own = FunctionType(_steps.__code__.replace(), _steps.__globals__)
            graph = torch.compile(own, fullgraph=True, dynamic=False, backend=self.backend)
            self.kinds[kind] = recorder, graph
            return y
        recorder, graph = self.kinds[kind]
        tape = recorder.tape(generator)
        try:
            return graph(model, x, times, sampler, cond, tape.draws, tape.asked)
        except TorchDynamoException as error:
            maps = dict.fromkeys(type(part).__name__ for part in model.modules() if isinstance(part, FlowMap))
            raise CompileError(
                f"a compiled sampling must take the same course whatever it sees; {type(sampler).__name__} does not, "
                f"or one of {', '.join(maps)} or its network. Sample without the compiler."
            ) from error


def _copy(values: Sequence[Tensor], to: Sequence[Tensor]) -> None:
    for value, tensor in zip(values, to, strict=True):
        tensor.copy_(value)


def _steps(
    model: FlowMap, x: Tensor, times: Tensor, sampler: Sampler, cond: Any, draws: Sequence[Tensor],
    asked: Sequence[tuple[str, tuple[int, ...]]],
) -> Tensor:  # fmt: skip
    return sample(model, x, times, sampler=sampler, cond=cond, generator=Tape(draws, asked))


def _backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
    """Inductor, with symbolic zeros of forward-mode derivatives written out: it cannot hand them to a backward pass."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    zeros = {torch.ops.aten._efficientzerotensor.default: _zeros}
    return compile_fx(graph, inputs, decompositions={**select_decomp_table(), **zeros})


def _zeros(
    size: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> Tensor:
    return torch.zeros(size, dtype=dtype, device=device)
