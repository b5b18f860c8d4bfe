"""Names, prompts and messages with control characters are shown escaped on terminals, wherever they come from."""

from __future__ import annotations

import ast
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structure import ROOT, assert_none, modules

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.cli.tables import format_table
from gotr1_core.cli.terminal import EscapingConsole
from gotr1_core.cli.view import View
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.engine.console import print as print_escaped, printable
from gotr1_core.samples import Prompt, Sample

Captured = pytest.CaptureFixture[str]
EVIL = "a\x1b[31mb\x07c\rd\x9be\u202ef\x7fg\u2028h\x00i"
ESCAPED = r"a\u001b[31mb\u0007c\u000dd\u009be\u202ef\u007fg\u2028h\u0000i"
NAME = EVIL.replace("\x00", "")  # no command line and no file can have this one
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
COLOUR = re.compile("\x1b\\[[0-9;]*m")  # our own


# -- one place prints -------------------------------------------------------------------------------------------------------

PLACES = ("gotr1_core.engine.console", "gotr1_core.cli.terminal", "gotr1_core.policies.render_template")
"""What prints itself: the two that escape, and a program that writes JSON into a pipe."""


def _other_prints(name: str, tree: ast.Module) -> Iterator[str]:
    """Uses of Python's own print, of the streams and of rich's consoles in a module."""
    imported = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    escapes = any(
        isinstance(node, ast.ImportFrom) and node.module == PLACES[0] and "print" in {alias.name for alias in node.names}
        for node in ast.walk(tree)
    )
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        if (function == "print" and not escapes) or (function == "Console" and "Console" in imported):
            yield f"{name}:{node.lineno} {function}: import it from {PLACES[0] if function == 'print' else PLACES[1]}"
        elif re.fullmatch(r"(sys\.(stdout|stderr)|typer|click|builtins|rich)\.(write|writelines|echo|secho|print)", function):
            yield f"{name}:{node.lineno} {function}"


def test_every_module_prints_escaped() -> None:
    assert_none(found for name, module in modules(ROOT).items() if name not in PLACES for found in _other_prints(name, module.tree))


@pytest.mark.parametrize(
    "source",
    ["print(1)", "import sys\nsys.stderr.write('x')", "import typer\ntyper.echo(1)", "from rich.console import Console\nConsole()"],
)
def test_another_print_would_be_found(source: str) -> None:
    assert len(list(_other_prints("x", ast.parse(source)))) == 1


# -- what is escaped --------------------------------------------------------------------------------------------------------


def test_control_characters_are_escaped_and_text_is_not() -> None:
    assert printable(EVIL) == ESCAPED
    kept = "ein Kätzchen\n\t猫 👩‍🚀 שלום \\x1b"
    assert printable(kept) == kept
    assert json.loads(printable(json.dumps(EVIL, ensure_ascii=False))) == EVIL


def test_a_file_gets_the_text_as_it_is(capsys: Captured) -> None:
    file = io.StringIO()
    print_escaped(EVIL, file=file)
    print_escaped(EVIL)
    print_escaped(EVIL, 1, sep="-", file=sys.stderr)
    assert file.getvalue() == EVIL + "\n"
    assert capsys.readouterr() == (EVIL + "\n", f"{ESCAPED}-1\n")


def test_a_terminal_gets_it_escaped(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_escaped(EVIL)
    print_escaped(format_table((EVIL, "b"), [(EVIL, "2")], EVIL), end="")
    plain, _, table = capsys.readouterr().out.partition("\n")
    assert plain == ESCAPED
    assert "\x1b" in table
    assert not CONTROL.search(COLOUR.sub("", table))
    assert table.replace("\n", "").count(r"\u001b") == 3


@pytest.mark.parametrize("live", [True, False])
def test_the_live_view(live: bool) -> None:
    file = io.StringIO()
    sample = Sample(Prompt(EVIL), parse(""), None, scores={EVIL: 0.75}, reward=0.5)
    config = validate(RunConfig, {"planner": "a", "renderer": "a", "judge": "b"})
    with View(EscapingConsole(file=file, force_terminal=live, width=300), 2, live=live) as view:
        view.gotr1_run_started(run=Path(NAME), config=config.model_dump(), step=0)
        view.gotr1_evaluating(run=Path(NAME), step=0, name=EVIL, total=2, samples=[sample])
        view.gotr1_evaluated(run=Path(NAME), step=0, name=EVIL, samples=[sample])
        view.gotr1_step_finished(run=Path(NAME), step=1, metrics={"reward": 0.5, f"reward.{EVIL}": 0.1, "reward.[red]x[/nothing]": 1.0})
    text = file.getvalue()
    ours = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|\r(?=\x1b|\n|$)")  # colours, and moves of the cursor
    assert not CONTROL.search(ours.sub("", text)) if live else not CONTROL.search(text)
    assert r"\u0007" in text
    assert "reward.[red]x[/nothing]" in text


@pytest.mark.parametrize(
    "words",
    [
        [NAME],
        ["train", f"--{NAME}"],
        ["train", "--preset", NAME],
        ["train", NAME],
        ["train", "--dry-run", f"{NAME}=1"],
        ["train", "--dry-run", f"train={NAME}"],
        ["train", "--dry-run", f"steps=[{NAME}"],
        ["train", "--dry-run", f"name={NAME}/x"],
        ["train", "--dry-run", f"planner.model={NAME}"],
        ["train", "--dry-run", f"reward={NAME}"],
        ["train", "--resume", NAME],
        ["train", "--plugin", f"{NAME}.py"],
        ["generate", NAME, "--planner", NAME],
        ["score", NAME, "--judge", "scenes"],
        ["score", f"{NAME}.jsonl", "--judge", "scenes"],
        ["show", "judge", NAME],
        ["evaluate", "--benchmark", NAME],
        ["doctor", NAME],
        ["export", NAME, "out"],
        ["config", "validate", NAME],
    ],
)
def test_errors(words: list[str], capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(words) == 2
    said = capsys.readouterr()
    assert not CONTROL.search(said.err)
    assert said.out == ""
    assert len(said.err.splitlines()) == 2
    assert "error: " in said.err


def test_files_of_others(capsys: Captured, tmp_path: Path) -> None:
    """What a data file, a config and a folder are called, and what they say."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": EVIL, "id": 1.5}))
    (folder / "config.yaml").write_text(json.dumps({**dict.fromkeys(("planner", "renderer", "judge"), "x"), EVIL: 1}))
    (folder / "x.png").write_text("no picture")
    for words in (
        ["train", "--dry-run", "--prompts", str(folder / "prompts.jsonl")],
        ["config", "validate", str(folder / "config.yaml")],
        ["score", str(folder), "--prompt", EVIL, "--judge", "scenes"],
    ):
        assert call(words) == 2
        said = capsys.readouterr()
        assert not CONTROL.search(said.err)
        assert r"\u0007" in said.err


def test_on_a_real_terminal(tmp_path: Path) -> None:
    """The config of somebody else, shown on a terminal."""
    config = tmp_path / "config.yaml"
    config.write_text(
        json.dumps({"planner": {"name": EVIL.replace("\x1b", "").replace("\x00", "")}, "renderer": "\u202ex", "judge": "scenes"})
    )
    parent, child = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "gotr1_core.cli.main", "config", "show", str(config)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=child, stderr=child, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(child)
    text = os.read(parent, 100_000).decode()
    os.close(parent)
    assert done.returncode == 0
    assert not CONTROL.search(text.replace("\r\n", "\n"))
    assert r"\u202e" in text
