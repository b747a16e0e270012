"""Files of tensors that couplings are made from beforehand."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch


def stored(file: str | Path, writer: str) -> dict[str, Any]:
    """What a torch file holds, which the function `writer` makes; read again only when it has been written again."""
    if not Path(file).is_file():
        raise ValueError(f"stored must name a file; there is none at {Path(file).absolute()}. Write one with {writer}.")
    return _read(str(file), Path(file).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: str, written: int) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)  # which runs no code
