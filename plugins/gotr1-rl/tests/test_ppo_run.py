"""PPO on the tiny Janus: its features, whole steps, exact resuming, and refused settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor

from gotr1_core.components.build import build
from gotr1_core.components.prompts import prompts_of
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Component
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry
from gotr1_core.runs.trainer_state import load_trainer, save_trainer
from gotr1_core.samples import IMAGE, PLAN, Sample, SegmentName

PPO = {"name": "ppo", "value_learning_rate": 0.01, "value_width": 8, "reward_kl": 0.05, "reward_kl_target": 2.0}


class Lengths:
    """A reward that differs from chain to chain. It is NaN for all chains of one length."""

    rewards: Mapping[str, SegmentName] = {"length": PLAN}

    def __init__(self, options: None = None) -> None:
        del options

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        del names
        sizes = [len(sample.chain.raw) for sample in samples]
        return {"length": [float("nan") if size == 3 else (size % 5) / 4 for size in sizes]}


class Equal(Lengths):
    """A constant reward."""

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {"length": [0.5] * len(samples)}


@pytest.fixture
def trainer(tiny_janus: Path) -> Callable[..., Trainer]:
    registry = Registry()
    judges = [Component("judge", c.__name__.lower(), f"{c.__module__}:{c.__name__}", None, "of the tests") for c in (Lengths, Equal)]
    registry.add(SimpleNamespace(gotr1_components=lambda: judges), "tests")

    def made(**changed: Any) -> Trainer:
        data: dict[str, Any] = {
            "planner": {"name": "janus", "model": str(tiny_janus), "instruction": "{prompt}", "attention": "eager"},
            "renderer": "janus",
            "judge": "lengths",
            "reward": "length",
            "algorithm": PPO,
            "prompts": {"source": "scenes", "held_out": 6},
            "steps": 4,
            "groups": 4,
            "plans": 1,
            "images": 2,
            "micro_batch": 2,
            "updates": 2,
            "nan_limit": 0.9,
            "sampling": {"guidance_scale": 2.0, "max_chain_tokens": 8},
            "evaluation": {"every": 0, "prompts": 4},
            "optimizer": {"learning_rate": 0.003, "schedule": "constant"},
            "lora": None,
        }
        config = validate(RunConfig, data | changed)
        set_seed(config.seed)
        return Trainer(config, build(registry, config), prompts_of(registry, config.prompts)[0], Accelerator(cpu=True))

    return made


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that a step changes: parameters, the critic, the optimizer's moments."""
    learner = trainer.learners["planner"]
    assert learner.critic is not None
    moments = learner.optimizer.state_dict()["state"]
    found = {f"policy.{name}": p for name, p in learner.module.named_parameters()}
    found |= {f"critic.{name}": t for name, t in learner.critic.module.state_dict().items()}
    found |= {f"optimizer.{i}.{name}": t for i, values in moments.items() for name, t in values.items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_features_are_of_the_state_before_each_action(trainer: Any) -> None:
    """The plan's head and the picture's head, on the features at a position, give the distribution that its action was drawn from."""
    made = trainer(sampling={"guidance_scale": 1.0, "max_chain_tokens": 8})
    batch = made.sample_batch(0)
    module = made.parts.planner.module
    with torch.no_grad():
        scored = module({PLAN: batch.plans, IMAGE: batch.images})
    for name, head in ((PLAN, module.model.lm_head), (IMAGE, module.model.model.generation_head)):
        rollout = batch.plans if name == PLAN else batch.images
        mask, tokens = rollout.tensors["mask"], rollout.tensors["tokens"]
        assert scored[name].features.shape == (*mask.shape, made.parts.planner.features)
        log_prob = torch.log_softmax(head(scored[name].features).float(), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        # The same product of another batch shape, and the sampler's own: float32 rounding of logits of order 10.
        torch.testing.assert_close(log_prob[mask], rollout.tensors["log_prob"][mask], rtol=0, atol=2e-5)


def test_a_run_resumes_exactly(trainer: Any, tmp_path: Path) -> None:
    whole = trainer()
    for step in range(4):
        whole.step(step)
    half = trainer()
    for step in range(2):
        half.step(step)
        half.at.step += 1
    folder = save_trainer(half, tmp_path, rows=0)
    saved = load_file(folder / "planner" / "critic.safetensors")
    assert saved["adapted"].item() == pytest.approx(0.98 * 1.02)  # below its target in the first step, far above in the second
    assert "layers.1.weight" in saved
    resumed = trainer()
    assert not same(state(resumed), state(half))
    load_trainer(resumed, folder)
    assert same(state(resumed), state(half))
    for step in range(2, 4):
        resumed.step(step)
    assert same(state(resumed), state(whole))
    assert resumed.learners["planner"].updates == 8


def test_a_checkpoint_of_another_head_is_refused(trainer: Any, tmp_path: Path) -> None:
    made = trainer(updates=1)
    made.step(0)
    folder = save_trainer(made, tmp_path, rows=0)
    with pytest.raises(UsageError, match="does not fit the algorithm's critic"):
        load_trainer(trainer(algorithm={**PPO, "value_width": 4}), folder)


def test_micro_batches_change_neither_advantages_nor_gradient(trainer: Any) -> None:
    found = []
    for size in (4, 1):
        made = trainer(micro_batch=size, updates=1)
        learner = made.learners["planner"]
        start = state(made)
        groups = [{"params": group["params"]} for group in learner.optimizer.param_groups]
        learner.optimizer = torch.optim.SGD(groups, lr=1.0)  # Adam divides gradients by their size, rounding included
        metrics = made.step(0)[0]
        found.append((metrics, {n: t - start[n] for n, t in state(made).items() if n in start and t.dtype == torch.float32}))
    (metrics, one), (other_metrics, other) = found
    assert metrics["gradient_norm"] > 1e-3
    for name in ("gradient_norm", "value_gradient_norm", "plan.return", "image.explained_variance", "reward_kl"):
        assert metrics[name] == pytest.approx(other_metrics[name], rel=1e-3, abs=1e-6), name
    for name, moved in one.items():
        # Float32 sums in another order and batch shape, as a share of the largest entry.
        assert (moved - other[name]).abs().max() <= 1e-3 * max(moved.abs().max().item(), 1e-4), name


@pytest.mark.parametrize("advantages", ["joint", "split"])
@pytest.mark.parametrize("train", ["both", "planner", "renderer"])
def test_every_segment_and_kind_of_advantages_steps(trainer: Any, advantages: str, train: str) -> None:
    made = trainer(algorithm={**PPO, "advantages": advantages, "value_warmup": 1}, train=train)
    first, second = made.step(0)[0], made.step(1)[0]
    trained = {"both": {PLAN, IMAGE}, "planner": {PLAN}, "renderer": {IMAGE}}[train]
    for name in (PLAN, IMAGE):
        assert (f"{name}.value_loss" in second) == (name in trained)
        if name in trained:
            assert second[f"{name}.worst_sampler_gap"] <= 1e-4
    assert first["gradient_norm"] == 0 < first["value_gradient_norm"]
    assert second["gradient_norm"] > 0
    assert first["reward_kl"] == pytest.approx(0, abs=1e-4)
    assert first["reward_kl_weight"] == pytest.approx(0.05)
    assert second["reward_kl_weight"] == pytest.approx(0.05 * (1 - 0.2 * 0.1))  # below its target


def test_values_need_features(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gotr1_janus.policy import JanusPolicy

    made = JanusPolicy.__init__

    def without(self: JanusPolicy, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        del self.features

    monkeypatch.setattr(JanusPolicy, "__init__", without)
    with pytest.raises(UsageError, match="the planner has no features") as refused:
        trainer()
    assert "algorithm=grpo" in (refused.value.hint or "")


def test_one_sample_per_prompt_is_enough_unless_all_rewards_are_equal(trainer: Any) -> None:
    metrics = trainer(images=1).step(0)[0]
    assert metrics["idle"] == 0
    assert "constant_groups" not in metrics  # a doctor would take it for a finding
    assert trainer(images=1, judge="equal").step(0)[0]["idle"] == 1
