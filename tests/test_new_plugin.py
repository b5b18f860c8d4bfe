"""``gotr1 plugins new``: a package of each kind installs, passes its tests and ``gotr1 check``, and trains a step, as it was written."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gotr1_core.cli.main import call
from gotr1_testing.new_plugin import _TRY, KINDS

SMALL = ["groups=2", "plans=2", "prompts.held_out=2", "evaluation={every: 0, prompts: 2, greedy: false, best_of: 0}"]
kinds = pytest.mark.parametrize("kind", KINDS)


def run(*words: str, cwd: Path, site: Path) -> str:
    """Runs a process that sees the packages of ``site``. A plugin that does not load is an error."""
    path = os.pathsep.join([str(site), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path, "GOTR1_STRICT_PLUGINS": "1"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each kind, installed from its own build into ``site``. No network."""
    folder = tmp_path_factory.mktemp("new")
    for kind in KINDS:
        assert call(["plugins", "new", f"my-{kind}", "--kind", kind, "--out", str(folder / f"gotr1-my-{kind}")]) == 0
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--target", "site", *(f"./gotr1-my-{kind}" for kind in KINDS), cwd=folder, site=folder)
    return folder


@pytest.fixture
def installed(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As ``made``, with its packages installed for this process. The working folder is a new one."""
    monkeypatch.syspath_prepend(made / "site")
    monkeypatch.setenv("GOTR1_STRICT_PLUGINS", "1")
    monkeypatch.chdir(tmp_path)
    return made


def test_every_package_is_found(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["plugins", "--json"]) == 0
    plugins = json.loads(capsys.readouterr().out)
    assert plugins["failed"] == []
    assert {(kind, f"my-{kind}") for kind in KINDS} <= {(c["kind"], c["name"]) for c in plugins["components"]}


@pytest.mark.unmeasured
def test_their_own_tests_pass(made: Path) -> None:
    """In one process. Of the checks of policies a few: test_examples_smallest.py runs all of them on the same code."""
    few = "not (slope or gradient or lora or divergence or passed)"
    packages = [str(made / f"gotr1-my-{kind}" / "tests") for kind in KINDS]
    out = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", few, *packages, cwd=made, site=made / "site")
    assert " passed" in out
    assert "failed" not in out


@pytest.mark.unmeasured
@kinds
def test_it_trains_a_step_with_the_command_it_names(kind: str, installed: Path) -> None:
    command = _TRY[kind].format(name=f"my-{kind}")
    assert command in (installed / f"gotr1-my-{kind}" / "README.md").read_text(encoding="utf-8")
    words = shlex.split(command)[1:]
    assert call([*words, *(["--count", "1"] if kind == "benchmark" else [*SMALL, "name=run"])]) == 0
    if kind != "benchmark":
        rows = Path("runs", "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert any(json.loads(row).get("step") == 1 for row in rows)


@pytest.mark.unmeasured
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", ["planner", "renderer"])
def test_a_policy_is_exported_whole_and_trained_on(kind: str) -> None:
    command = ["train", "--preset", "scenes", f"--{kind}", f"my-{kind}", f"train={kind}", "steps=1", *SMALL]
    assert call([*command, "name=run"]) == 0
    assert call(["export", "runs/run", "out", "--merge"]) == 0
    assert f"{kind}.model=" in Path("out", "README.md").read_text(encoding="utf-8")
    assert call([*command, f"{kind}.model=out", "name=again"]) == 0


@pytest.mark.unmeasured
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", ["judge", "algorithm", "source", "benchmark"])
def test_it_passes_its_checks(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", kind, f"my-{kind}", "--json"]) == 0
    assert {check["verdict"] for check in json.loads(capsys.readouterr().out)} <= {"ok", "not run"}


def test_the_code_is_that_of_the_smallest_component_under_another_name(made: Path) -> None:
    component = (made / "gotr1-my-judge" / "src" / "gotr1_my_judge" / "component.py").read_text(encoding="utf-8")
    assert "class MyJudge:" in component
    assert "class MyJudgeOptions(BaseModel):" in component
    assert "mallest" not in component
    assert "hookimpl" not in component


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["My Judge", "--kind", "judge"], "cannot name a package", "small letters"),
        (["../x", "--kind", "judge"], "cannot name a package", "small letters"),
        (["mine", "--kind", "preset"], "no package to begin a preset", "kinds: planner"),
        (["mine", "--kind", "juge"], "there is no kind 'juge'", "judge"),
        (["there", "--kind", "judge"], "gotr1-there exists already", "--out"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., tuple[str, str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gotr1-there").mkdir()
    error, advice = refused(["plugins", "new", *words])
    assert message in error
    assert hint in advice
    assert [path.name for path in tmp_path.iterdir()] == ["gotr1-there"]
