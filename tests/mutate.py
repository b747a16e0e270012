"""Break each method on purpose, one small change at a time, and show that a test notices: `make mutate`.

tests/mutations.txt lists the changes and says its own format. Each is made in a copy of the package, on which the tests
that should notice are run; the sources are never touched. Ends with exit code 1 if a change survives.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "flowmaps"
AT_ONCE = 2  # two cores, one thread each
TIMEOUT = 300  # seconds; a change that makes a test hang has been noticed


@dataclass
class Mutation:
    """A change of one file, and the tests that must fail under it."""

    file: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        old, new = (textwrap.shorten(text, 70, placeholder=" ...") for text in (self.old, self.new))
        return f"{self.file}: {old} -> {new or 'nothing'}"


def read(text: str) -> list[Mutation]:
    """The mutations of a list; blocks are separated by empty lines."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines:
            old, new, tests = ("\n".join(x[2:] for x in lines[1:] if x[0] == mark) for mark in "-+!")
            found.append(Mutation(lines[0], old, new, tests))
    return found


def environment(folder: Path) -> dict[str, str]:
    """One thread, and the copy in a folder ahead of the installed package, for subprocesses of tests too."""
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def copy_package(folder: Path) -> Path:
    """A copy of the package with its recipes, laid out as an installed one."""
    copy = Path(shutil.copytree(PACKAGE, folder / "flowmaps", ignore=shutil.ignore_patterns("__pycache__")))
    shutil.copytree(ROOT / "recipes", copy / "recipes")
    return copy


def listed() -> list[Mutation]:
    """All mutations of the list."""
    return read((ROOT / "tests" / "mutations.txt").read_text("utf-8"))


def fits(mutation: Mutation) -> bool:
    """Whether the old text occurs exactly once, and tests are named that there are."""
    named = [word.partition("::") for word in shlex.split(mutation.tests) if word.startswith("tests")]
    there = [
        (ROOT / f).exists() and (not test or f"def {test}(" in (ROOT / f).read_text("utf-8")) for f, _, test in named
    ]
    return (PACKAGE / mutation.file).read_text("utf-8").count(mutation.old) == 1 and bool(there) and all(there)


def check_import() -> None:
    """Python must import the copy, or nothing here would mean anything."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_package(Path(folder))
        ask = [sys.executable, "-c", "import flowmaps; print(flowmaps.__file__)"]
        found = subprocess.check_output(ask, cwd=ROOT, env=environment(Path(folder)), text=True).strip()
        assert found == str(copy / "__init__.py"), f"python imports {found}, not the copy"


def verdict(mutation: Mutation) -> tuple[str, float]:
    """What became of a mutation, and after how many seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = copy_package(Path(folder)) / mutation.file
        file.write_text(file.read_text("utf-8").replace(mutation.old, mutation.new), "utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(mutation.tests)]
        # A session of its own, so that a hanging test goes together with the processes it started.
        options = {"cwd": ROOT, "env": environment(Path(folder)), "stdout": subprocess.DEVNULL}
        child = subprocess.Popen(command, **options, start_new_session=True)
        try:
            code = child.wait(TIMEOUT)
            word = {0: "SURVIVED", 1: "caught"}.get(code, f"ERROR, pytest ended with code {code}")
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            word = "caught (hung)"
    return word, time.monotonic() - began


def main() -> None:
    """Read the list, check it, run it, and count."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="those whose file, text or tests contain it")
    only, every = parser.parse_args().only, listed()
    stale = [m for m in every if not fits(m)]
    for m in stale:
        print(f"stale: the old text must occur exactly once, and tests be named that there are: {m}")
    chosen = [m for m in every if only in "\n".join((m.file, m.old, m.new, m.tests))]
    if stale or not chosen:
        sys.exit(f"{len(stale)} of {len(every)} mutations are stale, {len(chosen)} chosen; nothing was run")
    check_import()
    began, caught, pool = time.monotonic(), 0, ThreadPoolExecutor(AT_ONCE)
    try:
        jobs = {pool.submit(verdict, m): m for m in chosen}
        for count, job in enumerate(as_completed(jobs), 1):
            word, seconds = job.result()
            caught += word.startswith("caught")
            print(f"[{count:3}/{len(chosen)}] {word:8} {seconds:5.1f} s  {jobs[job]}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{caught} of {len(chosen)} mutations caught in {time.monotonic() - began:.0f} s")
    sys.exit(caught != len(chosen))


if __name__ == "__main__":
    main()
