"""``${PACKAGE:NAME}`` in a YAML file: the folder of an installed package, such as the one with the miniatures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gotr1_scenes
from gotr1_core.cli.main import call
from gotr1_core.config.merge import read_yaml
from gotr1_core.errors import UsageError

SCENES = Path(gotr1_scenes.__file__).parent.resolve()
PLUGIN = """
from gotr1_core import Component, hookimpl

@hookimpl
def gotr1_components():
    yield Component("preset", "mine", f"{__name__}:mine.yaml", summary="the miniature Janus in few steps")
"""
PRESET = """
planner: {name: janus, model: "${PACKAGE:gotr1_scenes}/weights/janus", instruction: "{prompt}"}
renderer: janus
judge: scenes
reward: pi
prompts: {source: scenes}
variants:
  planner:
    qwen: {planner: {model: "${PACKAGE:gotr1_scenes}/weights/qwen"}}
"""


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plugin of one file with the preset ``mine``, as ``--plugin`` takes it."""
    (tmp_path / "miniature_plugin.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(PRESET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return "miniature_plugin.py"


@pytest.mark.parametrize("planner", ["janus", "qwen"])
def test_a_preset_of_another_plugin_uses_the_miniatures(planner: str, preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["config", "show", "--plugin", preset, "--preset", "mine", "--planner", planner, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["planner"]["model"] == str(SCENES / "weights" / planner)


def test_a_copy_of_such_a_preset_works_in_another_place(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["show", "preset", "mine", "--plugin", preset]) == 0
    Path("elsewhere").mkdir()
    Path("elsewhere", "copy.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert read_yaml(Path("elsewhere", "copy.yaml"))["planner"]["model"] == str(SCENES / "weights" / "janus")


def test_every_text_of_a_file_may_have_it(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("a: ['${PACKAGE:gotr1_scenes}', 3]\nb: ${HERE}:${PACKAGE:gotr1_scenes}/x\n# ${PACKAGE:none}\n", encoding="utf-8")
    assert read_yaml(file) == {"a": [str(SCENES), 3], "b": f"{tmp_path.resolve()}:{SCENES}/x"}


def test_the_name_of_a_folder_is_not_replaced_again(tmp_path: Path) -> None:
    folder = tmp_path / "${PACKAGE:none}"
    folder.mkdir()
    (folder / "run.yaml").write_text("a: ${HERE}/x\n", encoding="utf-8")
    assert read_yaml(folder / "run.yaml") == {"a": f"{folder.resolve()}/x"}


def test_the_package_is_not_imported(tmp_path: Path) -> None:
    package = tmp_path / "slow_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text("a: ${PACKAGE:slow_package}\n", encoding="utf-8")
    code = "from pathlib import Path; from gotr1_core.config.merge import read_yaml; print(read_yaml(Path('run.yaml'))['a'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{package.resolve()}\n"


@pytest.mark.parametrize("name", ["no_such_package", "json.tool", "xml.etree", "string", "sys", "__main__", "..", "a/b", "", "1"])
def test_a_name_of_no_package_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"a: '${{PACKAGE:{name}}}'\n", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"no package '{name}' is installed") as caught:
        read_yaml(file)
    assert "install it" in caught.value.hint


def test_the_error_has_two_lines(tmp_path: Path, refused: Callable[..., tuple[str, str]]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("planner: {name: janus, model: '${PACKAGE:gotr1_scene}/weights/janus'}\n", encoding="utf-8")
    error, hint = refused(["config", "show", str(file)])
    assert "gotr1_scene" in error
    assert "${PACKAGE:gotr1_scenes}" in hint
