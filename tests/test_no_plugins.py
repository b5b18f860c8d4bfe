"""Which commands run the plugin files that a config or a run names, as SECURITY.md says, and that ``--no-plugins`` runs none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from structure import ROOT

from gotr1_core.cli.main import call, commands
from gotr1_core.components.resolve import resolve_config
from gotr1_core.config.merge import read_yaml
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.runs.restore import restore

Captured = pytest.CaptureFixture[str]
PLUGIN = """
from pathlib import Path

from gotr1_core.hookspecs import hookimpl

Path(__file__).with_suffix(".ran").touch()

@hookimpl
def gotr1_run_started(run):
    pass
"""
LOAD = [
    ["train", "foreign.yaml", "--dry-run"],
    ["train", "foreign.yaml", "steps=1", "planner.name=missing"],
    ["train", "--preset", "toy", "--dry-run", "plugins=foreign/foreign_plugin.py"],
    ["config", "show", "foreign.yaml"],
    ["config", "validate", "foreign.yaml"],
    ["sft", "foreign.yaml"],
    ["score", "x.png", "--prompt", "a", "--judge", "toy", "plugins=foreign/foreign_plugin.py"],
    ["train", "--resume", "runs/mine", "--dry-run"],
    ["train", "--resume", "runs/mine"],
    ["generate", "a", "--checkpoint", "runs/mine", "--out", "out"],
    ["evaluate", "--checkpoint", "runs/mine", "--benchmark", "toy"],
    ["export", "runs/mine", "exported", "--merge"],
]
LOAD_NONE = [
    ["doctor", "runs/mine"],
    ["runs"],
    ["compare", "runs/mine", "runs/mine"],
    ["list"],
    ["show", "judge", "toy"],
    ["plugins"],
    ["score", "x.png", "--prompt", "a", "--judge", "toy"],
    ["generate", "a", "--preset", "toy", "--out", "out"],
]


@pytest.fixture
def ran(trained: Path, toy: Path) -> Iterator[Path]:
    """The file that exists once the plugin of a foreign config and run was loaded."""
    from PIL import Image

    plugin = toy / "foreign" / "foreign_plugin.py"
    plugin.parent.mkdir()
    plugin.write_text(PLUGIN)
    Image.new("RGB", (8, 8)).save(toy / "x.png")
    (trained / "environment.json").write_text("{}")
    for config in (trained / "config.yaml", toy / "toy.yaml"):
        data = {**read_yaml(config), "plugins": [str(plugin)]}
        target = config if config.name == "config.yaml" else toy / "foreign.yaml"
        target.write_text(yaml.safe_dump(data))
    return plugin.with_suffix(".ran")


@pytest.mark.parametrize("words", LOAD, ids=" ".join)
def test_these_commands_run_them(words: list[str], ran: Path) -> None:
    call(words)
    assert ran.exists()


@pytest.mark.parametrize("words", LOAD_NONE, ids=" ".join)
def test_these_do_not(words: list[str], ran: Path) -> None:
    call(words)
    assert not ran.exists()


@pytest.mark.parametrize("words", [*LOAD, *LOAD_NONE], ids=" ".join)
def test_with_no_plugins_none_does(words: list[str], ran: Path) -> None:
    call([*words, "--no-plugins"])
    assert not ran.exists()


def test_a_foreign_run_opens_without_them(ran: Path, toy: Path) -> None:
    assert call(["--no-plugins", "generate", "a", "--checkpoint", "runs/mine", "--out", "out"]) == 0
    assert (toy / "out" / "000.png").is_file()
    assert call(["config", "show", "foreign.yaml", "--no-plugins"]) == 0
    restore(Registry(config_plugins=False), toy / "runs" / "mine")
    assert not ran.exists()


def test_a_component_in_a_file_that_was_left_out(toy: Path, capsys: Captured) -> None:
    judge = "from gotr1_core import judge\n\n@judge(rewards={'x': 'plan'})\ndef mine(sample):\n    return 1.0\n"
    (toy / "mine_plugin.py").write_text(judge)
    words = ["train", "--preset", "toy", "--dry-run", "plugins=mine_plugin.py", "--judge", "mine", "reward=x"]
    assert call(words) == 0
    capsys.readouterr()
    assert call([*words, "--no-plugins"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: there is no judge 'mine'"
    assert hint.startswith("hint: it may be in a file that --no-plugins left out: mine_plugin.py; ")
    assert call([*words, "--no-plugins", "--plugin", "mine_plugin.py"]) == 0  # named on the line: it is meant


def test_a_new_run_does_not_keep_what_was_left_out(ran: Path, toy: Path) -> None:
    data = resolve_config(Registry(config_plugins=False), toy / "foreign.yaml", None, {}, [])
    assert data["plugins"] == []
    assert not ran.exists()
    with pytest.raises(UsageError, match="cannot read the plugin"):
        Registry().add_file(toy / "none.py")


def test_security_md_names_every_command(toy: Path) -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    ours = {name for name, command in commands().commands.items() if "gotr1-" not in str(getattr(command, "rich_help_panel", ""))}
    assert set(re.findall(r"`gotr1 (\w+)", text)) == ours | {"score"}  # of gotr1-judges
    table = [line for line in text.splitlines() if line.startswith("| `gotr1")]
    assert {words[0] for words in LOAD} == {name for line in table for name in re.findall(r"`gotr1 (\w+)", line)}
