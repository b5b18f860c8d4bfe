"""Fixtures for tests/: short runs of the tiny Janus, and a toy plugin for the tests of the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gotr1_core.config.models import RunConfig
    from gotr1_core.plugins import Registry

PLUGIN = Path(__file__).with_name("tiny_plugin.py")


@pytest.fixture
def registry() -> Registry:
    """The installed plugins, and a judge that a random policy gets rewards from."""
    from gotr1_core.plugins import Registry

    found = Registry()
    found.add_file(PLUGIN)
    return found


@pytest.fixture(scope="session")
def make(tiny_janus: Path) -> Callable[..., RunConfig]:
    """A config of three short steps, with changes."""
    from gotr1_core.config.models import RunConfig, validate

    def configured(**changed: Any) -> RunConfig:
        data: dict[str, Any] = {
            "plugins": [str(PLUGIN)],
            "planner": {"name": "janus", "model": str(tiny_janus), "instruction": "{prompt}", "attention": "eager"},
            "renderer": "janus",
            "judge": ["values"],
            "reward": "value",
            "prompts": {"source": "scenes", "held_out": 6},
            "steps": 3,
            "groups": 3,
            "plans": 4,
            "micro_batch": 8,
            "sampling": {"guidance_scale": 2.0, "max_chain_tokens": 8},
            "evaluation": {"every": 2, "prompts": 4},
            "optimizer": {"learning_rate": 0.01, "schedule": "constant"},
            "lora": None,
        }
        return validate(RunConfig, data | changed)

    return configured


TOY = Path(__file__).with_name("toy_plugin.py")
PRESET = """
planner: {name: toy, shade: 0.2}
renderer: toy
judge: toy
reward: pi
prompts: {source: scenes, held_out: 4}
evaluation: {prompts: 4}
lora: null
steps: 7
"""


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the distribution gotr1-toy 3 is installed."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(TOY, site / "gotr1_toy.py")
    (site / "toy.yaml").write_text(PRESET)
    info = site / "gotr1_toy-3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gotr1-toy\nVersion: 3\n")
    (info / "entry_points.txt").write_text("[gotr1]\ntoy = gotr1_toy\n")
    return site


@pytest.fixture
def toy(toy_site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Installs planner, renderer, judges, benchmark and preset ``toy``. The working folder is a new one, which has the preset as a file."""
    monkeypatch.syspath_prepend(toy_site)
    for command in ("common", "sft"):
        monkeypatch.setattr(f"gotr1_core.cli.{command}.device", lambda: "cpu")
    (tmp_path / "toy.yaml").write_text(PRESET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(toy: Path) -> Path:
    """A run whose weight is 0.6 after one step (its best) and 1 after two, to generate with guidance 3."""
    from safetensors.torch import save_file
    from torch import nn

    from gotr1_core.components.resolve import resolve_config
    from gotr1_core.config.models import RunConfig, dump, validate
    from gotr1_core.engine.tensors import trainable_tensors
    from gotr1_core.plugins import Registry
    from gotr1_core.runs.checkpoint import STATE, TRAINABLE, new_checkpoint

    folder = toy / "runs" / "mine"
    for step, weight in ((1, 0.6), (2, 1.0)):
        module = nn.Linear(1, 1)
        nn.init.constant_(module.weight, weight)
        with new_checkpoint(folder, step) as part:
            (part / "planner").mkdir()
            save_file(trainable_tensors(module), part / "planner" / TRAINABLE)
            sampling = {"temperature": 1.0, "image_temperature": 1.0, "guidance_scale": 3.0, "max_chain_tokens": 600, "log_prob": "guided"}
            state = {"step": step, "sampling": sampling, "best": {"step": 1, "score": 0.5}}
            state |= {"rows": 0, "drawn": 0, "pending": False, "starting": {}, "updates": {}}
            (part / STATE).write_text(json.dumps(state))
    config = validate(RunConfig, {**resolve_config(Registry(), None, "toy", {}, []), "name": "mine"})
    (folder / "config.yaml").write_text(dump(config))
    (folder / "inputs.json").write_text("{}")
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs a command that must fail; gives its error and hint: two lines, nothing else."""
    from gotr1_core.cli.main import call

    def fail(arguments: list[str], status: int = 2) -> tuple[str, str]:
        capsys.readouterr()
        assert call(arguments) == status
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert out == ""
        assert len(lines) == 2, err
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("hint: ")
        return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")

    return fail
