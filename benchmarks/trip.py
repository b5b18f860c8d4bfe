"""How often a reader changes file between `gotr1 train` and the first gradient.

python benchmarks/trip.py --baseline cf5e2bb --verbose

The script runs the first step of the default run and notes which functions of the core and the plugins are called, from the command
`train` to the first `Accelerator.backward`. The evaluation before training is left out, and so is what runs while a module is imported.

The reader visits each public function once, in the order of the first calls: first the file of its caller, then its own. A private
function, `__init__` included, or one whose body is a single line is read as a part of its caller. It is a change of file if the next
file is not the last one, and a return if the reader was in that file before. So changes = files - 1 + returns.

The rows "every function" also visit private functions and those of one line: renaming or splitting does not take a function out. The
rows "one step" begin at `Trainer.step`. The step is seeded. Another processor may draw other plans, which changes a figure by a few.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import entry_points
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START, STEP, EVALUATION = "gotr1_core/cli/train.py", "Trainer.step", "evaluate_before"
WORDS = ("steps=1", "prompts.held_out=1", "evaluation.prompts=1", "evaluation.greedy=false", "evaluation.best_of=0")
WHOLE = "command to gradient"
Visit = tuple[str, str]  # file and function


class Arrived(BaseException):
    """The first gradient is due. It is no `Exception`, so that nothing on the way catches it."""


class Tree:
    """One checkout: which of its functions a reader visits."""

    def __init__(self, root: Path) -> None:
        self.root, self.files, self.lines = root, dict[str, str](), dict[str, dict[int, int]]()

    def file(self, code: CodeType) -> str:
        """The path of a file of the core or of a plugin within the checkout; empty for all other code."""
        if (name := code.co_filename) not in self.files:
            path = os.path.relpath(Path(name).resolve(), self.root)
            self.files[name] = path if path.startswith(("gotr1_core/", "plugins/")) else ""
        return self.files[name]

    def visit(self, code: CodeType, *, every: bool) -> Visit | None:
        """File and name of a function, None for lambdas, comprehensions and classes; unless ``every``, public ones of two lines or more."""
        file = self.file(code)
        if not file or code.co_name.startswith("<" if every else ("<", "_")):
            return None
        if file not in self.lines:
            self.lines[file] = body_lines((self.root / file).read_text(encoding="utf-8"))
        return (file, code.co_qualname) if self.lines[file].get(code.co_firstlineno, 0) >= (1 if every else 2) else None


def body_lines(source: str) -> dict[int, int]:
    """By a function's first line, or its first decorator's: the lines of its body without the docstring."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[first] = sum((statement.end_lineno or 0) - statement.lineno + 1 for statement in body)
    return found


class Trip:
    """The functions called below the frame ``top``, each once after its caller."""

    def __init__(self, tree: Tree, *, every: bool) -> None:
        self.tree, self.every, self.seen, self.visits = tree, every, set[CodeType](), list[Visit]()
        self.top: FrameType | None = None

    def call(self, frame: FrameType) -> None:
        """Notes a function at its first call, unless an import makes the call."""
        if self.top is None or frame.f_code in self.seen or not (visit := self.tree.visit(frame.f_code, every=self.every)):
            return
        caller, above = None, frame
        while above is not self.top:
            if above.f_back is None or above.f_code.co_name == "<module>":
                return
            above = above.f_back
            caller = caller or self.tree.visit(above.f_code, every=self.every)
        self.seen.add(frame.f_code)
        self.visits += [caller, visit] if caller else [visit]


def trace(root: Path) -> dict[str, list[Visit]]:
    """Runs the first step of the checkout, which must come first on the path; returns the visits by the name of the row."""
    tree = Tree(root)
    trips = {name + end: Trip(tree, every=bool(end)) for name in (WHOLE, "one step") for end in ("", ", every function")}
    pauses: list[FrameType | None] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "return" and pauses and frame is pauses[-1]:
            pauses.append(None)
        if event != "call" or (pauses and pauses[-1]):
            return
        if code.co_name == "backward" and code.co_filename.endswith("accelerate/accelerator.py"):
            sys.setprofile(None)
            raise Arrived
        if (file := tree.file(code)) and code.co_name == EVALUATION:
            pauses.append(frame)
        elif file and not code.co_name.startswith("<"):
            for name, trip in trips.items():
                if trip.top is None and (file == START if name.startswith(WHOLE) else code.co_qualname == STEP):
                    trip.top = frame
                trip.call(frame)

    with tempfile.TemporaryDirectory() as scratch:
        sys.setprofile(profile)
        try:
            from gotr1_core.cli.main import run

            run(["train", *WORDS, f"output={scratch}", "--cpu", "--debug"])
        except Arrived:
            pass
        except SystemExit:
            raise SystemExit("the run ended without a gradient") from None
        finally:
            sys.setprofile(None)
    files = {Path(str(module.__file__)) for name, module in sys.modules.items() if name.startswith("gotr1_") and module.__file__}
    if strangers := [str(file) for file in files if not file.resolve().is_relative_to(root)]:
        raise SystemExit(f"not modules of {root}: {', '.join(strangers)}")
    if not pauses or not all(trip.visits for trip in trips.values()):
        raise SystemExit(f"{START}, {STEP} or {EVALUATION} was not called; if one has a new name, change it here")
    return {name: trip.visits for name, trip in trips.items()}


def stays(visits: list[Visit]) -> list[tuple[str, list[str]]]:
    """The files in the reader's order, each with the functions visited in it before the next change."""
    return [(file, [function for _, function in group]) for file, group in groupby(visits, key=itemgetter(0))]


def measured(root: Path) -> dict[str, list[Visit]]:
    """The visits of a checkout, traced in a process of its own that imports from there, whatever is installed."""
    places = [str(root), *map(str, sorted(root.glob("plugins/*/src"))), *filter(None, [os.environ.get("PYTHONPATH")])]
    installed = {point.dist.name for point in entry_points(group="gotr1") if point.dist}
    plugins = ",".join(sorted(installed & {folder.name for folder in (root / "plugins").iterdir()}))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(places), "GOTR1_PLUGINS": plugins, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "visits.json")
        done = subprocess.run(
            [sys.executable, Path(__file__).resolve(), "--trace", root, out], env=env, cwd=scratch, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{root} could not be traced:\n{done.stderr}")
        return {row: [tuple(visit) for visit in visits] for row, visits in json.loads(out.read_text(encoding="utf-8")).items()}


def show(name: str, rows: dict[str, list[Visit]], *, verbose: bool) -> dict[str, int]:
    """Prints the figures of a checkout; returns the changes by row."""
    changes = {row: len(stays(visits)) - 1 for row, visits in rows.items()}
    print(f"{name:<38}{'functions':>10}{'files':>7}{'changes':>9}{'returns':>9}")
    for row, visits in rows.items():
        print(f"  {row:<36}{len(set(visits)):>10}{len(dict(visits)):>7}{changes[row]:>9}{changes[row] + 1 - len(dict(visits)):>9}")
    for row, visits in rows.items() if verbose else ():
        print(f"\n{name}, {row}: files in order, with functions")
        for number, (file, functions) in enumerate(stays(visits)):
            print(f"  {number:>4} {file}: {', '.join(dict.fromkeys(functions))}")
    print()
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", metavar="COMMIT", help="measure this commit first, and print the ratio")
    parser.add_argument("--verbose", action="store_true", help="print every change: file, and functions visited in it")
    parser.add_argument("--trace", nargs=2, type=Path, help=argparse.SUPPRESS)  # a checkout, and where its visits are written
    args = parser.parse_args()
    if args.trace:
        args.trace[1].write_text(json.dumps(trace(args.trace[0].resolve())), encoding="utf-8")
        return
    if args.baseline:
        with tempfile.TemporaryDirectory() as scratch:
            files = subprocess.run(["git", "archive", args.baseline, "gotr1_core", "plugins"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
            with tarfile.open(fileobj=io.BytesIO(files.stdout)) as archive:
                archive.extractall(scratch, filter="data")
            before = show(args.baseline, measured(Path(scratch).resolve()), verbose=args.verbose)
    after = show("this tree", measured(ROOT), verbose=args.verbose)
    if args.baseline:
        for row, changes in before.items():
            print(f"ratio of changes, {row:<38}{after[row] / changes:>6.2f}")


if __name__ == "__main__":
    main()
