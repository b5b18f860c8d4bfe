"""The planner `qwen` besides log-probabilities: groups, ends, stage one, adapters, saving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gotr1_core.chain import Chain, Region, parse
from gotr1_core.cli.main import call
from gotr1_core.components.build import make_component
from gotr1_core.config.models import LoraConfig, SftConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import Planner
from gotr1_core.samples import PLAN, Example, Prompt, Sampling
from gotr1_core.workflows.sft import from_examples, train_supervised
from gotr1_qwen.options import QwenOptions
from gotr1_qwen.planner import QwenPlanner

FAMILIES = ["qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"]
each_family = pytest.mark.parametrize("kind", FAMILIES)
Tiny = Callable[..., Path]


def made(folder: Path | str, **options: Any) -> QwenPlanner:
    return QwenPlanner(QwenOptions.model_validate({"model": str(folder), "instruction": "plain", "attention": "eager"} | options))


def examples(count: int) -> list[Example]:
    return [Example(Prompt(f"cat {i % 3}"), Chain.of([f"{i % 3} ", Region("cat", (i, 2, 50, 60))])) for i in range(count)]


def scores(planner: QwenPlanner, given: list[Example]) -> torch.Tensor:
    with torch.no_grad():
        plans = planner.encode_plans([e.prompt for e in given], [e.chain for e in given], Sampling())
        return planner.module({PLAN: plans})[PLAN].log_prob


# -- plans ------------------------------------------------------------------------------------------------------------------


@each_family
def test_the_planner_has_the_class_of_its_checkpoint(tiny: Tiny, kind: str) -> None:
    planner = made(tiny(kind))
    assert isinstance(planner, Planner)
    names = {"qwen2_5_vl": "Qwen2_5_VLFor", "qwen3_vl": "Qwen3VLFor", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    assert type(planner.module.model).__name__.startswith(names[kind])
    assert planner.features == 32
    assert planner.window.context == 512
    eyes = [p for name, p in planner.module.named_parameters() if "visual" in name]
    assert bool(eyes) == kind.endswith("vl")
    assert not any(p.requires_grad for p in eyes)


def test_a_model_in_memory_is_the_same_planner(planner: QwenPlanner) -> None:
    around = QwenPlanner.from_model(planner.module.model, planner.tokenizer, planner.options)
    assert around.lora_prefix == planner.lora_prefix
    assert not any(p.requires_grad for p in around.module.model.model.visual.parameters())
    assert torch.equal(scores(around, examples(2)), scores(planner, examples(2)))


def test_a_group_shares_its_prompt(planner: QwenPlanner) -> None:
    """Each different prompt is computed once, and chains that have ended are not computed further. Samples are those of separate calls."""
    read: list[int] = []
    rows: list[int] = []
    language, last = planner.module.language, planner.module.language.layers[-1].mlp.act_fn
    hooks = [language.register_forward_pre_hook(lambda *args: read.append(len(args[2]["inputs_embeds"])), with_kwargs=True)]
    hooks += [last.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))]
    prompts = [Prompt("a cat")] * 4 + [Prompt("two dogs")] * 3
    sampling = Sampling(max_chain_tokens=6)
    plans = planner.plan(prompts, seeds=range(7), sampling=sampling)
    for hook in hooks:
        hook.remove()
    going = plans.tensors["mask"].sum(0).tolist()
    assert read == [2]
    assert rows[:2] == [2, 7]
    assert rows[-1] < 7
    assert all(0.75 * fed < left <= fed for fed, left in zip(rows[1:], going[1:], strict=True))
    for row, prompt in enumerate(prompts):
        alone = planner.plan([prompt], seeds=[row], sampling=sampling)
        assert alone.chains[0] == plans.chains[row]


def test_the_end_of_the_turn_is_an_action_and_a_chain_that_is_cut_has_none(planner: QwenPlanner) -> None:
    sampling = Sampling(max_chain_tokens=8)
    plans = planner.plan([Prompt("a cat")] * 48, seeds=range(48), sampling=sampling)
    t = plans.tensors
    cut = t["truncated"]
    assert 0 < cut.sum() < 48
    for row in range(48):
        tokens = t["tokens"][row][t["mask"][row]].tolist()
        assert (tokens[-1] == planner.text.stop) is not bool(cut[row])
        assert planner.text.stop not in tokens[:-1]
        assert len(tokens) == 8 or not cut[row]
        assert plans.chains[row] == planner.text.decode_chain(tokens if cut[row] else tokens[:-1])
    assert (t["log_prob"][t["mask"]] < 0).all()


def test_a_given_chain_is_scored_as_a_sampled_one(planner: QwenPlanner) -> None:
    """The same tokens, once sampled and once encoded. A random model also writes bytes that are not text; those chains are left out."""
    sampling = Sampling(max_chain_tokens=12)
    prompts = [Prompt("a cat")] * 256
    plans = planner.plan(prompts, seeds=range(256), sampling=sampling)
    with torch.no_grad():
        sampled = planner.module({PLAN: plans})[PLAN].log_prob
    found = 0
    for row, chain in enumerate(plans.chains):
        given = planner.encode_plans([prompts[0]], [chain], sampling)
        tokens = given.tensors["tokens"][0]
        if not plans.tensors["truncated"][row] and tokens.tolist() == plans.tensors["tokens"][row][: len(tokens)].tolist():
            with torch.no_grad():
                again = planner.module({PLAN: given})[PLAN].log_prob[0]
            assert (again - sampled[row][: len(again)]).abs().max() < 1e-5  # float32, a batch of another shape
            found += 1
    assert found >= 2


def test_an_earlier_call_with_a_picture_changes_nothing(tiny: Tiny) -> None:
    """`rope_deltas` stay on the module, but later text is planned and scored as before."""
    for kind in ("qwen2_5_vl", "qwen3_vl"):
        planner = made(tiny(kind))
        sampling = Sampling(max_chain_tokens=8)
        before = planner.plan([Prompt("a cat")] * 3, seeds=range(3), sampling=sampling)
        kept = scores(planner, examples(2))
        planner.module.model.model.rope_deltas = torch.full((1, 1), 7)
        after = planner.plan([Prompt("a cat")] * 3, seeds=range(3), sampling=sampling)
        assert torch.equal(before.tensors["log_prob"], after.tensors["log_prob"])
        assert torch.equal(kept, scores(planner, examples(2)))


def test_prompts_that_do_not_fit(planner: QwenPlanner) -> None:
    sampling = Sampling(max_chain_tokens=400)
    planner.check_prompts([Prompt("a cat")], sampling)
    with pytest.raises(UsageError, match="too long for the model's context of 512") as caught:
        planner.check_prompts([Prompt("a cat"), Prompt("a cat " * 20)], sampling)
    assert "sampling.max_chain_tokens=" in str(caught.value.hint)
    with pytest.raises(UsageError, match="too long"):
        planner.encode_plans([Prompt("a")], [parse("c" * 500)], sampling)
    with pytest.raises(UsageError, match="a prompt is empty"):
        planner.check_prompts([Prompt(" ")], sampling)


def test_the_default_type_suits_the_machine() -> None:
    from gotr1_qwen.planner import _dtype

    assert _dtype("auto", torch.device("cpu")) == torch.float32
    assert _dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert _dtype("float16", torch.device("cuda")) == torch.float16


# -- stage one --------------------------------------------------------------------------------------------------------------


def test_supervised_loss_is_minus_log_p_of_chain_and_end(planner: QwenPlanner) -> None:
    given = examples(3)
    with torch.no_grad():
        loss = planner.supervised_loss(planner.module, given, seed=0)
    assert loss.counts[PLAN].item() == sum(len(planner.text.encode_chain(e.chain.raw)) + 1 for e in given)
    alone = -sum(scores(planner, [e]).sum().item() for e in given)
    assert loss.sums[PLAN].item() == pytest.approx(alone, rel=1e-5)  # float32, batches of other shapes


def stage(model: Path, output: Path, **changed: Any) -> SftConfig:
    data = {"policy": {"name": "qwen", "model": str(model), "instruction": "plain", "tags": "tokens", "attention": "eager"}}
    data |= {"data": "scenes", "steps": 6, "batch": 4, "micro_batch": 2, "save_every": 3, "output": str(output)}
    return validate(SftConfig, data | {"optimizer": {"learning_rate": 5e-3, "warmup": 2, "weight_decay": 0.1}} | changed)


def learn(config: SftConfig, steps: int) -> tuple[QwenPlanner, list[dict[str, Any]]]:
    """Trains for so many steps and ends as a killed process does."""
    planner = make_component(Registry(), "planner", config.policy)
    rows = []
    for row in train_supervised(config, planner, from_examples(examples(12), config.batch, config.seed, 1)):
        rows.append(row)
        if len(rows) == steps:
            break
    return planner, rows


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_few_pairs_are_learnt(tiny: Tiny, tmp_path: Path, lora: dict[str, int] | None) -> None:
    _, rows = learn(stage(tiny("qwen2_5_vl"), tmp_path, steps=25, save_every=25, lora=lora), 25)
    losses = [row[PLAN] for row in rows]
    assert sum(losses[-3:]) < (0.8 if lora else 0.6) * sum(losses[:3])


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3"])
def test_stage_one_resumes_bit_for_bit(tiny: Tiny, tmp_path: Path, kind: str, lora: dict[str, int] | None) -> None:
    """Qwen2.5-VL is saved under the hub's names, which are not the names of its parameters."""
    torch.manual_seed(1)  # peft draws A from the global generator
    whole, _ = learn(stage(tiny(kind), tmp_path / "whole", lora=lora), 6)
    torch.manual_seed(1)
    learn(stage(tiny(kind), tmp_path / "parts", lora=lora), 3)
    torch.manual_seed(2)
    again, rest = learn(stage(tiny(kind), tmp_path / "parts", lora=lora), 6)
    assert [row["step"] for row in rest] == [3, 4, 5]
    mine = dict(again.module.named_parameters())
    assert all(torch.equal(p, mine[name]) for name, p in whole.module.named_parameters())


# -- adapters, and what is on disk ------------------------------------------------------------------------------------------


def perturbed(planner: QwenPlanner) -> QwenPlanner:
    """Adapters that change the output."""
    add_lora(planner, LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in planner.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    return planner


@each_family
def test_adapters_are_in_the_language_model_only(tiny: Tiny, kind: str) -> None:
    planner = made(tiny(kind))
    add_lora(planner, LoraConfig(rank=2))
    trained = [name for name, p in planner.module.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2  # A and B of seven matrices in two layers
    prefix = "model.model.language_model.layers." if kind.endswith("vl") else "model.model.layers."
    assert all(name.startswith(prefix) for name in trained)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@each_family
def test_saved_models_load_and_answer_alike(tiny: Tiny, tmp_path: Path, kind: str, tied: bool, lora: bool) -> None:
    planner = made(tiny(kind, **({"tie_word_embeddings": True} if tied else {})))
    planner = perturbed(planner) if lora else planner
    planner.save(tmp_path / "saved")
    names = load_file(tmp_path / "saved" / "model.safetensors")
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    assert ("lm_head.weight" in names) is not tied
    # Exact without adapters; with them x(W + BA) instead of xW + xBA, in float32, where adapters make logits of some tens.
    gap = (scores(planner, examples(3)) - scores(made(tmp_path / "saved"), examples(3))).abs().max()
    assert gap <= (1e-3 if lora else 0)


def test_a_checkpoint_under_the_hubs_names_is_read(tiny: Tiny, tmp_path: Path) -> None:
    """The release of Qwen2.5-VL uses `visual.*` and `model.layers.*`, the newer class of transformers `model.language_model.*`."""
    folder = Path(shutil.copytree(tiny("qwen2_5_vl"), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    for old, new in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        weights = {name.replace(old, new) if name.startswith(old) else name: tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    other = {name.replace("visual.", "model.visual.", 1) if name.startswith("visual.") else name: t for name, t in weights.items()}
    other = {f"model.language_model.{n.removeprefix('model.')}" if n.startswith(("model.layers", "model.norm", "model.embed")) else n: t
             for n, t in other.items()}  # fmt: skip
    expected = scores(made(tiny("qwen2_5_vl")), examples(2))
    assert torch.equal(scores(made(folder), examples(2)), expected)
    save_file(other, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(scores(made(folder), examples(2)), expected)


def test_a_saved_qwen_vl_keeps_its_image_processor(tiny: Tiny, tmp_path: Path) -> None:
    """The processor's files, which this planner does not use itself."""
    folder = Path(shutil.copytree(tiny("qwen2_5_vl"), tmp_path / "model"))
    (folder / "preprocessor_config.json").write_text('{"patch_size": 4}')
    made(folder).save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text()) == {"patch_size": 4}


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen2"])
def test_adapters_alone_are_loaded_by_peft(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    planner = perturbed(made(tiny(kind)))
    expected = scores(planner, examples(3))
    planner.save_adapter(tmp_path / "adapter")
    other = made(tiny(kind))
    assert (scores(other, examples(3)) - expected).abs().max() > 0.01
    loaded = PeftModel.from_pretrained(other.module.model, tmp_path / "adapter")
    other.module.model = loaded.get_base_model()
    assert torch.equal(scores(other, examples(3)), expected)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny(kind))


def test_gradient_checkpointing_changes_no_gradient(tiny: Tiny) -> None:
    found = []
    for checkpointing in (False, True):
        planner = made(tiny("qwen2_5_vl"))
        if checkpointing:
            planner.enable_gradient_checkpointing()
        loss = planner.supervised_loss(planner.module, examples(3), seed=0)
        loss.sums[PLAN].backward()
        found.append({name: p.grad for name, p in planner.module.named_parameters() if p.grad is not None})
        assert not any(part.training for part in planner.module.language.modules())
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-5), name  # the same sums, computed twice


def test_gradient_checkpointing_is_refused_with_dropout(planner: QwenPlanner) -> None:
    planner.module.language.config.attention_dropout = 0.1
    with pytest.raises(UsageError, match="dropout"):
        planner.enable_gradient_checkpointing()


def test_gotr1_check_knows_it(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"model={tiny('qwen2_5_vl')}", "instruction=plain", "--only", "log-probs-match-sampler", "--chain-tokens", "8", "--json"]
    assert call(["check", "planner", "qwen", *words]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "ok"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_no_plan(tiny: Tiny, temperature: float) -> None:
    """One prompt has a word whose embedding is NaN; the plan of the other prompt stays as it is. A plan without actions trains nothing."""
    planner = made(tiny("qwen2"))
    sampling, prompts = Sampling(max_chain_tokens=6, temperature=temperature), [Prompt("cat"), Prompt("zzz")]
    sound = planner.plan(prompts, seeds=[1, 2], sampling=sampling)
    known = set(planner.window.encode("cat", 6)[0].tolist())
    bad = next(token for token in planner.window.encode("zzz", 6)[0].tolist() if token not in known)
    embeddings: Any = planner.module.model.get_input_embeddings().weight
    with torch.no_grad():
        row = embeddings[bad].clone()
        embeddings[bad] = torch.nan
    found = planner.plan(prompts[::-1], seeds=[2, 1], sampling=sampling)
    with torch.no_grad():
        embeddings[bad] = row
    assert found.finite() == [False, bool(sound.finite()[0])]
    assert found.chains[1] == sound.chains[0]
    silent = torch.tensor([[False], [True]])
    plans = replace(found, tensors={**found.tensors, "mask": found.tensors["mask"] & silent})
    with torch.no_grad():
        stats = planner.module({PLAN: plans})[PLAN]
    assert (stats.log_prob[0] == 0).all()
    assert stats.log_prob.isfinite().all()
