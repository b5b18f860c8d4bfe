"""A gradient that is not finite is never applied, and weights that are not finite are never saved or loaded."""

from __future__ import annotations

import json
import math
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import processes_driver as driver

from gotr1_core.cli.main import call
from gotr1_core.components.build import build
from gotr1_core.engine.collectives import make_accelerator
from gotr1_core.engine.optim import clip_gradients, step_if_finite
from gotr1_core.engine.tensors import first_not_finite, optimizer_tensors, trainable_tensors
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.loop import Trainer
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import EMA_FILE, OPTIMIZER, TRAINABLE, complete_checkpoints, new_checkpoint, read_state
from gotr1_core.runs.recorder import Run

ALL = set(range(100))


def trainer(lost: set[int], **changed: Any) -> Trainer:
    """A trainer whose losses of some steps are NaN."""
    torch.manual_seed(0)
    settings = driver.config(**changed)
    made = Trainer(settings, build(driver.registry(), settings), driver.Turn("abcd"), make_accelerator("no", cpu=True))
    driver.lose_gradients(made, lost)
    return made


def state_of(made: Trainer) -> dict[str, torch.Tensor]:
    """Everything that an update changes: weights, moments, the average, the critic."""
    (learner,) = made.learners.values()
    critic = {f"critic.{name}": t.clone() for name, t in learner.critic.module.state_dict().items()} if learner.critic else {}
    average = {f"ema.{name}": t.clone() for name, t in learner.ema.tensors.items()} if learner.ema else {}
    moments = {f"optimizer.{name}": t.clone() for name, t in optimizer_tensors(learner.optimizer).items()}
    return {name: t.clone() for name, t in trainable_tensors(learner.module).items()} | moments | average | critic


@pytest.mark.parametrize("changed", [{}, driver.PPO], ids=["grpo", "ppo"])
def test_a_lost_gradient_changes_nothing_but_the_schedule(changed: Any) -> None:
    made = trainer({1}, **changed)
    states = [state_of(made)]
    rows = []
    for step in range(3):
        rows.append(made.step(step)[0])
        made.at.step += 1
        states.append(state_of(made))
    assert [row.get("skipped_updates") for row in rows] == [None, 2.0, None]
    assert [math.isfinite(row["gradient_norm"]) for row in rows] == [True, False, True]
    assert made.learners["planner"].updates == 6
    # The adapted weight of PPO's penalty is no part of an update: it follows the divergence that was measured, which is finite.
    changed_by = [{name for name in b if name not in a or not torch.equal(a[name], b[name])} for a, b in pairwise(states)]
    assert changed_by[1] <= {"critic.adapted"}
    assert {name.partition(".")[0] for name in changed_by[2]} >= {"optimizer", "ema"}
    assert first_not_finite(states[-1]) is None


def test_a_critic_whose_gradient_is_lost_changes_nothing_either() -> None:
    made = trainer(set(), **driver.PPO)
    (learner,) = made.learners.values()
    assert learner.critic is not None
    hook = next(iter(learner.critic.module.parameters())).register_hook(lambda gradient: gradient * math.inf)
    before = state_of(made)
    row, _ = made.step(0)
    assert (row["skipped_updates"], math.isfinite(row["gradient_norm"]), math.isfinite(row["value_gradient_norm"])) == (2.0, True, False)
    after = state_of(made)
    assert [name for name in after if name in before and not torch.equal(after[name], before[name])] in ([], ["critic.adapted"])
    hook.remove()
    assert "skipped_updates" not in made.step(1)[0]


def test_a_divergence_that_is_not_finite_leaves_ppos_penalty_as_it_is() -> None:
    made = trainer(set(), **driver.PPO)
    algorithm: Any = made.parts.algorithm
    (learner,) = made.learners.values()
    estimate = algorithm.estimate

    def lost(experience: Any, critic: Any, total: Any) -> Any:
        experience.old["plan"][:] = math.nan
        return estimate(experience, critic, total)

    algorithm.estimate = lost
    made.step(0)
    assert learner.critic is not None
    assert learner.critic.module.adapted == 1.0  # type: ignore[union-attr]


def test_a_run_of_lost_gradients_stops_and_saves_nothing_bad(tmp_path: Path) -> None:
    settings = driver.config(output=str(tmp_path), name="x", steps=20, updates=1, skipped_limit=4, checkpoint={"every": 1})
    parts = build(driver.registry(), settings)
    loss = parts.algorithm.loss

    def spoiled(*given: Any) -> Any:
        found = loss(*given)
        return replace(found, sums={name: value * math.nan for name, value in found.sums.items()})

    parts.algorithm.loss = spoiled  # type: ignore[method-assign]
    before = {name: tensor.clone() for name, tensor in trainable_tensors(parts.planner.module).items()}
    with pytest.raises(Gotr1Error, match="only skipped updates: the gradients of 4 updates in a row are not finite") as caught:
        start.train(settings, parts=parts, **driver.RUN)
    assert "bfloat16" in str(caught.value.hint)
    assert list(complete_checkpoints(tmp_path / "x")) == [2, 3]
    saved = load_file(tmp_path / "x" / "checkpoints" / "step-000003" / "planner" / TRAINABLE)
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())
    rows = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_updates"] for row in rows if "seconds" in row] == [1.0] * 4
    assert call(["doctor", str(tmp_path / "x")]) == 1


# -- fp16 -------------------------------------------------------------------------------------------------------------------


def test_float16_lowers_its_scale_where_it_skips() -> None:
    """With the real gradient scaler. accelerate makes it on a GPU only."""
    accelerator = Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    accelerator.scaler = scaler
    module = nn.Linear(2, 1)
    optimizer: Any = AcceleratedOptimizer(torch.optim.AdamW(module.parameters(), lr=0.1), scaler=scaler)
    scales = []
    for factor in (math.inf, math.nan, 1.0, 1.0):
        weight = module.weight.detach().clone()
        scaler.scale(module(torch.ones(1, 2)).sum() * factor).backward()
        accelerator._optimizers = [optimizer]
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
        scaler.unscale_(optimizer.optimizer)
        taken = step_if_finite(accelerator, optimizer, [clip_gradients(module.parameters(), 1.0)])
        assert taken == (factor == 1.0)
        assert torch.equal(weight, module.weight) == (factor != 1.0)
        assert module.weight.grad is None
        scales.append(scaler.get_scale())
    assert scales == [2.0**15, 2.0**14, 2.0**14, 2.0**15]
    accelerator.state._mixed_precision = "no"


# -- checkpoints ------------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    made = trainer(set())
    run = Run(tmp_path, made.config, driver.registry().manager)
    with closing(run.records):
        run.save(made)
        made.at.step = 1
        (learner,) = made.learners.values()
        name, weight = next((n, p) for n, p in learner.module.named_parameters() if p.requires_grad)
        with torch.no_grad():
            weight.view(-1)[0] = math.nan
        with pytest.raises(
            Gotr1Error, match=f"no checkpoint is written: {name} of planner/trainable.safetensors has a number that is not fin"
        ):
            run.save(made)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000"]
        with torch.no_grad():
            weight.view(-1)[0] = 1.0
            assert learner.ema is not None
            next(iter(learner.ema.tensors.values())).view(-1)[0] = -math.inf
        with pytest.raises(Gotr1Error, match=f"of planner/{EMA_FILE} has a number"):
            run.save(made)


@pytest.mark.parametrize("name", [TRAINABLE, OPTIMIZER, EMA_FILE])
def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path: Path, name: str) -> None:
    """Whole by its manifest, as an older version may have written it."""
    settings = driver.config(output=str(tmp_path), name="x", steps=2, evaluation={"every": 0})
    run = start.train(settings, **driver.RUN).folder
    last = complete_checkpoints(run)[2]
    tensors = load_file(last / "planner" / name)
    key = sorted(key for key in tensors if tensors[key].dim())[0]
    state = {path.relative_to(last): path.read_bytes() for path in last.rglob("*") if path.is_file()}
    with new_checkpoint(run, 2) as part:
        for path, content in state.items():
            (part / path).parent.mkdir(exist_ok=True)
            (part / path).write_bytes(content)
        save_file(tensors | {key: tensors[key] * math.nan}, part / "planner" / name)
        (part / "manifest.json").unlink()
    assert read_state(last)["step"] == 2
    with pytest.raises(UsageError, match=f"{name} cannot be used: its {key} has a number that is not finite"):
        start.resume(run, ["steps=3"], **driver.RUN)
