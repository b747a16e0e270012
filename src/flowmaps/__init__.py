"""Flow maps: generative models whose number of steps is chosen after training."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_WHERE = {"Flow": "flow", "load": "flow"}
__all__ = ["Flow", "load"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import flowmaps` and the command line start at once."""
    if name in _WHERE:
        return getattr(import_module(f"flowmaps.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'flowmaps' has no attribute {name!r}.")
