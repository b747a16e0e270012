"""Randomness by counter: every draw comes from a generator that is a function of a seed and of where we are."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Generator, Tensor


def fold_in(seed: int, *counters: int, device: torch.device | str = "cpu") -> Generator:
    """A generator that depends on (seed, counters) alone, so that a run resumes without stored generator state.

    Args:
        seed: the seed of the run.
        counters: where we are, for example (rank, images seen).
        device: where the generator draws.
    Returns:
        A freshly seeded generator; different arguments give independent streams.
    Raises:
        ValueError: if a number is beyond 64 bits.
    """
    try:
        digest = blake2b(b"".join(int(n).to_bytes(8, "little", signed=True) for n in (seed, *counters)), digest_size=8)
    except OverflowError as error:
        raise ValueError(f"a seed and its counters must fit into 64 bits; got {(seed, *counters)}.") from error
    return Generator(device).manual_seed(int.from_bytes(digest.digest(), "little") >> 1)


@dataclass(frozen=True)
class PerSample:
    """One generator per sample, so that sample i does not depend on the batch it is drawn in.

    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364 (the released sampling code, generate.py, draws each image from its own seed).
    """

    generators: Sequence[Generator]

    @staticmethod
    def seeded(seed: int, first: int, count: int) -> "PerSample":
        """The generators of samples first, ..., first + count - 1."""
        return PerSample([fold_in(seed, i) for i in range(first, first + count)])


class Tape:
    """Draws made beforehand, handed out in order: what a compiled function gets in place of a generator.

    Args:
        draws: the draws.
        asked: kind ("normal" or "uniform") and shape of each.
    """

    def __init__(self, draws: Sequence[Tensor], asked: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        self.draws, self.asked, self.used = draws, asked, 0

    def next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        """The next draw.

        Raises:
            TapeError: if another was recorded, or none: the function takes another course than when it was recorded.
        """
        if self.used == len(self.draws) or self.asked[self.used] != (kind, shape):
            raise TapeError(f"the tape must hold a {kind} draw of shape {shape} at place {self.used}; record it again.")
        self.used += 1
        return self.draws[self.used - 1]


class TapeError(RuntimeError):
    """A tape that does not hold what it is asked for."""


class Recorder:
    """A generator that writes down what it is asked for, so that a Tape can be made for the next time.

    Args:
        generator: draws in the meantime.
    """

    def __init__(self, generator: Generator | PerSample | None) -> None:
        self.generator = generator
        self.asked: list[tuple[str, tuple[int, ...], torch.dtype, torch.device]] = []
        self.made: list[Tensor] = []

    def tape(self, generator: Generator | PerSample | None) -> Tape:
        """The same draws from another generator."""
        draws = [_draw(k, s, torch.empty(0, dtype=t, device=d), generator) for k, s, t, d in self.asked]
        return Tape(draws, self.kinds)

    @property
    def kinds(self) -> list[tuple[str, tuple[int, ...]]]:
        """Kind and shape of each draw."""
        return [(kind, shape) for kind, shape, *_ in self.asked]


Random = Generator | PerSample | Tape | Recorder | None
"""What a function that draws accepts: a stream, one per sample, draws made before, or torch's global stream."""


def _draw(kind: str, shape: Sequence[int], like: Tensor, generator: Random) -> Tensor:
    if isinstance(generator, Tape):
        return generator.next(kind, tuple(shape))
    if isinstance(generator, Recorder):
        generator.asked.append((kind, tuple(shape), like.dtype, like.device))
        generator.made.append(_draw(kind, shape, like, generator.generator))
        return generator.made[-1]
    draw = torch.randn if kind == "normal" else torch.rand
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(generator, PerSample):
        if len(generator.generators) != shape[0]:
            raise ValueError(
                f"the batch must have one generator per sample; got {shape[0]} samples and "
                f"{len(generator.generators)} generators. Build them with PerSample.seeded(seed, first, {shape[0]})."
            )
        rows = [draw(tuple(shape[1:]), dtype=dtype, generator=g) for g in generator.generators]
        return torch.stack(rows).to(like.device)
    device = like.device if generator is None else generator.device
    return draw(tuple(shape), dtype=dtype, device=device, generator=generator).to(like.device)


def normal(shape: Sequence[int], like: Tensor, generator: Random = None) -> Tensor:
    """Standard normal draws of a shape [B, *], with the device and (at least float32) dtype of `like`."""
    return _draw("normal", shape, like, generator)


def uniform(shape: Sequence[int], like: Tensor, generator: Random = None) -> Tensor:
    """Uniform draws on [0, 1) of a shape [B, *], with the device and (at least float32) dtype of `like`."""
    return _draw("uniform", shape, like, generator)
