"""The renderers in real runs: a renderer that trains alone, metrics of each step, what is written, and the commands."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gotr1_core.cli.main import call
from gotr1_core.components.build import make_component
from gotr1_core.config.models import ComponentConfig, RunConfig, validate
from gotr1_core.engine.tensors import fingerprint
from gotr1_core.judges import Judges
from gotr1_core.plugins import Registry
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.runs.checkpoint import complete_checkpoints
from gotr1_core.runs.restore import restore
from gotr1_core.runs.start import train
from gotr1_core.samples import Prompt, Rollout, Sampling
from gotr1_testing.subject import CHAINS, PROMPTS

PLUGIN = Path(__file__).parent / "boxes_plugin.py"
SAMPLING = {"guidance_scale": 2.0, "denoising_steps": 4}
OWN: dict[str, dict[str, Any]] = {"sdxl": {}, "flow": {"text_tokens": 20}}


def configured(name: str, base: Path, output: Path, **changed: Any) -> RunConfig:
    data: dict[str, Any] = {
        "plugins": [str(PLUGIN)],
        "planner": "boxes",
        "renderer": {"name": name, "model": str(base), **OWN[name]},
        "judge": "red",
        "reward": "boxed * red",
        "prompts": {"source": "scenes", "held_out": 4},
        "train": "renderer",
        "steps": 2,
        "groups": 3,
        "plans": 4,
        "images": 2,
        "updates": 2,
        "micro_batch": 5,
        "rollout_groups": 2,
        "sampling": SAMPLING,
        "evaluation": {"every": 0, "prompts": 4},
        "segments": {"image": {"kl": 0.01, "clip_low": 1e-4, "clip_high": 1e-4}},
        "renderer_optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
        "lora": None,
        "output": str(output),
        "name": "mine",
    }
    return validate(RunConfig, data | changed)


def ran(name: str, base: Path, output: Path, **changed: Any) -> tuple[Path, list[dict[str, float]]]:
    """A run's folder and its steps' metrics."""
    folder = train(configured(name, base, output, **changed), registry=Registry(), cpu=True).folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return folder, [row for row in rows if "seconds" in row]


@pytest.fixture(params=["sdxl", "flow"])
def base(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], tuple[Path, list[dict[str, float]]]]:
    """Gives a renderer's run without changes. It is made once for the tests here, which only read it."""
    return cache(lambda name, base: ran(name, base, tmp_path_factory.mktemp("plain")))


def restored(folder: Path) -> Any:
    return restore(Registry(), folder)[1].renderer


def test_a_renderer_learns_alone(base: tuple[str, Path], plain: Callable[..., Any]) -> None:
    name, model = base
    folder, steps = plain(name, model)
    assert len(steps) == 2
    assert 0 < steps[0]["pruned"] < 1
    for row in steps:
        assert row["image.worst_sampler_gap"] < 1e-3  # float32, over deviations down to a tenth, guided
        reported = {m[1] for key in row if (m := re.fullmatch(r"image\.step_(\d)\.ratio", key))}
        assert reported
        for step in reported:
            assert row[f"image.step_{step}.ratio"] == pytest.approx(1, abs=0.3)  # the last step has little noise
            assert row[f"image.step_{step}.normalised_ratio"] == pytest.approx(1, abs=0.03)
            assert 0 <= row[f"image.step_{step}.clipped"] <= 1
        assert max(row[f"image.step_{step}.clipped"] for step in reported) > 0  # the second update leaves so narrow a clip
    assert all(row["image.kl"] > 0 for row in steps)  # after the first of two updates
    trained = restored(folder / "checkpoints" / "step-000002").module  # the best may be the untrained model
    fresh = restored_base(name, model).module
    changed = {
        n.split(".")[0]
        for (n, a), (_, b) in zip(trained.state_dict().items(), fresh.state_dict().items(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"model"}


def restored_base(name: str, model: Path) -> Any:
    return make_component(Registry(), "renderer", ComponentConfig(name=name, model=str(model), **OWN[name]))


@pytest.mark.parametrize("changed", [{"rollout_groups": 1}, {"micro_batch": 12}, {"gradient_checkpointing": True}])
def test_chunks_and_micro_batches_do_not_change_what_is_learnt(
    tiny_sdxl: Path, tmp_path: Path, plain: Callable[..., Any], changed: dict[str, Any]
) -> None:
    """Chunks, micro-batches and gradient checkpointing change nothing, up to the rounding of two steps."""
    (_, before), (_, after) = plain("sdxl", tiny_sdxl), ran("sdxl", tiny_sdxl, tmp_path, **changed)
    for one, other in zip(before, after, strict=True):
        names = {n for n in one.keys() & other.keys() if n.startswith("image.step_")} | {"gradient_norm", "image.kl"}
        assert len(names) > 5
        for n in names:
            assert other[n] == pytest.approx(one[n], rel=2e-2, abs=2e-2), n
        assert other["reward"] == pytest.approx(one["reward"], abs=2e-3)


def test_pruning_changes_no_other_picture(tiny_sdxl: Path) -> None:
    """The other pictures and their trained steps stay the same."""
    registry = Registry()
    registry.add_file(PLUGIN)
    planner, judge = (make_component(registry, kind, ComponentConfig(name=name)) for kind, name in (("planner", "boxes"), ("judge", "red")))
    judges = Judges({"red": judge}, Expression.parse("boxed * red"))
    prompts, how = [Prompt(text) for text in ("a", "b", "c")], RolloutSettings(Sampling(**SAMPLING), seed=(0, 1), plans=4, images=2)
    renderer = restored_base("sdxl", tiny_sdxl)
    pruned, whole = (roll_out(planner, renderer, judges, prompts, replace(how, prune=prune)) for prune in (True, False))
    assert pruned.images is not None
    assert whole.images is not None
    assert 0 < len(pruned.images) < len(whole.images) == 24
    one, other = pruned.images.tensors, {name: tensor[pruned.place] for name, tensor in whole.images.tensors.items()}
    assert torch.equal(one["step"], other["step"])
    torch.testing.assert_close(one["after"], other["after"], rtol=0, atol=1e-4)  # rounding in a batch of another size
    groups = pruned.place // 8
    assert all(len(one["step"][groups == k].unique(dim=0)) == 1 for k in range(3))


def test_one_update_has_the_ratio_one(tiny_sdxl: Path, tmp_path: Path) -> None:
    _, steps = ran("sdxl", tiny_sdxl, tmp_path, updates=1, steps=1, algorithm={"name": "grpo", "normalise": True})
    found = {key: value for key, value in steps[0].items() if key.endswith("ratio")}
    assert len(found) > 3
    assert set(found.values()) == {1.0}


def test_ppo_has_no_features_to_value(tiny_sdxl: Path, tmp_path: Path) -> None:
    from gotr1_core.errors import UsageError

    with pytest.raises(UsageError, match="has no features"):
        ran("sdxl", tiny_sdxl, tmp_path, algorithm="ppo")


def test_without_noise_nothing_can_train(tiny_sdxl: Path, tmp_path: Path) -> None:
    from gotr1_core.errors import UsageError

    with pytest.raises(UsageError, match="too few of the 4 denoising steps have noise"):
        ran("sdxl", tiny_sdxl, tmp_path, sampling=SAMPLING | {"image_temperature": 0.0})


def test_greedy_evaluation_draws_without_noise(tiny_sdxl: Path, tmp_path: Path) -> None:
    folder, _ = ran("sdxl", tiny_sdxl, tmp_path, steps=1, evaluation={"every": 0, "prompts": 4, "greedy": True})
    held_out = json.loads((folder / "held-out.json").read_text(encoding="utf-8"))
    assert held_out["before"]["red"] != held_out["before, greedy"]["red"]


# -- on disk ----------------------------------------------------------------------------------------------------------------


def pictures(policy: Any) -> np.ndarray:
    rollout: Rollout = policy.render(PROMPTS[:3], CHAINS, seeds=[1, 2, 3], sampling=Sampling(**SAMPLING))  # type: ignore[arg-type]
    return np.stack([np.asarray(image, int) for image in rollout.images])


def test_what_is_saved_draws_the_same(base: tuple[str, Path], tmp_path: Path) -> None:
    """Full weights give the same bits."""
    name, model = base
    policy = restored_base(name, model)
    with torch.no_grad():
        for parameter in policy.module.model.parameters():
            parameter.mul_(1.05)
    policy.save(tmp_path / "saved")
    again = restored_base(name, tmp_path / "saved")
    assert fingerprint(again.module) == fingerprint(policy.module)
    assert np.array_equal(pictures(again), pictures(policy))
    assert type(again.pipeline.scheduler) is type(policy.pipeline.scheduler)


def with_adapters(name: str, model: Path) -> Any:
    from gotr1_core.config.models import LoraConfig
    from gotr1_core.policies.lora import add_lora

    policy = restored_base(name, model)
    add_lora(policy, LoraConfig(rank=2, alpha=6.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for n, parameter in policy.module.named_parameters():
            if "lora_B" in n:
                parameter.normal_(std=0.1)
    return policy


def test_adapters_are_merged_and_loaded(base: tuple[str, Path], tmp_path: Path) -> None:
    """A few pixels differ by one level of 255: the same sums in another order."""
    name, model = base
    policy = with_adapters(name, model)
    expected = pictures(policy)
    assert np.abs(expected - pictures(restored_base(name, model))).mean() > 1
    policy.save(tmp_path / "merged")
    assert np.abs(pictures(restored_base(name, tmp_path / "merged")) - expected).max() <= 1
    assert np.array_equal(pictures(policy), expected)  # saving changed nothing
    policy.save_adapter(tmp_path / "adapter")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["pytorch_lora_weights.safetensors"]
    other = restored_base(name, model)
    other.pipeline.load_lora_weights(tmp_path / "adapter")
    assert np.abs(pictures(other) - expected).max() <= 1


def test_an_export_is_loaded_by_its_card(base: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, model = base
    rate = {"learning_rate": 0.05, "schedule": "constant"}
    folder, _ = ran(name, model, tmp_path, steps=1, lora={"rank": 2, "alpha": 4}, renderer_optimizer=rate)
    folder = folder / "checkpoints" / "step-000001"  # the best may be the untrained model
    trained = restored(folder)
    out = tmp_path / "out"
    assert call(["--plugin", str(PLUGIN), "export", str(folder), str(out)]) == 0
    monkeypatch.chdir(out)
    card = (out / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "library_name: diffusers" in card
    assert f"the folder `{model.name}`" in card  # the base model, which only its owner has
    (out / model.name).symlink_to(model)
    space: dict[str, Any] = {}
    exec(code[0], space)
    loaded = restored_base(name, model)
    setattr(loaded.pipeline, loaded.denoiser, getattr(space["pipeline"], loaded.denoiser))
    loaded._set_up(space["pipeline"], loaded.options, "cpu")
    expected = pictures(trained)
    assert np.abs(expected - pictures(restored_base(name, model))).mean() > 0.5
    assert np.abs(pictures(loaded) - expected).max() <= 1
    exec(code[1], space)  # merges, for gotr1 to draw with
    assert np.abs(pictures(restored_base(name, out / "merged")) - expected).max() <= 1


def test_a_checkpoint_holds_what_trains(tiny_sdxl: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder, _ = ran("sdxl", tiny_sdxl, tmp_path, steps=1)
    (kept,) = complete_checkpoints(folder).values()
    names = load_file(kept / "renderer" / "trainable.safetensors").keys()
    assert names
    assert all(n.startswith("model.") for n in names)


# -- commands ---------------------------------------------------------------------------------------------------------------


def test_check_runs(tiny_sdxl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "check",
        "renderer",
        "sdxl",
        f"model={tiny_sdxl}",
        "--only",
        "log-probs-match-sampler",
        "--only",
        "groups-have-one-window",
        "--json",
    ]
    assert call(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in found] == ["ok", "ok"]
    assert all(math.isfinite(row["measured"]) for row in found)


def test_stage_one_resumes_where_it_stopped(tiny_sdxl: Path, tmp_path: Path) -> None:
    policy = f"policy={{name: sdxl, model: '{tiny_sdxl}', train_text: true}}"
    words = [
        policy,
        "kind=renderer",
        "data={name: scenes, side: 64}",
        "batch=3",
        "micro_batch=2",
        "save_every=2",
        "optimizer.learning_rate=1e-3",
    ]
    assert call(["sft", *words, "steps=2", f"output={tmp_path / 'a'}", "optimizer.schedule=constant"]) == 0
    for steps in (2, 3):
        assert call(["sft", *words, f"steps={steps}", f"output={tmp_path / 'b'}", "optimizer.schedule=constant"]) == 0
    assert call(["sft", *words, "steps=3", f"output={tmp_path / 'a'}", "optimizer.schedule=constant"]) == 0
    one, other = (restored_base("sdxl", tmp_path / which / "model" / "weights").module.state_dict() for which in "ab")
    assert all(torch.equal(one[n], other[n]) for n in one)
    before = restored_base("sdxl", tiny_sdxl).module.state_dict()
    learnt = {n.split(".")[0] for n in one if not torch.equal(one[n], before[n])}
    assert learnt == {"model", "text_encoders"}


def test_registering_imports_nothing_heavy() -> None:
    heavy = "{'torch','numpy','PIL','diffusers','transformers','peft','accelerate'}"
    program = f"import sys, gotr1_diffusers.plugin as p; list(p.gotr1_components()); print(*({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip() == ""


def test_both_are_registered() -> None:
    names = {provided.component.name for provided in Registry().of_kind("renderer")}
    assert {"sdxl", "flow"} <= names
