"""The command line: exit statuses, errors in two lines without a traceback, and which setting overrides which. Nothing trains here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from gotr1_core.cli.main import call, read_ahead, run
from gotr1_core.components.resolve import resolve_config
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry

Captured = pytest.CaptureFixture[str]
Refused = Callable[..., tuple[str, str]]

# -- statuses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["train", "--help"], ["generate", "-h"], ["config", "--help"], ["plugins"], ["list"], ["--version"]]
)
def test_looking_around_is_a_success(arguments: list[str], capsys: Captured) -> None:
    assert call(arguments) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""


def test_commands_have_their_names(capsys: Captured) -> None:
    call(["--help"])
    shown = capsys.readouterr().out
    assert "..." not in shown.replace("COMMAND [ARGS]...", "")  # nothing is cut
    assert all(
        f" {name} " in shown for name in ("train", "sft", "generate", "evaluate", "score", "list", "show", "config", "plugins", "doctor")
    )


def test_without_arguments_it_shows_the_help(capsys: Captured) -> None:
    assert call([]) == 2
    out, err = capsys.readouterr()
    assert "Usage" in out + err
    assert "error:" not in err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["trian"], "No such command 'trian'", "--help"),
        (["train", "--plannr", "toy"], "No such option: --plannr", "--help"),
        (["generate"], "there is no prompt", "--prompts FILE"),
        (["generate", "x", "--seed", "many"], "--seed", "--help"),
        (["generate", "x", "-n", "0"], "-n 0: there is nothing to draw", "1 or more"),
        (["generate", "x", "-n", "-3"], "-n -3: there is nothing to draw", "1 or more"),
        (["generate", ""], "the prompt is empty", "say what to draw"),
        (["generate", " \n"], "the prompt is empty", "say what to draw"),
        (["generate", "x", "--checkpoint", "nowhere"], "nowhere is neither a run with a checkpoint", "gotr1 train"),
        (["generate", "x", "--planner", "tyo", "--renderer", "toy"], "there is no planner 'tyo'", "did you mean 'toy'?"),
        (["generate", "x", "--planner", "toy", "--renderer", "zzz"], "there is no renderer 'zzz'", "known: "),
        (["generate", "x", "--planner", "toy"], "the config names no renderer", "--preset scenes"),
        (["generate", "x", "--preset", "tyo"], "there is no preset 'tyo'", "did you mean 'toy'?"),
        (["generate", "x", "--preset", "toy", "planner.shad=1"], "unknown key planner.shad", "planner.shade"),
        (["generate", "x", "--preset", "toy", "planner.shade=dark"], "planner.shade: ", "see"),
        (["generate", "x", "--preset", "toy", "stepps=1"], "unknown key stepps", "did you mean steps?"),
        (["generate", "x", "--preset", "toy", "steps"], "'steps' is not KEY=VALUE", "steps=20"),
        (["generate", "x", "--preset", "toy", "planner.model=/no/where"], "the planner 'toy' cannot be made: [Errno 2]", "path"),
        (["generate", "x", "--preset", "toy", "--out", "toy.yaml"], "cannot make the folder toy.yaml", "another folder"),
        (["evaluate", "--benchmark", "tyo"], "there is no benchmark 'tyo'", "did you mean 'toy'?"),
        (["evaluate", "--benchmark", "toy", "--checkpoint", "nowhere"], "nowhere is neither a run", "gotr1 train"),
        (["evaluate", "--benchmark", "toy", "--preset", "toy", "--count", "0"], "--count", "--help"),
        (["evaluate", "--benchmark", "toy", "--preset", "toy", "--batch", "0"], "--batch", "--help"),
        (["train", "none.yaml"], "there is no config none.yaml", "YAML file"),
        (["train", "--preset", "toy", "step=3"], "unknown key step", "did you mean steps?"),
        (["train", "--preset", "toy", "plan=3"], "unknown key plan", "did you mean plans or segments.plan?"),
        (["train", "--preset", "toy", "steps=0"], "steps: ", "gotr1 config schema"),
        (["train", "--preset", "toy", "steps=-1"], "steps: Input should be greater than 0, not -1", "gotr1 config schema"),
        (["train", "--preset", "toy", "steps=abc"], "steps: Input should be a valid integer", "gotr1 config schema"),
        (["train", "--preset", "toy", "steps=[1"], "the value of steps is not YAML", "quote it"),
        (["train", "--preset", "toy", "judge.x=1"], "judge 'toy' has no options, but x was given", "gotr1 show judge toy"),
        (
            ["train", "--preset", "toy", "--judge", "toy", "--judge", "plans", "judge.x=1"],
            "the config has 2 components under judge",
            "judge.NAME.KEY=",
        ),
        (["train", "--preset", "toy", "--judge", "plans", "judge.per_bix=1"], "unknown key judge.per_bix", "judge.per_box"),
        (
            ["train", "--preset", "toy", "--judge", "plans", "judge.per_box=0"],
            "judge.per_box: Input should be greater",
            "gotr1 show judge plans",
        ),
        (["train", "--preset", "toy", "planner.shade=2"], "planner.shade: Input should be less", "gotr1 show planner toy"),
        (["train", "."], ". is a folder, not a config", "config.yaml"),
        (["train", "x" * 300], "there is no config xxx", "YAML file"),
        (["train", "binary.yaml"], "binary.yaml is not YAML: it is not UTF-8 text", "gotr1 config show"),
        (["train", "twice.yaml"], "twice.yaml is not YAML: the key 'steps' is there twice, line 2", "gotr1 config show"),
        (["train", "--preset", "toy", "=3"], "'=3' is not KEY=VALUE", "steps=20"),
        (["train", "toy.yaml", "toy.yaml"], "'toy.yaml' is not KEY=VALUE", "steps=20"),
        (["train", "--judge", "toy"], "the config names no planner", "name one (--planner NAME), or let a preset supply what you do not"),
        (["train", "--planner", "toy", "--renderer", "toy"], "the config names no judge", "--preset scenes"),
        (["train", "--preset", "toy", "--judge", "tyo"], "there is no judge 'tyo'", "did you mean 'toy'?"),
        (["train", "--preset", "toy", "--judge", "toy", "--judge", "toy"], "the judge 'toy' is named twice", "once"),
        (["train", "--preset", "toy", "--algorithm", "grop"], "there is no algorithm 'grop'", "did you mean 'grpo'?"),
        (["train", "--preset", "toy", "algorithm.ratoi=token"], "unknown key algorithm.ratoi", "algorithm.ratio"),
        (["train", "--preset", "toy", "algorithm.advantages=split"], "only one image per plan", "two or more images"),
        (["train", "--preset", "toy", "reward=pj"], "pj", "pi"),
        (["train", "--preset", "toy", "evaluation.metric=pj"], "evaluation.metric: no judge scores 'pj'", "known: reward, pi"),
        (["train", "--preset", "toy", "prompts=null"], "prompts: ", "gotr1 config schema"),
        (["train", "--preset", "toy", "prompts={held_out: 3}", "prompts.source=null"], "there are no prompts", "--prompts FILE"),
        (["train", "--preset", "toy", "prompts.source=scene"], "there is no source 'scene'", "did you mean 'scenes'?"),
        (["train", "--preset", "toy", "--dry-run", "name=exp/1"], "name='exp/1' is not the name of one folder", "output=runs/exp name=1"),
        (["train", "--preset", "toy", "--dry-run", "name=.."], "name='..' is not the name of one folder", "short name"),
        (["train", "--preset", "toy", "--dry-run", f"name={'x' * 250}"], "is not the name of one folder", "short name"),
        (["train", "--preset", "toy", "name=exp/1"], "name='exp/1' is not the name of one folder", "output=runs/exp name=1"),
        (["train", "--preset", "toy", "--dry-run", "output=toy.yaml"], "toy.yaml is not a folder that you can write to", "output="),
        (["train", "--preset", "toy", "--dry-run", "output=/proc/x"], "/proc is not a folder that you can write to", "output="),
        (["train", "--preset", "toy", "--dry-run", "--prompts", "none.txt"], "none.txt: No such file", "one prompt a line"),
        (["train", "--preset", "toy", "--dry-run", "prompts.held_out=none.txt"], "none.txt: No such file", "one prompt a line"),
        (
            ["train", "--preset", "toy", "--dry-run", "--planner", "file", "planner.chains=chains.jsonl", "train=renderer"],
            "chains.jsonl has no chain for the prompt",
            "add a line for it",
        ),
        (
            ["train", "--preset", "toy", "--dry-run", "--planner", "file", "planner.chains=chains.jsonl", "train=planner"],
            "train: the planner has nothing to train",
            "set train=renderer",
        ),
        (["train", "--preset", "toy", "--prompts", "none.txt"], "none.txt: No such file", "one prompt a line"),
        (
            ["train", "--preset", "toy", "--prompts", "chains.jsonl", "prompts.source=null", "prompts.held_out=300"],
            "would hold out all of them",
            "smaller number",
        ),
        (["train", "--preset", "toy", "prompts.held_out=none.jsonl"], "none.jsonl: No such file", "JSONL"),
        (["--plugin"], "--plugin needs a file", "--plugin my_judge.py"),
        (["--plugin="], "--plugin needs a file", "--plugin my_judge.py"),
        (["list", "--plugin", "--json"], "--plugin needs a file", "--plugin my_judge.py"),
        (["list", "--plugin", "none.py"], "cannot read the plugin", "path of a Python file"),
        (["train", "--plugin=toy.yaml"], "toy.yaml is no plugin file", "Python file"),
        (["train", "--preset", "toy", "plugins=none.py"], "cannot read the plugin", "path of a Python file"),
        (["train", "--preset", "toy", "plugins=[3]"], "plugins.0: Input is not a valid path, not 3", "gotr1 config schema"),
        (["train", "--preset", "toy", "plugins={a: b}"], "plugins: Input should be a valid list", "gotr1 config schema"),
        (["sft"], "the config names no policy", "gotr1 config schema"),
        (["sft", "none.yaml"], "there is no config none.yaml", "YAML file"),
        (["sft", "policy=tyo", "data=scenes"], "there is no planner 'tyo'", "did you mean 'toy'?"),
        (["sft", "policy=toy", "data=scene"], "there is no source 'scene'", "did you mean 'scenes'?"),
        (["sft", "policy=toy", "data=none.jsonl"], "none.jsonl", ""),
    ],
)
def test_mistakes_are_reported_in_two_lines(arguments: list[str], message: str, hint: str, toy: Path, refused: Refused) -> None:
    (toy / "binary.yaml").write_bytes(b"steps: caf\xe9")
    (toy / "twice.yaml").write_text("steps: 1\nsteps: 2\n")
    (toy / "chains.jsonl").write_text('{"prompt": "a red circle", "chain": "a red circle"}\n')
    error, advice = refused(arguments)
    assert message in error
    assert hint in advice
    assert not (toy / "pictures").exists()
    assert not (toy / "runs").exists()  # no empty run is left, whose name would then be taken


def test_a_caret_stays_under_what_it_points_at(toy: Path, capsys: Captured) -> None:
    assert call(["train", "--preset", "toy", "reward=pi + )"]) == 2
    _, hint, caret = capsys.readouterr().err.splitlines()
    assert hint == "hint: pi + )"
    assert caret.index("^") == hint.index(")")


@pytest.mark.parametrize("place", [0, 1, 3, 4])
def test_debug_shows_the_traceback_wherever_it_stands(place: int, toy: Path) -> None:
    words = ["train", "--preset", "toy", "step=3"]
    with pytest.raises(UsageError):
        call([*words[:place], "--debug", *words[place:]])


def test_options_after_two_dashes_are_not_read_ahead(toy: Path, refused: Refused) -> None:
    assert read_ahead(["a", "--debug", "--plugin=x.py", "--", "--plugin", "y.py", "--debug"]) == (
        ["a", "--", "--plugin", "y.py", "--debug"],
        [Path("x.py")],
    )
    assert refused(["config", "show", "--", "--debug"])[0] == "there is no config --debug"


def test_the_version_is_printed(capsys: Captured) -> None:
    assert call(["--version"]) == 0
    assert capsys.readouterr().out == f"gotr1 {version('gotr1')}\n"


def test_a_bug_and_a_users_mistake_are_reported_differently(toy: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no\n  idea")

    monkeypatch.setattr("gotr1_core.plugins.Registry.preset", broken)
    error, hint = refused(["generate", "x", "--preset", "toy"], status=1)
    assert error == "ValueError: no idea"
    assert hint == "this looks like a bug in gotr1 or a plugin; run again with --debug to see where"
    with pytest.raises(ValueError, match="idea"):
        call(["generate", "x", "--preset", "toy", "--debug"])


def test_errors_of_the_environment_are_two_lines(toy: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setenv("GOTR1_PLUGINS", "toi")
    for arguments in (["--help"], ["plugins"], ["train", "--preset", "toy"]):
        error, hint = refused(arguments)
        assert error == "GOTR1_PLUGINS names 'toi', which is not installed"
        assert hint.startswith("did you mean 'toy'? installed: ")
    monkeypatch.setenv("GOTR1_PLUGINS", "gotr1-toy")
    assert refused(["train"])[0] == "there is no preset 'scenes'"


def test_a_command_line_uses_one_registry(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Registry] = []
    real = Registry.__init__
    monkeypatch.setattr(Registry, "__init__", lambda self, *given, **named: (made.append(self), real(self, *given, **named))[1])
    for count in (1, 2):
        assert call(["generate", "x", "--preset", "toy", "--out", f"out{count}"]) == 0
        assert len(made) == count


def test_run_exits_with_the_status() -> None:
    for arguments, status in ((["plugins"], 0), (["trian"], 2)):
        with pytest.raises(SystemExit) as caught:
            run(arguments)
        assert caught.value.code == status


def test_an_interrupt_has_its_own_status(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gotr1_core.plugins.Registry.preset", interrupted)
    assert call(["generate", "x", "--preset", "toy"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


# -- what lies over what ----------------------------------------------------------------------------------------------------


def loaded(config: str | None = None, preset: str | None = None, *words: str, **named: Any) -> dict[str, Any]:
    path = None
    if config is not None:
        path = Path("file.yaml")
        path.write_text(config)
    return resolve_config(Registry(), path, preset, named, words)


@pytest.mark.usefixtures("toy")
def test_preset_then_file_then_options_then_words() -> None:
    assert loaded(None, "toy")["steps"] == 7
    assert loaded("steps: 8", "toy")["steps"] == 8
    assert loaded("steps: 8", "toy", "steps=9")["steps"] == 9
    assert loaded("steps: 8", "toy")["reward"] == "pi"
    shade = {"name": "toy", "shade": 0.2}
    assert loaded("planner: {shade: 0.4}", "toy")["planner"] == {"name": "toy", "shade": 0.4}
    assert loaded("planner: {shade: 0.4}", "toy", planner="toy")["planner"] == {"name": "toy", "shade": 0.4}
    assert loaded("planner: janus", "toy")["planner"] == {"name": "janus"}
    assert loaded("planner: {name: janus, model: x}", "toy", planner="toy")["planner"] == {"name": "toy"}
    assert loaded(None, "toy", "planner=janus", planner="toy")["planner"] == {"name": "janus"}
    assert loaded(None, "toy", planner=None)["planner"] == shade
    assert loaded(None, "toy", judge=["one", "two"])["judge"] == ["one", "two"]


@pytest.mark.usefixtures("toy")
def test_a_component_named_by_option_takes_options_by_words() -> None:
    found = loaded(None, None, "planner.shade=0.5", planner="toy", renderer="toy")
    assert found == {"planner": {"name": "toy", "shade": 0.5}, "renderer": "toy"}


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("word", ["planner=toy", "planner={name: toy}", "planner.name=toy"])
def test_a_component_named_by_a_word_is_as_one_named_by_an_option(word: str) -> None:
    assert loaded(None, None, word)["planner"] in ("toy", {"name": "toy"})
    assert "steps" not in loaded(None, None, word)
    assert "steps" in loaded(None, None, "planner.model=x")


@pytest.mark.usefixtures("toy")
def test_the_preset_scenes_is_the_default() -> None:
    assert loaded(None, None, "steps=3")["planner"]["name"] == "janus"
    assert loaded(None, None, "steps=3")["steps"] == 3
    assert loaded(None, None, algorithm="grpo")["planner"]["name"] == "janus"
    assert "planner" not in loaded(None, None, judge=["toy"])
    assert loaded(None, None, "algorithm.ratio=sequence")["algorithm"] == {"name": "grpo", "scale": False, "ratio": "sequence"}
    assert loaded("steps: 3") == {"steps": 3}


@pytest.mark.usefixtures("toy")
def test_own_prompts_replace_the_presets_and_keep_its_held_out_ones() -> None:
    found = loaded(None, "toy", prompts={"file": "mine.txt"})
    assert found["prompts"] == {"source": "scenes", "held_out": 4, "file": "mine.txt"}
    assert loaded(None, "toy", "prompts.file=other.txt", prompts={"file": "mine.txt"})["prompts"]["file"] == "other.txt"
