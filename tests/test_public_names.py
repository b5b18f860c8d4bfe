"""What is written for readers elsewhere names models and files as they know them, never by a path of this machine."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from fresh_plugin import ForgetsAdapters, Fresh, FreshOptions, SavesHalf

from gotr1_core import config as config_package
from gotr1_core.cli.main import call
from gotr1_core.config.merge import parse_overrides, read_yaml
from gotr1_core.config.models import RunConfig
from gotr1_core.config.public_names import is_local, package_path, public_message, public_name, public_texts
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.runs import start
from gotr1_core.runs.report import write_report
from gotr1_core.workflows.export import export
from gotr1_testing import Case, TinyPolicy
from gotr1_testing.runner import run_checks

PLUGINS = [str(Path(__file__).with_name(f"{name}_plugin.py")) for name in ("tiny", "fresh")]
WEIGHTS = Path(config_package.__file__).parent


def test_a_path_has_the_name_that_readers_know(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--someone--painter" / "snapshots" / "1f2e"
    cached.mkdir(parents=True)
    mine = tmp_path / "my model"
    mine.mkdir()
    assert public_name(str(cached)) == "someone/painter"
    assert public_name(str(mine)) == "my model"
    assert public_name(f"{mine}/../my model/") == "my model"
    assert public_name(str(mine / "gone.jsonl")) == "gone.jsonl"
    assert public_name(str(WEIGHTS / "models.py")) == "${PACKAGE:gotr1_core}/config/models.py"
    assert package_path("${PACKAGE:gotr1_core}/config/models.py") == ("gotr1_core", "config/models.py")
    for text in ("someone/painter", "/imagine {prompt}", "", "a/b/c", "/", "\0"):
        assert public_name(text) == text
    assert not is_local("/imagine {prompt}")


def test_a_package_that_is_not_installed_has_no_name(tmp_path: Path) -> None:
    folder = tmp_path / "not_installed_anywhere"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "weights").mkdir()
    assert public_name(str(folder / "weights")) == "weights"


def test_texts_and_messages(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.touch()
    data = {"file": str(file), "list": [str(file), 3, None], "instruction": "/imagine {prompt}", "name": "a/b"}
    assert public_texts(data) == {
        "file": "prompts.txt",
        "list": ["prompts.txt", 3, None],
        "instruction": "/imagine {prompt}",
        "name": "a/b",
    }
    message = f"{file} is damaged, see '{file}' and (https://example.org/tmp/x); 3/4 of it"
    assert public_message(message) == "prompts.txt is damaged, see 'prompts.txt' and (https://example.org/tmp/x); 3/4 of it"


def test_words_name_a_package_too() -> None:
    assert parse_overrides(["planner.model=${PACKAGE:gotr1_core}/config"]) == {"planner": {"model": str(WEIGHTS)}}
    assert parse_overrides(["instruction=${HERE} {prompt}"]) == {"instruction": "${HERE} {prompt}"}
    with pytest.raises(UsageError, match="no package"):
        parse_overrides(["planner.model=${PACKAGE:nowhere_at_all}/x"])


# -- exports ----------------------------------------------------------------------------------------------------------------


def configured(output: Path, planner: Any, **changed: Any) -> RunConfig:
    data: dict[str, Any] = {
        "plugins": PLUGINS,
        "planner": planner,
        "renderer": planner["name"],
        "judge": "values",
        "reward": "value * bright",
        "prompts": {"source": "scenes", "held_out": 4},
        "steps": 2,
        "groups": 2,
        "plans": 2,
        "sampling": {"guidance_scale": 2.0, "max_chain_tokens": 6},
        "optimizer": {"learning_rate": 0.3, "schedule": "constant"},
        "evaluation": {"every": 0, "prompts": 4},
        "lora": None,
        "output": str(output),
        "name": "run",
    }
    return RunConfig.model_validate(data | changed)


def absolute_paths(folder: Path) -> list[str]:
    """Texts in a folder's files that look like a path of this machine."""
    found = []
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".png":
            content = file.read_bytes().decode("utf-8", errors="replace")
            found += [f"{file.name}: {path}" for path in re.findall(r"/(?:tmp|home|root|opt|usr|var|work)/[\w./-]+", content)]
    return found


def test_a_policy_that_was_trained_from_nothing_is_exported_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card's command draws with the export as with the run."""
    run = start.train(configured(tmp_path, {"name": "fresh", "note": str(tmp_path)}), cpu=True).folder
    out = tmp_path / "out"
    assert call(["export", str(run), str(out), "--merge"]) == 0
    card = (out / "README.md").read_text()
    assert "- **Base model**: none, training started from random weights" in card
    assert "The planner is for gotr1_testing's `TinyModule`." in card
    assert "base_model" not in card
    assert absolute_paths(out) == []
    assert read_yaml(out / "config.yaml")["plugins"] == ["tiny_plugin.py", "fresh_plugin.py"]
    monkeypatch.chdir(out)
    [command] = re.findall(r"```sh\n(.*?)\n```", card)
    words = [word for word in shlex.split(command)[1:] if "note" not in word]
    capsys.readouterr()
    plugins = [f"--plugin={file}" for file in PLUGINS]
    rows = []
    for arguments in ([*words, *plugins], ["generate", words[1], "--checkpoint", str(run)]):
        assert call([*arguments, "-n", "4", "--seed", "3", "--out", str(tmp_path / str(len(rows)))]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        rows.append([(row["chain"], Path(row["image"]).read_bytes()) for row in found])
    assert rows[0] == rows[1]
    assert call(["generate", words[1], "--planner=fresh", "--renderer=fresh", *plugins, "-n", "4", "--seed", "3", "--out", "fresh"]) == 0
    fresh = [json.loads(line)["chain"] for line in capsys.readouterr().out.splitlines()]
    assert fresh != [chain for chain, _ in rows[0]]  # it has learnt


def test_adapters_of_random_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start.train(configured(tmp_path, {"name": "fresh"}, lora={"rank": 2}), cpu=True).folder
    assert call(["export", str(run), str(tmp_path / "out")]) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error == "error: the planner 'fresh' was trained from random weights, so its adapters fit no base model"
    assert hint == "hint: --merge exports the full model"


def test_a_card_says_that_a_component_without_the_option_model_cannot_load_it(tmp_path: Path) -> None:
    run = start.train(configured(tmp_path, {"name": "closed"}), cpu=True).folder
    export(Registry(), run, tmp_path / "out", merged=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "gotr1 cannot load this export: the planner `closed` has no option `model`." in card
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_report_names_no_path_of_this_machine(tmp_path: Path) -> None:
    run = start.train(configured(tmp_path, {"name": "fresh", "note": f"{tmp_path}/note.txt"}), cpu=True).folder
    page = write_report(run).read_text()
    assert str(tmp_path) not in page
    assert "note: note.txt" in page
    assert "fresh_plugin.py" in page
    assert str(Path(__file__).parent) not in page


# -- the check of exports ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["planner", "renderer"])
@pytest.mark.parametrize("make", [Fresh, SavesHalf, ForgetsAdapters])
def test_the_check_of_exports_finds_what_is_not_saved(make: type[Fresh], kind: Any) -> None:
    def load(folder: Path) -> Fresh:
        return make(FreshOptions(model=str(folder)))

    [result] = run_checks(kind, lambda: make(FreshOptions()), Case(max_chain_tokens=2), ["export-loads"], load=load)
    wrong = make is ForgetsAdapters or (make is SavesHalf and kind == "planner")  # pictures do not need the head of plans
    assert result.passed is not wrong, result
    [result] = run_checks(kind, lambda: make(FreshOptions()), Case(max_chain_tokens=2), ["export-loads"])
    assert (result.passed, result.measured) == (True, 1)
    assert "not loaded" in result.note


def test_a_policy_that_cannot_be_exported_says_so() -> None:
    [result] = run_checks("planner", TinyPolicy, Case(max_chain_tokens=2), ["export-loads"])
    assert result.passed is None
    assert "made by its code alone" in result.note


def test_the_command_loads_an_export_if_the_component_has_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    plugins = [f"--plugin={file}" for file in PLUGINS]
    for name, note in (("fresh", "of the policy that was saved and loaded"), ("closed", "not loaded")):
        assert call(["check", "planner", name, *plugins, "--chain-tokens", "2", "--only", "export-loads", "--json"]) == 0
        [row] = json.loads(capsys.readouterr().out)
        assert row["verdict"] == "ok"
        assert note in row["note"]
