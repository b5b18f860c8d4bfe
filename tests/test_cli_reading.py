"""Commands that only read: list, show, plugins, config, and the options of components in --help."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field

from gotr1_core.cli.main import call
from gotr1_core.cli.options import option_rows
from gotr1_core.cli.tables import format_table
from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import RunConfig, SftConfig
from gotr1_core.hookspecs import KINDS

Captured = pytest.CaptureFixture[str]
Refused = Callable[..., tuple[str, str]]


@pytest.fixture
def said(toy: Path, capsys: Captured) -> Callable[..., str]:
    """The stdout of a command; stderr must be empty."""

    def ask(*arguments: str) -> str:
        capsys.readouterr()
        assert call(list(arguments)) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return ask


Said = Callable[..., str]


# -- list -------------------------------------------------------------------------------------------------------------------


def test_list_says_what_there_is(said: Said) -> None:
    lines = [line.split() for line in said("list").splitlines()]
    assert lines[0] == ["kind", "name", "plugin", "summary"]
    assert ["judge", "toy", "gotr1-toy", "3", "sees", "red", "[or", "not]"] in lines
    kinds = [line[0] for line in lines[1:]]
    assert kinds == sorted(kinds, key=KINDS.index)
    judges = [line.split()[0] for line in said("list", "judge").splitlines()]
    assert judges[0] == "name"
    assert judges[1:] == sorted(judges[1:])
    assert {"plans", "scenes", "toy"} <= {*judges}
    rows = json.loads(said("list", "--json"))
    assert {"kind": "judge", "name": "toy", "distribution": "gotr1-toy", "version": "3", "summary": "sees red [or not]"} in rows
    assert json.loads(said("list", "planner", "--json")) == [row for row in rows if row["kind"] == "planner"]
    assert len(rows) == len(lines) - 1


def test_where_there_is_nothing_the_list_is_empty(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOTR1_PLUGINS", "")
    assert said("list", "judge") == "name  plugin  summary\n"
    assert json.loads(said("list", "--json")) == []
    assert said("plugins") == "plugin  version  provides\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["list", "judgs"], "there is no kind 'judgs'", "did you mean 'judge'? kinds: planner, renderer,"),
        (["list", "judges"], "there is no kind 'judges'", "did you mean 'judge'? kinds: planner, renderer,"),
        (["list", "zzz"], "there is no kind 'zzz'", "kinds: planner, renderer,"),
        (["list", "a", "b"], "Got unexpected extra argument", "gotr1 list --help"),
        (["show", "plannr", "toy"], "there is no kind 'plannr'", "did you mean 'planner'?"),
        (["show", "planner", "tyo"], "there is no planner 'tyo'", "did you mean 'toy'? known: "),
        (["show", "planner"], "Missing argument 'NAME'", "gotr1 show --help"),
        (["show", "preset", "tyo"], "there is no preset 'tyo'", "did you mean 'toy'?"),
        (["show", "preset", "tyo", "--json"], "there is no preset 'tyo'", "did you mean 'toy'?"),
    ],
)
def test_what_is_not_there_names_the_nearest(arguments: list[str], message: str, hint: str, toy: Path, refused: Refused) -> None:
    error, advice = refused(arguments)
    assert message in error
    assert hint in advice


# -- show -------------------------------------------------------------------------------------------------------------------


def test_show_says_what_a_component_takes(said: Said) -> None:
    lines = said("show", "planner", "toy").splitlines()
    assert lines[:3] == ["planner toy (gotr1-toy 3)", "  writes one box", "  gotr1_toy:ToyPolicy"]
    assert [line.split(maxsplit=1)[0] for line in lines[4:]] == ["key", "planner.model", "planner.shade"]
    assert lines[-1].split() == ["planner.shade", "number", "≥", "0,", "≤", "1", "0.0", "Of", "the", "pictures'", "red."]
    facts = json.loads(said("show", "planner", "toy", "--json"))
    assert {key: facts[key] for key in ("kind", "name", "distribution", "version", "summary", "target")} == {
        "kind": "planner",
        "name": "toy",
        "distribution": "gotr1-toy",
        "version": "3",
        "summary": "writes one box",
        "target": "gotr1_toy:ToyPolicy",
    }
    assert facts["options"]["properties"]["shade"] == {
        "default": 0.0,
        "description": "Of the pictures' red.",
        "maximum": 1,
        "minimum": 0,
        "title": "Shade",
        "type": "number",
    }


def test_show_says_what_a_judge_scores(said: Said) -> None:
    assert "  scores of the image: pi\n" in said("show", "judge", "toy")
    assert "no options" in said("show", "judge", "toy")
    assert "  its options decide what it scores\n" in said("show", "judge", "plans")
    shown = said("show", "judge", "scenes")
    assert "  scores of the plan: sem, spa, plan_right\n  scores of the image: ri, pi, correct\n" in shown
    assert json.loads(said("show", "judge", "toy", "--json"))["rewards"] == {"pi": "image"}
    assert json.loads(said("show", "judge", "toy", "--json"))["options"] is None
    assert json.loads(said("show", "judge", "plans", "--json"))["rewards"] is None


def test_show_prints_a_preset_that_can_be_used(said: Said) -> None:
    for name in ("toy", "scenes"):
        Path("shown.yaml").write_text(said("show", "preset", name))
        assert said("config", "show", "shown.yaml") == said("config", "show", "--preset", name)
        assert json.loads(said("show", "preset", name, "--json"))["config"] == read_yaml(Path("shown.yaml"))
    assert said("config", "validate", "shown.yaml") == "shown.yaml: valid\n"
    words = ("--algorithm", "ppo", "steps=7")  # a copy of a preset has its variants too
    assert said("config", "show", "shown.yaml", *words) == said("config", "show", "--preset", "scenes", *words)


class Inner(BaseModel):
    depth: int = Field(3, gt=0, lt=9, description="How deep.")


class Outer(BaseModel):
    must: str
    path: Path = Path("here")
    choice: int | str | None = None
    fixed: tuple[float, float] = (0.9, 0.95)
    names: list[str] = Field(default_factory=list)
    table: dict[str, int] = {}
    inner: Inner = Inner(depth=5)
    maybe: Inner | None = None
    empty: str = ""
    anything: Any = None


def test_options_as_rows() -> None:
    assert option_rows(Outer.model_json_schema(), "judge.") == [
        ("judge.must", "string", "required", ""),
        ("judge.path", "path", "here", ""),
        ("judge.choice", "integer | string | null", "null", ""),
        ("judge.fixed", "list of number, number", "[0.9, 0.95]", ""),
        ("judge.names", "list of string", "", ""),
        ("judge.table", "mapping", "{}", ""),
        ("judge.inner.depth", "integer > 0, < 9", "5", "How deep."),
        ("judge.maybe", "mapping | null", "null", ""),
        ("judge.maybe.depth", "integer > 0, < 9", "3", "How deep."),
        ("judge.empty", "string", '""', ""),
        ("judge.anything", "anything", "null", ""),
    ]


# -- tables -----------------------------------------------------------------------------------------------------------------


def test_outside_a_terminal_no_cell_is_cut() -> None:
    long = "word " * 100
    assert format_table(("a", "bb"), [("x", long), ("yyy", "one\n two")], "title") == f"title\na    bb\nx    {long.strip()}\nyyy  one two\n"


def test_on_a_terminal_it_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    styled = format_table(("name", "summary"), [("x", "word " * 20 + "[bold]end[/] :smile:")], "title")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", styled)
    assert shown != styled
    assert "─" in shown
    assert shown.count("word") == 20  # wrapped, not cut
    assert "[bold]end[/] :smile:" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 40


# -- plugins ----------------------------------------------------------------------------------------------------------------


def test_plugins_says_what_each_provides(said: Said) -> None:
    Path("listener.py").write_text(
        "from gotr1_core.hookspecs import hookimpl\n\n\n@hookimpl\ndef gotr1_evaluated(step):\n    pass\n\n\n"
        "@hookimpl\ndef gotr1_commands(app):\n    app.command('hello')(lambda: None)\n"
    )
    lines = [line.split(maxsplit=2) for line in said("plugins", "--plugin", "listener.py").splitlines()]
    assert ["gotr1-toy", "3", "planner toy, renderer toy, judge toy, judge plans, benchmark toy, preset toy"] in lines
    assert lines[-1][0] == "listener.py"
    assert lines[-1][2] == "command hello, hook gotr1_evaluated"
    facts = json.loads(said("plugins", "--json", "--plugin", "listener.py"))
    assert facts["failed"] == []
    assert [plugin["distribution"] for plugin in facts["plugins"]][-2:] == ["gotr1-toy", "listener.py"]
    assert facts["plugins"][-1] | {"version": ""} == {
        "name": "listener",
        "distribution": "listener.py",
        "version": "",
        "components": [],
        "commands": ["hello"],
        "hooks": ["gotr1_commands", "gotr1_evaluated"],
    }
    assert len(facts["plugins"][-1]["version"]) == 12
    assert {"kind": "planner", "name": "toy"} in facts["plugins"][-2]["components"]
    assert {"kind": "judge", "name": "plans", "plugin": "gotr1-toy 3", "summary": ""} in facts["components"]


# -- config -----------------------------------------------------------------------------------------------------------------


def test_config_show_takes_what_train_takes(said: Said) -> None:
    shown = yaml.safe_load(said("config", "show", "toy.yaml", "planner.shade=0.5", "--algorithm", "grpo", "--prompts", "mine.txt"))
    assert shown["planner"] == {"name": "toy", "shade": 0.5}
    assert (shown["steps"], shown["prompts"]["file"], shown["algorithm"]) == (7, str(Path("mine.txt").absolute()), {"name": "grpo"})
    assert json.loads(said("config", "show", "--preset", "toy", "--json")) == yaml.safe_load(said("config", "show", "toy.yaml"))
    Path("shown.yaml").write_text(said("config", "show"))
    assert said("config", "show", "shown.yaml") == Path("shown.yaml").read_text()


def test_config_schema_is_that_of_the_model(said: Said) -> None:
    assert json.loads(said("config", "schema")) == RunConfig.model_json_schema()
    assert json.loads(said("config", "schema", "--stage", "sft")) == SftConfig.model_json_schema()


def test_config_validate(said: Said, refused: Refused) -> None:
    assert said("config", "validate", "toy.yaml", "toy.yaml") == "toy.yaml: valid\ntoy.yaml: valid\n"
    Path("sft.yaml").write_text("policy: {name: toy, shade: 1}\ndata: scenes\n")
    assert said("config", "validate", "sft.yaml", "--stage", "sft") == "sft.yaml: valid\n"


RUN, SFT = "renderer: toy\njudge: toy\nreward: pi\nprompts: {source: scenes}\n", "data: scenes\n"


@pytest.mark.parametrize(
    ("content", "stage", "message", "hint"),
    [
        ("planner: tyo\n" + RUN, "train", "there is no planner 'tyo'", "did you mean 'toy'?"),
        ("planner: {name: toy, shad: 1}\n" + RUN, "train", "unknown key planner.shad", "did you mean planner.shade?"),
        ("planner: {name: toy, shade: 3}\n" + RUN, "train", "planner.shade: Input should be less", "gotr1 show planner toy"),
        ("planner: toy\n" + RUN.replace("pi", "pj"), "train", "unknown score 'pj'", "offered: pi"),
        ("planner: toy\n" + RUN.replace("reward: pi", "reward: pi +"), "train", "malformed reward", "pi +"),
        ("planner: toy\n" + RUN + "stepps: 3\n", "train", "unknown key stepps", "did you mean steps?"),
        ("planner: toy\n", "train", "the config names no renderer", "--preset scenes"),
        ("3", "train", "is not a mapping", "gotr1 config show"),
        ("planner: toy\n" + RUN, "sft", "the config names no policy", "such as policy=janus; see `gotr1 config schema --stage sft`"),
        ("policy: tyo\n" + SFT, "sft", "there is no planner 'tyo'", "did you mean 'toy'?"),
        ("policy: {name: toy, shad: 1}\n" + SFT, "sft", "unknown key planner.shad", "did you mean planner.shade?"),
        ("policy: toy\ndata: {name: scenes, hard: 1}\n", "sft", "unknown key source.hard", "source.hard_share"),
        ("policy: toy\ndata: none.jsonl\n", "sft", "none.jsonl", "a JSONL file or the name of a source"),
    ],
)
def test_config_validate_refuses(content: str, stage: str, message: str, hint: str, toy: Path, capsys: Captured) -> None:
    Path("wrong.yaml").write_text(content)
    assert call(["config", "validate", "wrong.yaml", "--stage", stage]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    error, advice = err.split("\n", 1)
    assert message in error.removeprefix("error: ")
    assert advice.startswith("hint: ")
    assert hint in advice


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["config", "validate"], "Missing argument 'CONFIG.yaml...'", "gotr1 config validate --help"),
        (["config", "validate", "none.yaml"], "cannot read none.yaml: No such file", "path of a YAML file"),
        (["config", "validate", "."], "cannot read .: Is a directory", "path of a YAML file"),
        (["config", "schema", "--stage", "stf"], "'stf' is not one of 'train', 'sft'", "gotr1 config schema --help"),
        (["config", "shwo"], "No such command 'shwo'. Did you mean 'show'?", "gotr1 config --help"),
        (["config", "show", "none.yaml"], "there is no config none.yaml", "YAML file"),
        (["config", "show", "--planner", "toy"], "the config names no renderer", "--preset scenes"),
    ],
)
def test_mistakes_with_config(arguments: list[str], message: str, hint: str, toy: Path, refused: Refused) -> None:
    error, advice = refused(arguments)
    assert message in error
    assert hint in advice


# -- the options of components in --help ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keys", "lacks"),
    [
        (["train", "--planner", "toy"], ["planner.model", "planner.shade"], "renderer."),
        (["train", "--planner=toy", "--renderer", "toy", "--help"], ["planner.shade", "renderer.shade"], "judge."),
        (["train", "toy.yaml", "planner=toy", "steps=3"], ["planner.shade"], "renderer."),
        (["train", "planner={name: toy}"], ["planner.shade"], "renderer."),
        (["train", "--judge", "toy", "--judge", "plans"], ["judge toy (gotr1-toy 3) has no options", "judge.per_box"], "planner."),
        (["train", "judge=[plans]", "prompts.source=scenes"], ["judge.per_box", "prompts.source.hard_share"], "planner."),
        (["train", "--algorithm", "grpo"], ["algorithm.ratio"], "planner."),
        (["generate", "x", "--renderer", "toy"], ["renderer.shade"], "planner."),
        (["generate", "--renderer", "toy"], ["renderer.shade"], "planner."),
        (["sft", "policy=toy", "data=scenes"], ["policy.shade", "data.hard_share"], "planner."),
        (["sft", "policy=toy", "kind=renderer", "data=pairs.jsonl"], ["options of renderer toy (gotr1-toy 3)"], "data."),
        (["config", "show", "--planner", "toy"], ["planner.shade"], "renderer."),
        (["score", "--judge", "plans"], ["judge.per_box"], "planner."),
    ],
)
def test_help_goes_on_with_the_options_of_what_is_named(arguments: list[str], keys: list[str], lacks: str, said: Said) -> None:
    shown = said(*arguments, "-h")
    _, found, after = shown.partition("Show this message and exit.")
    assert found
    assert [key for key in keys if key not in after] == []
    assert not [line for line in after.splitlines() if line.startswith(lacks)]


@pytest.mark.parametrize("command", [["train"], ["generate"], ["sft"], ["score"]])
def test_help_says_how_to_see_options(command: list[str], said: Said) -> None:
    shown = " ".join(said(*command, "--help").split())
    assert "shows the options of NAME." in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--planner", "tyo"], "there is no planner 'tyo'"),
        (["train", "--judge", "toy", "judge=tyo"], "there is no judge 'tyo'"),
        (["sft", "policy=tyo"], "there is no planner 'tyo'"),
        (["train", "steps=[1"], "the value of steps is not YAML"),
    ],
)
def test_help_of_what_is_not_there_is_an_error(arguments: list[str], message: str, toy: Path, refused: Refused) -> None:
    assert message in refused([*arguments, "--help"])[0]


def test_an_error_that_is_no_exception_is_two_short_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries in Rust raise such errors. Their messages may be as long as a file."""

    class Panic(BaseException):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Panic("x" * 10**6)

    monkeypatch.setattr("gotr1_core.cli.main.commands", fail)
    assert call(["list"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: Panic: xxx")
    assert len(error) < 5_000
    assert "looks like a bug" in hint
