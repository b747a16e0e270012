"""Files of tensors that couplings are made from beforehand."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch


def stored(file: str | Path, writer: Callable[..., Any], *keys: str) -> dict[str, Any]:
    """The keys of a torch file, which the function `writer` makes; read again only when it has been written again."""
    name = f"{writer.__module__}.{writer.__name__}"
    if not Path(file).is_file():
        there = f"there is none at {Path(file).absolute()}" if file else "got none"
        raise ValueError(
            f"stored must name a file; {there}. Write one with `flowmaps prepare`, or in Python with {name}."
        )
    try:
        held = _read(str(file), Path(file).stat().st_mtime_ns)
    except Exception as error:  # whatever torch says of a file that is not its own
        raise ValueError(f"stored must be a file that {name} wrote; {file} cannot be read: {error!r}") from error
    if set(held) != set(keys):
        raise ValueError(f"stored must be a file that {name} wrote; {file} holds {', '.join(map(str, held))}.")
    return held


@lru_cache(maxsize=4)
def _read(file: str, written: int) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)  # which runs no code
