"""The presets have the paper's settings, and train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gotr1_core.cli.main import call
from gotr1_core.components.preflight import check
from gotr1_core.components.resolve import resolve_config
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry

# What is not there yet, or not here: weights, and judges that are other plugins'.
MINE = ["judge=scenes", "reward=pi * (sem + spa) / 2 * ri", "prompts.source=scenes"]


def load(name: str, *words: str) -> RunConfig:
    return validate(RunConfig, resolve_config(Registry(), None, name, {}, words))


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_the_recipe(size: str) -> None:
    config = load(f"got-r1-{size}")
    assert config.planner.options["model"] == f"deepseek-community/Janus-Pro-{size.upper()}"
    assert config.planner.name == config.renderer.name == "janus"
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha, config.lora.targets) == (32, 32, "all-linear")
    assert (config.steps, config.groups, config.plans, config.train) == (1000, 8, 16, "both")
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (1e-5, "cosine")
    assert (config.sampling.temperature, config.sampling.image_temperature) == (1, 1)
    assert config.reward == "pi * (sem + spa) / 2 * ri * hps"
    assert [judge.name for judge in config.judge] == ["qwen-vl", "hps"]


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_it_goes_together(size: str, tiny_janus: Path) -> None:
    config = load(f"got-r1-{size}", *MINE, f"planner.model={tiny_janus}", "sampling.max_chain_tokens=300")
    assert check(Registry(), config).sizes["image_tokens"] == 9


def test_without_prompts_it_says_so() -> None:
    with pytest.raises(UsageError, match="there are no prompts") as caught:
        check(Registry(), load("got-r1-1b", *MINE[:2]))
    assert caught.value.hint is not None
    assert "--prompts FILE" in caught.value.hint


def test_every_choice_is_marked(request: pytest.FixtureRequest) -> None:
    """A comment says of each whether it is the paper's or ours."""
    folder = request.path.parents[1] / "src" / "gotr1_janus" / "presets"
    for name in ("got-r1-1b", "got-r1-7b"):
        lines = (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        unmarked = [line for line in lines if line and not line.lstrip().startswith("#") and "# paper" not in line and "# ours" not in line]
        keys = {line.split(":")[0].strip(" -") for line in unmarked}
        blocks = {"planner", "name", "model", "judge", "sampling", "algorithm", "lora", "optimizer", "segments", "evaluation", "checkpoint"}
        assert keys <= blocks | {"plan", "image"}, name


def test_one_step(tiny_janus: Path, tmp_path: Path) -> None:
    """In bfloat16, with adapters and a reference, as in the preset. Only sizes are smaller."""
    words = [f"planner.model={tiny_janus}", "planner.instruction='{prompt}'", "groups=1", "plans=2", "steps=1", "prompts.held_out=2"]
    words += ["evaluation.prompts=2", "sampling.max_chain_tokens=8", f"output={tmp_path}", "name=run", "lora.rank=2"]
    assert call(["train", "--preset", "got-r1-1b", *MINE, *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (step,) = [row for row in rows if "evaluation" not in row]
    assert step["seconds.update"] > 0
