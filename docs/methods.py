"""Write docs/methods/, a page per kind of method, from the docstrings: what `flowmaps list` and `show` print."""

import inspect
from importlib import import_module
from pathlib import Path

from flowmaps.build import find, kinds, names
from flowmaps.describe import section, summary
from flowmaps.engine.config import find_recipe, recipe_names

OUT = Path(__file__).parent / "methods"


def page(kind: str) -> str:
    """A table of a kind's methods, then each docstring with its signature."""
    rows, parts = [], []
    for name in names(kind):
        thing = find(kind, name)
        rows.append(
            f"| [{name}](#{name.replace('_', '-')}) | {cell(summary(thing))} | {cell(section(thing, 'Cost'))} |"
        )
        code = f"from flowmaps.{kind}.{name} import {thing.__name__}\n\n{thing.__name__}{inspect.signature(thing)}"
        text = inspect.getdoc(thing)
        parts.append(f"## {name.replace('_', '-')}\n\n```text\n{code}\n\n{text}\n```\n")
    about = inspect.getdoc(import_module(f"flowmaps.{kind}"))
    head = f"# {kind.replace('_', ' ').capitalize()}\n\n{about}\n"
    return "\n".join([head, "| name | what it does | cost |", "|---|---|---|", *rows, "", *parts])


def recipes() -> str:
    """The recipes, as their files stand."""
    parts = [f"## {name}\n\n```toml\n{find_recipe(name).read_text('utf-8')}```\n" for name in recipe_names()]
    return "\n".join(["# Recipes\n", *parts])


def cell(text: str) -> str:
    """Text that a table can hold."""
    return text.replace("|", "\\|")


def main() -> None:
    """Write every page anew."""
    OUT.mkdir(exist_ok=True)
    for old in OUT.glob("*.md"):
        old.unlink()
    for kind in kinds():
        (OUT / f"{kind}.md").write_text(page(kind), "utf-8")
    (OUT / "recipes.md").write_text(recipes(), "utf-8")


if __name__ == "__main__":
    main()
