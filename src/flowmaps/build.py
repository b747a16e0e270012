"""Names to objects. The file system is the registry: losses/mean_flow.py is the loss "mean_flow"."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, isabstract, signature
from pkgutil import iter_modules
from typing import Any

# Which folder a table of that name, or a nested parameter of that name, refers to.
KINDS = {
    "arrival": "training_times",
    "autoencoder": "autoencoders",
    "base": "interpolants",
    "coupling": "couplings",
    "condition": "conditions",
    "critic": "critics",
    "critic_times": "training_times",
    "data": "data",
    "diagonal_times": "training_times",
    "distance": "distances",
    "encoder": "nets",
    "grid": "time_grids",
    "guidance": "guidance",
    "interpolant": "interpolants",
    "inversion": "inversions",
    "jvp": "derivatives",
    "likelihood": "likelihood",
    "loss": "losses",
    "map": "maps",
    "net": "nets",
    "sampler": "samplers",
    "solver": "samplers",
    "span": "training_times",
    "space": "spaces",
    "spacing": "spacings",
    "stabiliser": "stabilisers",
    "tangent": "velocities",
    "target": "targets",
    "times": "training_times",
    "velocity": "velocities",
    "weighting": "weightings",
}


def kinds() -> list[str]:
    """Every kind of method: the folders that names are looked up in."""
    return sorted(set(KINDS.values()))


def names(kind: str) -> list[str]:
    """Every method of a kind: the public module names of flowmaps.<kind>."""
    if kind not in KINDS.values():
        raise ValueError(f"there is no kind {kind!r}.{_nearest(kind, kinds())} Kinds: {_listed(kinds())}.")
    folder = import_module(f"flowmaps.{kind}").__path__
    return sorted(m.name for m in iter_modules(folder) if not m.name.startswith("_"))


def find(kind: str, name: str) -> Any:
    """The class behind a name: "mean_flow", or "my_package.my_module:MyLoss" for one's own.

    Raises:
        ValueError: if there is no such name; the message gives the nearest and all known ones.
    """
    if ":" in name:
        module, attribute = name.split(":", 1)
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{name!r} must name an importable 'package.module:Class'; {error}.") from error
    if name not in names(kind):
        raise ValueError(
            f"no {kind} named {name!r}.{_nearest(name, names(kind))} Known: {_listed(names(kind))}; "
            "or give 'package.module:Class'."
        )
    module = import_module(f"flowmaps.{kind}.{name}")
    return getattr(module, module.__all__[0])


def build(kind: str, spec: str | Mapping[str, Any], **context: Any) -> Any:
    """Build an object from its table; nested tables are built too.

    Args:
        kind: the folder, for example "losses".
        spec: a name, or a table with `name` and options.
        context: values for parameters of the same name (interpolant, teacher, shape, ...) that the table leaves open;
            "none" in the table drops one, where an object can do without: teacher = "none".
    Returns:
        The object.
    Raises:
        ValueError: for an unknown name or option, a value of the wrong type, or a missing option; it says the fix.
    """
    cls, options = _opened(kind, spec)
    return construct(cls, options, **context)


def construct(cls: Any, options: Mapping[str, Any], **context: Any) -> Any:
    """Call a class or function with options from a table and, where it has such parameters, from the context."""
    known = signature(cls).parameters
    table = dict(options)
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{cls.__name__} has no option {key!r}.{_nearest(key, known)} Options: {_listed(known)}.")
        if value == "none" and key in CONTEXT and known[key].default is None:
            table[key] = None
        elif key == "teacher" and isinstance(value, str):
            dispensable = ", or be none" if known[key].default is None else ""
            raise ValueError(
                f"{cls.__name__}'s option 'teacher' must be left to the run, whose teacher it is{dispensable}; got "
                f"{value!r}. Set the run's teacher, at the top of its table."
            )
        elif key in KINDS and isinstance(value, (str, Mapping)):
            table[key] = build(KINDS[key], value, **context)
    table = {key: value for key, value in context.items() if key in known} | table
    hints = typing.get_type_hints(cls.__init__ if isinstance(cls, type) else cls)
    for key, parameter in known.items():
        if key in table:
            table[key] = _typed(cls.__name__, key, table[key], hints.get(key, Any))
            if key in KINDS:
                _check_built(cls.__name__, key, options.get(key), table[key], hints.get(key, Any))
        elif parameter.default is Parameter.empty:
            hint = " Use `flowmaps distill TEACHER RECIPE`, or set teacher to a run." if key == "teacher" else ""
            raise ValueError(f"{cls.__name__} needs the option {key!r}.{hint} Options: {_listed(known)}.")
    return cls(**table)


# What `build` is given as context, so that a complete table leaves it open.
CONTEXT = ("shape", "classes", "interpolant", "teacher", "net", "space")


def resolve(kind: str, spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """The complete table of an object: its name and every option with its value, defaults spelled out."""
    cls, options = _opened(kind, spec)
    table: dict[str, Any] = {"name": spec if isinstance(spec, str) else spec["name"]}
    for key, parameter in signature(cls).parameters.items():
        if key in CONTEXT and key not in options:
            continue
        value = options.get(key, _default(cls, key, parameter.default))
        if key in KINDS and isinstance(value, (str, Mapping)):
            value = resolve(KINDS[key], value)
        elif key in KINDS and key not in options and value is not Parameter.empty:
            value = _described(KINDS[key], value)
        if isinstance(value, (bool, int, float, str, list, tuple, dict)):
            table[key] = list(value) if isinstance(value, tuple) else value
    return table | {key: value for key, value in options.items() if key not in table}


def _default(cls: Any, key: str, value: Any) -> Any:
    """A parameter's default, made anew where a dataclass makes it anew for each object."""
    for field in fields(cls) if is_dataclass(cls) else ():
        if field.name == key and field.default_factory is not MISSING:
            return field.default_factory()
    return value


def _described(kind: str, value: Any) -> dict[str, Any] | None:
    """The table of an object that stands as a default, the method of its kind whose class it is; context left open."""
    for name in names(kind):
        cls = find(kind, name)
        if cls is type(value):
            options = {key: getattr(value, key, None) for key in signature(cls).parameters if key not in CONTEXT}
            plain = {k: v for k, v in options.items() if isinstance(v, (int, float, str, tuple))}
            inner = {k: _described(KINDS[k], v) for k, v in options.items() if k in KINDS and k not in plain}
            return resolve(kind, {"name": name} | plain | {k: v for k, v in inner.items() if v is not None})
    return None


def _opened(kind: str, spec: str | Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    table = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in table:
        raise ValueError(f"a table for {kind} must have a name; got {table}. Known: {_listed(names(kind))}.")
    return find(kind, table.pop("name")), table


def _typed(owner: str, key: str, value: Any, hint: Any) -> Any:
    """The value, if its type fits a plain hint (numbers, strings, lists of them); whole numbers pass for floats."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = [typing.get_origin(o) or o for o in options]
    if not all(o in (bool, int, float, str, list, tuple, types.NoneType) for o in plain):
        return value
    if isinstance(value, bool) and bool not in plain:
        fits = False
    else:
        fits = isinstance(value, tuple(plain)) or (float in plain and isinstance(value, int))
        fits = fits or (tuple in plain and isinstance(value, list))
    if not fits:
        wanted = " or ".join("nothing" if o is types.NoneType else o.__name__ for o in plain)
        raise ValueError(f"{owner}'s option {key!r} must be {wanted}; got {value!r}.")
    return tuple(value) if tuple in plain and isinstance(value, list) else value


def _check_built(owner: str, key: str, spec: Any, value: Any, hint: Any) -> None:
    """Raise ValueError if what a table describes is of another sort than the option: a law of one time, not of two."""
    if isinstance(spec, (str, Mapping)) and isabstract(hint) and not isinstance(value, hint):
        known = [name for name in names(KINDS[key]) if issubclass(find(KINDS[key], name), hint)]
        given = spec if isinstance(spec, str) else spec["name"]
        raise ValueError(f"{owner}'s option {key!r} must be one of {_listed(known)}; got {given!r}.")


def _nearest(word: str, known: Any) -> str:
    close = get_close_matches(word, list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _listed(known: Any) -> str:
    return ", ".join(known)
