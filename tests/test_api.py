"""gotr1 as a library: the public names, which load nothing until they are used, and the example run as a user runs it."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gotr1_core as gotr1
from gotr1_core.errors import UsageError

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "transformers", "diffusers", "accelerate", "pydantic", "peft")


def test_every_public_name_is_there_and_documented() -> None:
    for name in gotr1.__all__:
        thing = getattr(gotr1, name)
        assert name in dir(gotr1)
        assert isinstance(thing, str) or thing.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = gotr1.trian


def test_names_stay_what_they_are_after_their_modules_are_imported() -> None:
    """A submodule with a public name's name would replace it when something imports the submodule."""
    for module in sorted((ROOT / "gotr1_core").glob("*.py")):
        assert module.stem not in gotr1.__all__, module


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "gotr1_core" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen.keys() | {"__version__"} == set(gotr1.__all__)
    assert all(module == f"gotr1_core.{gotr1._MODULE[str(name)]}" for name, module in seen.items())


def test_importing_it_imports_nothing_heavy() -> None:
    code = f"import sys, gotr1_core, gotr1_core.hookspecs; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.unmeasured
def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("library_example", ROOT / "examples" / "library.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(tmp_path, steps=4)
    before, after = re.search(r"reward: (\S+) before, (\S+) after", capsys.readouterr().out).groups()  # type: ignore[union-attr]
    assert float(after) > float(before) + 0.05  # it promises something that improves: by 0.17 in four steps
    assert (tmp_path / "pictures" / "000-plan.png").is_file()
    (run,) = [folder for folder in tmp_path.iterdir() if (folder / "config.yaml").is_file()]
    config, parts, sampling = gotr1.load_run(run) if (run / "checkpoints").is_dir() else (None, None, None)
    assert config is not None
    assert parts is not None
    assert parts.unified
    assert sampling is not None


def test_a_config_as_the_command_line_makes_it() -> None:
    config = gotr1.load_config(preset="scenes", words=["steps=7"], algorithm="rloo")
    assert (config.steps, config.algorithm.name, config.planner.name) == (7, "rloo", "janus")
    with pytest.raises(UsageError, match="unknown key stesp"):
        gotr1.load_config(words=["stesp=7"])


def test_a_component_by_name() -> None:
    judge = gotr1.component("judge", "scenes")
    plan = gotr1.parse("<|obj_start|>a red circle<|obj_end|><|box_start|>(0,0),(400,400)<|box_end|>")
    assert judge.score([gotr1.Sample(gotr1.Prompt("a red circle"), plan, None)], ["sem", "pi"])["sem"] == [1.0]
    assert gotr1.component("algorithm", "grpo", scale=False).options.scale is False
    with pytest.raises(UsageError, match="unknown key"):
        gotr1.component("algorithm", "grpo", sacle=False)
