"""Plugins on the command line: files given to it, commands that plugins add, and broken ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gotr1_core.cli.main import call
from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.plugins import Registry
from gotr1_core.runs.restore import restore

Captured = pytest.CaptureFixture[str]
Refused = Callable[..., tuple[str, str]]
TOY = Path(__file__).with_name("toy_plugin.py").read_text(encoding="utf-8")

COMMANDS = """
import typer

from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import hookimpl


def greet(name: str, loud: bool = False) -> None:
    \"\"\"Greets.\"\"\"
    if name == "nobody":
        raise UsageError("there is nobody", hint="name somebody")
    if name == "bug":
        raise KeyError("x")
    if name == "exit":
        raise SystemExit(7)
    if name == "word":
        raise SystemExit("a last word")
    print(f"hello {name}" + "!" * loud)


more = typer.Typer(help="More of it.")
more.command("one")(greet)
more.command("two")(greet)


@hookimpl
def gotr1_commands(app: typer.Typer) -> None:
    app.command("greet")(greet)
    app.command("train")(greet)
    app.add_typer(more, name="more")
"""


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "." not in name and not name.startswith("gotr1"):
            sys.modules.pop(name)


@pytest.fixture
def greeter(toy: Path) -> Path:
    (toy / "greeter.py").write_text(COMMANDS)
    return toy / "greeter.py"


WARNING = "warning: greeter.py adds a command 'train', but gotr1 has one; gotr1 keeps that\n"


def test_plugins_add_commands(greeter: Path, capsys: Captured) -> None:
    for arguments, said in (
        (["--plugin", "greeter.py", "greet", "you"], "hello you\n"),
        (["greet", "you", "--loud", "--plugin=greeter.py"], "hello you!\n"),
        (["more", "--plugin", str(greeter), "two", "them"], "hello them\n"),
    ):
        assert call(arguments) == 0
        assert capsys.readouterr() == (said, WARNING)
    assert call(["--help", "--plugin", "greeter.py"]) == 0
    shown = capsys.readouterr().out
    assert "greet" in shown
    assert "Trains planner, renderer or both" in shown  # the core's own
    assert call(["greet", "--help", "--plugin", "greeter.py"]) == 0
    shown = capsys.readouterr().out
    assert "--loud" in shown
    assert "--plugin" in shown


def test_mistakes_in_plugins_commands_are_treated_alike(greeter: Path, capsys: Captured) -> None:
    for arguments, status, said in (
        (["greet", "nobody"], 2, "error: there is nobody\nhint: name somebody\n"),
        (["greet"], 2, "error: Missing argument 'name'.\nhint: see `gotr1 greet --help`\n"),
        (["greet", "bug"], 1, "error: KeyError: 'x'\nhint: this looks like a bug in gotr1 or a plugin"),
        (["greet", "exit"], 7, ""),
        (["greet", "word"], 1, "error: a last word\n"),
        (["gret"], 2, "error: No such command 'gret'. Did you mean 'greet'?\nhint: see `gotr1 --help`\n"),
    ):
        assert call([*arguments, "--plugin", "greeter.py"]) == status
        err = capsys.readouterr().err
        assert err.startswith(WARNING + said)
    assert call(["greet", "you"]) == 2  # the next command line knows nothing of the file


def test_the_first_plugin_keeps_a_commands_name(greeter: Path, capsys: Captured) -> None:
    (greeter.parent / "other.py").write_text(COMMANDS.replace("hello", "goodbye"))
    assert call(["--plugin", "greeter.py", "--plugin", "other.py", "greet", "you"]) == 0
    out, err = capsys.readouterr()
    assert out == "hello you\n"
    assert "other.py adds a command 'greet', but greeter.py has one; gotr1 keeps that" in err


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("app.command('half')(print); raise RuntimeError('no')", "RuntimeError: no"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("\n    def half(x: int | str) -> None: ...\n    app.command('half')(half)", "AssertionError: Typer"),
    ],
)
def test_broken_commands_cost_a_warning(body: str, error: str, toy: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / "bad.py").write_text(f"from gotr1_core.hookspecs import hookimpl\n\n\n@hookimpl\ndef gotr1_commands(app):\n    {body}\n")
    assert call(["plugins", "--json", "--plugin", "bad.py"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"warning: plugin bad of bad.py adds no commands: {error}")
    assert err.count("\n") == 1
    [failed] = json.loads(out)["failed"]
    assert (failed["name"], failed["plugin"]) == ("bad", "bad.py")
    assert failed["error"].startswith(error)
    assert call(["half", "--plugin", "bad.py"]) == 2
    capsys.readouterr()
    monkeypatch.setenv("GOTR1_STRICT_PLUGINS", "1")
    assert call(["plugins", "--plugin", "bad.py"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: plugin bad of bad.py adds no commands: {error}")
    assert err.count("\n") == 2


# -- files ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(toy: Path) -> Path:
    """A file with the toy components under another name."""
    folder = toy / "plugins"
    folder.mkdir()
    (folder / "mine.py").write_text(TOY.replace('"toy"', '"mine"'))
    (folder / "toy.yaml").write_text((toy / "toy.yaml").read_text().replace("toy", "mine"))
    return folder / "mine.py"


def test_components_of_a_file_are_used_by_name(mine: Path, capsys: Captured) -> None:
    words = ["--planner", "mine", "--renderer", "mine", "planner.shade=1"]
    assert call(["generate", "x", *words, "--plugin", "plugins/mine.py"]) == 0
    assert "pictures/000.png" in capsys.readouterr().out
    assert call(["generate", "x", "--preset", "mine", "--plugin", "plugins/mine.py", "--out", "other"]) == 0
    capsys.readouterr()
    assert call(["list", "judge", "--plugin=plugins/mine.py"]) == 0
    assert "mine.py" in capsys.readouterr().out


def test_a_config_records_the_files_and_loads_them_again(mine: Path, capsys: Captured, refused: Refused) -> None:
    assert call(["config", "show", "--plugin", "plugins/mine.py", "--preset", "mine", "steps=3"]) == 0
    shown = capsys.readouterr().out
    Path("shown.yaml").write_text(shown)
    assert read_yaml(Path("shown.yaml"))["plugins"] == [str(mine)]
    assert call(["config", "validate", "shown.yaml"]) == 0
    capsys.readouterr()
    for arguments in (["shown.yaml"], ["shown.yaml", "--plugin", "plugins/mine.py"], ["shown.yaml", "plugins=plugins/mine.py"]):
        assert call(["config", "show", *arguments]) == 0
        assert capsys.readouterr().out == shown
    mine.rename(mine.with_name("yours.py"))
    assert refused(["config", "show", "shown.yaml"])[0] == f"cannot read the plugin {mine}: No such file or directory"


def test_the_files_of_one_config_are_not_the_next_ones(mine: Path, capsys: Captured) -> None:
    text = Path("toy.yaml").read_text().replace("toy", "mine")
    Path("with.yaml").write_text(f"{text}plugins: plugins/mine.py\n")
    Path("without.yaml").write_text(text)
    assert call(["config", "validate", "with.yaml", "without.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "with.yaml: valid\n"
    assert err.startswith("error: there is no planner 'mine'\n")
    assert call(["config", "validate", "without.yaml", "with.yaml", "--plugin", "plugins/mine.py"]) == 0


def test_a_run_is_restored_with_its_files(mine: Path, trained: Path) -> None:
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace("name: toy", "name: mine").replace("plugins: []", f"plugins: ['{mine}']"))
    assert validate(RunConfig, read_yaml(config)).planner.name == "mine"
    registry = Registry()
    assert type(restore(registry, trained)[1].planner).__module__ == "mine"
    assert registry.files == [mine]
    assert call(["generate", "x", "--checkpoint", str(trained)]) == 0
