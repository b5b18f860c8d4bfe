"""What is reported of a Janus checkpoint before its weights are loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from gotr1_core.errors import UsageError
from gotr1_core.samples import Prompt, Sampling
from gotr1_janus.options import INSTRUCTION, JanusOptions
from gotr1_janus.policy import JanusPolicy


@pytest.fixture
def folder(tiny_janus: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_janus, tmp_path / "copy"))


def preflight(folder: Path | str) -> dict[str, int]:
    return JanusPolicy.preflight(JanusOptions(model=str(folder)), key="renderer")


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_sizes(tiny_janus: Path, policy: JanusPolicy) -> None:
    found = preflight(tiny_janus)
    assert found["image_tokens"] == policy.image_tokens == 9
    assert found["context"] == policy.window.context == 512
    assert found["parameters"] == sum(p.numel() for p in policy.module.model.state_dict().values())


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def without_tag(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    keys = json.loads((folder / "tokenizer_config.json").read_text())
    for place in (keys, keys.get("extra_special_tokens") or {}, keys.get("model_specific_special_tokens") or {}):
        place.pop("boi_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(keys))


def larger_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: change(f / "config.json", model_type="qwen2_5_vl"), r"renderer.model=.* is a qwen2_5_vl model, not janus"),
        (lambda f: change(f / "config.json", model_type=None), "a model of unknown type"),
        (lambda f: change(f / "config.json", model_type="multi_modality"), "config.json has no language_config"),
        (lambda f: (f / "model_index.json").write_text('{"_class_name": "Pipe"}'), "is a diffusers pipeline"),
        (lambda f: change(f / "config.json", text_config={"hidden_size": "many"}), "does not describe a Janus"),
        (remove("model.safetensors"), r"renderer.model: the folder .* has no \*.safetensors"),
        (remove("tokenizer.json"), "has no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer of .* cannot be read"),
        (without_tag, "has no boi_token"),
        (remove("chat_template.jinja"), "has no chat template"),
        (larger_tokenizer, r"tokens and the model \d+ embeddings"),
    ],
)
def test_a_checkpoint_that_cannot_work(folder: Path, damage: Any, said: str) -> None:
    damage(folder)
    with pytest.raises(UsageError, match=said) as caught:
        preflight(folder)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_policy_refuses_the_same_without_a_preflight(folder: Path) -> None:
    """Policies are also built directly, from Python."""
    change(folder / "config.json", model_type="qwen2_5_vl")
    with pytest.raises(UsageError, match="is a qwen2_5_vl model"):
        JanusPolicy(JanusOptions(model=str(folder)))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no \*.safetensors"):
        JanusPolicy(JanusOptions(model=str(folder)))


def test_the_cache_is_loaded_without_a_network(tiny_janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "models--owner--tiny"
    shutil.copytree(tiny_janus, model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    asked: list[object] = []

    def refuse(*args: object, **named: object) -> None:
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    options = JanusOptions(model="owner/tiny", instruction="{prompt}", attention="eager")
    assert JanusPolicy.preflight(options)["context"] == 512
    policy = JanusPolicy(options)
    policy.plan([Prompt("a cat")], seeds=[0], sampling=Sampling(max_chain_tokens=4))
    assert not asked


def test_a_refusal_does_not_wait_for_transformers(tmp_path: Path) -> None:
    """Importing its models takes longer than a hub may take to answer. A user waits at most five seconds for both."""
    code = """
import sys, time
from gotr1_core.errors import UsageError
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy
start = time.monotonic()
try:
    JanusPolicy.preflight(JanusOptions())
except UsageError as error:
    print(time.monotonic() - start, "transformers" in sys.modules, error, error.hint, sep="\\n")
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        run = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=True, timeout=60
        )
    seconds, heavy, message, hint = run.stdout.splitlines()
    assert float(seconds) < 5
    assert heavy == "False"
    assert "planner.model: there is no folder deepseek-community/Janus-Pro-1B" in message
    assert "hf download deepseek-community/Janus-Pro-1B --local-dir DIR" in hint
    assert "--preset scenes" in hint


# -- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", [INSTRUCTION, "{prompt}", "{{a}} {prompt} }}"])
def test_instructions(instruction: str) -> None:
    assert JanusOptions(instruction=instruction).instruction == instruction


@pytest.mark.parametrize("instruction", ["", "draw", "draw {prompt", "draw {prompt} {", "}", "{}", "{0}", "{text}", "{prompt} {prompt}"])
def test_instructions_without_one_prompt(instruction: str) -> None:
    with pytest.raises(ValidationError, match=r"written twice, \{\{ or \}\}"):
        JanusOptions(instruction=instruction)


@pytest.mark.parametrize("instruction", ["{prompt!r}", "{prompt:>9}", "{prompt.text}", "{prompt[0]}", "{{prompt}}"])
def test_instructions_that_change_the_prompt(instruction: str) -> None:
    with pytest.raises(ValidationError, match="must be the only field, once"):
        JanusOptions(instruction=instruction)


def test_prompts_that_do_not_fit_are_refused_before_weights_are_loaded(tiny_janus: Path) -> None:
    options = JanusOptions(model=str(tiny_janus), instruction="{prompt}")
    JanusPolicy.preflight_prompts(options, [Prompt("a cat")], Sampling(max_chain_tokens=100))
    for prompts, tokens, message in (
        (
            [Prompt("a cat"), Prompt("a long cat " * 40)],
            100,
            "the prompt 'a long cat .* too long for the model's context of 512 with 1 token",
        ),
        ([Prompt("a cat")], 512, "too long for the model's context of 512"),
        ([Prompt(" ")], 100, "a prompt is empty"),
    ):
        with pytest.raises(UsageError, match=message):
            JanusPolicy.preflight_prompts(options, prompts, Sampling(max_chain_tokens=tokens))


def test_an_attention_kernel_that_is_not_installed_is_refused(tiny_janus: Path) -> None:
    options = JanusOptions(model=str(tiny_janus), instruction="{prompt}", attention="flash_attention_2")
    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("it is installed")
    with pytest.raises(UsageError, match=r"planner\.attention=flash_attention_2: the package flash-attn is not installed") as caught:
        JanusPolicy.preflight(options)
    assert caught.value.hint == "set planner.attention=sdpa"
