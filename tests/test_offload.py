"""Offload: only the model at work is on the device. Results stay equal, and the right model is moved at the right time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from gotr1_core import loop, rollout
from gotr1_core.components.build import build
from gotr1_core.components.preflight import check
from gotr1_core.components.prompts import prompts_of
from gotr1_core.errors import UsageError
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry
from gotr1_core.protocols import Policy
from gotr1_core.rollout import swap

APART = {"chunk": 64}  # an option of its own makes the renderer a policy of its own


@pytest.fixture
def started(registry: Registry, make: Any) -> Any:
    def start(cpu: bool = True, **changed: Any) -> Trainer:
        plain = make()
        config = make(**{"renderer": {**plain.planner.model_dump(), **APART}, "lora": {"rank": 2}, **changed})
        torch.manual_seed(0)  # peft draws A from the global generator
        accelerator = Accelerator(cpu=cpu)
        parts = build(registry, config, device=accelerator.device)
        return Trainer(config, parts, prompts_of(registry, config.prompts)[0], accelerator)

    return start


def trained(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{role}.{name}": p.detach().cpu().clone()
        for role, policy in trainer.parts.policies().items()
        for name, p in policy.module.named_parameters()
        if p.requires_grad
    }


def test_offloading_moves_the_working_model_and_changes_no_result(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, plain = started(offload=True), started()
    seen: list[str] = []

    def watched(device: torch.device, working: Policy, *, idle: Policy) -> None:
        names = {id(policy): role for role, policy in trainer.parts.policies().items()}
        seen.append(names[id(working)])
        assert names[id(working)] != names[id(idle)]
        swap(device, working, idle=idle)

    monkeypatch.setattr(loop, "swap", watched)
    monkeypatch.setattr(rollout, "swap", watched)
    for step in range(2):
        trainer.step(step)
        plain.step(step)
    assert seen == 2 * ["planner", "renderer", "planner", "renderer"]
    one, other = trained(trainer), trained(plain)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    seen.clear()
    trainer.evaluate_prompts(trainer.source.prompts("validation", 2, 0))
    assert seen == ["planner", "renderer"]


@pytest.mark.gpu
def test_on_a_gpu_the_idle_model_is_in_main_memory(started: Any) -> None:
    trainer = started(cpu=False, offload=True)
    for step in range(2):
        trainer.step(step)
    planner, renderer = (policy.module for policy in trainer.parts.policies().values())
    assert {p.device.type for p in planner.parameters()} == {"cpu"}
    assert {p.device.type for p in renderer.parameters()} == {"cuda"}
    moments = [v for s in trainer.learners["planner"].optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    assert moments
    assert {m.device.type for m in moments} == {"cpu"}


def test_one_policy_in_both_roles_has_nothing_to_offload(registry: Registry, make: Any) -> None:
    with pytest.raises(UsageError, match="offload: planner and renderer are one policy"):
        check(registry, make(offload=True))


def test_shards_are_not_moved(registry: Registry, make: Any) -> None:
    with pytest.raises(UsageError, match="shard=true and offload=true"):
        check(registry, make(offload=True, shard=True, lora=None), 2)
