"""What README and documentation say is what there is."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowmaps.build import kinds, names
from flowmaps.cli.__main__ import app
from flowmaps.engine.config import recipe_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_table_of_methods_is_complete():
    rows = dict(re.findall(r"^\| ([a-z_ ]+) \| ((?:`\w+`(?:, )?)+) \|$", README, re.MULTILINE))
    there = {kind: names(kind) for kind in kinds()} | {"recipes": recipe_names()}
    assert {kind: re.findall(r"`(\w+)`", text) for kind, text in rows.items()} == there


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        generated = target.startswith("methods/")
        assert generated or target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_included_files_exist(page):
    for target in re.findall(r"^```\{include\} (\S+)", page.read_text("utf-8"), re.MULTILINE):
        assert (page.parent / target).exists(), target


def test_verbs_and_options_exist():
    text = "\n".join(p.read_text("utf-8") for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for line in re.findall(r"^flowmaps (.+?)(?:\s+#.*)?$", text, re.MULTILINE):
        verb, *words = line.split()
        options = [w for w in words if w.startswith("--")]
        shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, verb
        assert all(option in re.sub(r"\x1b\[[0-9;]*m", "", shown.output) for option in options), line


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_say_target_and_measurement(name):
    head = (ROOT / "recipes" / f"{name}.toml").read_text("utf-8").split("\n\n")[0]
    assert re.search(r"^# Target +\S", head, re.MULTILINE)
    assert re.search(r"^# Measured +.*\bcommit [0-9a-f]{7}", head, re.MULTILINE | re.DOTALL)
