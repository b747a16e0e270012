"""How a pure loss tells the engine about its terms: a no-op unless somebody listens."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_listener: ContextVar[dict[str, list[Tensor]] | None] = ContextVar("listener", default=None)


def report(name: str, value: Tensor) -> None:
    """Hand a term to whoever listens; nothing happens, and nothing is kept, when nobody does.

    Args:
        name: what it is, for example "lagrangian".
        value: any shape; detached. The listener takes means.
    """
    if torch.compiler.is_compiling():  # a compiled graph has no side effects; the engine asks again in eager mode
        return
    heard = _listener.get()
    if heard is not None:
        heard.setdefault(name, []).append(value.detach())


@contextmanager
def listen() -> Generator[dict[str, list[Tensor]], None, None]:
    """Collect what is reported inside the block: name -> values, in order."""
    heard: dict[str, list[Tensor]] = {}
    token = _listener.set(heard)
    try:
        yield heard
    finally:
        _listener.reset(token)
