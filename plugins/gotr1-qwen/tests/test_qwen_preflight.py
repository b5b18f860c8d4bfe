"""What is reported of a Qwen checkpoint before its weights are loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gotr1_core.cli.main import call
from gotr1_core.errors import UsageError
from gotr1_core.samples import Prompt, Sampling
from gotr1_qwen.options import QwenOptions
from gotr1_qwen.planner import QwenPlanner

Tiny = Callable[..., Path]


def preflight(folder: Path | str, **options: Any) -> dict[str, int]:
    return QwenPlanner.preflight(QwenOptions.model_validate({"model": str(folder), **options}), key="planner")


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny("qwen2_5_vl"), tmp_path / "copy"))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"])
def test_sizes(tiny: Tiny, kind: str) -> None:
    planner = QwenPlanner(QwenOptions(model=str(tiny(kind))))
    assert preflight(tiny(kind)) == {"context": 512, "parameters": sum(p.numel() for p in planner.module.parameters())}


def change_config(**keys: object) -> Any:
    return lambda folder: change(folder / "config.json", **keys)


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def larger_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)


def thinks(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant\n", "assistant\n<think>\n"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change_config(model_type="janus"), r"planner.model=.* is a janus model, and the planner qwen loads qwen2_5_vl, qwen3_vl, qwen2"),
        (change_config(model_type="qwen2_vl"), "is a qwen2_vl model"),
        (change_config(model_type=None), "a model of unknown type"),
        (lambda f: (f / "model_index.json").write_text('{"_class_name": "Pipe"}'), "is a diffusers pipeline"),
        (change_config(quantization_config={"quant_method": "awq"}), "is quantised"),
        (change_config(text_config={"model_type": "qwen2_5_vl_text", "hidden_size": "many"}), "does not describe a Qwen"),
        (remove("model.safetensors"), r"planner.model: the folder .* has no \*.safetensors"),
        (remove("tokenizer.json"), "has no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer of .* cannot be read"),
        (remove("chat_template.jinja"), "has no chat template"),
        (larger_tokenizer, r"tokens and the model \d+ embeddings"),
        (thinks, "think before it answers"),
    ],
)
def test_a_checkpoint_that_cannot_work(folder: Path, damage: Any, said: str) -> None:
    damage(folder)
    with pytest.raises(UsageError, match=said) as caught:
        preflight(folder)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_checkpoint_without_all_weights_is_refused(folder: Path) -> None:
    """transformers would continue with random weights."""
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"not a complete checkpoint: .*up_proj\.weight and 0 more"):
        QwenPlanner(QwenOptions(model=str(folder)))


def test_a_planner_refuses_the_same_without_a_preflight(folder: Path) -> None:
    """Planners are also built directly, from Python."""
    change(folder / "config.json", model_type="llama")
    with pytest.raises(UsageError, match="is a llama model"):
        QwenPlanner(QwenOptions(model=str(folder)))


def test_an_instruction_is_refused_before_the_weights_are_looked_for() -> None:
    with pytest.raises(UsageError, match=r"planner\.instruction: cannot read v9"):
        preflight("/no/where", instruction="v9")


def test_the_command_line_says_it_in_two_lines(tiny_janus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "pictures")]
    renderer = [f"renderer.model={tiny_janus}", "--planner", "qwen", "--renderer", "janus"]
    for model, said in ((str(tiny_janus), "is a janus model"), ("/no/where", "neither a folder that exists nor a hub name")):
        assert call(["generate", "a cat", f"planner.model={model}", *renderer, *out]) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert error.startswith("error: planner.model")
        assert said in error
        assert hint.startswith("hint: ")


def test_a_refusal_does_not_wait_for_transformers(tmp_path: Path) -> None:
    code = """
import sys
from gotr1_core.errors import UsageError
from gotr1_qwen.options import QwenOptions
from gotr1_qwen.planner import QwenPlanner
try:
    QwenPlanner.preflight(QwenOptions())
except UsageError as error:
    print("transformers" in sys.modules, error, error.hint, sep="\\n")
"""
    settings = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=True, timeout=300)
    heavy, message, hint = run.stdout.splitlines()
    assert heavy == "False"
    assert "planner.model: there is no folder Qwen/Qwen2.5-VL-7B-Instruct" in message
    assert "hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir DIR" in hint


def test_prompts_that_do_not_fit_are_refused_before_weights_are_loaded(tiny: Tiny) -> None:
    options = QwenOptions(model=str(tiny("qwen3")), instruction="plain")
    QwenPlanner.preflight_prompts(options, [Prompt("a cat")], Sampling(max_chain_tokens=100))
    with pytest.raises(UsageError, match=r"the prompt 'a long cat .* too long for the model's context of 512"):
        QwenPlanner.preflight_prompts(options, [Prompt("a cat"), Prompt("a long cat " * 45)], Sampling(max_chain_tokens=100))


def test_a_dry_run_finds_prompts_that_do_not_fit(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of evaluations have the room that evaluations leave them."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n" * 3 + "a red circle and " * 40 + "\n")
    words = ["train", "--dry-run", "--preset", "scenes", "--planner", "qwen", "--renderer", "sdxl", "--prompts", str(file)]
    words += [f"planner.model={tiny('qwen3')}", "planner.instruction=plain", "prompts.held_out=1", "evaluation.prompts=1"]
    assert call([*words, "sampling.max_chain_tokens=8"]) == 2
    assert "the prompt 'a red circle and a red circle and a red …' has " in capsys.readouterr().err
    file.write_text("a red circle\n" * 4)
    assert call([*words, "sampling.max_chain_tokens=8"]) == 0
    assert call([*words, "sampling.max_chain_tokens=8", "evaluation.sampling.max_chain_tokens=500"]) == 2
    assert "a chain up to 500: too long for the model's context of 512" in capsys.readouterr().err
