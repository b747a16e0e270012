"""One TOML file per run: reading, overriding, completing and writing it."""

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import tomli_w

from ..build import CONTEXT, KINDS, construct, find, names, resolve
from ..core.checks import check_choice, check_share
from ..describe import section
from .ema import EMA
from .lora import LoRA
from .schedule import Schedule

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Config = dict[str, Any]

# Every key of a run, with its default.
DEFAULTS: Config = {
    "seed": 0,
    "images": 1_000_000,  # length of the run
    "batch": 256,  # images per step, over all processes
    "data": "digits",
    "space": "euclidean",
    "interpolant": "linear",
    "coupling": "independent",
    "condition": "label",
    "net": "mlp",
    "map": "mean_velocity",
    "loss": "lsd",
    "teacher": "",  # a run, or a table of options that differ in a run that is trained first
    "from_teacher": False,  # start from the teacher's weights
    "lora": {},  # train low-rank updates of the teacher's weights, for example { rank = 16 }; all weights when empty
    "shape": [],  # of one datum; filled in from the data
    "classes": 0,  # number of labels; filled in from the data
    "conditional": True,  # use the labels of the data, if it has any
    "condition_dropout": 0.1,  # share of conditions replaced by the null condition
    "mirror": False,  # flip half of the images left to right
    "optimizer": {"name": "torch.optim:Adam", "lr": 1e-3},
    "schedule": {},
    "ema": {},
    "clip": 1.0,  # largest norm of the gradient
    "precision": "float32",  # or "bfloat16"
    "compile": False,
    "device": "auto",  # or "cpu"
    "workers": 0,  # processes that read data
    "save": {"every": 0, "keep": 2},  # images between checkpoints (0: a tenth of the run), and how many stay
    "evaluate": True,  # measure the finished flow
    "sample": {"sampler": "jump", "steps": [1, 2, 4, 8], "guidance": 1.0},  # of pictures, figures and the evaluation
}
_WORDS: dict[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a name", list: "a list", dict: "a table",
}  # fmt: skip
_TABLES: dict[str, Any] = {"schedule": Schedule, "ema": EMA, "lora": LoRA}
_TYPES = {"teacher": (str, dict), "clip": (int, float), "condition_dropout": (int, float)}
_PARTS = ("data", "space", "interpolant", "coupling", "condition", "net", "map", "loss")


class ConfigError(ValueError):
    """An option is wrong; the message names it and says the fix."""


def recipes_folder() -> Path:
    """Where the recipes lie: inside an installed package, beside the sources in a checkout."""
    package = Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(f.stem for f in recipes_folder().glob("*.toml"))


def find_recipe(source: str) -> Path:
    """The file of a recipe, by name or by path.

    Raises:
        ConfigError: if there is none; the message gives the nearest and all names.
    """
    path = Path(source) if source.endswith(".toml") else recipes_folder() / f"{source}.toml"
    if path.is_file():
        return path
    if source.endswith(".toml"):
        raise ConfigError(f"RECIPE must be an existing file or the name of a recipe; {source!r} is missing.")
    close = get_close_matches(source, recipe_names(), 1)
    raise ConfigError(
        f"no recipe named {source!r}." + (f" Did you mean {close[0]!r}?" if close else "") +
        f" Recipes: {', '.join(recipe_names())}; or give a file that ends in .toml."
    )  # fmt: skip


def read_config(path: Path) -> Config:
    """The tables of a TOML file, as they are written there."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} must be a readable TOML file; {error}.") from error


def override(config: Config, assignments: Sequence[str]) -> Config:
    """A copy of the tables with "dotted.key=value" applied in order; a value is TOML, or else a plain string.

    A new name keeps the options that it knows too, of those in the table.

    Raises:
        ConfigError: if an assignment has no "=" or goes through something that is not a table.
    """
    config = copy.deepcopy(config)
    typed: set[tuple[str, ...]] = set()
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted.strip():
            raise ConfigError(f"an override must read key=value, for example loss.diagonal=0.5; got {assignment!r}.")
        *outer, last = dotted.strip().split(".")
        table: Config = config
        for depth, key in enumerate(outer):
            inner = table.get(key, DEFAULTS.get(key, {}) if depth == 0 else {})
            if isinstance(inner, str):  # a bare name stands for a table with that name
                inner = {"name": inner} if inner else dict[str, Any]()
            if not isinstance(inner, dict):
                raise ConfigError(f"{dotted} must lead through tables; {'.'.join(outer[: depth + 1])} is {inner!r}.")
            table[key] = table = dict(inner)
        value = read_value(text)
        if last == "name" and isinstance(value, str) and outer and outer[-1] in KINDS:
            known = signature(find(KINDS[outer[-1]], value)).parameters
            for key in set(table) - set(known):  # options of what had the name before
                if (*outer, key) not in typed:
                    del table[key]
        typed.add((*outer, last))
        table[last] = value
    return config


def read_value(text: str) -> Any:
    """A value as typed: TOML, such as a number or a table { name = "cfg" }, or else a plain string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text.strip()[:1] in ("{", "["):
            raise ConfigError(f"a value that starts with a bracket must be TOML; got {text!r}: {error}.") from error
        return text


def published(kind: str, name: str) -> Config:
    """The table of a method with the options under `Published:` in its docstring; empty if the defaults are these."""
    options = section(find(kind, name), "Published").split()
    key = next(key for key in KINDS if KINDS[key] == kind)
    return override({key: {"name": name}}, [f"{key}.{option}" for option in options])[key] if options else {}


def resolve_config(config: Mapping[str, Any]) -> Config:
    """The complete configuration of a run: every key, every option of every part, defaults spelled out.

    Raises:
        ConfigError: for unknown keys or names, and for values of the wrong type or range.
    """
    for key, value in config.items():
        if key not in DEFAULTS:
            close = dotted_names(key, config) or get_close_matches(key, DEFAULTS, 1)
            raise ConfigError(
                f"a run has no option {key!r}." + (f" Did you mean {' or '.join(map(repr, close))}?" if close else "") +
                f" Options: {', '.join(DEFAULTS)}."
            )  # fmt: skip
        wanted = _TYPES.get(key, (str, dict) if key in _PARTS else (type(DEFAULTS[key]),))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise ConfigError(
                f"{key} must be {' or '.join(_WORDS[t] for t in wanted)}; got {value!r}.{_fix(key, value, wanted)}"
            )
    full = copy.deepcopy(DEFAULTS) | copy.deepcopy(dict(config))
    for key in ("save", "sample"):
        unknown = set(full[key]) - set(DEFAULTS[key])
        if unknown:
            raise ConfigError(f"{key} has no option {min(unknown)!r}. Options: {', '.join(DEFAULTS[key])}.")
        full[key] = DEFAULTS[key] | full[key]
    if full["lora"] and not full["from_teacher"]:
        raise ConfigError("lora updates the weights of a teacher; from_teacher is false. Set from_teacher to true.")
    try:
        for key in _PARTS:
            full[key] = resolve(KINDS[key], full[key])
        if getattr(find("losses", full["loss"]["name"]), "needs_trained", False) and not full["from_teacher"]:
            raise ValueError(
                f"the loss {full['loss']['name']!r} goes on from a trained network; from_teacher is false. Set teacher "
                "to its run, and from_teacher to true."
            )
        full["schedule"] = vars(construct(Schedule, full["schedule"]))
        full["ema"] = vars(construct(EMA, full["ema"]))
        if full["lora"]:
            table = vars(construct(LoRA, full["lora"]))
            full["lora"] = {k: list(v) if isinstance(v, tuple) else v for k, v in table.items()}
        _check_values(full)
        for key in ("loss", "map"):
            if full[key].get("interpolant", full["interpolant"]) != full["interpolant"]:
                raise ValueError(f"{key}.interpolant must be the path of the run; leave it out, and set interpolant.")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    full["save"]["every"] = full["save"]["every"] or max(1, full["images"] // 10)
    return full


def dotted_names(key: str, config: Mapping[str, Any]) -> list[str]:
    """Where an option of that name is among those of a run's parts and tables: "lr" -> ["optimizer.lr"]."""
    tables: dict[str, Any] = {name: DEFAULTS[name] for name in ("optimizer", "save", "sample")}
    tables |= {name: signature(cls).parameters for name, cls in _TABLES.items()}
    for part in _PARTS:
        given = config.get(part, DEFAULTS[part])
        name = given.get("name") if isinstance(given, Mapping) else given
        if name in names(KINDS[part]):
            tables[part] = signature(find(KINDS[part], name)).parameters
    return [f"{name}.{key}" for name, options in tables.items() if key in options and key not in CONTEXT]


def _fix(key: str, value: Any, wanted: tuple[type, ...]) -> str:
    """What to write in place of a value of the wrong type."""
    if wanted == (int,) and isinstance(value, float) and value.is_integer():
        return f" Write {int(value)}."
    if wanted == (dict,):
        example = next(iter([*DEFAULTS[key], *(signature(_TABLES[key]).parameters if key in _TABLES else ())]))
        value = "torch.optim:Adam" if example == "name" else "..."
        return f" Set its options, for example {key}.{example}={value}"
    return ""


def _check_values(full: Config) -> None:
    """Raise ValueError for a value that no run can have."""
    check_choice("precision", full["precision"], ("float32", "bfloat16"))
    check_choice("device", full["device"], ("auto", "cpu"))
    check_share("condition_dropout", full["condition_dropout"])
    numbers = [("images", full["images"], 1), ("batch", full["batch"], 1), ("workers", full["workers"], 0)]
    numbers += [(f"save.{key}", full["save"][key], low) for key, low in (("every", 0), ("keep", 1))]
    numbers += [(f"net.{key}", v, key == "width") for key, v in full["net"].items() if type(v) is int]
    for name, value, low in numbers:
        if type(value) is not int or value < low:
            raise ValueError(f"{name} must be a whole number, at least {int(low)}; got {value!r}.")
    rate = full["optimizer"].get("lr", 1.0)
    for name, value in (("clip", full["clip"]), ("optimizer.lr", rate)):
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number; got {value!r}.")
    steps = full["sample"]["steps"]
    if not isinstance(steps, list) or not steps or not all(type(k) is int and k > 0 for k in steps):
        raise ValueError(f"sample.steps must be a list of whole numbers from 1, for example [1, 2, 4]; got {steps!r}.")
    coder = full["space"].get("autoencoder")
    if isinstance(coder, dict) and coder.get("path") == "":
        raise ValueError(
            "space.autoencoder.path must name the file of its weights; got none. Choose one, and write it first with "
            "`flowmaps autoencoder`."
        )


def write_config(config: Mapping[str, Any]) -> str:
    """TOML text of a configuration; reading it gives the configuration back."""
    return tomli_w.dumps(config)
