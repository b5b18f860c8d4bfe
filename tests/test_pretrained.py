"""Checkpoints of others are loaded without their Python, and without a question on standard input."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structure import ROOT, assert_none

from gotr1_core.cli.main import call
from gotr1_core.components.build import make_component
from gotr1_core.config.models import ComponentConfig
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.policies.hub import find_weights
from gotr1_core.policies.pretrained import load_pretrained

pytestmark = pytest.mark.unmeasured
HELPER = "gotr1_core/policies/pretrained.py"
LOADERS = {
    "from_pretrained",
    "from_config",
    "pipeline",
    "from_single_file",
    "from_file",
    "get_class_from_dynamic_module",
    "apply_chat_template",
}
WEIGHTS = ROOT / "plugins/gotr1-scenes/src/gotr1_scenes/weights"
STEP = ["steps=1", "groups=1", "plans=2", "prompts.held_out=1", "evaluation.prompts=1", "evaluation.best_of=0"]
Plant = Callable[[Path], Path]
Captured = pytest.CaptureFixture[str]


def _sources(root: Path) -> Iterator[Path]:
    for place in ("gotr1_core", "plugins/*/src", "plugins/*/recipe"):
        for folder in root.glob(place):
            yield from sorted(folder.rglob("*.py"))


def _other_loads(root: Path) -> Iterator[str]:
    """Calls of loaders, and uses of ``trust_remote_code``, anywhere but in the helper."""
    for path in _sources(root):
        where = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if where != HELPER else ():
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if name in LOADERS and (isinstance(node, ast.Attribute) or name != "pipeline"):  # a variable may have this name
                    yield f"{where}:{node.lineno} {name}"
            elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                yield f"{where}:{node.value.lineno} trust_remote_code"


def _is_name_of_data(found: str) -> bool:
    """True for attributes that are no loaders: diffusers' policies keep their ``pipeline``."""
    return found.startswith("plugins/gotr1-diffusers/") and found.endswith(" pipeline")


def test_one_helper_loads_all_checkpoints() -> None:
    assert_none(found for found in _other_loads(ROOT) if not _is_name_of_data(found))


@pytest.mark.parametrize(
    "line", ["AutoModel.from_pretrained(x)", "load = Auto.from_config", "transformers.pipeline('x')", "load(x, trust_remote_code=True)"]
)
def test_another_load_would_be_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "gotr1_core").mkdir()
    (tmp_path / "gotr1_core" / "a.py").write_text(line)
    assert len(list(_other_loads(tmp_path))) == 1


def test_a_part_that_asks_gets_no_answer(intruder: Plant) -> None:
    """A model may load a part of itself, without the setting."""

    class Asking:
        @staticmethod
        def from_pretrained(source: Path, **settings: object) -> str:
            assert settings == {"local_files_only": True, "trust_remote_code": False}
            return input("Do you wish to run the custom code? [y/N] ")

    del intruder  # its standard input says yes
    answers = sys.stdin
    with pytest.raises(EOFError):
        load_pretrained(Asking, Path())
    assert sys.stdin is answers


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_on_the_hub_is_refused(key: str, tmp_path: Path) -> None:
    model = Path(shutil.copytree(WEIGHTS / "janus", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["text_config"][key] = "someone/kernel"
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="is code on the hub: 'someone/kernel'"):
        find_weights(str(model), key="planner.model")


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["train", *STEP], ["generate", "a red circle"]])
@pytest.mark.parametrize("kind", ["janus", "qwen", "sdxl"])
def test_a_policys_own_python_does_not_run(command: list[str], kind: str, intruder: Plant, tmp_path: Path, capsys: Captured) -> None:
    model = intruder(WEIGHTS / kind)
    role = "renderer" if kind == "sdxl" else "planner"
    output = [f"--out={tmp_path / 'out'}"] if command[0] == "generate" else [f"output={tmp_path}"]
    status = call([*command, "--preset", "scenes", f"--{role}", kind, f"{role}.model={model}", *output])
    said = capsys.readouterr()
    assert "[y/N]" not in said.out + said.err
    assert status == 0 or (status, said.err.count("\n"), said.err.count("hint: ")) == (2, 2, 1)


@pytest.mark.parametrize("scoring", ["expected", "text"])
def test_a_shipped_judges_own_python_does_not_run(scoring: str, intruder: Plant, capsys: Captured) -> None:
    model = intruder(WEIGHTS / "internvl")
    picture = ROOT / "docs/pictures/before-after.png"
    words = [f"judge.model={model}", f"judge.scoring={scoring}", f"judge.rubrics={WEIGHTS.parent / 'rubrics'}"]
    assert call(["score", str(picture), "--prompt", "a red circle", "--judge", "internvl", *words]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: the image processor of ")
    assert hint.startswith("hint: copy ")


def test_yes_on_standard_input_answers_no_question(intruder: Plant, tmp_path: Path) -> None:
    model = intruder(WEIGHTS / "janus")
    gotr1 = shlex.join([sys.executable, "-m", "gotr1_core.cli.main", "train", f"planner.model={model}", f"output={tmp_path}", "steps=1"])
    done = subprocess.run(f"yes | {gotr1}", shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: the tokenizer of {model} cannot be read: ")
    assert hint == "hint: copy it from the original checkpoint again"


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("text_config", "num_attention_heads"), -1),  # torch: a tensor of a negative size
        (("text_config", "rope_parameters", "rope_type"), [1]),  # transformers: looked up in a dict
        (("text_config", "rope_parameters", "rope_theta"), "abc"),
        (("text_config", "hidden_size"), "abc"),
        (("text_config", "max_position_embeddings"), -1),
        (("vision_config", "mlp_ratio"), -1),
    ],
)
def test_a_config_with_odd_values_is_wrong_usage(keys: tuple[str, ...], value: object, tiny_janus: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_janus, model)
    config = json.loads((model / "config.json").read_text())
    part = config
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError) as raised:
        make_component(Registry(), "planner", ComponentConfig(name="janus", model=str(model), instruction="{prompt}", attention="eager"))
    assert str(model) in raised.value.message or "max_position_embeddings" in str(raised.value.hint)
