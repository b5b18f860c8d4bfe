"""The loop: whole runs on the tiny Janus, what they write to disk, and what stops them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

import gotr1_core.loop as loop
from gotr1_core.batch import Batch
from gotr1_core.components.build import build
from gotr1_core.components.prompts import prompts_of
from gotr1_core.config.models import make_sampling
from gotr1_core.doctor.rules import examine_run
from gotr1_core.evaluation import evaluate
from gotr1_core.hookspecs import hookimpl
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry
from gotr1_core.rollout import RolloutSettings
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import read_state
from gotr1_core.runs.restore import restore
from gotr1_core.samples import Prompt, Sample


class Listed:
    """A source that gives the prompts of a pattern in turn."""

    def __init__(self, pattern: Sequence[str]) -> None:
        self.pattern = pattern

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return [Prompt(f"{self.pattern[i % len(self.pattern)]} {i}", str(i)) for i in range(start, start + count)]


@pytest.fixture
def trainer(registry: Registry, make: Any) -> Any:
    def started(source: Any = None, **changed: Any) -> Trainer:
        config = make(**changed)
        torch.manual_seed(0)  # peft draws A from the global generator
        return Trainer(config, build(registry, config), source or prompts_of(registry, config.prompts)[0], Accelerator(cpu=True))

    return started


class Heard:
    """A listener that keeps what it hears of steps and evaluations."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, str]] = []
        self.metrics: list[Mapping[str, float]] = []
        self.samples: dict[tuple[str, int, str], Sequence[Sample]] = {}

    @hookimpl
    def gotr1_step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        self.events.append(("step", step, ""))
        self.metrics.append(metrics)

    @hookimpl
    def gotr1_evaluated(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        self.events.append(("evaluated", step, name))
        self.samples["evaluated", step, name] = samples


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parts.planner.module.named_parameters()}


def same(one: Sequence[Sample], other: Sequence[Sample]) -> bool:
    rows = zip(one, other, strict=True)
    return all(a.chain == b.chain and a.image.tobytes() == b.image.tobytes() and a.scores == b.scores for a, b in rows)  # type: ignore[union-attr]


# -- a whole run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_a_run_of_three_steps(registry: Registry, make: Any, tmp_path: Path, lora: Any) -> None:
    """Prompts and the judge of the embedded world, and a reward that a random policy can earn. Everything is restored from disk."""
    settings: dict[str, Any] = {"judge": ["scenes", "values"], "reward": "value * bright + pi / 10", "lora": lora, "updates": 2}
    settings |= {"evaluation": {"every": 2, "prompts": 4, "metric": "value", "greedy": True, "best_of": 2}}
    settings |= {"segments": {"plan": {"kl": 0.01}, "image": {"weight": 0.5, "kl": 0.01}}, "output": str(tmp_path), "name": "one"}
    config, heard = make(**settings), Heard()
    run = start.train(config, registry=registry, listeners=[heard], cpu=True)
    repeats = json.loads((run.folder / "environment.json").read_text())["prompts"]
    assert (repeats["training"], repeats["held_out"]) == (0, 6)

    before = [("evaluated", 0, "before"), ("evaluated", 0, "before, greedy"), ("evaluated", 0, "before, best of 2")]
    steps = [("step", 1, ""), ("step", 2, ""), ("evaluated", 2, "held-out"), ("step", 3, ""), ("evaluated", 3, "after")]
    assert heard.events == before + steps
    held_out = run.records.held_out
    assert held_out.keys() == {"before", "before, greedy", "before, best of 2", "after"}
    assert all(len(column) == 6 for row in held_out.values() for column in row.values())
    assert {"value", "bright", "pi", "ri", "sem", "spa", "correct", "reward"} <= held_out["after"].keys()
    for row in heard.metrics:
        assert row["plan.worst_sampler_gap"] <= 1e-4
        assert row["image.worst_sampler_gap"] <= 1e-4
        assert {"seconds.rollout", "seconds.forward", "seconds.update", "plan.kl", "image.entropy", "reward.value"} <= row.keys()
        assert sum(v for k, v in row.items() if k.startswith("seconds.")) >= 0.85 * row["seconds"]
    assert heard.metrics[2]["plan.kl"] > 0

    scores = [sum(s.scores["value"] for s in heard.samples[event][:4]) / 4 for event in (steps[2], steps[4])]
    state = read_state(run.folder / "checkpoints" / "step-000003")
    assert state["step"] == 3
    assert state["best"] == {"step": 2 if scores[0] >= scores[1] else 3, "score": pytest.approx(max(scores))}
    found, parts, sampling = restore(registry, run.folder / "checkpoints" / "step-000003", with_judges=True)
    assert found == config
    assert sampling == make_sampling(config.sampling)
    prompts = prompts_of(registry, config.prompts)[1]
    how = RolloutSettings(sampling, seed=(config.evaluation.seed,), chunk=64)
    again = evaluate(parts.planner, parts.renderer, parts.judges, prompts, how)
    assert same(heard.samples[steps[4]], again)
    set_seed(config.seed)  # as for the run: peft draws A from the global generator
    untrained = build(registry, config)
    base = evaluate(untrained.planner, untrained.renderer, untrained.judges, prompts, how)
    assert not same(heard.samples[steps[4]], base)
    assert same(heard.samples[before[0]], base)
    first, last = (dict(found.planner.module.named_parameters()) for found in (untrained, parts))
    changed = {name for name, parameter in last.items() if not torch.equal(parameter, first[name])}
    assert changed
    assert all("lora_" in name for name in changed) == bool(lora)


def test_runs_repeat(trainer: Any) -> None:
    """The same config gives the same bits: rewards and parameters."""
    found = []
    for _ in range(2):
        one = trainer()
        rewards = [one.step(step)[1].rewards for step in range(2)]
        found.append((rewards, parameters(one)))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert all(torch.equal(p, found[1][1][name]) for name, p in found[0][1].items())
    other = trainer(seed=1)
    assert not torch.equal(other.step(0)[1].rewards, found[0][0][0])


def test_every_step_has_new_prompts_and_samples(trainer: Any) -> None:
    one = trainer()
    batches = [one.step(step)[1] for step in range(2)]
    ids = [p.id for b in batches for p in b.prompts]
    assert len(set(ids)) == 6
    assert one.at.drawn == 6


def test_a_run_learns(trainer: Any) -> None:
    """Ten steps that reward letters: the sampled reward rises by more than three standard errors of its own noise."""
    one = trainer(reward="letters", groups=4, plans=8, optimizer={"learning_rate": 0.01, "schedule": "constant"})
    rewards = [one.step(step)[0]["reward"] for step in range(12)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


# -- what trains ------------------------------------------------------------------------------------------------------------


def test_training_the_planner_of_a_unified_policy_is_the_plan_loss_alone(trainer: Any) -> None:
    found = []
    for settings in ({"train": "planner"}, {"segments": {"image": {"weight": 0}}}, {}):
        one = trainer(**settings)
        one.step(0)
        found.append(parameters(one))
    planner, weightless, both = found
    assert all(torch.equal(p, weightless[name]) for name, p in planner.items())
    head = "model.model.generation_head.vision_head.weight"
    assert not torch.equal(planner[head], both[head])
    assert torch.equal(planner[head], parameters(trainer())[head])


@pytest.mark.parametrize(
    ("train", "reward", "drawn"),
    [("planner", "letters", False), ("planner", "letters * bright", True), ("renderer", "letters", True), ("both", "letters", True)],
)
def test_a_step_draws_pictures_if_a_score_or_a_renderer_needs_them(trainer: Any, train: str, reward: str, drawn: bool) -> None:
    assert (trainer(train=train, reward=reward).sample_batch(1).images is not None) is drawn


@pytest.mark.parametrize("settings", [{"train": "renderer"}, {"segments": {"plan": {"weight": 0}}}])
def test_the_image_alone(trainer: Any, settings: Any) -> None:
    one = trainer(**settings)
    start = parameters(one)
    metrics, _ = one.step(0)
    after = parameters(one)
    assert torch.equal(start["model.lm_head.weight"], after["model.lm_head.weight"])
    assert not torch.equal(start["model.model.generation_head.vision_head.weight"], after["model.model.generation_head.vision_head.weight"])
    assert "plan.ratio" not in metrics


def test_frozen_parts_stay(trainer: Any) -> None:
    one = trainer()
    start = parameters(one)
    one.step(0)
    frozen = [name for name in start if any(part in name for part in ("vqmodel", "vision_model", ".aligner", "generation_embeddings"))]
    assert frozen
    assert all(torch.equal(start[name], p) for name, p in parameters(one).items() if name in frozen)


def test_a_planner_and_a_renderer_of_their_own(trainer: Any, tiny_janus: Path) -> None:
    """Two policies: two modules, two optimizers, and chains passed on as text."""
    other = {"name": "janus", "model": str(tiny_janus), "instruction": "{prompt}", "attention": "sdpa"}
    one = trainer(renderer=other, renderer_optimizer={"learning_rate": 0.001})
    assert not one.parts.unified
    assert one.learners.keys() == {"planner", "renderer"}
    assert one.learners["renderer"].settings.learning_rate == 0.001
    start = [{n: p.detach().clone() for n, p in part.module.named_parameters()} for part in (one.parts.planner, one.parts.renderer)]
    metrics, _ = one.step(0)
    assert metrics["planner.plan.worst_sampler_gap"] <= 1e-4
    assert metrics["renderer.image.worst_sampler_gap"] <= 1e-4
    for part, before in zip((one.parts.planner, one.parts.renderer), start, strict=True):
        assert any(not torch.equal(p, before[n]) for n, p in part.module.named_parameters())


# -- groups without a difference --------------------------------------------------------------------------------------------


def updated_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    seen: list[Batch] = []
    original = loop.update

    def watched(*arguments: Any) -> dict[str, float]:
        seen.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(loop, "update", watched)
    return seen


@pytest.mark.parametrize(("how", "updated", "drawn"), [("keep", 3, 3), ("skip", 2, 3), ("refill", 3, 5)])
def test_constant_groups(trainer: Any, monkeypatch: pytest.MonkeyPatch, how: str, updated: int, drawn: int) -> None:
    """Prompts 1 and 3 have no difference in rewards: one of them is in the step, and with refill one is among the new prompts."""
    seen = updated_batches(monkeypatch)
    one = trainer(Listed(["go", "flat"]), constant_groups=how)
    metrics, batch = one.step(0)
    texts = [p.text for p in seen[0].prompts]
    assert len(texts) == updated
    assert sum("flat" in text for text in texts) == (how == "keep")
    assert one.at.drawn == drawn
    assert len(batch.prompts) == drawn
    assert metrics["constant_groups"] == pytest.approx(sum("flat" in p.text for p in batch.prompts) / drawn)


def test_refill_gives_up(trainer: Any) -> None:
    one = trainer(Listed(["flat"]), constant_groups="refill", refill_limit=2)
    start = parameters(one)
    one.step(0)
    assert one.at.drawn == 6
    assert all(torch.equal(p, start[name]) for name, p in parameters(one).items())


def found_in(one: Trainer, steps: int) -> list[str]:
    """The doctor's findings in the metrics of some steps."""
    rows = [{"step": step + 1, **one.step(step)[0]} for step in range(steps)]
    return [f"{finding.rule.name}: {finding.measured}" for finding in examine_run(rows, one.config) if finding.rule.stops]


@pytest.mark.parametrize("how", ["keep", "skip"])
def test_runs_without_any_difference_stop(trainer: Any, how: str) -> None:
    one = trainer(Listed(["flat"]), constant_groups=how, constant_limit=3)
    assert found_in(one, 2) == []
    assert found_in(one, 3) == ["constant rewards: for 3 steps all samples of every prompt had the same reward"]


def test_a_difference_in_between_starts_the_count_again(trainer: Any) -> None:
    assert found_in(trainer(Listed(["flat"] * 6 + ["go"] * 3), constant_limit=3), 5) == []


def test_runs_without_rewards_stop(trainer: Any) -> None:
    one = trainer(Listed(["missing", "missing", "go"]), nan_limit=0.5)
    assert found_in(one, 1) == ["missing rewards: 67% of the samples have no reward (missing: value)"]


def test_some_missing_rewards_do_not_stop_a_run(trainer: Any) -> None:
    one = trainer(Listed(["missing", "go", "go"]), nan_limit=0.5)
    metrics, _ = one.step(0)
    assert metrics["nan"] == pytest.approx(1 / 3)
    assert math.isfinite(metrics["reward"])
    assert all(p.isfinite().all() for p in parameters(one).values())
