"""An export contains what the run trained. peft and transformers load it without gotr1, and so does the code in the model card."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from gotr1_core.cli.main import call
from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import LoraConfig, RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Component
from gotr1_core.plugins import Registry
from gotr1_core.policies.lora import add_lora, lora_layers
from gotr1_core.runs.restore import restore
from gotr1_core.runs.start import train
from gotr1_core.samples import PLAN, Sample, Sampling, SegmentName
from gotr1_core.workflows.export import export
from gotr1_core.workflows.model_card import Card, Piece


class Letters:
    """Scores the share of letters in a chain. A random policy gets different rewards from it."""

    rewards: Mapping[str, SegmentName] = {"letters": PLAN}

    def __init__(self, options: None = None) -> None:
        del options

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {"letters": [sum(c.isalpha() for c in s.chain.raw) / max(1, len(s.chain.raw)) for s in samples]}


@pytest.fixture(autouse=True, scope="module")
def letters() -> Iterator[None]:
    """Installs the judge as a plugin, so that the command line knows it too."""
    judge = Component("judge", "letters", f"{__name__}:Letters")
    point = SimpleNamespace(
        name="letters",
        load=lambda: SimpleNamespace(gotr1_components=lambda: [judge]),
        dist=SimpleNamespace(name="gotr1-letters", version="3"),
    )
    real = list(entry_points(group="gotr1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gotr1_core.border.discovery.installed_points", lambda: [*real, point])
        yield


def configured(base: Path, output: Path, **changed: Any) -> RunConfig:
    """The config of a run of two steps, with so high a learning rate that the adapters are far from zero."""
    data: dict[str, Any] = {
        "planner": {"name": "janus", "model": str(base), "instruction": "{prompt}", "attention": "eager"},
        "renderer": "janus",
        "judge": ["letters"],
        "reward": "letters",
        "prompts": {"source": "scenes", "held_out": 6},
        "steps": 2,
        "groups": 2,
        "plans": 4,
        "sampling": {"guidance_scale": 2.0, "max_chain_tokens": 8},
        "evaluation": {"every": 0, "prompts": 4},
        "checkpoint": {"every": 1},
        "optimizer": {"learning_rate": 0.3, "schedule": "constant"},
        "lora": {"rank": 2, "alpha": 4},
        "output": str(output),
        "name": "mine",
    }
    return validate(RunConfig, data | changed)


@pytest.fixture(scope="module")
def run(tiny_janus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters; do not change it."""
    return train(configured(tiny_janus, tmp_path_factory.mktemp("run")), registry=Registry(), cpu=True).folder


@pytest.fixture(scope="module")
def full(tiny_janus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of full weights, one step; do not change it."""
    config = configured(tiny_janus, tmp_path_factory.mktemp("full"), lora=None, steps=1, optimizer={"learning_rate": 0.01})
    return train(config, registry=Registry(), cpu=True).folder


def trained(checkpoint: Path, role: str = "planner") -> Any:
    """The library's model in memory, as the run left it."""
    _, parts, _ = restore(Registry(), checkpoint)
    return getattr(parts, role).module.model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Logits of random text. The attention kernel is fixed: a run's is set by its config, and a library may choose another."""
    getattr(model, "base_model", model).get_decoder().set_attn_implementation("eager")
    ids = torch.randint(12, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def base_logits(base: Path) -> torch.Tensor:
    from transformers import JanusForConditionalGeneration

    return logits(JanusForConditionalGeneration.from_pretrained(base, dtype="float32"))


def blocks(folder: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def put_base(tiny_janus: Path, out: Path) -> None:
    """Puts the base model's folder beside a card, as the card asks for."""
    assert f"the folder `{tiny_janus.name}`" in (out / "README.md").read_text()
    (out / tiny_janus.name).symlink_to(tiny_janus)


def drawn(command: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, bytes]]:
    """Chains and pictures of a `gotr1 generate` command."""
    assert call([*command, "-n", "3", "--seed", "5", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [(row["chain"], Path(row["image"]).read_bytes()) for row in rows]


# -- adapters ---------------------------------------------------------------------------------------------------------------


def test_the_card_s_code_loads_the_adapter(run: Path, tiny_janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, step = export(Registry(), run, tmp_path / "out")
    assert (checkpoint.parent.parent.resolve(), step) == (run.resolve(), 2)
    put_base(tiny_janus, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    found: dict[str, Any] = {}
    exec(blocks(tmp_path / "out", "python")[0], found)
    # The same products of the same float32 numbers by the same kernels: not a bit may differ.
    assert torch.equal(logits(found["model"]), logits(trained(checkpoint)))
    assert (logits(found["model"]) - base_logits(tiny_janus)).abs().max() > 1
    assert found["tokenizer"]("a cat").input_ids == found["AutoTokenizer"].from_pretrained(tiny_janus)("a cat").input_ids


def test_the_adapter_is_in_peft_s_own_format(run: Path, tiny_janus: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "out"
    export(Registry(), run, out)
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "config.yaml", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    config = json.loads((out / "adapter_config.json").read_text())
    linear = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    names = [f"model.language_model.layers.{i}.{name}" for i in range(2) for name in linear]
    assert config["target_modules"] == names
    assert config["base_model_name_or_path"] == tiny_janus.name
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["inference_mode"]) == ("LORA", 2, 4, True)
    keys = load_file(out / "adapter_model.safetensors").keys()
    assert keys == {f"base_model.model.{name}.lora_{side}.weight" for name in names for side in "AB"}
    expected = read_yaml(run / "config.yaml")
    expected["plugins"] = [Path(file).name for file in expected["plugins"]]
    expected["planner"]["model"], expected["output"] = tiny_janus.name, Path(expected["output"]).name
    assert read_yaml(out / "config.yaml") == expected


def test_long_lists_of_layers_stay_exact(policy: Any, tiny_janus: Path, tmp_path: Path) -> None:
    """From twenty names on, peft looks for shorter suffixes, when it makes adapters and when it loads them."""
    from peft import PeftModel
    from transformers import JanusForConditionalGeneration

    other = JanusForConditionalGeneration.from_pretrained(tiny_janus)
    for language in (policy.module.model.model.language_model, other.model.language_model):
        torch.manual_seed(0)
        language.layers.extend([*(type(language.layers[0])(language.config, i) for i in (2, 3))])
        language.config.num_hidden_layers = 4
    config = LoraConfig(rank=1)
    wanted = [name.removeprefix("model.") for name in lora_layers(policy.module, policy.lora_prefix, config)]
    add_lora(policy, config)
    with torch.no_grad():
        for name, parameter in policy.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    policy.save_adapter(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == wanted
    loaded = PeftModel.from_pretrained(other.eval(), tmp_path)
    adapted = {name.split(".lora_")[0] for name, _ in loaded.named_parameters() if "lora_" in name}
    assert adapted == {f"base_model.model.{name}" for name in wanted}
    assert len(adapted) == 28
    assert torch.equal(logits(loaded), logits(policy.module.model))


# -- merged weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "full"])
def test_the_card_s_code_loads_merged_weights(
    kind: str, request: pytest.FixtureRequest, tiny_janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    checkpoint, _ = export(Registry(), request.getfixturevalue(kind), out, merged=True)
    assert not (out / "adapter_config.json").exists()
    assert (out / "tokenizer.json").is_file()
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(blocks(out, "python")[0], found)
    assert "peft" not in blocks(out, "python")[0]
    # (W + BA) x for W x + B (A x): logits up to ten, each a sum of a few hundred float32 products, are 1e-5 apart.
    torch.testing.assert_close(logits(found["model"]), logits(trained(checkpoint)), atol=1e-4, rtol=0)
    assert (logits(found["model"]) - base_logits(tiny_janus)).abs().max() > 0.05
    assert not any("lora" in name for name in found["model"].state_dict())


@pytest.mark.parametrize("merged", [True, False])
def test_gotr1_draws_with_an_export_as_with_the_run(
    merged: bool, run: Path, tiny_janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command from the model card. Merging adapters rounds differently, which changes one token in 1e5; never for one seed on one
    machine."""
    out = tmp_path / "out"
    export(Registry(), run, out, merged=merged)
    monkeypatch.chdir(out)
    if not merged:
        put_base(tiny_janus, out)
        exec("".join(blocks(out, "python")), {})
    program, *command = shlex.split(blocks(out, "sh")[0])
    assert program == "gotr1"
    capsys.readouterr()
    found = drawn(command, tmp_path / "export", capsys)
    assert found == drawn(["generate", command[1], "--checkpoint", str(run)], tmp_path / "run", capsys)
    model = "planner.model=." if merged else "planner.model=merged"
    assert command.count(model) == 1
    base = [f"planner.model={tiny_janus}" if word == model else word for word in command]
    assert found != drawn(base, tmp_path / "base", capsys)


# -- two policies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tiny_janus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trains a planner and a separate renderer; do not change it."""
    renderer = {"name": "janus", "model": str(tiny_janus), "instruction": "{prompt} ", "attention": "eager"}
    config = configured(tiny_janus, tmp_path_factory.mktemp("pair"), renderer=renderer, steps=1)
    return train(config, registry=Registry(), cpu=True).folder


@pytest.mark.parametrize("merged", [True, False])
def test_two_policies_have_a_folder_each(
    merged: bool, pair: Path, tiny_janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export(Registry(), pair, out, merged=merged)
    assert {path.name for path in out.iterdir()} == {"planner", "renderer", "config.yaml", "README.md"}
    if not merged:
        put_base(tiny_janus, out)
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    code = blocks(out, "python")
    exec(code[0], found)
    own = [logits(trained(pair, role)) for role in ("planner", "renderer")]
    for role, expected in zip(("planner", "renderer"), own, strict=True):
        torch.testing.assert_close(logits(found[role]), expected, atol=1e-4, rtol=0)  # as above
    assert (own[0] - own[1]).abs().max() > 0.1  # they were trained apart
    exec("".join(code[1:]), found)
    capsys.readouterr()
    command = shlex.split(blocks(out, "sh")[0])[1:]
    expected_pictures = drawn(["generate", command[1], "--checkpoint", str(pair)], tmp_path / "run", capsys)
    assert drawn(command, tmp_path / "export", capsys) == expected_pictures


# -- the command ------------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_it_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run / "checkpoints" / "step-000001"
    (tmp_path / "out").mkdir()  # an empty folder is not in the way
    assert call(["export", str(one), str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"folder": str(tmp_path / "out"), "checkpoint": str(one), "step": 1}
    assert "*After* is after the last step, 2; this export is of step 1." in (tmp_path / "out" / "README.md").read_text()


def test_mistakes_are_reported_in_two_lines(run: Path, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    for path in damaged.glob("checkpoints/*/planner/trainable.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    without = tmp_path / "without"
    shutil.copytree(run, without)
    shutil.rmtree(without / "checkpoints")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    cases: list[tuple[list[Any], int, str, str]] = [
        ([tmp_path / "empty", out], 2, "neither a run with a checkpoint", "gotr1 train"),
        ([tmp_path / "nowhere", out], 2, "neither a run with a checkpoint", "gotr1 train"),
        ([without, out], 2, "checkpoint", ""),
        ([damaged, out], 2, "damaged", "another checkpoint"),
        ([full, out], 2, "trained full weights", "--merge"),
        ([run, tmp_path / "taken"], 2, "not an empty folder", "another folder"),
        ([run, tmp_path / "taken" / "file"], 2, "not an empty folder", "another folder"),
        ([run, tmp_path / "taken" / "file" / "below"], 2, "is not a folder that you can write to", "another folder"),
        ([run], 2, "Missing argument", "--help"),
    ]
    for arguments, status, message, hint in cases:
        assert call(["export", *map(str, arguments)]) == status
        shown = capsys.readouterr()
        *bars, error, advice = shown.err.splitlines()  # loading weights has a bar
        assert all("it/s" in line or not line.strip() for line in bars)
        assert error.startswith("error: ")
        assert message in error
        assert advice.startswith("hint: ")
        assert hint in advice
        assert shown.out == ""
    assert sorted(tmp_path.rglob("*")) == before


# -- the card ---------------------------------------------------------------------------------------------------------------

ENVIRONMENT = {"python": "3.11", "packages": {"torch": "2.9"}, "components": {"planner p": {"distribution": "gotr1-p", "version": "7"}}}


def card(folder: Path, base: str = "someone/model", held_out: Any = None, **changed: Any) -> str:
    """The model card of a run, without weights."""
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    if held_out is not None:
        (folder / "held-out.json").write_text(held_out if isinstance(held_out, str) else json.dumps(held_out))
    config = configured(Path(base), folder, **changed)
    piece = Piece("planner", ".", base, nn.Linear, "float32")
    return Card(folder, config, Sampling(max_chain_tokens=8), 2, (piece,), unified=True, merged=config.lora is None).text()


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_front_matter(tmp_path: Path) -> None:
    tags = ["gotr1", "text-to-image", "reinforcement-learning"]
    found = front_matter(card(tmp_path))
    assert found == {"base_model": "someone/model", "library_name": "peft", "tags": [*tags, "lora"]}
    assert front_matter(card(tmp_path, lora=None)) == {"base_model": "someone/model", "library_name": "torch", "tags": tags}
    assert "base_model" not in front_matter(card(tmp_path, str(tmp_path)))  # a folder says nothing to others


def test_the_card_says_what_was_trained(tmp_path: Path) -> None:
    text = card(tmp_path, algorithm={"name": "grpo", "scale": False}, reward="letters * 0.5")
    for part in ("`someone/model`", "one policy: LoRA of rank 2 and alpha 4 (layers: all-linear)", "`grpo` with `{scale: false}`"):
        assert part in text
    for part in ("`letters`", "`letters * 0.5`", "source `scenes`", "2 of 2", "2 × 4 × 1", "0.3, constant", "- torch 2.9", "gotr1-p 7"):
        assert part in text
    assert "license" not in text
    assert "what one policy plans, not what it draws: full weights" in card(tmp_path, lora=None, train="planner")
    assert "LoRA" not in card(tmp_path, lora=None)


def test_scores_come_with_their_intervals(tmp_path: Path) -> None:
    prompts = {"prompts": [[str(i), "a cat"] for i in range(4)]}
    rows = {
        "before": {"reward": [0.0, 1.0, 0.5, None], "bright": [None] * 4},
        "before, greedy": {"reward": [0.5] * 4, "bright": [0.25] * 4},
        "after": {"reward": [0.5, 1.0, 1.0, 1.0], "bright": [0.5] * 4},
    }
    lines = card(tmp_path, held_out={name: prompts | row for name, row in rows.items()}).splitlines()
    assert "| score | before | before, greedy | after | change |" in lines
    assert "| reward | 0.500 [0.000, 1.000] | 0.500 | 0.875 [0.625, 1.000] | +0.333 [+0.000, +0.500] |" in lines
    assert "| bright | – | 0.250 | 0.500 | – |" in lines
    assert any(line.startswith("4 held-out prompts, one sample each (temperature 1, guidance scale 2)") for line in lines)


def test_a_run_without_scores_says_so(tmp_path: Path) -> None:
    assert "None: the run had not ended" in card(tmp_path)
    assert "None: the run had not ended" in card(tmp_path, held_out={"before": {"reward": [nan]}})


@pytest.mark.parametrize("text", ["{", "[1]", '{"before": 1, "after": 2}', '{"before": {"reward": [1]}, "after": {"reward": [1, 2]}}'])
def test_damaged_scores(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"held-out\.json is damaged") as caught:
        card(tmp_path, held_out=text)
    assert caught.value.hint is not None
