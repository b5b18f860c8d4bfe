"""Single files as plugins: loaded as a module of their name, with their hash as version. Other files are refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gotr1_core.cli.main import call
from gotr1_core.components.build import make_component
from gotr1_core.config.merge import parse_overrides, read_yaml
from gotr1_core.config.models import ComponentConfig, RunConfig, SftConfig, dump, validate
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Provided, Registry

JUDGE = """
from __future__ import annotations

import dataclasses

from pydantic import BaseModel, ConfigDict

from gotr1_core.hookspecs import Component, hookimpl


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bonus: float = 0.0


@dataclasses.dataclass
class MyJudge:
    options: Options
    rewards = {"shiny": "image"}

    def score(self, samples, names):
        return {name: [1.0] * len(samples) for name in names}


@hookimpl
def gotr1_components():
    yield Component("judge", "mine", f"{__name__}:MyJudge", f"{__name__}:Options", "shines")
"""


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    sys.modules.pop("my_judge", None)  # the docs have one of this name
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        sys.modules.pop(name)


def written(folder: Path, source: str = JUDGE, name: str = "my_judge.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(source, encoding="utf-8")
    return folder / name


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    file = written(tmp_path)
    registry = Registry([])
    registry.add_file(file)
    version = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    [found] = registry.provided
    assert found == Provided(found.component, "my_judge.py", version)
    assert registry.find("judge", "my_judge.py:mine") == found
    assert registry.files == [file]
    assert [plugin.id for plugin in registry.loaded] == ["my_judge.py:my_judge"]
    made = make_component(registry, "judge", ComponentConfig(name="mine", bonus=2))
    assert made.options.bonus == 2
    assert type(made).__module__ == "my_judge"
    with pytest.raises(UsageError, match=r"unknown key judge\.bonsu"):
        make_component(registry, "judge", ComponentConfig(name="mine", bonsu=2))
    assert not (tmp_path / "__pycache__").exists()


def test_a_target_may_name_the_stem(tmp_path: Path) -> None:
    source = JUDGE.replace('f"{__name__}:MyJudge", f"{__name__}:Options"', '"my-judge:MyJudge", "my-judge:Options"')
    registry = Registry([])
    registry.add_file(written(tmp_path, source, "my-judge.py"))
    assert make_component(registry, "judge", ComponentConfig(name="mine")).options.bonus == 0


def test_the_same_file_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = JUDGE + "\nprint('loaded')\n"
    file = written(tmp_path, counted)
    registry = Registry([])
    registry.add_file(file)
    module = sys.modules["my_judge"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "again.py").symlink_to(file)
    for same in (file, Path("my_judge.py"), tmp_path / ".." / tmp_path.name / "my_judge.py", tmp_path / "again.py"):
        registry.add_file(same)
    assert len(registry.provided) == len(registry.files) == 1
    other = Registry([])
    other.add_file(file)
    assert sys.modules["my_judge"] is module  # the classes that the first registry made are not made twice
    assert len(other.provided) == 1


def test_a_changed_file_is_another_plugin(tmp_path: Path) -> None:
    for number in (1, 2):  # faster than a file's time stamp tells, and of one size
        registry = Registry([])
        registry.add_file(written(tmp_path, JUDGE.replace('"mine"', f'"mine{number}"')))
        assert [p.component.name for p in registry.provided] == [f"mine{number}"]
    registry = Registry([])
    registry.add_file(written(tmp_path / "elsewhere"))
    assert [p.component.name for p in registry.provided] == ["mine"]
    with pytest.raises(UsageError, match="two plugin files have one name") as caught:
        registry.add_file(tmp_path / "my_judge.py")
    assert caught.value.hint == "rename one of them"


def test_a_file_may_only_listen(tmp_path: Path) -> None:
    source = """
from gotr1_core.hookspecs import hookimpl
heard = []
@hookimpl
def gotr1_step_finished(step):
    heard.append(step)
"""
    registry = Registry([])
    registry.add_file(written(tmp_path, source, "listener.py"))
    registry.manager.hook.gotr1_step_finished(run=tmp_path, step=3, metrics={}, samples=[])
    assert sys.modules["listener"].heard == [3]
    assert registry.loaded[0].hooks == ("gotr1_step_finished",)


IMPORT = "from gotr1_core.hookspecs import Component, hookimpl\n"
HOOK = IMPORT + "@hookimpl\ndef gotr1_components():\n    "

WRONG: dict[str, tuple[str, str | bytes | None, str]] = {
    "missing": ("my_judge.py", None, "cannot read the plugin {file}: No such file or directory"),
    "not Python": ("my_judge.txt", JUDGE, "{file} is no plugin file"),
    "no suffix": ("my_judge", JUDGE, "{file} is no plugin file"),
    "import": ("my_judge.py", "import a_module_that_is_not_there", "{file} does not load: ModuleNotFoundError: No module named"),
    "syntax": ("my_judge.py", "def (:\n", "{file} does not load: SyntaxError: invalid syntax (my_judge.py, line 1)"),
    "binary": ("my_judge.py", b"\0\xff", "{file} does not load: SyntaxError: "),
    "exit": ("my_judge.py", "raise SystemExit(3)", "{file} does not load: SystemExit: 3"),
    "lines": ("my_judge.py", "raise RuntimeError('one\\n two')", "{file} does not load: RuntimeError: one two"),
    "standard": ("json.py", JUDGE, "{file} would hide the module 'json', which is installed"),
    "not imported yet": ("this.py", JUDGE, "{file} would hide the module 'this', which is installed"),
    "installed": ("gotr1_core.py", JUDGE, "{file} would hide the module 'gotr1_core', which is installed"),
    "main": ("__main__.py", JUDGE, "{file} would hide the module '__main__'"),
    "dotted": ("my.judge.py", JUDGE, "{file} cannot be a module called 'my.judge'"),
    "empty": ("my_judge.py", "", "{file} registers nothing"),
    "no hook": ("my_judge.py", "def gotr1_components():\n    return []", "{file} registers nothing"),
    "no component": ("my_judge.py", HOOK + "return []", "{file} registers nothing"),
    "nonsense": ("my_judge.py", HOOK + "yield 'a judge'", "{file} is broken: registers 'a judge', which is no Component ({file}:"),
    "raising": ("my_judge.py", HOOK + "raise OSError('gone')", "{file} is broken: OSError: gone"),
    "misspelt": (
        "my_judge.py",
        HOOK.replace("components", "componets") + "return []",
        "{file} is broken: there is no hook gotr1_componets; did you mean 'gotr1_components'? ({file}:",
    ),
}


@pytest.mark.parametrize(("name", "source", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_plugin_is_refused(name: str, source: str | bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if source is not None:
        file.write_bytes(source if isinstance(source, bytes) else source.encode())
    registry, before = Registry([]), dict(sys.modules)
    with pytest.raises(UsageError) as caught:
        registry.add_file(file)
    assert message.format(file=file) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.code == 2
    assert (registry.loaded, registry.files, registry.manager.list_name_plugin()) == ([], [], [])
    assert all(sys.modules.get(module) is before.get(module) for module in ("json", "gotr1_core", "__main__", "this"))


def test_a_folder_is_no_plugin_file(tmp_path: Path) -> None:
    (tmp_path / "my_judge.py").mkdir()
    with pytest.raises(UsageError, match=r"cannot read the plugin .*: Is a directory"):
        Registry([]).add_file(tmp_path / "my_judge.py")


def test_a_file_beside_the_caller_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Python searches the working folder, an import of the plugin's name finds the file itself. That is no conflict."""
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry([])
    registry.add_file(written(tmp_path))
    assert len(registry.provided) == 1


# -- in configs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "rest"), [(RunConfig, {"planner": "x", "renderer": "x", "judge": "x"}), (SftConfig, {"policy": "x", "data": "x"})]
)
def test_a_config_names_files_absolutely(model: type, rest: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert validate(model, rest).plugins == []
    for word in ("plugins=[my.py, /elsewhere/other.py]", "plugins=my.py"):
        config = validate(model, {**rest, **parse_overrides([word])})
        assert config.plugins == [tmp_path / "my.py", Path("/elsewhere/other.py")][: len(config.plugins)]
        (tmp_path / "config.yaml").write_text(dump(config))
        assert validate(model, read_yaml(tmp_path / "config.yaml")) == config
    with pytest.raises(UsageError, match=r"plugins\.0: Input is not a valid path, not 3"):
        validate(model, {**rest, "plugins": [3]})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Own(BaseException): pass\nraise Own('no')", "Own: no"),
    ],
)
def test_whatever_a_file_raises_names_it(tmp_path: Path, code: str, said: str, refused: Callable[..., tuple[str, str]]) -> None:
    file = written(tmp_path, code)
    error, hint = refused(["list", "--plugin", str(file)])
    assert error.startswith(f"the plugin {file} does not load: {said} ({file}:")
    assert "--debug" in hint


def test_whatever_a_hook_of_a_file_raises_names_it(tmp_path: Path, refused: Callable[..., tuple[str, str]]) -> None:
    code = "from gotr1_core.hookspecs import hookimpl\n@hookimpl\ndef gotr1_components():\n    raise KeyboardInterrupt\n"
    file = written(tmp_path, code)
    error, _ = refused(["list", "--plugin", str(file)])
    assert error.startswith(f"the plugin {file} is broken: KeyboardInterrupt ({file}:4)")


def test_ctrl_c_while_a_file_is_loaded_passes(tmp_path: Path) -> None:
    """Python raises it between two instructions."""
    file = written(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10**6): pass\n")
    assert call(["list", "--plugin", str(file)]) == 130
    assert "my_judge" not in sys.modules


def test_a_traceback_shows_control_characters_escaped(tmp_path: Path) -> None:
    file = written(tmp_path, r"raise ValueError('red \x1b[31m bell \x07')")
    done = subprocess.run(
        [sys.executable, "-m", "gotr1_core.cli.main", "list", "--plugin", str(file), "--debug"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert r"ValueError: red \u001b[31m bell \u0007" in done.stderr
    assert "Traceback (most recent call last):\n" in done.stderr
    assert not {"\x1b", "\x07"} & {*done.stderr}
