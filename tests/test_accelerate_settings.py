"""What accelerate reads in the environment changes nothing that a run computes, or the command is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import processes_driver as driver

from gotr1_core.components.build import build
from gotr1_core.engine.collectives import make_accelerator
from gotr1_core.engine.tensors import fingerprint
from gotr1_core.errors import UsageError
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry

HARMLESS = {
    "ACCELERATE_DYNAMO_MODE": "max-autotune",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
    "ACCELERATE_DOWNCAST_BF16": "true",
    "ACCELERATE_DISPATCH_BATCHES": "true",
    "ACCELERATE_SPLIT_BATCHES": "true",
    "ACCELERATE_ALLOW_TF32": "true",
    "ACCELERATE_GRADIENT_CLIPPING": "0.001",
    "ACCELERATE_ALLOW_CP_STANDALONE": "true",
    "ACCELERATE_BYPASS_DEVICE_MAP": "true",
    "ACCELERATE_FP8_OPT_LEVEL": "O2",
    "ACCELERATE_FP8_FORMAT": "E4M3",
    "FSDP_SHARDING_STRATEGY": "NO_SHARD",
    "FSDP_OFFLOAD_PARAMS": "true",
    "MEGATRON_LM_GRADIENT_CLIPPING": "0.001",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "ACCELERATE_USE_CPU": "true",  # the run is on the CPU
    "ACCELERATE_FP8_BACKEND": "NO",
}
OVERRIDDEN = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
}
REFUSED = {
    "ACCELERATE_USE_FSDP": "1",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_MEGATRON_LM": "yes",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "ACCELERATE_USE_SAGEMAKER": "true",
    "ACCELERATE_FP8_BACKEND": "TE",
    "ACCELERATE_INIT_INCLUDE_BUFFERS": "1",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_DEBUG_MODE": "perhaps",  # accelerate cannot read it
}


def one_step(tmp_path: Path) -> tuple[str, dict[str, float]]:
    """The weights after one training step, and its metrics without times."""
    settings = driver.config(output=str(tmp_path), mixed_precision="no")
    torch.manual_seed(0)
    parts = build(driver.registry(), settings)
    trainer = Trainer(settings, parts, driver.Turn("abcd"), make_accelerator(settings.mixed_precision, cpu=True))
    metrics, _ = trainer.step(0)
    return fingerprint(parts.planner.module), {name: value for name, value in metrics.items() if not name.startswith("seconds")}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, float]]:
    return one_step(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize(("name", "value"), [*HARMLESS.items(), *OVERRIDDEN.items()])
def test_a_variable_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, usual: Any, name: str, value: str
) -> None:
    """Log-probabilities are among the metrics (`plan.kl`, `plan.ratio_max`, …), the gradient is in the weights."""
    monkeypatch.setenv(name, value)
    assert one_step(tmp_path) == usual
    said = capsys.readouterr().err
    assert (f"note: {name}={value} has no effect" in said) == (name in OVERRIDDEN)


@pytest.mark.parametrize(("name", "value"), list(REFUSED.items()))
def test_or_the_run_is_refused(monkeypatch: pytest.MonkeyPatch, refused: Any, tmp_path: Path, name: str, value: str) -> None:
    monkeypatch.setattr("accelerate.state.PartialState._shared_state", {})  # as in a new process
    monkeypatch.setenv(name, value)
    plugins = [f"--plugin={file}" for file in driver.PLUGINS]
    words = ["planner.name=letters", "renderer=letters", "judge=[values]", "reward=value", "prompts={source: scenes, held_out: 4}"]
    message, hint = refused(["train", *plugins, *words, "lora=null", "plans=2", f"output={tmp_path / 'runs'}", "--cpu"])
    assert "accelerate" in message or name in message
    assert hint
    assert not (tmp_path / "runs").exists()


def test_a_gpu_is_not_left_because_of_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges would be on the GPU and the policy on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(UsageError, match="ACCELERATE_USE_CPU=true would change what is computed") as caught:
        make_accelerator("no", cpu=False)
    assert "--cpu" in str(caught.value.hint)


def one_step_of_stage_one(janus: Path, folder: Path) -> str:
    from gotr1_core.components.build import make_component
    from gotr1_core.config.models import SftConfig, validate
    from gotr1_core.workflows.sft import from_source, train_supervised

    policy = {"name": "janus", "model": str(janus), "instruction": "{prompt}", "attention": "eager"}
    data = {"policy": policy, "data": "scenes", "steps": 1, "batch": 2, "micro_batch": 1, "sort_window": 1, "output": str(folder)}
    settings = validate(SftConfig, data)
    made = make_component(Registry(), "planner", settings.policy)
    list(train_supervised(settings, made, from_source(make_component(Registry(), "source", settings.data), 2, 0, 1)))  # type: ignore[arg-type]
    return fingerprint(made.module)


def test_stage_one_does_the_same(monkeypatch: pytest.MonkeyPatch, tiny_janus: Path, tmp_path: Path) -> None:
    usual = one_step_of_stage_one(tiny_janus, tmp_path / "usual")
    with monkeypatch.context() as patch:
        for name, value in (HARMLESS | OVERRIDDEN).items():
            patch.setenv(name, value)
        assert one_step_of_stage_one(tiny_janus, tmp_path / "changed") == usual
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="accelerate was asked for FSDP"):
        one_step_of_stage_one(tiny_janus, tmp_path / "sharded")


def test_every_variable_that_accelerate_reads_is_in_the_table() -> None:
    """A new version of accelerate may read others; docs/scaling.md says of each what gotr1 does with it."""
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    table = page.partition("## What accelerate reads in the environment")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([A-Z][A-Z0-9_]*\*?)`", table))
    families = tuple(name.removesuffix("*") for name in listed if name.endswith("*"))
    assert len(families) > 5
    root = Path(accelerate.__file__).parent
    read = set()
    for file in root.rglob("*.py"):
        if file.relative_to(root).parts[0] in ("test_utils", "commands"):  # what the launcher reads it writes into these variables
            continue
        text = file.read_text(encoding="utf-8")
        read |= set(re.findall(r'(?:environ(?:\.get\(|\[)|parse_flag_from_env\(|parse_choice_from_env\()\s*"([A-Z][A-Z0-9_]+)"', text))
        read |= set(re.findall(r'"((?:ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_[A-Z0-9_]*)"', text))
    read -= {"ACCELERATE_", "FOO"}  # a prefix, and an example in a docstring
    assert len(read) > 60
    assert sorted(name for name in read if name not in listed and not name.startswith(families)) == []
