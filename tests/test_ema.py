"""The moving average of the weights: its values, who uses it, and that checkpoints contain it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gotr1_core.components.build import build
from gotr1_core.config.models import RunConfig
from gotr1_core.engine.ema import EMA
from gotr1_core.engine.tensors import gather_to_cpu
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import EMA_FILE, TRAINABLE, complete_checkpoints
from gotr1_core.runs.restore import restore

Make = Callable[..., RunConfig]


def module(values: list[float], dtype: torch.dtype = torch.float32) -> nn.Module:
    found = nn.Module()
    found.trained = nn.Parameter(torch.tensor(values, dtype=dtype))
    found.frozen = nn.Parameter(torch.tensor(values, dtype=dtype), requires_grad=False)
    return found


def walk(target: nn.Module, average: EMA, steps: list[float], first: int = 1) -> None:
    for number, step in enumerate(steps, first):
        target.trained.data += step
        average.update(number)


def test_the_average_follows_the_recursion_of_an_ema() -> None:
    """e' = k e + (1 - k) w with k = min(decay, (1 + n) / (10 + n)), compared with plain Python. 1e-15 allows a few roundings of float64."""
    target = module([1.0], torch.float64)
    average = EMA(target, 0.5)
    weight = expected = 1.0
    for n in range(1, 31):
        walk(target, average, [0.1 * n], n)
        weight += 0.1 * n
        kept = min(0.5, (1 + n) / (10 + n))  # the ramp reaches 0.5 with the eighth update
        expected = kept * expected + (1 - kept) * weight
    assert average.tensors.keys() == {"trained"}
    assert average.tensors["trained"].item() == pytest.approx(expected, rel=1e-15)


def test_half_precision_loses_no_small_steps() -> None:
    """bfloat16 has no number between 256 and 258: an average in bfloat16 would never change."""
    target = module([256.0], torch.bfloat16)
    average = EMA(target, 0.9)
    walk(target, average, [2.0] + [0.0] * 5)
    assert average.tensors["trained"].dtype == torch.float32
    assert 257 < average.tensors["trained"].item() < 258
    before = average.tensors["trained"].clone()
    with average.active():
        assert target.trained.dtype == torch.bfloat16
    assert torch.equal(average.tensors["trained"], before)  # lending it rounds the copy, not the average


def test_the_weights_come_back_also_after_an_error() -> None:
    target = module([1.0, -2.0])
    average = EMA(target, 0.9)
    walk(target, average, [1.0])

    def fail() -> None:
        with average.active():
            assert torch.equal(target.trained.detach(), average.tensors["trained"])
            assert target.trained.tolist() != [2.0, -1.0]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.trained.tolist() == [2.0, -1.0]


def test_it_resumes_where_it_stopped(tmp_path: Path) -> None:
    one = module([1.0])
    whole = EMA(one, 0.9)
    walk(one, whole, [0.5, 0.25])
    save_file(gather_to_cpu(whole.tensors), tmp_path / EMA_FILE)
    other = module([1.75])
    again = EMA(other, 0.9)
    again.load(tmp_path / EMA_FILE)
    for target, average in ((one, whole), (other, again)):
        walk(target, average, [1.0], 3)
    assert torch.equal(whole.tensors["trained"], again.tensors["trained"])
    again.load(tmp_path / "none")  # the run that is resumed had no average
    assert torch.equal(again.tensors["trained"], other.trained.detach())


# -- in a run ---------------------------------------------------------------------------------------------------------------


def averaging(make: Make, **changed: Any) -> RunConfig:
    return make(optimizer={"learning_rate": 0.01, "schedule": "constant", "ema": 0.9}, **changed)


def test_rollouts_are_the_policy_s_and_evaluations_the_average_s(make: Make, tmp_path: Path) -> None:
    """Compared with the same run without an average: steps are equal to the bit; evaluations after two steps differ."""
    plain = start.train(make(output=str(tmp_path), name="plain"), cpu=True)
    run = start.train(averaging(make, output=str(tmp_path), name="averaged"), cpu=True)
    for name in ("reward", "gradient_norm", "plan.kl"):
        assert [row.get(name) for row in steps(plain.folder)] == [row.get(name) for row in steps(run.folder)]
    last = [complete_checkpoints(folder)[3] / "planner" for folder in (plain.folder, run.folder)]
    weights, same = (load_file(folder / TRAINABLE) for folder in last)
    assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())
    assert not (last[0] / EMA_FILE).exists()
    before, after = (json.loads((folder / "held-out.json").read_text()) for folder in (plain.folder, run.folder))
    assert before["before"] == after["before"]
    assert before["after"] != after["after"]


def steps(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "evaluation" not in row]


def test_commands_load_the_average_of_a_run(make: Make, tmp_path: Path) -> None:
    """generate, evaluate, score and export load the average. A resumed run continues with the weights themselves."""
    run = start.train(averaging(make, output=str(tmp_path), name="run"), cpu=True)
    last = complete_checkpoints(run.folder)[3]
    average, own = load_file(last / "planner" / EMA_FILE), load_file(last / "planner" / TRAINABLE)
    assert any(not torch.equal(average[name], own[name]) for name in own)
    _, parts, _ = restore(Registry(), last)
    found = dict(parts.planner.module.named_parameters())  # type: ignore[attr-defined]
    assert all(torch.equal(found[name], tensor) for name, tensor in average.items())


def test_an_evaluation_does_not_change_the_policy(registry: Registry, make: Make, tmp_path: Path) -> None:
    from accelerate import Accelerator

    from gotr1_core.components.prompts import prompts_of

    config = averaging(make, output=str(tmp_path))
    trainer = Trainer(config, build(registry, config), prompts_of(registry, config.prompts)[0], Accelerator(cpu=True))
    trainer.step(0)
    [learner] = trainer.learners.values()
    own = {name: p.detach().clone() for name, p in learner.module.named_parameters()}
    trainer.evaluate_prompts(prompts_of(registry, config.prompts)[1][:2])
    assert all(torch.equal(p, own[name]) for name, p in learner.module.named_parameters())
