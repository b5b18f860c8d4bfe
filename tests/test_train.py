"""The loop: whole runs on the tiny Janus, what they leave on disk, and what stops them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import gotr1_core.train as loop
from gotr1_core.build import build, make_sampling
from gotr1_core.checkpoint import read_state
from gotr1_core.config import RunConfig, dump, validate
from gotr1_core.errors import Gotr1Error
from gotr1_core.evaluate import evaluate
from gotr1_core.hookspecs import Component
from gotr1_core.plugins import Registry
from gotr1_core.restore import restore
from gotr1_core.rollout import Batch
from gotr1_core.samples import PLAN, Prompt, Sample, SegmentName
from gotr1_core.train import Trainer, train


class Values:
    """A judge of the prompt's kind: ``flat`` ones have one value, ``missing`` ones none, others depend on the chain."""

    rewards: Mapping[str, SegmentName] = {"value": PLAN}

    def __init__(self, options: None = None) -> None:
        del options

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {"value": [self.one(s) for s in samples]}

    def one(self, sample: Sample) -> float:
        if "missing" in sample.prompt.text:
            return math.nan
        return 0.5 if "flat" in sample.prompt.text else (sum(map(ord, sample.chain.raw)) % 97) / 97


class Listed:
    """A source that gives the prompts of a pattern in turn."""

    def __init__(self, pattern: Sequence[str]) -> None:
        self.pattern = pattern

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return [Prompt(f"{self.pattern[i % len(self.pattern)]} {i}", str(i)) for i in range(start, start + count)]


@pytest.fixture
def registry(letters_judge: Any) -> Registry:
    """The installed plugins, and one more with judges that a random policy gets rewards from."""
    found = Registry()
    judges = {"letters": type(letters_judge), "values": Values}
    components = [Component("judge", name, f"{kind.__module__}:{kind.__name__}", None, "of the tests") for name, kind in judges.items()]
    found.add(SimpleNamespace(gotr1_components=lambda: components), "tests")
    return found


@pytest.fixture
def make(tiny_janus: Path, registry: Registry) -> Any:
    def configured(**changed: Any) -> RunConfig:
        data: dict[str, Any] = {
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
            "optimizer": {"rate": 0.01, "schedule": "constant"},
            "lora": None,
        }
        return validate(RunConfig, data | changed)

    return configured


@pytest.fixture
def trainer(registry: Registry, make: Any) -> Any:
    def started(source: Any = None, **changed: Any) -> Trainer:
        from gotr1_core.build import training_prompts

        config = make(**changed)
        torch.manual_seed(0)  # peft draws A from the global generator
        return Trainer(config, build(registry, config), source or training_prompts(registry, config.prompts), Accelerator(cpu=True))

    return started


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parts.planner.module.named_parameters()}


def same(one: Sequence[Sample], other: Sequence[Sample]) -> bool:
    rows = zip(one, other, strict=True)
    return all(a.chain == b.chain and a.image.tobytes() == b.image.tobytes() and a.scores == b.scores for a, b in rows)  # type: ignore[union-attr]


# -- a whole run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_a_run_of_three_steps(registry: Registry, make: Any, trainer: Any, tmp_path: Path, lora: Any) -> None:
    """Prompts and the judge of the embedded world, and a reward a random policy can get; all of it is restored from disk."""
    from gotr1_core.build import held_out_prompts

    settings: dict[str, Any] = {"judge": ["scenes", "letters"], "reward": "letters * bright + pi / 10", "lora": lora}
    settings |= {"evaluation": {"every": 2, "prompts": 4, "metric": "letters", "greedy": True, "best_of": 2}, "updates": 2}
    settings |= {"segments": {"plan": {"kl": 0.01}, "image": {"weight": 0.5, "kl": 0.01}}}
    begun = trainer(**settings)
    config, start = begun.config, parameters(begun)
    (tmp_path / "config.yaml").write_text(dump(config))
    held_out = held_out_prompts(registry, config.prompts)
    heard: list[tuple[str, Mapping[str, Any]]] = []
    result = train(begun, held_out, tmp_path, lambda event, data: heard.append((event, data)))

    events = [(event, data["step"], data.get("name")) for event, data in heard]
    before = [("evaluated", 0, "before"), ("evaluated", 0, "before, greedy"), ("evaluated", 0, "before, best of 2")]
    steps = [("step", 0, None), ("step", 1, None), ("evaluated", 2, ""), ("step", 2, None), ("evaluated", 3, "after")]
    assert events == before + steps
    assert result["rows"].keys() == {"before", "before, greedy", "before, best of 2", "after"}
    assert all(len(column) == 6 for row in result["rows"].values() for column in row.values())
    assert {"letters", "bright", "pi", "ri", "sem", "spa", "correct", "reward"} <= result["rows"]["after"].keys()
    metrics = [data["metrics"] for event, data in heard if event == "step"]
    for row in metrics:
        assert row["plan.worst_deviation"] <= 1e-4
        assert row["image.worst_deviation"] <= 1e-4
        assert {"seconds.rollout", "seconds.scoring", "seconds.update", "plan.kl", "image.entropy", "reward.letters"} <= row.keys()
        assert sum(v for k, v in row.items() if k.startswith("seconds.")) >= 0.85 * row["seconds"]
    assert metrics[2]["plan.kl"] > 0
    changed = {name for name, p in parameters(begun).items() if not torch.equal(p, start[name])}
    assert changed
    assert all("lora_" in name for name in changed) == bool(lora)

    after = next(data["samples"] for event, data in heard if data.get("name") == "after")
    scores = [sum(s.scores["letters"] for s in d["samples"][:4]) / 4 for e, d in heard if e == "evaluated" and d["step"] > 0]
    last, best = (read_state(tmp_path / "checkpoints" / name) for name in ("last", "best"))
    assert last["step"] == 3
    assert last["letters"] == pytest.approx(scores[-1])
    assert best["letters"] == pytest.approx(max(scores))
    assert best["step"] == (2 if scores[0] >= scores[1] else 3)
    found, parts, sampling = restore(registry, tmp_path / "checkpoints" / "last")
    assert found == config
    assert sampling == make_sampling(config.sampling)
    again = evaluate(parts.planner, parts.renderer, parts.judges, held_out, sampling=sampling, seed=config.evaluation.seed)
    assert same(after, again)
    untrained = build(registry, config)
    base = evaluate(untrained.planner, untrained.renderer, untrained.judges, held_out, sampling=sampling, seed=config.evaluation.seed)
    assert not same(after, base)
    assert restore(registry, tmp_path)[0] == config  # a run's folder means its best checkpoint


def test_runs_repeat(trainer: Any) -> None:
    """Same config, same bits: rewards and parameters."""
    found = []
    for _ in range(2):
        one = trainer()
        rewards = [one.step(step)[1].totals for step in range(2)]
        found.append((rewards, parameters(one)))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert all(torch.equal(p, found[1][1][name]) for name, p in found[0][1].items())
    other = trainer(seed=1)
    assert not torch.equal(other.step(0)[1].totals, found[0][0][0])


def test_every_step_has_new_prompts_and_samples(trainer: Any) -> None:
    one = trainer()
    batches = [one.step(step)[1] for step in range(2)]
    ids = [p.id for b in batches for p in b.prompts]
    assert len(set(ids)) == 6
    assert one.drawn == 6


def test_a_run_learns(trainer: Any) -> None:
    """Ten steps towards letters: the sampled reward rises by more than three standard errors of its own noise."""
    one = trainer(judge=["letters"], reward="letters", groups=4, plans=8, optimizer={"rate": 0.01, "schedule": "constant"})
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
    """Two policies: two modules, two optimizers, and chains handed over as text."""
    other = {"name": "janus", "model": str(tiny_janus), "instruction": "{prompt}", "attention": "sdpa"}
    one = trainer(renderer=other, renderer_optimizer={"rate": 0.001})
    assert not one.parts.unified
    assert one.learners.keys() == {"planner", "renderer"}
    assert one.learners["renderer"].settings.rate == 0.001
    start = [{n: p.detach().clone() for n, p in part.module.named_parameters()} for part in (one.parts.planner, one.parts.renderer)]
    metrics, _ = one.step(0)
    assert metrics["planner.plan.worst_deviation"] <= 1e-4
    assert metrics["renderer.image.worst_deviation"] <= 1e-4
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
    """Prompt 1 and 3 have no difference: one in the step, and for refill one among the new prompts."""
    seen = updated_batches(monkeypatch)
    one = trainer(Listed(["go", "flat"]), constant_groups=how)
    metrics, batch = one.step(0)
    texts = [p.text for p in seen[0].prompts]
    assert len(texts) == updated
    assert sum("flat" in text for text in texts) == (how == "keep")
    assert one.drawn == drawn
    assert len(batch.prompts) == drawn
    assert metrics["constant_groups"] == pytest.approx(sum("flat" in p.text for p in batch.prompts) / drawn)


def test_refill_gives_up(trainer: Any) -> None:
    one = trainer(Listed(["flat"]), constant_groups="refill", refill_limit=2)
    start = parameters(one)
    one.step(0)
    assert one.drawn == 6
    assert all(torch.equal(p, start[name]) for name, p in parameters(one).items())


@pytest.mark.parametrize("how", ["keep", "skip"])
def test_runs_without_any_difference_stop(trainer: Any, how: str) -> None:
    one = trainer(Listed(["flat"]), constant_groups=how, constant_limit=3)
    one.step(0)
    one.step(1)
    with pytest.raises(Gotr1Error, match="same reward") as caught:
        one.step(2)
    assert caught.value.hint


def test_a_difference_in_between_starts_the_count_again(trainer: Any) -> None:
    one = trainer(Listed(["flat"] * 6 + ["go"] * 3), constant_limit=3)
    for step in range(5):
        one.step(step)
    assert one.idle == 2


def test_runs_without_rewards_stop(trainer: Any) -> None:
    one = trainer(Listed(["missing", "missing", "go"]), nan_limit=0.5)
    with pytest.raises(Gotr1Error, match=r"67% of the samples have no reward \(value"):
        one.step(0)


def test_some_missing_rewards_do_not_stop_a_run(trainer: Any) -> None:
    one = trainer(Listed(["missing", "go", "go"]), nan_limit=0.5)
    metrics, _ = one.step(0)
    assert metrics["nan"] == pytest.approx(1 / 3)
    assert math.isfinite(metrics["reward"])
    assert all(p.isfinite().all() for p in parameters(one).values())
