"""What docstrings say: summaries, sources, costs. Lists, citations and the documentation are read from here."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from .build import KINDS, find

SECTIONS = ("Args", "Returns", "Raises", "Cost", "Source", "Differs", "Published")


def summary(thing: Any) -> str:
    """The first line of a docstring, without its full stop."""
    return (inspect.getdoc(thing) or "").split("\n")[0].rstrip(".")


def section(thing: Any, name: str) -> str:
    """A section of a docstring, for example "Source", as one line; empty if there is none."""
    pattern = rf"^{name}:\s*(.*?)(?=^(?:{'|'.join(SECTIONS)}):|\Z)"
    found = re.search(pattern, inspect.getdoc(thing) or "", re.MULTILINE | re.DOTALL)
    return " ".join(found.group(1).split()) if found else ""


def citations(config: Mapping[str, Any]) -> dict[str, str]:
    """The sources of everything a resolved configuration uses: "losses/lsd" -> reference, in order of appearance."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if key in KINDS and isinstance(value, Mapping) and "name" in value:
            source = section(find(KINDS[key], value["name"]), "Source")
            if source:
                found[f"{KINDS[key]}/{value['name']}"] = source
            found |= citations({k: v for k, v in value.items() if k != "name"})
        elif key == "sample" and isinstance(value, Mapping):
            found |= citations(_tables({k: value[k] for k in ("sampler", "guidance")}))
        elif key == "teacher" and isinstance(value, Mapping):
            found |= citations(_tables(value))
    return found


def _tables(options: Mapping[str, Any]) -> dict[str, Any]:
    """Names as tables."""
    return {k: {"name": v} if isinstance(v, str) else v for k, v in options.items()}
