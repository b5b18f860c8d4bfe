"""What a shell is offered when it asks how a command line could continue."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gotr1_core.cli.main import call

Completed = Callable[[str], list[str]]


@pytest.fixture
def completed(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Completed:
    """The words offered for the end of a line, as bash asks for them."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_GOTR1_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        capsys.readouterr()
        status = call([])
        out, err = capsys.readouterr()
        assert err == ""  # it would stand in the middle of the line that is being typed
        assert status == 0 or not out
        return out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gotr1 tr", ["train"]),
        ("gotr1 config ", ["show", "schema", "validate"]),
        ("gotr1 list j", ["judge"]),
        ("gotr1 show pre", ["preset"]),
        ("gotr1 show planner t", ["toy"]),
        ("gotr1 show zzz ", []),
        ("gotr1 train --planner j", ["janus"]),
        ("gotr1 train --judge pl", ["plans"]),
        ("gotr1 train --judge toy --judge s", ["scenes"]),
        ("gotr1 train --algorithm g", ["grpo"]),
        ("gotr1 train --preset t", ["toy"]),
        ("gotr1 config show --renderer t", ["toy"]),
        ("gotr1 generate x --planner t", ["toy"]),
        ("gotr1 evaluate --benchmark t", ["toy"]),
        ("gotr1 score a.png --judge t", ["toy"]),
        ("gotr1 train --plu", ["--plugin"]),
        ("gotr1 train --plugin x.py --deb", ["--debug"]),
        ("gotr1 export --no-pl", ["--no-plugins"]),
        ("gotr1 --vers", ["--version"]),
    ],
)
def test_commands_and_names_are_completed(line: str, words: list[str], completed: Completed) -> None:
    assert completed(line) == words


def test_broken_plugins_are_quiet_while_a_line_is_typed(completed: Completed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "gotr1_bad-1.dist-info"
    info.mkdir(parents=True)
    (site / "gotr1_bad.py").write_text("raise RuntimeError")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gotr1-bad\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gotr1]\nbad = gotr1_bad\n")
    monkeypatch.syspath_prepend(site)
    assert completed("gotr1 train --planner t") == ["toy"]
    monkeypatch.setenv("GOTR1_STRICT_PLUGINS", "1")
    assert completed("gotr1 train --planner t") == []


def test_other_shells_are_told_what_a_name_means(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "gotr1 train --planner t")
    for shell, told in (("zsh", '"toy":"writes one box"'), ("fish", "toy\twrites one box")):
        monkeypatch.setenv("_GOTR1_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        assert call([]) == 0
        assert told in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_with_what_is_installed(tmp_path: Path) -> None:
    """The complete path: the shell is recognised, its script is written to the printed place, and the function completes a line."""
    script = tmp_path / "bin" / "gotr1"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m gotr1_core.cli.main "$@"\n')
    script.chmod(0o755)
    commands = f"""
export PATH={script.parent}:$PATH HOME={tmp_path}
gotr1 --show-completion > shown || exit 1
gotr1 --install-completion > /dev/null || exit 2
cmp <(cat shown) <(cat .bash_completions/gotr1.sh; echo) || exit 3
source .bashrc
COMP_WORDS=(gotr1 list b) COMP_CWORD=2
_gotr1_completion gotr1
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", commands], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "benchmark\n", "")
