"""Verbs that tell what there is: list, show, cite. All of it is read from the code and its docstrings."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def list_methods(
    kind: Annotated[str | None, typer.Argument(help="For example losses; left out, the kinds themselves.")] = None,
) -> None:
    """List the methods of a kind with what they do and where they come from."""
    from rich.console import Console
    from rich.table import Table

    from ..build import find, kinds, names
    from ..describe import section, summary
    from ..engine.config import recipe_names

    table = Table(box=None, pad_edge=False, show_edge=False)
    if kind is None:
        for column in ("kind", "methods"):
            table.add_column(column, no_wrap=column == "kind")
        for each in kinds():
            table.add_row(each, ", ".join(names(each)))
        table.add_row("recipes", ", ".join(recipe_names()))
    elif kind == "recipes":
        for column in ("name", "what it is"):
            table.add_column(column, no_wrap=column == "name")
        for each in recipe_names():
            table.add_row(each, _recipe_title(each))
    else:
        for column in ("name", "what it does", "source"):
            table.add_column(column, no_wrap=column == "name")
        for name in names(kind):
            thing = find(kind, name)
            table.add_row(name, summary(thing), section(thing, "Source"))
    Console().print(table, highlight=False, markup=False)


def show(name: Annotated[str, typer.Argument(help="A method, kind/method, or recipe.")]) -> None:
    """Show a method: docstring, its table with all defaults and as published, to be pasted, and file; or a recipe."""
    from ..build import find, kinds, names
    from ..engine.config import find_recipe, recipe_names

    wanted, slash, method = name.rpartition("/")
    found = [k for k in ([wanted] if slash else kinds()) if method in names(k)]
    recipe = name in recipe_names()
    if recipe:
        print(f"recipes/{name}.toml\n\n{find_recipe(name).read_text('utf-8')}")
    if not found and not recipe:
        from difflib import get_close_matches

        every = [*{n for k in kinds() for n in names(k)}, *recipe_names()]
        close = get_close_matches(method, every, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        elsewhere = [f"{k}/{method}" for k in kinds() if method in names(k)]
        if elsewhere:
            hint = f" There is {' and '.join(elsewhere)}."
        elif method in kinds():
            hint = f" To see them all, `flowmaps list {method}`."
        raise ValueError(f"NAME must be a method or a recipe; there is no {name!r}.{hint} See `flowmaps list`.")
    for kind in found:
        thing = find(kind, method)
        tables = (_defaults(kind, method), _published(kind, method), f"# File: {inspect.getsourcefile(thing)}\n")
        print("\n\n".join([f"{kind}/{method}", inspect.getdoc(thing) or "", *filter(None, tables)]))


def cite(source: Annotated[str, typer.Argument(help="Run folder, TOML file or recipe.")]) -> None:
    """Print the references of everything that a run or a recipe uses."""
    from ..describe import citations
    from ..engine.config import find_recipe, read_config, resolve_config

    path = Path(source) / "run.toml" if Path(source).is_dir() else find_recipe(source)
    for method, reference in citations(resolve_config(read_config(path))).items():
        print(f"{method}\n    {reference}")


def _defaults(kind: str, method: str) -> str:
    """The table of a method as TOML, and as comments the options that have no place in it."""
    from ..build import CONTEXT, find, resolve

    table = resolve(kind, method)
    lines = [_toml(kind, table)]
    open_ = {k: p for k, p in inspect.signature(find(kind, method)).parameters.items() if k not in table}
    run = [k for k in open_ if k in CONTEXT]
    needed = [k for k, p in open_.items() if p.default is p.empty and k not in run]
    rest = [k for k in open_ if k not in run + needed]
    for what, keys in (("given by the run", run), ("to be given", needed), ("nothing unless given", rest)):
        lines += [f"\n# {what}: {', '.join(keys)}"] if keys else []
    return "".join(lines).rstrip()


def _published(kind: str, method: str) -> str:
    """The table of a method as published, with what differs from the defaults; nothing if that is nothing."""
    from ..engine.config import published

    table = published(kind, method)
    return f"# as published\n{_toml(kind, table).rstrip()}" if table else ""


def _toml(kind: str, table: Mapping[str, Any]) -> str:
    """A table as TOML, under its name in a run if it stands there; others stand inside of one."""
    from ..build import KINDS
    from ..engine.config import DEFAULTS, write_config

    part = [key for key in DEFAULTS if KINDS.get(key) == kind]
    return write_config({part[0]: table} if part else dict(table))


def _recipe_title(name: str) -> str:
    from ..engine.config import find_recipe

    return find_recipe(name).read_text("utf-8").split("\n")[0].lstrip("# ")
