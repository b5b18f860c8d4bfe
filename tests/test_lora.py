"""Adapters are added to the named layers and to no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gotr1_core.cli.main import call
from gotr1_core.config.models import LoraConfig
from gotr1_core.errors import UsageError
from gotr1_core.policies.lora import add_lora, lora_layers, merged_state
from gotr1_core.samples import PLAN, Prompt, Sampling


def adapted(module: nn.Module) -> set[str]:
    return {name.split(".lora_")[0] for name, _ in module.named_parameters() if "lora_" in name}


def test_adapters_are_in_the_language_model_alone(policy: Any) -> None:
    """The vision tower also has layers called q_proj, and the heads are linear too. peft shortens long lists of names."""
    wanted = set(lora_layers(policy.module, policy.lora_prefix, LoraConfig()))
    assert len(wanted) == 14
    assert [n for n, _ in policy.module.named_modules() if n.endswith("vision_model.encoder.layers.0.self_attn.q_proj")]
    add_lora(policy, LoraConfig(rank=3))
    assert adapted(policy.module) == wanted
    assert all(name.startswith("model.model.language_model.") for name in wanted)
    for name, parameter in policy.module.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_A" in name:
            assert parameter.shape[0] == 3


@pytest.mark.parametrize(
    ("module", "targets", "error"),
    [
        (nn.Linear(1, 1), "all-linear", "this policy has no linear layer for adapters"),  # peft finds no name for the module itself
        (nn.Sequential(nn.Tanh()), "all-linear", "this policy has no linear layer for adapters"),
        (nn.ModuleDict({"inner": nn.Linear(1, 1)}), [], "there is no layer in it"),
        (nn.ModuleDict({"inner": nn.Linear(1, 1)}), ["inner", "other"], "no layer is called 'other'"),
    ],
)
def test_a_module_without_a_layer_to_adapt_is_refused(module: nn.Module, targets: Any, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        lora_layers(module, "", LoraConfig(targets=targets))


def test_long_lists_of_names_stay_exact(policy: Any) -> None:
    """From twenty names on, peft looks for shorter suffixes. Those must not match other layers."""
    language = policy.module.model.model.language_model
    language.layers.extend([*(type(language.layers[0])(language.config, i) for i in (2, 3))])
    wanted = set(lora_layers(policy.module, policy.lora_prefix, LoraConfig()))
    assert len(wanted) == 28
    add_lora(policy, LoraConfig(rank=1))
    assert adapted(policy.module) == wanted


def test_targets_by_name(policy: Any) -> None:
    add_lora(policy, LoraConfig(rank=2, targets=["q_proj", "down_proj"]))
    assert {name.rsplit(".", 1)[-1] for name in adapted(policy.module)} == {"q_proj", "down_proj"}
    assert len(adapted(policy.module)) == 4


def test_unknown_targets(policy: Any) -> None:
    with pytest.raises(UsageError, match="qproj") as caught:
        add_lora(policy, LoraConfig(targets=["q_proj", "qproj"]))
    assert caught.value.hint is not None
    assert "q_proj" in caught.value.hint


def test_a_fresh_adapter_changes_nothing(policy: Any) -> None:
    plans = policy.plan([Prompt("a cat")] * 4, seeds=range(4), sampling=Sampling(max_chain_tokens=8))
    with torch.no_grad():
        before = policy.module({PLAN: plans})[PLAN].log_prob
        add_lora(policy, LoraConfig(rank=2))
        after = policy.module({PLAN: plans})[PLAN].log_prob
    assert torch.equal(before, after)  # B is zero


def test_merged_state(policy: Any) -> None:
    before = {name: tensor.clone() for name, tensor in policy.module.state_dict().items()}
    assert merged_state(policy.module).keys() == before.keys()
    add_lora(policy, LoraConfig(rank=2, alpha=8, targets=["q_proj"]))
    layer = policy.module.model.model.language_model.layers[1].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    merged = merged_state(policy.module)
    assert merged.keys() == before.keys()
    name = "model.model.language_model.layers.1.self_attn.q_proj.weight"
    expected = before[name] + 8 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(merged[name], expected, atol=1e-5)  # one float32 product, computed twice
    assert not torch.allclose(merged[name], before[name], atol=0.1)
    assert all(torch.equal(merged[n], before[n]) for n in before if n != name)
    assert not merged[name].requires_grad


def test_adapters_of_a_half_precision_model_are_float32(policy: Any) -> None:
    """AdamW's steps of 1e-5 vanish in bfloat16, whose numbers around 0.02 are 1e-4 apart. Merged weights have the model's dtype again."""
    policy.module.bfloat16()
    add_lora(policy, LoraConfig(rank=2))
    trained = [p for p in policy.module.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    plans = policy.plan([Prompt("a cat")] * 2, seeds=range(2), sampling=Sampling(max_chain_tokens=8))
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    for _ in range(2):  # in the first step B alone has a gradient
        policy.module({PLAN: plans})[PLAN].log_prob.sum().backward()
        before = [p.detach().clone() for p in trained]
        optimizer.step()
        optimizer.zero_grad()
    assert all((p != old).float().mean() > 0.9 for p, old in zip(trained, before, strict=True))
    assert {t.dtype for name, t in merged_state(policy.module).items() if "language_model" in name} == {torch.bfloat16}


@pytest.mark.parametrize("train", ["planner", "renderer", "both"])
def test_a_dry_run_finds_targets_that_match_nothing(train: str, refused: Callable[..., tuple[str, str]]) -> None:
    words = ["train", "--preset", "scenes", "--dry-run", f"train={train}"]
    error, hint = refused([*words, "lora.targets=[q_proj, nope]"])
    assert error == "lora.targets: no layer is called 'nope'"
    assert hint.startswith("known: ")
    assert "q_proj" in hint
    assert call([*words, "lora.targets=[q_proj]"]) == 0


@pytest.mark.parametrize("words", [["--planner", "qwen", "train=planner"], ["--renderer", "sdxl", "train=renderer"]])
def test_a_dry_run_finds_them_in_other_policies(words: list[str], refused: Callable[..., tuple[str, str]]) -> None:
    words = ["train", "--preset", "scenes", "--dry-run", *words]
    assert refused([*words, "lora.targets=[nope]"])[0] == "lora.targets: no layer is called 'nope'"
    assert call([*words, f"lora.targets=[{'q_proj' if 'qwen' in words else 'to_q'}]"]) == 0


def test_what_training_itself_says_of_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A name that only a layer outside the prefix has is found when the layers are known: also as wrong usage."""
    words = ["train", "--preset", "scenes", "steps=1", "prompts.held_out=2", "evaluation.prompts=2", f"output={tmp_path}"]
    assert call([*words, "--dry-run", "lora.targets=[lm_head]"]) == 0
    assert call([*words, "lora.targets=[lm_head]"]) == 2
    assert "\nerror: lora.targets: no layer is called 'lm_head'\nhint: known: down_proj, " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
