"""Checks that constructors share: what must hold, what was given, how to fix it."""

from collections.abc import Sequence


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless a share lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, a share of the batch; got {value}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
